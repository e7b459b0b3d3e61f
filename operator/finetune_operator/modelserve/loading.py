"""What keeps the pods of a revision from being ready, and what that says of the revision.

bad        it is the revision: out of memory, a crash loop, a model that is not what it should be, no answer in the startup
           budget. It is refused.
unknown    it is something else: an image or Secret that is not there, a node, a volume, a store that does not answer. It is
           waited for; after a while somebody should look (`stuck`), and it goes on by itself all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from finetune_operator.meta import seconds_since
from finetune_operator.modelserve.deployed import ENGINE, Container, Deployed, Pod
from finetune_operator.refusals import reason_of
from finetune_trainer.contract.exits import ExitCode, Retry
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.steps import StepReason

# The loader's codes for what another attempt would find again.
FINAL = frozenset(code for code in ExitCode if code.retry is Retry.NEVER)
# Its codes for what does not answer just now: no fault of the model.
AWAY = frozenset({ExitCode.SOURCE_UNAVAILABLE, ExitCode.STORE_UNAVAILABLE})
CRASHES = 3  # restarts, after which a container's end is no accident
PATIENCE_SECONDS = 120  # for a registry that hiccups, or a Secret that arrives after its Deployment
NODE_SECONDS = 300  # in which a cluster's autoscaler may add a node
OF_THE_SPEC = frozenset({"InvalidImageName", "ErrInvalidImageName"})  # no registry would ever answer to such a name


@dataclass(frozen=True)
class Trouble:
    reason: str  # the pod's own word where it has one
    message: str
    bad: bool = False
    stuck: bool = False


def trouble(deployed: Deployed, start_seconds: int, now: datetime) -> Trouble | None:
    """The worst of what stands in the way; None while all goes well. `start_seconds` is the engine's startup budget.

    The Deployment's own deadline is no verdict: it also counts the time in which no node, image or volume was there.
    """
    found = sorted(_troubles(deployed, start_seconds, now), key=lambda t: (not t.bad, not t.stuck))
    if found or not deployed.deadline_exceeded:
        return next(iter(found), None)
    return Trouble(
        OperatorReason.NotReadyInTime, "the pods take longer than was reckoned; see `kubectl describe pod`", stuck=True
    )


def _troubles(deployed: Deployed, start_seconds: int, now: datetime) -> Iterator[Trouble]:
    if deployed.refused_pods:
        yield Trouble(reason_of(deployed.refused_pods), deployed.refused_pods)
    for pod in deployed.pods:
        if pod.ready:
            continue
        if pod.unschedulable:
            stuck = seconds_since(pod.placed_at, now) >= NODE_SECONDS
            yield Trouble(OperatorReason.Unschedulable, f"pod {pod.name}: {pod.unschedulable}", stuck=stuck)
        patient = seconds_since(pod.placed_at, now) < PATIENCE_SECONDS
        for container in pod.containers:
            yield from _of_container(pod, container, start_seconds, patient)
        if pod.mounting and not patient:
            text = "waits for its volumes; a ReadWriteOnce claim can be mounted on one node only: see `kubectl describe pod`"
            yield Trouble(OperatorReason.ContainerCreating, f"pod {pod.name} {text}")


def _of_container(pod: Pod, container: Container, start_seconds: int, patient: bool) -> Iterator[Trouble]:
    name = f"container {container.name} of pod {pod.name}"
    crashed = f"{name} ended with exit code {container.exit_code} ({container.ended}), {container.restarts} restarts"
    if container.failure is not None:
        bad, again = container.exit_code in FINAL, container.restarts >= CRASHES
        bad = bad or (again and container.exit_code not in AWAY)
        yield Trouble(container.failure.reason, container.failure.message, bad, stuck=again)
    elif container.ended == "OOMKilled":
        text = "needed more memory than its limit; raise spec.resources.limits.memory, or serve a smaller artifact"
        yield Trouble(StepReason.OutOfMemory, f"{name} {text}", bad=True)
    elif _ran_seconds(container) >= start_seconds > 0:
        text = f"did not answer as the served model within {start_seconds} s; raise spec.rollout.startupTimeoutSeconds"
        yield Trouble(OperatorReason.StartupTimeout, f"{name} {text} or see `kubectl logs {pod.name} --previous`", bad=True)
    elif container.ended and container.restarts:
        bad = container.restarts >= CRASHES
        yield Trouble(OperatorReason.CrashLoopBackOff, f"{crashed}; see `kubectl logs {pod.name} -c {container.name} -p`", bad)
    elif container.waiting:
        bad = container.waiting in OF_THE_SPEC
        yield Trouble(container.waiting, f"{name}: {container.waiting_message}", bad, stuck=not patient)


def _ran_seconds(container: Container) -> float:
    """How long it ran before it ended: the startup probe ends what has used up its budget."""
    if container.ran_from is None or container.ran_to is None or container.name != ENGINE:
        return 0
    return (datetime.fromisoformat(container.ran_to) - datetime.fromisoformat(container.ran_from)).total_seconds()
