"""What one pass reads and what it decides: the values between the Kubernetes client and the pure policies.

    reads(object) ─► Reads ─► cluster reads them ─► Observed ─► decide(object, observed, settings, now) ─► Decision ─► applied

A policy is a module with the two functions `reads` and `decide` (finetunejob.policy, modelserve.policy). It never waits:
what a decision causes is seen in the next pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from finetune_operator.meta import Condition, Object, seconds_since
from finetune_operator.names import FIELD_MANAGER
from finetune_operator.settings import Settings
from finetune_trainer.contract.reasons.operator import OperatorReason

SHORTEST_LOOK_AGAIN, LONGEST_LOOK_AGAIN = 2.0, 300.0
TOGETHER_SECONDS = 15.0  # in which all that is applied together has come, in whatever order


@dataclass(frozen=True)
class Ref:
    """One object by name, in the namespace of the object that is reconciled."""

    kind: str  # PersistentVolumeClaim, ConfigMap, Secret, FineTuneJob, ModelServe, Service, …
    name: str


NOT_FOUND = {
    "ConfigMap": OperatorReason.ConfigMapNotFound,
    "PersistentVolumeClaim": OperatorReason.ClaimNotFound,
    "Secret": OperatorReason.SecretNotFound,
}


@dataclass(frozen=True)
class Reads:
    """Children are listed by label and kind; what the spec refers to is read by name (never listed). Of the kinds that are
    `learnt`, the names are known only to whoever decides.
    """

    labels: dict[str, str]
    kinds: tuple[str, ...]
    named: tuple[Ref, ...] = ()
    learnt: tuple[str, ...] = ()


class Unread(Exception):
    """A policy looked at what is read only when somebody looks: read it, and decide again."""

    def __init__(self, ref: Ref) -> None:
        super().__init__(ref)
        self.ref = ref


class Named(Mapping[Ref, Object | None]):
    """What the spec refers to. Most passes look at none of it, and then it costs no request."""

    def __init__(self, known: Mapping[Ref, Object | None], unread: Iterable[Ref] = (), learnt: Iterable[str] = ()) -> None:
        self._known = known
        self._unread = frozenset(unread)
        self._learnt = frozenset(learnt)

    def __getitem__(self, ref: Ref) -> Object | None:
        if ref in self._unread or (ref.kind in self._learnt and ref not in self._known):
            raise Unread(ref)
        return self._known[ref]

    def __iter__(self) -> Iterator[Ref]:
        return iter((*self._known, *self._unread))

    def __len__(self) -> int:
        return len(self._known) + len(self._unread)


def nothing_named(_uri: str) -> frozenset[str]:
    """No object names a uri below this one."""
    return frozenset()


@dataclass(frozen=True)
class Observed:
    """The world as one pass saw it. `progress` holds the last line that each running pod printed, by pod name; `named_below`
    looks all our objects through for uris below one, which few passes have a use for."""

    children: dict[str, tuple[Object, ...]] = field(default_factory=dict)
    named: Mapping[Ref, Object | None] = field(default_factory=dict)
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)
    paced: tuple[str, ...] = ()  # namespaces of other objects that are at what is done by turns
    unserved: frozenset[str] = frozenset()  # kinds that this cluster does not have
    named_below: Callable[[str], frozenset[str]] = nothing_named


@dataclass(frozen=True)
class Create:
    """POST once. If the name exists with our owner's uid it is taken as ours; with another owner it is an error."""

    body: Object


@dataclass(frozen=True)
class Apply:
    """Server-side apply with our field manager, by force, on what the pass saw: refused where somebody wrote since."""

    body: Object
    manager: str = FIELD_MANAGER  # another one owns a part of an object of which we own others


@dataclass(frozen=True)
class Delete:
    """Delete with a precondition on the uid, pods in the background."""

    kind: str
    name: str
    uid: str
    over: bool = False  # it has ended and the status tells of it, which no edit changes: the object need not be read again


@dataclass(frozen=True)
class SuspendJob:
    """Patch spec.suspend of a batch Job, and the annotation that says whose doing it is: just this Job, as the pass saw it."""

    name: str
    uid: str
    suspend: bool


@dataclass(frozen=True)
class NotePod:
    """Annotate just this pod: its kubelet then looks at once at what the pod mounts, where it would within a minute or so.

    A courtesy, as an event is: a pod that is gone, or that somebody lets nobody change, is passed over.
    """

    name: str
    uid: str
    notes: Mapping[str, str]


Action = Create | Apply | Delete | SuspendJob | NotePod


@dataclass(frozen=True)
class Event:
    """Posted after the status was written, so that it never tells of what did not happen."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Decision:
    actions: tuple[Action, ...] = ()
    status: dict[str, Any] = field(default_factory=dict)  # whole, in the API's camelCase
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None  # seconds; None waits for the next event
    tidy_after: float | None = None  # seconds after which something is to be removed, where there is time for that
    intent: bool = False  # the status names what the actions are about to start, and so is written before them


def pause_after(failures: int) -> float:
    """Seconds until something that failed so many times is tried again: 10, 20, 40, … to five minutes."""
    return min(300.0, 10.0 * 2.0 ** min(failures - 1, 10))


def look_again(conditions: Iterable[Condition], now: datetime) -> float:
    """Seconds until what sends no event (a claim or Secret that is missing) is looked at again.

    A quarter of the time that the object has waited so far, 2 s to 5 min: quick for the person who is at it, and
    little work for many objects that nobody mends.
    """
    return min(LONGEST_LOOK_AGAIN, max(SHORTEST_LOOK_AGAIN, waited(conditions, now) / 4))


def waited(conditions: Iterable[Condition], now: datetime) -> float:
    """Seconds for which the object has been at what it is at."""
    since = [c.last_transition_time for c in conditions if c.type in ("Stalled", "Reconciling") and c.last_transition_time]
    return seconds_since(max(since), now) if since else 0.0


def may_yet_come(conditions: Sequence[Condition], now: datetime) -> bool:
    """Whether what the spec names and is not there may be a part of what is being applied: nobody need look yet."""
    is_stalled = any((c.type, c.status) == ("Stalled", "True") for c in conditions)
    return not is_stalled and waited(conditions, now) < TOGETHER_SECONDS


Own_contra = TypeVar("Own_contra", bound=BaseModel, contravariant=True)


class Policy(Protocol[Own_contra]):
    def reads(self, own: Own_contra, /) -> Reads: ...

    def decide(self, own: Own_contra, observed: Observed, settings: Settings, now: datetime, /) -> Decision: ...
