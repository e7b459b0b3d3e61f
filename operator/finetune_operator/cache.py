"""What the watches have told: our own objects and their children, trimmed, as text, and found by whom they belong to.

    Kopf's events ─► Own ───────┐
    Watches ───────► Children ──┴─► passes        an answer to a write of ours is kept at once: its event is no news

It is a cache only: a write rests on a version that the API server compares, or on an object that was read again.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator
from sys import intern
from typing import Any, NamedTuple

from finetune_operator.meta import ENDED, Key, Object, has_ended
from finetune_operator.names import LABEL_JOB, LABEL_SERVE, LABEL_STEP, label_value
from finetune_operator.trimmed import text_of, trimmed
from finetune_trainer.contract.reasons.operator import OperatorReason

OWNER_LABELS = {LABEL_JOB: "FineTuneJob", LABEL_SERVE: "ModelServe"}
KINDS = ("FineTuneJob", "ModelServe")
REMEMBERED = 1000  # uids of deleted objects, of which a late answer may still tell


def key_of(body: Object) -> Key:
    """The object's key. Its texts are shared: each answer of the API server brings the same ones anew."""
    metadata = body["metadata"]
    return Key(intern(body["kind"]), intern(metadata["namespace"]), intern(metadata["name"]))


class Kept(NamedTuple):
    version: int
    uid: str
    text: str


class Store:
    """Trimmed objects by key. What is older than what is kept, or was deleted, is passed over."""

    def __init__(self) -> None:
        self._kept: dict[Key, Kept] = {}
        self._gone: dict[str, int] = {}

    def keep(self, body: Object) -> bool:
        """An object as the API server sent it. Returns whether anything is new that we read."""
        key, uid = key_of(body), body["metadata"].get("uid", "")
        version, before = int(body["metadata"]["resourceVersion"]), self._kept.get(key)
        if version <= self._gone.get(uid, -1) or (before is not None and before.uid == uid and before.version >= version):
            return False
        text = text_of(trimmed(body))
        self._kept[key] = Kept(version, uid, text)
        self._added(key, body)
        return before is None or before.text != text

    def drop(self, key: Key, uid: str, version: int) -> None:
        """The object with this uid is gone as of a version, and what is told of older ones is old; another may have its name.

        What is newer is the same object: somebody took our label off, so that our watch saw it go, and it has it again.
        """
        self._gone[uid] = version
        if len(self._gone) > REMEMBERED:
            del self._gone[next(iter(self._gone))]
        self.hide(key, uid)

    def hide(self, key: Key, uid: str) -> None:
        """Its deletion was asked for: to a pass it is gone, unless a watch tells of it once more."""
        if key in self._kept and self._kept[key].uid == uid:
            self._removed(key, json.loads(self._kept.pop(key).text))

    def get(self, key: Key) -> Object | None:
        """The object, with the version at which it was seen."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        body: Object = json.loads(kept.text)
        body["metadata"]["resourceVersion"] = str(kept.version)
        return body

    def version(self, key: Key) -> int:
        """0 for what is not kept."""
        kept = self._kept.get(key)
        return 0 if kept is None else kept.version

    def uid(self, key: Key) -> str | None:
        """Whose name it is now."""
        kept = self._kept.get(key)
        return None if kept is None else kept.uid

    def keys(self, kind: str) -> list[Key]:
        return [key for key in self._kept if key.kind == kind]

    def latest(self, kind: str, most: int) -> Iterator[Object]:
        """At most so many objects of this kind: those at work first, then those that changed last."""
        for key in heapq.nsmallest(most, self.keys(kind), lambda key: (self._is_over(key), -self._kept[key].version)):
            if (body := self.get(key)) is not None:
                yield body

    def _is_over(self, key: Key) -> bool:
        return False

    def _added(self, key: Key, body: Object) -> None: ...

    def _removed(self, key: Key, body: Object) -> None: ...


class Children(Store):
    """Jobs, Pods, Deployments, Services, ConfigMaps and ControllerRevisions that have our labels."""

    def __init__(self) -> None:
        super().__init__()
        self.unserved: set[str] = set()  # kinds that this cluster does not have
        self._of: dict[tuple[str, str, str], dict[Key, None]] = {}  # by namespace, label and its value

    def list(self, kind: str, namespace: str, labels: dict[str, str]) -> tuple[Object, ...]:
        """Children of one owner, by its label in `labels`, which have all of them."""
        label = next(label for label in OWNER_LABELS if label in labels)
        keys = self._of.get((namespace, label, labels[label]), {})
        found = (self.get(key) for key in keys if key.kind == kind)
        return tuple(b for b in found if b is not None and labels.items() <= b["metadata"]["labels"].items())

    def is_remains(self, body: Object) -> bool:
        """Whether this is a step's pod that had ended, of a Job that is gone: what it reported is told, and it does nothing."""
        return _is_of_step(body) and (body.get("status") or {}).get("phase") in ENDED and self._job_of(body) is None

    def is_of_step_at_work(self, body: Object) -> bool:
        """Whether this is a step's Job that has not ended, or a pod of one, and stays: what becomes of it its Job tells."""
        job = body if body["kind"] == "Job" else self._job_of(body)
        stays = "deletionTimestamp" not in body["metadata"]
        return _is_of_step(body) and stays and job is not None and not has_ended(job)

    def _job_of(self, pod: Object) -> Object | None:
        """The Job that controls this pod, as far as it is known."""
        owner = next((o for o in pod["metadata"].get("ownerReferences") or () if o["kind"] == "Job"), None)
        job = owner and self.get(Key("Job", pod["metadata"]["namespace"], owner["name"]))
        return job if owner and job and job["metadata"]["uid"] == owner["uid"] else None

    def _added(self, key: Key, body: Object) -> None:
        for place in _places(key, body):
            self._of.setdefault(place, {})[key] = None

    def _removed(self, key: Key, body: Object) -> None:
        for place in _places(key, body):
            keys = self._of.get(place, {})
            keys.pop(key, None)
            if not keys:
                self._of.pop(place, None)


def _is_of_step(body: Object) -> bool:
    return LABEL_STEP in (body["metadata"].get("labels") or {})


def _places(key: Key, body: Object) -> list[tuple[str, str, str]]:
    labels = body["metadata"].get("labels") or {}
    return [(key.namespace, label, intern(labels[label])) for label in OWNER_LABELS if label in labels]


class Own(Store):
    """FineTuneJobs and ModelServes, and which of them wake each other."""

    def __init__(self) -> None:
        super().__init__()
        self._conditions: dict[Key, tuple[tuple[str, str], ...]] = {}
        self._jobs: dict[Key, tuple[str, ...]] = {}  # the jobs that a ModelServe takes its model and its adapters from
        self._handing: dict[Key, str] = {}  # the ModelServe that a job hands its adapter to
        self._paced: set[Key] = set()  # ModelServes that load what only a changed default asks for
        self._labelled: dict[Key, Key] = {}  # those whose name is too long for a label, by what it can hold

    def related(self, key: Key, body: Object) -> list[Key]:
        """Whom a change of this object concerns besides itself."""
        if key.kind == "ModelServe":
            handing = [k for k, name in self._handing.items() if name == key.name and k.namespace == key.namespace]
            return [*(k for k in self.owners(body) if k != key), *handing]
        return [k for k, names in self._jobs.items() if key.name in names and k.namespace == key.namespace]

    def owners(self, body: Object) -> list[Key]:
        """The objects of ours that this one belongs to: by its labels, and by its controller where that is ours."""
        metadata = body["metadata"]
        labels = metadata.get("labels") or {}
        found = [(kind, labels.get(label)) for label, kind in OWNER_LABELS.items()]
        found += [(o["kind"], o["name"]) for o in metadata.get("ownerReferences") or () if o["kind"] in KINDS]
        if body["kind"] == "ModelServe":
            found += [("FineTuneJob", name) for name in _jobs_of(body)]
        keys = [Key(kind, intern(metadata["namespace"]), intern(name)) for kind, name in found if name]
        return list(dict.fromkeys(self._labelled.get(key, key) for key in keys))

    def paced(self, key: Key) -> tuple[str, ...]:
        """Namespaces of the other ModelServes whose turn it is to load what a changed default asks for."""
        return tuple(other.namespace for other in self._paced if other != key)

    def take_turn(self, key: Key) -> None:
        """It is decided that this one's turn has come: no other pass may decide the same before the status tells of it."""
        self._paced.add(key)

    def named_below(self, uri: str) -> frozenset[str]:
        """Each uri below this one that a ModelServe names, as what it serves or has served, or a FineTuneJob in its spec."""
        found: set[str] = set()
        for key, kept in self._kept.items():
            if f"{uri}/" in kept.text:
                body = json.loads(kept.text)
                texts = _texts(body if key.kind == "ModelServe" else body.get("spec"))
                found.update(text for text in texts if text.startswith(f"{uri}/"))
        return frozenset(found)

    def counts(self) -> Counter[tuple[str, str, str]]:
        """Number of objects by kind, condition and status."""
        return Counter((key.kind, *condition) for key, found in self._conditions.items() for condition in found)

    def _is_over(self, key: Key) -> bool:
        return not {("Succeeded", "True"), ("Failed", "True")}.isdisjoint(self._conditions.get(key, ()))

    def _added(self, key: Key, body: Object) -> None:
        if (held := label_value(key.name)) != key.name:
            self._labelled[key._replace(name=held)] = key
        status = body.get("status") or {}
        conditions = status.get("conditions") or ()
        (self._paced.add if has_turn(status) else self._paced.discard)(key)
        self._conditions[key] = tuple((intern(c["type"]), intern(c["status"])) for c in conditions)
        if key.kind == "ModelServe" and (names := _jobs_of(body)):
            self._jobs[key] = names
        else:
            self._jobs.pop(key, None)
        self._handing.pop(key, None)
        if key.kind == "FineTuneJob" and (name := ((body.get("spec") or {}).get("serving") or {}).get("adapterOf")):
            self._handing[key] = str(name)

    def _removed(self, key: Key, body: Object) -> None:
        self._conditions.pop(key, None)
        self._jobs.pop(key, None)
        self._handing.pop(key, None)
        self._paced.discard(key)
        self._labelled.pop(key._replace(name=label_value(key.name)), None)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value that was read from JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def is_new(body: Object) -> bool:
    """Whether no pass has told of this object of ours yet."""
    return not (body.get("status") or {}).get("conditions")


def has_turn(status: Object) -> bool:
    """Whether a ModelServe loads what only a changed default asks for. One that needs a person holds up no other."""
    candidate = status.get("candidate") or {}
    told = [(c["type"], c["status"], c.get("reason")) for c in status.get("conditions") or ()]
    waits = any(
        (kind == "Stalled" and truth == "True") or reason == OperatorReason.AwaitingPromotion for kind, truth, reason in told
    )
    return candidate.get("paced") is True and candidate.get("state") != "Refused" and not waits


def _jobs_of(serve: Object) -> tuple[str, ...]:
    spec = serve.get("spec") or {}
    named = [(part or {}).get("jobRef") for part in (spec.get("model"), *(spec.get("adapters") or ()))]
    return tuple(dict.fromkeys(str(ref["name"]) for ref in named if ref and ref.get("name")))
