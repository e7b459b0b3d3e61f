"""One pass, with a policy of the test's own: what is read, applied, written, told, and what a failure leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.fake_cluster import FakeCluster

from finetune_operator.acting import Means
from finetune_operator.api.crdgen import Schema
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.applied import Applied
from finetune_operator.bounds import bounded
from finetune_operator.decision import (
    Apply,
    Create,
    Decision,
    Delete,
    Event,
    NotePod,
    Observed,
    Reads,
    Ref,
    SuspendJob,
)
from finetune_operator.decoding import UNREADABLE
from finetune_operator.errors import Conflict, Forbidden, Invalid, InvalidSpec, NotLeader, Unavailable
from finetune_operator.meta import API_VERSION, Key, Object
from finetune_operator.reconcile import Kind, Outcome, pruned, reconcile, without_unknown
from finetune_operator.settings import Settings

NOW = datetime(2026, 11, 23, 15, 0, tzinfo=UTC)
KEY = Key("FineTuneJob", "default", "facts")
STATUS = {"observedGeneration": 1, "stage": "Training"}
TOLD = Event("Started", "Training has started.")
LABELS = {"finetune.dev/job": "facts"}
CHILD: Object = {
    "kind": "Job",
    "metadata": {"name": "facts-1", "namespace": "default", "labels": LABELS, "ownerReferences": [{"uid": "facts-uid"}]},
}


class Scripted:
    """A policy that decides as the test says, and keeps what it was shown."""

    def __init__(self, decide: Callable[[FineTuneJob, Observed], Decision] | Decision, reads: Reads | None = None) -> None:
        self._decide = decide
        self._reads = reads or Reads({}, ())
        self.observed: list[Observed] = []

    def reads(self, job: FineTuneJob) -> Reads:
        return self._reads

    def decide(self, job: FineTuneJob, observed: Observed, settings: Settings, now: datetime) -> Decision:
        assert now == NOW
        self.observed.append(observed)
        return self._decide if isinstance(self._decide, Decision) else self._decide(job, observed)


def make_job(**changes: Any) -> Object:
    spec = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}}
    metadata = {"name": "facts", "namespace": "default", "uid": "facts-uid", "generation": 1}
    body = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": metadata, "spec": spec}
    return body | {"status": {"observedGeneration": -1}} | changes


async def one_pass(
    cluster: FakeCluster, policy: Scripted, progress: dict[str, Any] | None = None, applied: Applied | None = None
) -> Outcome:
    kind = Kind(FineTuneJob, policy)
    own, children = cluster.caches()
    means = Means(cluster, own, children, applied or Applied(), lambda _: progress or {}, Settings())  # type: ignore[arg-type]
    return await reconcile(KEY, kind, means, NOW)


async def test_actions_then_status_then_events() -> None:
    cluster = FakeCluster(make_job())
    outcome = await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS, (TOLD,), requeue_after=30)))
    assert cluster.writes == ["create Job facts-1", "status FineTuneJob facts", "event FineTuneJob facts"]
    assert outcome == Outcome("changed", 1, writes=2, requeue_after=30, look_after=0), "what it caused is looked at at once"
    assert cluster.objects[KEY]["status"] == STATUS
    told = await one_pass(cluster, Scripted(Decision(status=STATUS | {"stage": "Merging"}, requeue_after=30)))
    assert told == Outcome("changed", generation=1, writes=1, requeue_after=30), "a status causes nothing more"
    assert cluster.events == [TOLD]


async def test_a_status_is_bounded_as_it_is_read_unless_this_process_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, applied, seen = FakeCluster(make_job()), Applied(), 0

    def counted(status: Object, schema: Schema) -> Object:
        nonlocal seen
        seen += 1
        return bounded(status, schema)

    monkeypatch.setattr("finetune_operator.reconcile.bounded", counted)
    policy = Scripted(Decision(status=STATUS))
    await one_pass(cluster, policy, applied=applied)
    read_and_written, seen = seen, 0
    await one_pass(cluster, policy, applied=applied)
    assert (read_and_written, seen) == (2, 0)
    await cluster.replace(cluster.objects[KEY])
    await one_pass(cluster, policy, applied=applied)
    assert seen == 1, "somebody else wrote to the object"


async def test_an_intent_is_in_the_status_before_what_it_names_exists() -> None:
    cluster = FakeCluster(make_job())
    outcome = await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS, (TOLD,), intent=True)))
    assert cluster.writes == ["status FineTuneJob facts", "create Job facts-1", "event FineTuneJob facts"]
    assert outcome.writes == 2


async def test_an_intent_that_can_not_be_written_starts_nothing() -> None:
    cluster = FakeCluster(make_job())

    def fail(write: str) -> None:
        if write.startswith("status"):
            raise Conflict("the object has been modified")

    cluster.fail = fail
    with pytest.raises(Conflict):
        await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS, (TOLD,), intent=True)))
    assert cluster.writes == []


async def test_an_intent_that_the_server_refuses_is_told_as_refused() -> None:
    cluster = FakeCluster(make_job())

    def fail(write: str) -> None:
        if write.startswith("create Job"):
            raise Forbidden("exceeded quota: gpus")

    cluster.fail = fail
    with pytest.raises(Forbidden):
        await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS, (TOLD,), intent=True)))
    status = cluster.objects[KEY]["status"]
    assert status["stage"] == "Training"
    assert {c["reason"] for c in status["conditions"]} == {"Refused"}
    assert [e.reason for e in cluster.events] == ["Refused"]


async def test_what_stands_as_applied_is_not_applied_again() -> None:
    meta = {"name": "s", "namespace": "default", "labels": LABELS}
    service = {"kind": "Service", "metadata": meta, "spec": {"ports": [{"port": 80}]}}
    cluster, applied = FakeCluster(make_job(), service), Applied()
    policy = Scripted(Decision((Apply(service),), STATUS), Reads(LABELS, ("Service",)))
    await one_pass(cluster, policy, applied=applied)
    assert cluster.writes == ["status FineTuneJob facts"]
    await cluster.replace({**cluster.objects["Service", "default", "s"], "spec": {"ports": [{"port": 81}]}})
    cluster.writes.clear()
    await one_pass(cluster, policy, applied=applied)
    assert cluster.writes == ["apply Service s"]


async def test_an_apply_undoes_nothing_that_was_written_since_it_was_decided() -> None:
    meta = {"name": "s", "namespace": "default", "labels": LABELS}
    service = {"kind": "Service", "metadata": meta, "spec": {"selector": {"revision": "one"}}}
    cluster = FakeCluster(make_job(), service)
    own, children = cluster.caches()
    await cluster.replace({**cluster.objects["Service", "default", "s"], "spec": {"selector": {"revision": "two"}}})
    wanted = service | {"spec": {"selector": {"revision": "none"}}}
    policy = Scripted(Decision((Apply(wanted),), STATUS), Reads(LABELS, ("Service",)))
    means = Means(cluster, own, children, Applied(), lambda _: {}, Settings())  # type: ignore[arg-type]
    with pytest.raises(Conflict):
        await reconcile(KEY, Kind(FineTuneJob, policy), means, NOW)
    assert cluster.objects["Service", "default", "s"]["spec"]["selector"] == {"revision": "two"}


async def test_what_a_policy_learns_of_as_it_decides_is_read_and_nothing_else_with_it() -> None:
    queue, secret = Ref("LocalQueue", "gpus"), Ref("Secret", "s")
    cluster = FakeCluster(make_job(), {"kind": "LocalQueue", "metadata": {"name": "gpus", "namespace": "default"}})
    read: list[Ref] = []
    answer = cluster.read

    async def reading(namespace: str, ref: Ref) -> Object | None:
        read.append(ref)
        return await answer(namespace, ref)

    cluster.read = reading  # type: ignore[method-assign]

    def decide(_: FineTuneJob, seen: Observed) -> Decision:
        names = [seen.named.get(Ref("LocalQueue", name)) for name in ("gpus", "none")]
        return Decision(status=STATUS | {"stage": str([body and body["kind"] for body in names])})

    await one_pass(cluster, Scripted(decide, Reads(LABELS, (), (secret,), learnt=("LocalQueue",))))
    assert cluster.objects[KEY]["status"]["stage"] == "['LocalQueue', None]"
    assert read == [queue, Ref("LocalQueue", "none")]


@pytest.mark.parametrize("uid", ["held-uid", "of the one before"])
async def test_a_suspension_that_arrives_late_stops_no_job_that_works_again(uid: str) -> None:
    held = {"kind": "Job", "metadata": {"name": "held", "namespace": "default", "uid": "held-uid", "labels": LABELS}}
    cluster = FakeCluster(make_job(), held)
    own, children = cluster.caches()
    if uid == "held-uid":
        await cluster.replace({**cluster.objects["Job", "default", "held"], "spec": {"suspend": False}})
    policy = Scripted(Decision((SuspendJob("held", uid, True),), STATUS), Reads(LABELS, ("Job",)))
    means = Means(cluster, own, children, Applied(), lambda _: {}, Settings())  # type: ignore[arg-type]
    with pytest.raises(Conflict):
        await reconcile(KEY, Kind(FineTuneJob, policy), means, NOW)
    assert not cluster.objects["Job", "default", "held"].get("spec", {}).get("suspend")


async def test_what_can_not_be_applied_beside_what_others_wrote_is_replaced() -> None:
    meta = {"name": "s", "namespace": "default", "labels": LABELS}
    wanted = {"kind": "Service", "metadata": meta, "spec": {"selector": {"a": "b"}, "ports": [{"name": "http", "port": 80}]}}
    cluster = FakeCluster(make_job(), wanted | {"spec": {"selector": {"x": "y"}, "ports": [{"name": "http", "port": 1}]}})

    def fail(write: str) -> None:
        if write.startswith("apply"):
            raise Invalid("spec.ports[1].name: Duplicate value")

    cluster.fail = fail
    await one_pass(cluster, Scripted(Decision((Apply(wanted),), STATUS), Reads(LABELS, ("Service",))))
    assert cluster.objects["Service", "default", "s"]["spec"]["ports"] == [{"name": "http", "port": 80}]
    assert cluster.objects["Service", "default", "s"]["spec"]["selector"] == {"x": None, "a": "b"}


async def test_a_second_pass_with_the_same_decision_writes_nothing() -> None:
    cluster = FakeCluster(make_job())
    policy = Scripted(
        lambda _, seen: Decision(() if seen.children["Job"] else (Create(CHILD),), STATUS), Reads(LABELS, ("Job",))
    )
    await one_pass(cluster, policy)
    cluster.writes.clear()
    assert await one_pass(cluster, policy) == Outcome("unchanged", generation=1)
    assert cluster.writes == []


async def test_what_holds_nothing_is_no_difference() -> None:
    cluster = FakeCluster(make_job(status=STATUS))
    empty: dict[str, Any] = {"progress": None, "steps": [], "fit": {"terms": {}}}
    await one_pass(cluster, Scripted(Decision(status=STATUS | empty, events=(TOLD,))))
    assert cluster.writes == []


async def test_a_policy_sees_the_children_the_named_and_the_progress() -> None:
    labelled = {"kind": "Pod", "metadata": {"name": "p", "namespace": "default", "labels": LABELS}}
    stranger = {"kind": "Pod", "metadata": {"name": "q", "namespace": "default"}}
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": "default"}}
    there, missing = Ref("PersistentVolumeClaim", "c"), Ref("Secret", "s")

    def decide(_: FineTuneJob, seen: Observed) -> Decision:
        assert (seen.named[there] or {})["kind"] == "PersistentVolumeClaim"
        assert seen.named[missing] is None
        return Decision(status=STATUS)

    policy = Scripted(decide, Reads(LABELS, ("Pod",), (there, missing)))
    await one_pass(FakeCluster(make_job(), labelled, stranger, claim), policy, {"p": {"step": 3}})
    seen = policy.observed[-1]
    assert [p["metadata"]["name"] for p in seen.children["Pod"]] == ["p"]
    assert seen.progress == {"p": {"step": 3}}


class Counting(FakeCluster):
    """Counts what is read."""

    reads = 0

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        self.reads += 1
        return await super().get(kind, namespace, name)


async def test_a_pass_over_an_unchanged_object_makes_no_request() -> None:
    secret = Ref("Secret", "s")
    cluster = Counting(make_job(status=STATUS), {"kind": "ModelServe", "metadata": {"name": "bot", "namespace": "default"}})

    def decide(_: FineTuneJob, seen: Observed) -> Decision:
        assert seen.named[Ref("ModelServe", "bot")] is not None, "known from its own watch"
        assert seen.named.get(Ref("ModelServe", "none")) is None
        return Decision(status=STATUS)

    policy = Scripted(decide, Reads(LABELS, ("Job", "Pod"), (secret, Ref("ModelServe", "bot"), Ref("ModelServe", "none"))))
    assert await one_pass(cluster, policy) == Outcome("unchanged", generation=1)
    assert (cluster.reads, cluster.writes) == (0, [])


@pytest.mark.parametrize("watched", [True, False])
async def test_a_child_is_gone_when_its_watch_and_a_read_agree(watched: bool) -> None:
    meta = {"name": "facts", "namespace": "default", "labels": LABELS}
    cluster = FakeCluster(make_job(), {"kind": "Service", "metadata": meta, "spec": {"selector": {"a": "b"}}})
    before = cluster.caches()
    del cluster.objects["Service", "default", "facts"]  # for a read
    own, children = before if watched else cluster.caches()
    service, claim = Ref("Service", "facts"), Ref("PersistentVolumeClaim", "c")
    policy = Scripted(
        lambda _, seen: Decision(status=STATUS | {"claim": seen.named[claim]}), Reads(LABELS, (), (service, claim))
    )
    means = Means(cluster, own, children, Applied(), lambda _: {}, Settings())  # type: ignore[arg-type]
    await reconcile(KEY, Kind(FineTuneJob, policy), means, NOW)
    seen = policy.observed[-1].named
    assert seen[claim] is None
    assert (seen[service] is not None) == watched


@pytest.mark.parametrize("over", [True, False])
async def test_the_object_is_read_again_but_for_what_no_edit_could_change(over: bool) -> None:
    cluster = FakeCluster(make_job(), CHILD)
    own, children = cluster.caches()
    await cluster.replace({**cluster.objects[KEY], "spec": make_job()["spec"] | {"suspend": True}})
    cluster.writes.clear()
    uid = cluster.objects["Job", "default", "facts-1"]["metadata"]["uid"]
    delete = Delete("Job", "facts-1", uid, over=over)
    means = Means(cluster, own, children, Applied(), lambda _: {}, Settings())  # type: ignore[arg-type]
    policy = Scripted(lambda job, _: Decision(() if job.spec.suspend else (delete,)))
    await reconcile(KEY, Kind(FineTuneJob, policy), means, NOW)
    assert ("delete Job facts-1" in cluster.writes) == over


@pytest.mark.parametrize(("over", "again"), [(True, 30.0), (False, 0.0)])
async def test_once_something_is_gone_that_was_over_no_pass_at_once_looks_at_that(over: bool, again: float) -> None:
    cluster = FakeCluster(make_job(), CHILD)
    delete = Delete("Job", "facts-1", cluster.objects["Job", "default", "facts-1"]["metadata"]["uid"], over=over)
    outcome = await one_pass(cluster, Scripted(Decision((delete,), STATUS, tidy_after=30)))
    assert "delete Job facts-1" in cluster.writes
    assert outcome.look_after == again


@pytest.mark.parametrize(("kind", "again"), [("ConfigMap", 30.0), ("Job", 0.0)])
async def test_what_stands_without_our_labels_is_not_made_again_at_once(kind: str, again: float) -> None:
    """A Job is given them back, and so the next pass knows of it; of other kinds we may write to none."""
    cluster, child = FakeCluster(make_job()), {**CHILD, "kind": kind}
    own, children = cluster.caches()
    await cluster.create({**child, "metadata": {**child["metadata"], "labels": {}}})
    means = Means(cluster, own, children, Applied(), lambda _: {}, Settings())  # type: ignore[arg-type]
    policy = Scripted(Decision((Create(child),), STATUS, tidy_after=30))
    assert (await reconcile(KEY, Kind(FineTuneJob, policy), means, NOW)).look_after == again
    assert bool(children.list(kind, "default", LABELS)) == (kind == "Job")


async def test_nothing_is_done_on_an_old_view_of_the_object() -> None:
    cluster = FakeCluster(make_job())
    own, children = cluster.caches()
    await cluster.replace({**cluster.objects[KEY], "spec": make_job()["spec"] | {"suspend": True}})
    cluster.writes.clear()

    def decide(job: FineTuneJob, _: Observed) -> Decision:
        return Decision(() if job.spec.suspend else (Create(CHILD),), STATUS)

    means = Means(cluster, own, children, Applied(), lambda _: {}, Settings())  # type: ignore[arg-type]
    await reconcile(KEY, Kind(FineTuneJob, Scripted(decide)), means, NOW)
    assert cluster.writes == ["status FineTuneJob facts"]


async def test_what_was_written_is_known_before_its_event_comes() -> None:
    cluster = FakeCluster(make_job())
    own, children = cluster.caches()
    means = Means(cluster, own, children, Applied(), lambda _: {}, Settings())  # type: ignore[arg-type]
    policy = Scripted(
        lambda _, seen: Decision(() if seen.children["Job"] else (Create(CHILD),), STATUS), Reads(LABELS, ("Job",))
    )
    for _ in range(2):
        await reconcile(KEY, Kind(FineTuneJob, policy), means, NOW)
    assert cluster.writes == ["create Job facts-1", "status FineTuneJob facts"]
    assert not own.keep(cluster.objects[KEY]), "no news"


async def test_a_deleted_object_is_left_alone() -> None:
    job = make_job()
    cluster = FakeCluster(make_job(metadata=job["metadata"] | {"deletionTimestamp": "2026-11-23T14:00:00Z"}))
    assert (await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS)))).result == "gone"
    assert cluster.writes == []


async def test_a_held_object_is_left_alone_and_says_so_until_it_is_let_go() -> None:
    job = make_job()
    held = job["metadata"] | {"annotations": {"finetune.dev/hold": "true"}}
    cluster = FakeCluster(make_job(metadata=held, status={"stage": "Training", "observedGeneration": 1}))
    policy = Scripted(Decision((Create(CHILD),), STATUS))
    for _ in range(2):
        assert (await one_pass(cluster, policy)).result == "held"
    assert cluster.writes == ["status FineTuneJob facts"]
    body = await cluster.get("FineTuneJob", "default", "facts")
    assert body is not None
    assert body["status"]["stage"] == "Training"
    assert [(c["type"], c["status"], c["reason"]) for c in body["status"]["conditions"]] == [("Held", "True", "Held")]
    assert "finetune.dev/hold" in body["status"]["conditions"][0]["message"]


async def test_what_another_controller_manages_is_left_alone_and_its_status_too() -> None:
    cluster = FakeCluster(make_job(spec=make_job()["spec"] | {"managedBy": "example.com/elsewhere"}))
    policy = Scripted(Decision((Create(CHILD),), STATUS))
    for _ in range(2):
        assert (await one_pass(cluster, policy)).result == "managed elsewhere"
    assert cluster.writes == ["status FineTuneJob facts"]
    (told,) = cluster.objects[KEY]["status"]["conditions"]
    assert (told["type"], told["status"], told["reason"]) == ("Ready", "Unknown", "ManagedElsewhere")
    assert "example.com/elsewhere" in told["message"]
    theirs = {"observedGeneration": 1, "conditions": [{**told, "status": "True", "reason": "Succeeded"}]}
    cluster.objects[KEY]["status"] = theirs
    await one_pass(cluster, policy)
    assert cluster.objects[KEY]["status"] == theirs, "it writes the status; two writers would undo each other's words"


async def test_what_names_us_as_its_controller_is_ours() -> None:
    cluster = FakeCluster(make_job(spec=make_job()["spec"] | {"managedBy": "finetune.dev/operator"}))
    await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS)))
    assert "create Job facts-1" in cluster.writes


async def test_a_refusal_longer_than_a_status_takes_is_told_all_the_same() -> None:
    cluster = FakeCluster(make_job())
    denial = "admission webhook denied the request: " + "policy " * 300

    def fail(write: str) -> None:
        if write.startswith("create Job"):
            raise Forbidden(denial)

    cluster.fail = fail
    with pytest.raises(Forbidden):
        await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS)))
    messages = [c["message"] for c in cluster.objects[KEY]["status"]["conditions"]]
    assert {m[:30] for m in messages} == {denial[:30]}
    assert max(map(len, messages)) <= 1024
    assert cluster.objects[KEY]["status"]["observedGeneration"] == 1


async def test_a_status_of_a_newer_release_is_read_as_far_as_it_is_known() -> None:
    steps = [{"name": "train", "state": "Paused", "attempt": 2}]
    cluster = FakeCluster(make_job(status={"steps": steps, "observedGeneration": 1}))
    assert (await one_pass(cluster, Scripted(Decision((), STATUS)))).result == "changed"


async def test_what_a_newer_release_told_stays_for_when_it_is_back() -> None:
    theirs = {"orbit": {"planet": "Mars"}}
    cluster = FakeCluster(make_job(status={**STATUS, "stage": "Landing", **theirs}))
    for _ in range(2):
        await one_pass(cluster, Scripted(Decision((), STATUS)))
    assert cluster.objects[KEY]["status"] == STATUS | theirs
    assert cluster.writes == ["status FineTuneJob facts"]


async def test_an_object_that_is_gone_is_nothing_to_do() -> None:
    assert await one_pass(FakeCluster(), Scripted(Decision())) == Outcome("gone")


async def test_every_action_is_carried_out() -> None:
    old = {"kind": "Job", "metadata": {"name": "old", "namespace": "default", "uid": "old-uid"}}
    held = {"kind": "Job", "metadata": {"name": "held", "namespace": "default", "uid": "held-uid", "labels": LABELS}}
    service = {"kind": "Service", "metadata": {"name": "s", "namespace": "default"}}
    cluster = FakeCluster(make_job(), old, held)
    actions = (Apply(service), Delete("Job", "old", "old-uid"), SuspendJob("held", "held-uid", True))
    await one_pass(cluster, Scripted(Decision(actions, STATUS), Reads(LABELS, ("Job",))))
    assert cluster.writes[:3] == ["apply Service s", "delete Job old", "merge Job held"]
    done = cluster.objects["Job", "default", "held"]
    assert done["spec"] == {"suspend": True}
    assert done["metadata"]["annotations"] == {"finetune.dev/suspended": "true"}, "whose doing it is"


async def test_a_pods_note_is_a_courtesy() -> None:
    pod = {"kind": "Pod", "metadata": {"name": "p", "namespace": "default", "uid": "p-uid", "labels": LABELS}}
    cluster = FakeCluster(make_job(), pod)
    refused = {"p": Forbidden("a webhook says no")}

    def fail(write: str) -> None:
        if write == "annotate Pod p" and refused:
            raise refused.pop("p")

    cluster.fail = fail
    notes = {"finetune.dev/adapters-version": "v1"}
    actions = tuple(NotePod(*of, notes) for of in (("gone", "gone-uid"), ("p", "p-uid"), ("p", "of the one before")))
    policy = Scripted(Decision((*actions, Create(CHILD)), STATUS), Reads(LABELS, ("Pod", "Job")))
    await one_pass(cluster, policy)
    assert "annotations" not in cluster.objects["Pod", "default", "p"]["metadata"]
    assert cluster.objects[KEY]["status"] == STATUS, "whoever refuses it holds up nothing else"
    assert "create Job facts-1" in cluster.writes
    await one_pass(cluster, policy)
    assert cluster.objects["Pod", "default", "p"]["metadata"]["annotations"] == notes


async def test_a_job_that_exists_and_is_ours_is_taken_as_created() -> None:
    cluster = FakeCluster(make_job(), CHILD)
    await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS)))
    assert cluster.objects[KEY]["status"] == STATUS


async def test_a_job_of_another_owner_is_not_ours() -> None:
    stranger = {**CHILD, "metadata": CHILD["metadata"] | {"ownerReferences": [{"uid": "another"}]}}
    cluster = FakeCluster(make_job(), stranger)
    with pytest.raises(Conflict, match="Job facts-1 exists and belongs to another owner"):
        await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS)))
    told = {c["type"]: c["message"] for c in cluster.objects[KEY]["status"]["conditions"]}
    assert "Job facts-1 exists and belongs to another owner" in told["Reconciling"], "nobody would look for it in a log"


async def test_a_claim_that_nobody_owns_is_used_as_it_is() -> None:
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "facts-artifacts", "namespace": "default"}}
    cluster = FakeCluster(make_job(), claim)
    await one_pass(cluster, Scripted(Decision((Create(claim),), STATUS)))
    assert cluster.objects[KEY]["status"] == STATUS


async def test_a_refused_child_is_told_in_the_status_and_tried_again() -> None:
    cluster = FakeCluster(make_job())

    def fail(write: str) -> None:
        if write.startswith("create Job"):
            raise Forbidden("exceeded quota: gpus")

    cluster.fail = fail
    conditions = [{"type": "Fits", "status": "True", "reason": "Fits", "message": ""}]
    policy = Scripted(Decision((Create(CHILD),), STATUS | {"conditions": conditions}, (TOLD,)))
    with pytest.raises(Forbidden):
        await one_pass(cluster, policy)
    status = cluster.objects[KEY]["status"]
    found = {c["type"]: (c["status"], c["reason"], c.get("message", "")) for c in status["conditions"]}
    assert found == {
        "Ready": ("False", "Refused", "exceeded quota: gpus"),
        "Reconciling": ("True", "Refused", "exceeded quota: gpus"),
        "Fits": ("True", "Fits", ""),
    }
    assert [e.reason for e in cluster.events] == ["Refused"], "what the decision wanted to tell did not happen"
    cluster.writes.clear()
    with pytest.raises(Forbidden):
        await one_pass(cluster, policy)
    assert cluster.writes == [], "the same refusal is told once"


@pytest.mark.parametrize("error", [Unavailable("timeout"), Conflict("changed"), NotLeader("frozen")])
async def test_other_failures_leave_the_status_as_it_was(error: Exception) -> None:
    cluster = FakeCluster(make_job())

    def fail(_: str) -> None:
        raise error

    cluster.fail = fail
    with pytest.raises(type(error)):
        await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS, (TOLD,))))
    assert cluster.events == []


async def test_an_event_that_gets_lost_costs_no_second_pass() -> None:
    cluster = FakeCluster(make_job())

    def fail(write: str) -> None:
        if write.startswith("event"):
            raise Forbidden("no events here")

    cluster.fail = fail
    assert (await one_pass(cluster, Scripted(Decision(status=STATUS, events=(TOLD,))))).result == "changed"


async def test_a_spec_that_cannot_be_read_is_stalled_with_its_field_named() -> None:
    cluster = FakeCluster(make_job(spec={"model": {"uri": "ftp://x"}, "dataset": {"uri": "hf://c/d"}}))
    policy = Scripted(Decision((Create(CHILD),), STATUS))
    assert (await one_pass(cluster, policy)).result == "stalled"
    status = cluster.objects[KEY]["status"]
    found = {c["type"]: (c["status"], c["reason"], c["lastTransitionTime"]) for c in status["conditions"]}
    assert found == {
        "Ready": ("False", "InvalidSpec", "2026-11-23T15:00:00Z"),
        "Stalled": ("True", "InvalidSpec", "2026-11-23T15:00:00Z"),
    }
    assert status["observedGeneration"] == 1
    assert "spec.model.uri" in status["conditions"][0]["message"]
    cluster.writes.clear()
    await one_pass(cluster, policy)
    assert cluster.writes == []


async def test_a_part_too_deep_to_read_stalls_that_object_alone() -> None:
    problem = "spec.serving.template has more than 64 levels of nesting; make it flatter"
    cluster = FakeCluster(make_job() | {UNREADABLE: problem})
    assert (await one_pass(cluster, Scripted(Decision((Create(CHILD),), STATUS)))).result == "stalled"
    found = {c["type"]: (c["reason"], c["message"]) for c in cluster.objects[KEY]["status"]["conditions"]}
    assert found["Stalled"] == ("InvalidSpec", problem)


async def test_a_fault_of_ours_is_a_condition_of_the_object_that_it_befell() -> None:
    def fail(*_: Any) -> Decision:
        raise RecursionError("deep")

    cluster = FakeCluster(make_job())
    for _ in range(2):
        with pytest.raises(RecursionError):
            await one_pass(cluster, Scripted(fail))
    found = {c["type"]: (c["status"], c["reason"]) for c in cluster.objects[KEY]["status"]["conditions"]}
    assert found == {"Ready": ("False", "OperatorFault"), "Stalled": ("True", "OperatorFault")}
    assert [w for w in cluster.writes if w.startswith("status")] == ["status FineTuneJob facts"], "told once"


def test_fields_of_a_newer_version_are_passed_over() -> None:
    job = make_job()
    job["spec"]["training"] = {"epochs": 2, "warp": 9}
    job["spec"]["galaxy"] = {"name": "milky"}
    known = without_unknown(FineTuneJob, job)
    assert known.spec == FineTuneJob.model_validate(make_job(spec=make_job()["spec"] | {"training": {"epochs": 2}})).spec
    assert "galaxy" in job["spec"], "what was read is not touched"


def test_an_unknown_field_does_not_hide_a_wrong_one() -> None:
    job = make_job()
    job["spec"] |= {"galaxy": 1, "training": {"epochs": -1}}
    with pytest.raises(InvalidSpec, match=r"spec\.training\.epochs"):
        without_unknown(FineTuneJob, job)


def test_pruned_keeps_what_means_something() -> None:
    value: Object = {"a": None, "b": [], "c": {}, "d": 0, "e": False, "f": "", "g": [{"x": None, "y": 1}], "h": {"z": {}}}
    assert pruned(value) == {"d": 0, "e": False, "f": "", "g": [{"y": 1}]}


async def test_a_model_serve_that_a_job_hands_over_to_is_news_to_its_own_policy() -> None:
    cluster = FakeCluster(make_job())
    own, children = cluster.caches()
    means = Means(cluster, own, children, Applied(), lambda _: {}, Settings())  # type: ignore[arg-type]
    serve = {"kind": "ModelServe", "metadata": {"name": "facts", "namespace": "default", "labels": {}}, "spec": {}}
    await reconcile(KEY, Kind(FineTuneJob, Scripted(Decision((Apply(serve),), STATUS))), means, NOW)
    assert "apply ModelServe facts" in cluster.writes
    assert own.keep(cluster.objects["ModelServe", "default", "facts"]), "its event wakes it: nothing has kept it before"
