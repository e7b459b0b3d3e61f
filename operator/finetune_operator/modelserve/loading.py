"""What keeps the pods of a revision from being ready, and whether waiting longer makes sense.

Fatal: out of memory, a crash loop, an image or secret still missing after a while, a model that is not what it should
be, no answer in the startup budget. Not fatal: no node takes the pod, since nodes come and go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from finetune_operator.modelserve.observed import Container, Deployed, Pod
from finetune_trainer.contract.reports import ExitCode

# The loader's codes for what another attempt would find again.
FINAL = frozenset(
    {
        ExitCode.BAD_CONFIG,
        ExitCode.BAD_DATA,
        ExitCode.SOURCE_NOT_FOUND,
        ExitCode.SOURCE_DENIED,
        ExitCode.VERIFICATION_FAILED,
    }
)
CRASHES = 3  # restarts, after which a container's end is no accident
PATIENCE_SECONDS = 120  # for a registry that hiccups, or a Secret that arrives after its Deployment


@dataclass(frozen=True)
class Trouble:
    reason: str  # the pod's own word where it has one
    message: str
    fatal: bool = False


def trouble(deployed: Deployed, start_seconds: int, now: datetime) -> Trouble | None:
    """The worst of what stands in the way; None while all goes well. `start_seconds` is the engine's startup budget."""
    found = list(_troubles(deployed, start_seconds, now))
    worst = next((t for t in found if t.fatal), found[0] if found else None)
    if not deployed.deadline_exceeded or (worst is not None and (worst.fatal or worst.reason == "Unschedulable")):
        return worst
    if worst is not None:
        return Trouble(worst.reason, worst.message, fatal=True)
    return Trouble("StartupTimeout", "the pods were not ready in time; see `kubectl describe pod`", fatal=True)


def _troubles(deployed: Deployed, start_seconds: int, now: datetime) -> Iterator[Trouble]:
    if deployed.refused_pods:
        yield Trouble("FailedCreate", deployed.refused_pods)
    for pod in deployed.pods:
        if pod.ready:
            continue
        if pod.unschedulable:
            yield Trouble("Unschedulable", f"pod {pod.name}: {pod.unschedulable}")
        patient = (now - datetime.fromisoformat(pod.created_at)).total_seconds() < PATIENCE_SECONDS
        for container in pod.containers:
            yield from _of_container(pod, container, start_seconds, patient)
        if pod.mounting and not patient:
            text = "waits for its volumes; a ReadWriteOnce claim can be mounted on one node only: see `kubectl describe pod`"
            yield Trouble("ContainerCreating", f"pod {pod.name} {text}")


def _of_container(pod: Pod, container: Container, start_seconds: int, patient: bool) -> Iterator[Trouble]:
    name = f"container {container.name} of pod {pod.name}"
    crashed = f"{name} ended with exit code {container.exit_code} ({container.ended}), {container.restarts} restarts"
    if container.failure is not None:
        fatal = container.exit_code in FINAL or container.restarts >= CRASHES
        yield Trouble(container.failure.reason, container.failure.message, fatal)
    elif container.ended == "OOMKilled":
        text = "needed more memory than its limit; raise spec.resources.limits.memory, or serve a smaller artifact"
        yield Trouble("OOMKilled", f"{name} {text}", fatal=True)
    elif _ran_seconds(container) >= start_seconds > 0:
        text = f"did not answer as the served model within {start_seconds} s; raise spec.rollout.startupTimeoutSeconds"
        yield Trouble("StartupTimeout", f"{name} {text} or see `kubectl logs {pod.name} --previous`", fatal=True)
    elif container.ended and container.restarts:
        fatal = container.restarts >= CRASHES
        yield Trouble("CrashLoopBackOff", f"{crashed}; see `kubectl logs {pod.name} -c {container.name} -p`", fatal)
    elif container.waiting:
        yield Trouble(container.waiting, f"{name}: {container.waiting_message}", fatal=not patient)


def _ran_seconds(container: Container) -> float:
    """How long it ran before it ended: the startup probe ends what has used up its budget."""
    if container.ran_from is None or container.ran_to is None or container.name != "engine":
        return 0
    return (datetime.fromisoformat(container.ran_to) - datetime.fromisoformat(container.ran_from)).total_seconds()
