"""Follow a FineTuneJob by its status, as `kubectl get finetunejob --watch` would, until it ends."""

from __future__ import annotations

import time

from localcluster.work import duration

from demo.console import DemoFailed, LiveLine
from demo.kubectl import Kubectl, Object

PATIENCE_SECONDS = 3600
WATCH_SECONDS = 120  # then it is asked anew: a stream can be lost without a word


def follow(kubectl: Kubectl, name: str, namespace: str) -> Object:
    """Show what the job does until it has succeeded; returns it. Raises DemoFailed with the job's own message."""
    line, end = LiveLine(), time.monotonic() + PATIENCE_SECONDS
    try:
        while time.monotonic() < end:
            with kubectl.watch("finetunejob", name, namespace, WATCH_SECONDS) as versions:
                for job in versions:
                    line.show(*describe(job))
                    if is_true(job, "Succeeded"):
                        return job
                    if why := condition(job, "Stalled"):
                        raise DemoFailed(_why(name, namespace, f"{why['reason']}: {why['message']}"))
    finally:
        line.close()
    raise DemoFailed(_why(name, namespace, f"it has not ended after {duration(PATIENCE_SECONDS)}"))


def describe(job: Object) -> tuple[str, str]:
    """What the job does, and how far it is: (topic, line)."""
    status = job.get("status", {})
    progress, stage = status.get("progress", {}), status.get("stage", "Waiting")
    running = next((s["name"] for s in status.get("steps", []) if s["state"] == "Running"), None)
    if running is None or progress.get("step") != running:
        ready = condition(job, "Ready") or {}
        return stage, f"{stage:<12} {ready.get('message', '')}"
    parts = [f"{stage:<12} {running}"]
    if progress.get("activity"):
        parts.append(progress["activity"])
    if progress.get("total"):
        parts.append(f"{progress.get('current', 0)}/{progress['total']}")
    if running == "train":
        parts += [f"{word} {progress[key]:{form}}" for key, word, form in FIGURES if key in progress]
    if progress.get("etaSeconds"):
        parts.append(f"{duration(progress['etaSeconds'])} left")
    return f"{stage} {running}", "  ".join(parts)


FIGURES = (("loss", "loss", ".3f"), ("tokensPerSecond", "tokens/s", ".0f"))


def condition(job: Object, kind: str) -> Object | None:
    """A condition of that type, None where the status has none."""
    return next((c for c in job.get("status", {}).get("conditions", []) if c["type"] == kind), None)


def is_true(job: Object, kind: str) -> bool:
    """Whether the condition holds for the object's present generation."""
    found = condition(job, kind) or {}
    return found.get("status") == "True" and found.get("observedGeneration") == job["metadata"].get("generation")


def step_times(job: Object) -> list[tuple[str, str, str]]:
    """(step, state, time taken) of each step, in order."""
    return [(s["name"], s["state"], duration(_seconds(s)) if "finishedAt" in s else "") for s in job["status"]["steps"]]


def _seconds(step: Object) -> float:
    begin, end = (time.strptime(step[key], "%Y-%m-%dT%H:%M:%SZ") for key in ("startedAt", "finishedAt"))
    return time.mktime(end) - time.mktime(begin)


def _why(name: str, namespace: str, what: str) -> str:
    look = f"kubectl -n {namespace}"
    return (
        f"the FineTuneJob {name} did not succeed: {what}\n"
        f"   {look} describe finetunejob {name}\n"
        f"   {look} logs --tail=50 -l finetune.dev/job={name} --prefix\n"
        f"   kubectl -n finetune-system logs deployment/finetune-operator --tail=50"
    )
