"""What is read off Jobs and Pods: a pod's state is our container's, and an attempt's is that of the pod that tells most."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.builders import NOW, UID, ended_pod, finish, make_pod, stamp

from finetune_operator.decision import Observed
from finetune_operator.finetunejob.observed import LATEST, LOST_SECONDS, Attempt, Pod, State, Waiting, most_telling, observe
from finetune_operator.meta import Object
from finetune_trainer.contract.reports import Progress, StepResult, Termination

JOB: Object = {
    "metadata": {
        "name": "facts-train-1",
        "uid": "job-uid",
        "labels": {"finetune.dev/step": "train", "finetune.dev/run": "r", "finetune.dev/attempt": "2"},
        "ownerReferences": [{"kind": "FineTuneJob", "name": "facts", "uid": UID}],
    },
    "spec": {},
    "status": {"startTime": stamp()},
}
POD = Pod("p", "job-uid", 0, live=True, started_at=stamp())
DONE = StepResult(step="train", fingerprint="f")
SAID = Progress(step_name="train", step=3, total=9, activity="training", time=0)


def attempt(job: Object, *pods: Object, progress: dict[str, Any] | None = None) -> Attempt:
    said = {pod["metadata"]["name"]: progress for pod in pods} if progress else {}
    (found,) = observe(Observed({"Job": (job,), "Pod": pods}, progress=said), UID, NOW).attempts
    return found


def read(pod: Object, progress: dict[str, Any] | None = None) -> Pod:
    found = attempt(JOB, pod, progress=progress).pod
    assert found is not None
    return found


def waits(**container: str) -> list[dict[str, Any]]:
    return [{"name": "step", "state": {"waiting": container}}]


@pytest.mark.parametrize(
    ("status", "waiting"),
    [
        ({}, None),
        ({"containerStatuses": waits(reason="PodInitializing")}, None),
        ({"containerStatuses": waits(reason="ErrImagePull", message="no such tag")}, Waiting("ErrImagePull", "no such tag")),
        ({"containerStatuses": waits(reason="ErrImagePull")}, Waiting("ErrImagePull", "")),
        ({"containerStatuses": [{"name": "istio", "state": {"waiting": {"reason": "ErrImagePull"}}}]}, None),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "a gate"}]},
            Waiting("SchedulingGated", "a gate"),
        ),
        ({"conditions": [{"type": "PodScheduled", "status": "False"}]}, Waiting("Unschedulable", "")),
        ({"conditions": [{"type": "PodScheduled", "status": "True"}]}, None),
        ({"conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]}, None),
    ],
)
def test_why_a_pod_has_not_started(status: dict[str, Any], waiting: Waiting | None) -> None:
    assert read(make_pod(JOB, phase="Pending", **status)).waiting == waiting
    assert read(make_pod(JOB, phase="Running", **status)).waiting is None


def test_a_pod_is_pending_from_when_a_kubelet_took_it_or_else_from_when_it_was_made() -> None:
    pod = make_pod(JOB, phase="Pending")
    pod["metadata"]["creationTimestamp"] = stamp(-9)
    assert read(pod).pending_since == stamp()
    del pod["status"]["startTime"]
    assert read(pod).pending_since == stamp(-9)
    assert read(pod | {"status": {}}).pending_since == stamp(-9), "a pod without a phase is a new one"


DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "a dearer pod"}


@pytest.mark.parametrize(
    ("status", "removed", "removal"),
    [
        ({}, None, ""),
        ({"conditions": [DISRUPTED]}, "PreemptionByScheduler", "a dearer pod"),
        ({"conditions": [{"type": "DisruptionTarget", "status": "True"}]}, "Deleted", ""),
        ({"conditions": [DISRUPTED | {"status": "False"}]}, None, ""),
        ({"conditions": [DISRUPTED | {"type": "Ready"}]}, None, ""),
        ({"reason": "Evicted", "message": "low on memory"}, "Evicted", "low on memory"),
        ({"reason": "Evicted", "message": "low", "conditions": [DISRUPTED]}, "PreemptionByScheduler", "a dearer pod"),
    ],
)
def test_why_a_pod_was_taken_away(status: dict[str, Any], removed: str | None, removal: str) -> None:
    pod = read(make_pod(JOB, **status))
    assert (pod.removed, pod.removal) == (removed, removal)


@pytest.mark.parametrize(
    ("ago", "removed", "live"), [(-30, "Deleted", True), (LOST_SECONDS, "Deleted", True), (LOST_SECONDS + 1, "NodeLost", False)]
)
def test_a_deleted_pod_is_lost_a_minute_after_its_grace(ago: int, removed: str, live: bool) -> None:
    pod = make_pod(JOB)
    pod["metadata"]["deletionTimestamp"] = stamp(-ago)
    found = read(pod)
    assert (found.removed, found.live) == (removed, live)
    assert ("does not answer" in found.removal) == (not live)
    ended = ended_pod(JOB, 0, None)
    ended["metadata"]["deletionTimestamp"] = stamp(-ago)
    assert read(ended).removed == "Deleted", "a node that told of the end has answered"


@pytest.mark.parametrize(("time", "kept"), [(0.0, 0.0), (1.5, 1.5), (-1.0, 0.0), (LATEST - 1, LATEST - 1), (LATEST, 0.0)])
def test_a_time_that_no_clock_shows_is_none(time: float, kept: float) -> None:
    line = SAID.model_copy(update={"time": time}).model_dump(mode="json", by_alias=True)
    progress = read(make_pod(JOB), line).progress
    assert progress is not None
    assert (progress.step, progress.time) == (3, kept)
    assert read(make_pod(JOB), {"kind": "progress", "step": "three"}).progress is None


def test_a_pod_has_run_from_when_its_container_began() -> None:
    pod = ended_pod(JOB, 0, None)
    pod["status"]["startTime"] = stamp(-100)
    terminated = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert read(pod).started_at == terminated["startedAt"] != stamp(-100)
    del terminated["startedAt"]
    assert read(pod).started_at == stamp(-100)


def test_of_two_pods_of_one_place_the_one_that_started_last_counts() -> None:
    first, second, waiting = make_pod(JOB), make_pod(JOB), make_pod(JOB)
    for name, pod, started in (("first", first, -100), ("second", second, -60), ("waiting", waiting, None)):
        pod["metadata"] |= {"name": name, "uid": name}
        pod["status"]["startTime"] = None if started is None else stamp(started)
    for pods in ((first, second, waiting), (waiting, second, first)):
        found = attempt(JOB, *pods).pod
        assert found is not None
        assert found.name == "second"


@pytest.mark.parametrize(
    ("text", "number"), [("3", 3), ("0", 0), (None, 0), ("no number", 0), ("-1", 0), ("1" * 10, 0), ("1" * 9, 111111111)]
)
def test_what_a_label_counts(text: str | None, number: int) -> None:
    pod = make_pod(JOB)
    pod["metadata"]["annotations"] = {} if text is None else {"batch.kubernetes.io/job-completion-index": text}
    assert read(pod).index == number


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        (replace(POD, exit_code=1, index=5), replace(POD, waiting=Waiting("Unschedulable", ""))),
        (replace(POD, exit_code=1, index=5), replace(POD, exit_code=25)),  # LostRank is what another's end led to
        (replace(POD, exit_code=1, index=5), replace(POD, exit_code=137)),  # a kill that follows from another pod's end
        (replace(POD, exit_code=137, oom_killed=True, index=5), replace(POD, exit_code=25)),
        (replace(POD, exit_code=143, removed="Evicted", index=5), replace(POD, exit_code=25)),
        (replace(POD, exit_code=137, oom_killed=True), replace(POD, exit_code=1, index=1)),
        (replace(POD, exit_code=25), replace(POD, exit_code=143, removed="Deleted")),
        (replace(POD, exit_code=25, index=1), replace(POD, exit_code=25, index=2)),
        (replace(POD, waiting=Waiting("Unschedulable", ""), index=1), replace(POD, pending_since=stamp())),
        (replace(POD, pending_since=stamp(), index=1), POD),
        (replace(POD, waiting=Waiting("Unschedulable", ""), index=1), POD),
        (replace(POD, progress=SAID, index=1), POD),
        (replace(POD, exit_code=0, termination=Termination(result=DONE), index=1), replace(POD, exit_code=0)),
        (replace(POD, exit_code=0), replace(POD, exit_code=0, termination=Termination(), index=1)),
        (replace(POD, index=1), replace(POD, index=2)),
        (replace(POD, index=1), replace(POD, exit_code=0, index=2)),
    ],
)
def test_which_pod_tells_most(earlier: Pod, later: Pod) -> None:
    assert most_telling([earlier, later]) == most_telling([later, earlier]) == earlier


def test_how_an_attempt_stands() -> None:
    assert attempt(JOB) == Attempt(
        run="r",
        step="train",
        number=2,
        job="facts-train-1",
        uid="job-uid",
        state=State.ACTIVE,
        suspended=False,
        suspended_by_us=False,
        deleting=False,
        pending=True,
        admitted_at=stamp(),
        queue=None,
        left_behind=False,
        pod=None,
        running_pods=0,
        started_at=stamp(),
        finished_at=None,
    )
    waiting, running = make_pod(JOB, phase="Pending"), make_pod(JOB, phase="Running", startTime=stamp(5))
    running["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": "1"}
    some = attempt(JOB, waiting, running)
    assert (some.pending, some.running_pods) == (False, 1)
    held = attempt(JOB | {"spec": {"suspend": True}})
    assert (held.suspended, held.pending) == (True, False)
    by_us = {"metadata": JOB["metadata"] | {"annotations": {"finetune.dev/suspended": "true"}}}
    assert attempt(JOB | by_us | {"spec": {"suspend": True}}).suspended_by_us
    assert not attempt(JOB | by_us).suspended_by_us, "somebody has resumed it"
    assert attempt(JOB | {"metadata": JOB["metadata"] | {"deletionTimestamp": stamp()}}).deleting
    ended = attempt(finish(JOB, seconds=60), ended_pod(JOB, 0, None, seconds=50))
    assert (ended.state, ended.pending, ended.finished_at, ended.running_pods) == (State.SUCCEEDED, False, stamp(50), 0)
    assert attempt(finish(JOB, code=1, seconds=60)).finished_at == stamp(60)
    unsure = finish(JOB, code=1)
    unsure["status"]["conditions"][0]["status"] = "Unknown"
    assert attempt(unsure).state is State.ACTIVE


@pytest.mark.parametrize(("code", "state"), [(0, State.SUCCEEDED), (1, State.FAILED)])
@pytest.mark.parametrize(("ago", "over"), [(LOST_SECONDS, False), (LOST_SECONDS + 1, True)])
def test_a_job_that_something_injected_keeps_open_is_left_behind_after_a_minute(
    code: int, state: State, ago: int, over: bool
) -> None:
    pod = ended_pod(JOB, code, None, seconds=-ago)
    pod["status"]["phase"] = "Running"
    found = attempt(JOB, pod)
    assert (found.left_behind, found.state) == ((True, state) if over else (False, State.ACTIVE))
