"""What befalls one pod of a case: the n-th that its namespace sees. Every other pod does well."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Awaitable, Callable

from tests.faults.stage import Object, Refused, Stage, ended, is_engine, is_gate, now, ready, running
from tests.waiting import lasts

from finetune_operator.resources import RESOURCES

SLOW_SECONDS = 6.0
SEEN_SECONDS = 60.0
Befall = Callable[[Stage, Object], Awaitable[bool]]  # whether nothing more is to come of the pod


async def _runs(stage: Stage, pod: Object) -> None:
    """It runs, and whoever waits for that has seen it."""
    space, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    await stage.say(pod, running(pod))

    def seen() -> bool:
        found = stage.get(space, "Pod", name)
        return found is None or found["status"].get("phase") == "Running"

    await stage.until(space, seen, SEEN_SECONDS)


async def _slow(_stage: Stage, _pod: Object) -> bool:
    await lasts(SLOW_SECONDS)
    return False


async def _silent(stage: Stage, pod: Object) -> bool:
    """It ends as it would and reports nothing; an engine runs and is not ready for a while."""
    if is_engine(pod):
        status = running(pod)
        await stage.say(pod, {**status, "conditions": []})
        await lasts(SLOW_SECONDS)
        return False
    await _runs(stage, pod)
    stage.commit(pod)
    await stage.say(pod, ended(pod, (await stage.ending(pod))[0] if is_gate(pod) else 0, ""))
    return True


async def _evicted(stage: Stage, pod: Object) -> bool:
    await _runs(stage, pod)
    text = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi."
    conditions = ready(now(), "False")
    await stage.say(
        pod, {"phase": "Failed", "reason": "Evicted", "message": text, "conditions": conditions, "containerStatuses": []}
    )
    return True


async def _killed(stage: Stage, pod: Object) -> bool:
    """SIGKILL, by nobody who says why."""
    if is_engine(pod):  # the kubelet starts it again
        return False
    await _runs(stage, pod)
    await stage.say(pod, ended(pod, 128 + signal.SIGKILL, ""))
    return True


async def _deleted(stage: Stage, pod: Object) -> bool:
    await _runs(stage, pod)
    return await _deleted_as_it_is(stage, pod)


async def _preempted(stage: Stage, pod: Object) -> bool:
    """Told by a condition before it is deleted, as the scheduler does."""
    target = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "lastTransitionTime": now()}
    message = {"message": "default-scheduler: preempting to accommodate a higher priority pod"}
    await stage.say(pod, {**running(pod), "conditions": [target | message]})
    return await _deleted_as_it_is(stage, pod)


async def _deleted_as_it_is(stage: Stage, pod: Object) -> bool:
    with contextlib.suppress(Refused):
        await stage.request("DELETE", RESOURCES["Pod"].path(pod["metadata"]["namespace"], pod["metadata"]["name"]))
    return True


BEFALLS: dict[str, Befall] = {
    "slow": _slow,
    "silent": _silent,
    "evicted": _evicted,
    "killed": _killed,
    "deleted": _deleted,
    "preempted": _preempted,
}


class Nth:
    """Befalls the n-th pod, counted from 1."""

    def __init__(self, stage: Stage, at: int, befall: Befall | None) -> None:
        self._stage = stage
        self._at = at
        self._befall = befall
        self.seen = 0
        self.struck = ""  # the pod's name

    async def __call__(self, pod: Object) -> bool:
        self.seen += 1
        if self._befall is None or self.seen != self._at:
            return False
        self.struck = pod["metadata"]["name"]
        return await self._befall(self._stage, pod)
