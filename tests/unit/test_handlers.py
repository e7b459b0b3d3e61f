"""Which events wake which key."""

from __future__ import annotations

import itertools
from typing import Any

import kopf
from tests.fake_cluster import FakeCluster

from finetune_operator.cache import Children, Own
from finetune_operator.handlers import Backoffs, Events, kopf_settings, registry
from finetune_operator.meta import Key, Object
from finetune_operator.names import label_value
from finetune_operator.progress_reader import ProgressReader
from finetune_operator.workqueue import Rank

JOB = Key("FineTuneJob", "default", "facts")
SERVE = Key("ModelServe", "default", "bot")


class Woken:
    """Events with everything they feed."""

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self.own = Own()
        self.children = Children()
        self.progress = ProgressReader(FakeCluster())
        self.ranks: dict[Key, Rank] = {}
        self.events = Events(self._wake, self._wake, self.own, self.children, self.progress)

    def _wake(self, key: Key, rank: Rank) -> None:
        self.keys.append(key)
        self.ranks[key] = rank

    def take(self) -> set[Key]:
        found, self.keys[:] = set(self.keys), []
        return found


VERSIONS = itertools.count(1)


def make(kind: str, name: str, **fields: Any) -> Object:
    """Each is newer than the last."""
    version = str(next(VERSIONS))
    metadata = {"name": name, "namespace": "default", "uid": name, "resourceVersion": version, **fields.pop("metadata", {})}
    return {"kind": kind, "metadata": metadata, **fields}


def test_our_own_objects_wake_themselves() -> None:
    woken = Woken()
    woken.events.ours("ADDED", make("FineTuneJob", "facts"))
    assert woken.take() == {JOB}
    woken.events.ours("DELETED", make("FineTuneJob", "facts"))
    assert woken.take() == {JOB}
    assert woken.own.keys("FineTuneJob") == []


def test_a_job_that_no_pass_has_told_of_waits_behind_what_is_at_work() -> None:
    woken = Woken()
    woken.events.ours("ADDED", make("FineTuneJob", "facts"))
    assert woken.ranks == {JOB: Rank.NEW}
    woken.events.ours("MODIFIED", make("FineTuneJob", "facts", status={"conditions": [{"type": "Ready", "status": "False"}]}))
    assert woken.ranks == {JOB: Rank.WORK}


def test_a_new_serve_wakes_the_job_that_waits_for_it_at_once() -> None:
    woken = Woken()
    woken.events.ours("ADDED", make("ModelServe", "bot", spec={"model": {"jobRef": {"name": "facts"}}}))
    assert woken.ranks == {SERVE: Rank.NEW, JOB: Rank.WORK}


def test_a_job_and_the_serve_that_takes_its_model_wake_each_other() -> None:
    woken = Woken()
    woken.events.ours(None, make("ModelServe", "bot", spec={"model": {"jobRef": {"name": "facts"}}}))
    assert woken.take() == {SERVE, JOB}
    woken.events.ours("MODIFIED", make("FineTuneJob", "facts", status={"stage": "Training"}))
    assert woken.take() == {SERVE, JOB}
    woken.events.ours("MODIFIED", make("ModelServe", "bot", spec={"model": {"uri": "pvc://c/m"}}))
    assert woken.take() == {SERVE}
    woken.events.ours("MODIFIED", make("FineTuneJob", "facts", status={"stage": "Merging"}))
    assert woken.take() == {JOB}
    woken.events.ours("MODIFIED", make("FineTuneJob", "facts", status={"stage": "Merging"}))
    assert woken.take() == set(), "nothing that we read has changed"


def test_a_serve_that_a_job_has_made_wakes_the_job() -> None:
    woken = Woken()
    woken.events.ours("MODIFIED", make("ModelServe", "bot", metadata={"labels": {"finetune.dev/job": "facts"}}))
    assert woken.take() == {SERVE, JOB}


def test_children_wake_their_owner_by_label_or_by_controller() -> None:
    woken = Woken()
    woken.events.child("ADDED", make("Job", "facts-1", metadata={"labels": {"finetune.dev/job": "facts"}}))
    assert woken.take() == {JOB}
    owner = {"kind": "ModelServe", "name": "bot", "uid": "u"}
    woken.events.child("DELETED", make("Deployment", "bot-1", metadata={"ownerReferences": [owner]}))
    assert woken.take() == {SERVE}
    woken.events.child("ADDED", make("Pod", "x", metadata={"ownerReferences": [owner | {"kind": "ReplicaSet"}]}))
    assert woken.take() == set()


def test_that_a_step_goes_on_is_told_where_there_is_time_and_that_it_is_over_at_once() -> None:
    labels = {"finetune.dev/job": "facts", "finetune.dev/step": "train"}
    owner = {"kind": "Job", "name": "facts-1", "uid": "facts-1"}

    def rank(kind: str, body: Object) -> Rank:
        woken.children.keep(body)
        woken.events.child(kind, body)
        return woken.ranks[JOB]

    def job(*conditions: str, **metadata: Any) -> Object:
        listed = [{"type": c, "status": "True"} for c in conditions]
        return make("Job", "facts-1", metadata={"labels": labels, **metadata}, status={"conditions": listed})

    def pod(phase: str, **metadata: Any) -> Object:
        return make("Pod", "p", metadata={"labels": labels, "ownerReferences": [owner], **metadata}, status={"phase": phase})

    woken = Woken()
    assert rank("ADDED", pod("Pending")) == Rank.WORK, "nothing is known of its Job"
    assert rank("ADDED", job()) == Rank.PROGRESS
    assert rank("MODIFIED", job("Suspended", "SuccessCriteriaMet")) == Rank.PROGRESS, "it says next that it is complete"
    assert rank("MODIFIED", pod("Running")) == Rank.PROGRESS
    assert rank("MODIFIED", pod("Failed")) == Rank.PROGRESS, "its Job says next that it failed"
    assert rank("MODIFIED", pod("Running", deletionTimestamp="now")) == Rank.WORK
    assert rank("DELETED", pod("Running")) == Rank.WORK
    for end in ("Complete", "Failed"):
        assert rank("MODIFIED", job(end)) == Rank.WORK
        assert rank("MODIFIED", pod("Succeeded")) == Rank.WORK, "what it reported was waited for"
    assert rank("MODIFIED", job(deletionTimestamp="now")) == Rank.WORK
    assert rank("MODIFIED", make("Deployment", "bot-1", metadata={"labels": {"finetune.dev/job": "facts"}})) == Rank.WORK


def test_a_name_too_long_for_a_label_is_found_again() -> None:
    woken, name = Woken(), "f" * 100
    woken.events.ours(None, make("FineTuneJob", name))
    woken.take()
    labels = {"finetune.dev/job": label_value(name)}
    assert labels["finetune.dev/job"] != name
    woken.events.child("MODIFIED", make("Pod", "p", metadata={"labels": labels}))
    assert woken.take() == {Key("FineTuneJob", "default", name)}


async def test_pods_that_run_a_step_are_read_for_progress() -> None:
    woken = Woken()
    woken.progress._logs.logs["p"] = '{"kind": "progress", "step": 1}'  # type: ignore[attr-defined]
    pod = make("Pod", "p", metadata={"labels": {"finetune.dev/job": "facts", "finetune.dev/step": "train"}})
    woken.events.child("ADDED", pod | {"status": {"phase": "Pending"}})
    assert await woken.progress.read_all() == set()
    woken.events.child("MODIFIED", pod | {"status": {"phase": "Running"}})
    assert await woken.progress.read_all() == {JOB}
    woken.events.child("MODIFIED", pod | {"status": {"phase": "Succeeded"}})
    assert woken.progress.of(JOB) == {}


def test_conditions_are_counted_by_kind_and_status() -> None:
    woken = Woken()
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    for name in ("a", "b"):
        woken.events.ours(None, make("FineTuneJob", name, status=ready))
    woken.events.ours(None, make("ModelServe", "c", status=ready))
    woken.events.ours("DELETED", make("FineTuneJob", "b"))
    assert woken.own.counts() == {("FineTuneJob", "Ready", "True"): 1, ("ModelServe", "Ready", "True"): 1}


def test_kopf_watches_only_and_never_gives_up() -> None:
    handlers = registry(Woken().events)
    watched = {h.selector.any_name or h.selector.plural for h in handlers._watching.get_all_handlers() if h.selector}
    assert watched == {"finetunejobs", "modelserves"}, "children have watches of their own"
    for family in (handlers._changing, handlers._spawning, handlers._indexing, handlers._webhooks):
        assert list(family.get_all_handlers()) == [], "these write to objects, or worse"
    settings = kopf_settings()
    assert settings.scanning.disabled
    assert not settings.posting.enabled
    body = kopf.Body({"metadata": {"name": "a"}, "spec": {"model": {"uri": "hf://a/b"}}})
    assert settings.persistence.diffbase_storage.build(body=body) == {}, "Kopf compares, and copies, nothing"
    assert len(list(itertools.islice(Backoffs(), 1000))) == 1000
