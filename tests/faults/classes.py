"""The table of fault classes: what strikes, whose operator is shared, and which differences the fault itself explains."""

from __future__ import annotations

from dataclasses import dataclass

BOTH = ("FineTuneJob", "ModelServe")


@dataclass(frozen=True)
class FaultClass:
    """One line of the table: the fault strikes at each write of a whole run of both kinds."""

    name: str
    fault: str  # of proxy.Fault, or of pods.BEFALLS
    times: int = 1
    together: bool = True  # with the other classes behind one operator; else its cases have an operator to themselves
    at_once: int = 40  # cases that share an operator at a time
    jobs: int = 0  # so many Jobs more are made and removed, as the fault took a pod
    of: str = "writes"  # it strikes each of these of a run: writes, reads, pods


CLASSES = (
    FaultClass("crash after the write", "crash", together=False, at_once=12),
    FaultClass("committed, then cut", "cut"),
    FaultClass("lost on the way", "lost"),
    FaultClass("doubled", "doubled"),
    FaultClass("409 Conflict", "409"),
    FaultClass("422 Invalid", "422"),
    FaultClass("429 with Retry-After", "429"),
    FaultClass("500, three times", "500", times=3),
    FaultClass("403 Forbidden", "403"),
    FaultClass("504, not committed", "504"),
    FaultClass("504, committed", "504 after"),
    FaultClass("reply held for 40 s", "held"),
    FaultClass("write arrives after 40 s", "late"),
    FaultClass("read answered 500", "500", of="reads"),
    FaultClass("read answered 404", "404", of="reads"),
    FaultClass("read lost", "lost", of="reads"),
    FaultClass("watches tell late", "behind", together=False, at_once=12),
    FaultClass("watches cut", "watches cut", together=False, at_once=12),
    FaultClass("watches cut, 410", "watches gone", together=False, at_once=12),
    FaultClass("restart on old lists", "old lists", together=False, at_once=12),
    FaultClass("pod starts late", "slow", of="pods"),
    FaultClass("pod ends without a report", "silent", jobs=2, of="pods"),
    FaultClass("pod evicted", "evicted", jobs=1, of="pods"),
    FaultClass("pod killed", "killed", jobs=1, of="pods"),
    FaultClass("pod deleted", "deleted", jobs=1, of="pods"),
    FaultClass("pod preempted", "preempted", jobs=1, of="pods"),
)
