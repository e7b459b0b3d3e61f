"""How attempts fail: exit codes and pods' facts ─► try again or not, the reason, and what to change."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.builders import NOW, UID, ended_pod, finish, make_pod, reported_failure, stamp

from finetune_operator.decision import Observed
from finetune_operator.finetunejob.failures import BY_CODE, failure_of
from finetune_operator.finetunejob.observed import State, observe
from finetune_operator.meta import Object
from finetune_trainer.contract.exits import ExitCode, Retry
from finetune_trainer.contract.pipeline import TRAIN, Step
from finetune_trainer.contract.reports import Termination

JOB: Object = {
    "metadata": {
        "name": "facts-train-1",
        "uid": "j1",
        "labels": {"finetune.dev/run": "r", "finetune.dev/step": "train", "finetune.dev/attempt": "1"},
        "ownerReferences": [{"kind": "FineTuneJob", "uid": UID}],
    },
    "spec": {},
}
LOW = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 88Mi. "
GREEDY = LOW + "Container step was using 6Gi, request is 1Gi, has larger consumption of memory. "
UNTOLD = LOW + "Container step was using an amount, request is 1Gi. Container other was using 6Gi, request is unknown. "
MODEST = LOW + "Container step was using 1Gi, request is 1Gi, has larger consumption of memory. "
EVICTED_FULL = 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi".'


def disruption(reason: str) -> dict[str, Any]:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "made room"}]}


def with_status(code: int | None, **status: Any) -> Object:
    pod = ended_pod(JOB, code, None) if code is not None else make_pod(JOB, phase="Failed")
    return {**pod, "status": {**pod["status"], **status}}


def deleted(pod: Object) -> Object:
    return {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-11-23T15:00:00Z"}}


ROWS: list[tuple[str, Object | None, Retry, str]] = [
    ("no pod is left", None, Retry.FREE, "PodDeleted"),
    ("deleted, checkpoint saved", deleted(ended_pod(JOB, ExitCode.PREEMPTED, None)), Retry.FREE, "PodDeleted"),
    ("deleted, killed after its grace", deleted(ended_pod(JOB, 137, None)), Retry.FREE, "PodDeleted"),
    ("SIGTERM before the handler", ended_pod(JOB, 143, None), Retry.FREE, "Terminated"),
    ("saved a checkpoint", ended_pod(JOB, ExitCode.PREEMPTED, None), Retry.FREE, "Preempted"),
    (
        "preempted by the scheduler",
        with_status(137, **disruption("PreemptionByScheduler")),
        Retry.FREE,
        "PreemptionByScheduler",
    ),
    ("node lost", with_status(None, **disruption("DeletionByTaintManager")), Retry.FREE, "DeletionByTaintManager"),
    ("evicted by node pressure", with_status(None, reason="Evicted", message="low on memory"), Retry.FREE, "Evicted"),
    ("evicted for its own memory", with_status(None, reason="Evicted", message=GREEDY), Retry.COUNTED, "Evicted"),
    ("evicted for another's memory", with_status(None, reason="Evicted", message=MODEST), Retry.FREE, "Evicted"),
    ("evicted for nobody knows how much", with_status(None, reason="Evicted", message=UNTOLD), Retry.FREE, "Evicted"),
    ("evicted for its own disk use", with_status(None, reason="Evicted", message=EVICTED_FULL), Retry.COUNTED, "ScratchFull"),
    ("refused by the kubelet", with_status(None, reason="OutOfcpu"), Retry.FREE, "OutOfcpu"),
    ("no exit code", with_status(None), Retry.FREE, "PodLost"),
    ("over its memory limit", ended_pod(JOB, 137, None, reason="OOMKilled"), Retry.COUNTED, "OutOfMemory"),
    ("killed by something else", ended_pod(JOB, 137, None), Retry.COUNTED, "Killed"),
    ("a crash", ended_pod(JOB, 1, None), Retry.COUNTED, "UnexpectedError"),
    ("a segmentation fault", ended_pod(JOB, 139, None), Retry.COUNTED, "UnexpectedError"),
    ("the hub is down", ended_pod(JOB, ExitCode.SOURCE_UNAVAILABLE, None), Retry.COUNTED, "SourceUnavailable"),
    ("the store is down", ended_pod(JOB, ExitCode.STORE_UNAVAILABLE, None), Retry.COUNTED, "StoreUnavailable"),
    ("a lost rank", ended_pod(JOB, ExitCode.LOST_RANK, None), Retry.COUNTED, "LostRank"),
    ("a pod that never came", ended_pod(JOB, ExitCode.WORLD_INCOMPLETE, None), Retry.COUNTED, "WorldIncomplete"),
    ("a hang", ended_pod(JOB, ExitCode.HANG, None), Retry.COUNTED, "Hang"),
    ("bad data", ended_pod(JOB, ExitCode.BAD_DATA, None), Retry.NEVER, "InvalidDataset"),
    ("bad config", ended_pod(JOB, ExitCode.BAD_CONFIG, None), Retry.NEVER, "InvalidSpec"),
    ("no such model", ended_pod(JOB, ExitCode.SOURCE_NOT_FOUND, None), Retry.NEVER, "SourceNotFound"),
    ("denied", ended_pod(JOB, ExitCode.SOURCE_DENIED, None), Retry.NEVER, "SourceDenied"),
    ("too big", ended_pod(JOB, ExitCode.DOES_NOT_FIT, None), Retry.NEVER, "DoesNotFit"),
    ("GPU memory", ended_pod(JOB, ExitCode.OUT_OF_GPU_MEMORY, None), Retry.SMALLER, "OutOfGpuMemory"),
    ("NaN", ended_pod(JOB, ExitCode.NON_FINITE_LOSS, None), Retry.NEVER, "NonFiniteLoss"),
    ("a merge that does not agree", ended_pod(JOB, ExitCode.VERIFICATION_FAILED, None), Retry.NEVER, "VerificationFailed"),
    (
        "explained, though the pod was being deleted",
        deleted(ended_pod(JOB, *reported_failure(ExitCode.BAD_DATA, "EmptyDataset", "no rows"))),
        Retry.NEVER,
        "EmptyDataset",
    ),
]


ON_GPU, ON_CPU = (Step(TRAIN, TRAIN, (), needs_gpu=gpu) for gpu in (True, False))


@pytest.mark.parametrize(("what", "pod", "retry", "reason"), ROWS, ids=[r[0] for r in ROWS])
def test_failures(what: str, pod: Object | None, retry: Retry, reason: str) -> None:
    children: dict[str, tuple[Object, ...]] = {"Job": (finish(JOB, code=1),), "Pod": () if pod is None else (pod,)}
    (attempt,) = observe(Observed(children), UID, NOW).attempts
    assert attempt.state is State.FAILED, what
    failure = failure_of(attempt, ON_GPU)
    assert (failure.retry, failure.reason) == (retry, reason)
    assert failure.message


def test_a_micro_batch_on_cpus_has_to_fit_into_the_memory_of_the_pod() -> None:
    children: dict[str, tuple[Object, ...]] = {
        "Job": (finish(JOB, code=1),),
        "Pod": (ended_pod(JOB, 137, None, reason="OOMKilled"),),
    }
    (attempt,) = observe(Observed(children), UID, NOW).attempts
    retries = {step.stage: failure_of(attempt, step).retry for step in (ON_CPU, Step("merge", "merge", ()))}
    assert retries == {"train": Retry.SMALLER, "merge": Retry.COUNTED}


def test_every_exit_code_but_success_has_a_rule() -> None:
    assert {int(c) for c in ExitCode} - {0} <= set(BY_CODE)


def test_what_the_pod_reported_outweighs_the_table() -> None:
    code, said = reported_failure(ExitCode.SOURCE_DENIED, "GatedModel", "accept the licence at the hub")
    (attempt,) = observe(Observed({"Job": (finish(JOB, code=1),), "Pod": (ended_pod(JOB, code, said),)}), UID, NOW).attempts
    failure = failure_of(attempt, Step("prepare", "prepare", ()))
    assert (failure.reason, failure.message, failure.node) == ("GatedModel", "accept the licence at the hub", "node-1")


def test_a_report_of_another_version_is_read_as_far_as_it_goes() -> None:
    pod = ended_pod(JOB, 11, None)
    report = '{"failure": {"reason": "New", "message": "m", "hint": 1}, "extra": []}'
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = report
    (attempt,) = observe(Observed({"Job": (finish(JOB, code=1),), "Pod": (pod,)}), UID, NOW).attempts
    assert attempt.pod is not None
    assert attempt.pod.termination == Termination.model_validate_json(report)


@pytest.mark.parametrize("garbage", ["", "{", "not json", '{"failure": 3}'])
def test_a_report_that_is_none_is_no_report(garbage: str) -> None:
    pod = ended_pod(JOB, 1, None)
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = garbage
    (attempt,) = observe(Observed({"Job": (finish(JOB, code=1),), "Pod": (pod,)}), UID, NOW).attempts
    assert attempt.pod is not None
    assert attempt.pod.termination is None


def test_a_job_has_not_ended_while_its_pod_is_seen_at_work() -> None:
    (attempt,) = observe(Observed({"Job": (finish(JOB),), "Pod": (make_pod(JOB),)}), UID, NOW).attempts
    assert attempt.state is State.ACTIVE  # the pods were listed a moment before the Jobs


def test_pods_that_are_served_are_none_of_the_job_s() -> None:
    pod = make_pod(JOB)
    pod["metadata"]["labels"] = {"finetune.dev/job": "facts", "finetune.dev/serve": "facts"}
    assert observe(Observed({"Job": (JOB,), "Pod": (pod,)}), UID, NOW).live_pods == ()


def test_children_of_an_earlier_job_of_the_same_name_are_only_live_pods() -> None:
    world = observe(Observed({"Job": (JOB,), "Pod": (make_pod(JOB),)}), "another uid", NOW)
    assert world.attempts == ()
    assert [p.job_uid for p in world.live_pods] == ["j1"]


CAUSES: list[tuple[str, list[Object], str]] = [
    (
        "a rank fails, the others because of it",
        [
            ended_pod(JOB, *reported_failure(ExitCode.LOST_RANK, "LostRank", "m")),
            ended_pod(JOB, *reported_failure(ExitCode.NON_FINITE_LOSS, "NonFiniteLoss", "m")),
            ended_pod(JOB, *reported_failure(ExitCode.PREEMPTED, "Preempted", "m")),
        ],
        "NonFiniteLoss",
    ),
    (
        "one runs out of memory",
        [
            ended_pod(JOB, *reported_failure(ExitCode.LOST_RANK, "LostRank", "m")),
            ended_pod(JOB, 137, None, reason="OOMKilled"),
        ],
        "OutOfMemory",
    ),
    (
        "one is killed with its node",
        [
            ended_pod(JOB, *reported_failure(ExitCode.LOST_RANK, "LostRank", "m")),
            deleted(ended_pod(JOB, 137, None)),
        ],
        "PodDeleted",
    ),
    (
        "one is drained, all save and leave",
        [
            ended_pod(JOB, *reported_failure(ExitCode.PREEMPTED, "Preempted", "m")),
            deleted(ended_pod(JOB, *reported_failure(ExitCode.PREEMPTED, "Preempted", "m"))),
        ],
        "Preempted",
    ),
    (
        "one vanished",
        [ended_pod(JOB, *reported_failure(ExitCode.LOST_RANK, "LostRank", "m"))],
        "LostRank",
    ),
]


@pytest.mark.parametrize(("pods", "reason"), [c[1:] for c in CAUSES], ids=[c[0] for c in CAUSES])
@pytest.mark.parametrize("turned", [False, True])
def test_of_several_pods_the_first_cause_is_told(pods: list[Object], reason: str, turned: bool) -> None:
    for index, pod in enumerate(reversed(pods) if turned else pods):
        pod["metadata"] |= {"name": f"p{index}", "annotations": {"batch.kubernetes.io/job-completion-index": str(index)}}
    (attempt,) = observe(Observed({"Job": (finish(JOB, code=1),), "Pod": tuple(pods)}), UID, NOW).attempts
    assert failure_of(attempt, ON_GPU).reason == reason


def test_an_attempt_of_several_pods_goes_on_until_the_last_has_ended() -> None:
    first, second = ended_pod(JOB, 0, Termination()), make_pod(JOB)
    for index, pod in enumerate((first, second)):
        pod["metadata"] |= {"name": f"p{index}", "annotations": {"batch.kubernetes.io/job-completion-index": str(index)}}
    (attempt,) = observe(Observed({"Job": (finish(JOB),), "Pod": (first, second)}), UID, NOW).attempts
    assert (attempt.state, attempt.running_pods) == (State.ACTIVE, 1)


def test_a_job_whose_pod_was_never_seen_waits_until_the_watch_of_pods_has_caught_up() -> None:
    """Not for ever: somebody may have deleted the pod as soon as it had ended."""
    world = Observed({"Job": (finish(JOB),)})
    states = [observe(world, UID, NOW + timedelta(seconds=60 + later)).attempts[0].state for later in (1, 44, 46)]
    assert states == [State.ACTIVE, State.ACTIVE, State.SUCCEEDED]


SIDECAR = {"name": "proxy", "state": {"running": {"startedAt": "2026-11-23T15:00:00Z"}}}


@pytest.mark.parametrize(("code", "state"), [(0, State.SUCCEEDED), (1, State.FAILED)])
def test_a_container_that_was_injected_neither_speaks_for_ours_nor_holds_the_attempt(code: int, state: State) -> None:
    pod = ended_pod(JOB, code, Termination())
    pod["status"] |= {"phase": "Running", "containerStatuses": [SIDECAR, *pod["status"]["containerStatuses"]]}
    world = Observed({"Job": (JOB,), "Pod": (pod,)})
    (attempt,) = observe(world, UID, NOW + timedelta(seconds=100)).attempts
    assert (attempt.state, attempt.left_behind) == (State.ACTIVE, False), "the Job may end any moment"
    assert attempt.pod is not None
    assert attempt.pod.exit_code == code
    (attempt,) = observe(world, UID, NOW + timedelta(seconds=200)).attempts
    assert (attempt.state, attempt.left_behind) == (state, True)


def test_a_pod_on_a_node_that_does_not_answer_counts_as_gone() -> None:
    pod = make_pod(JOB)
    pod["metadata"]["deletionTimestamp"] = stamp(120)
    world = Observed({"Job": (JOB,), "Pod": (pod,)})
    (waits,) = observe(world, UID, NOW + timedelta(seconds=150)).attempts
    assert (waits.state, waits.left_behind) == (State.ACTIVE, False)
    gone = observe(world, UID, NOW + timedelta(seconds=200))
    (attempt,) = gone.attempts
    assert gone.live_pods == ()
    assert (attempt.state, attempt.left_behind) == (State.FAILED, True)
    failure = failure_of(attempt, ON_GPU)
    assert (failure.retry, failure.reason) == (Retry.FREE, "NodeLost")
