"""The rollback window: a revision that has just taken traffic is watched, and the one before stays warm to take it back. Pure.

promoted ──► the old pods run on, rollbackWindowSeconds ──► they go
                  │ an engine ends, or can't load any more; a pod that had started fails its probe; the engines count too
                  │ many errors, or answer much more slowly than before (watch.py's Job)
                  └──► the Service selects the old ones again; the new revision is refused, and the same write says why

Pods that were deleted or evicted, and what is away for a moment, say nothing of the revision.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_operator.api.modelserve import ModelServe, Revision, RevisionState, RollbackWindow, Signal
from finetune_operator.api.rollout import RollbackOn
from finetune_operator.meta import seconds_since, stamp
from finetune_operator.modelserve import history
from finetune_operator.modelserve.case import Case, Rollout, Standing
from finetune_operator.modelserve.deployed import ENGINE, Container, Deployed, Pod, engine_of
from finetune_operator.modelserve.engines import ENGINES
from finetune_operator.modelserve.loading import Trouble, trouble
from finetune_operator.modelserve.observed import Verdict
from finetune_operator.modelserve.plan import Target
from finetune_operator.modelserve.startup import budget
from finetune_operator.names import object_name, short_hash
from finetune_trainer.contract.reasons.operator import OperatorReason
from finetune_trainer.contract.reasons.steps import StepReason

ALWAYS = [Signal.RESTARTS, Signal.PROBES]


def way_back(case: Case, live: Revision) -> str | None:
    """The revision that served before and still has pods."""
    name = history.before(case.world.history, live.name)
    deployed = case.world.deployed.get(name or "")
    return name if deployed is not None and deployed.replicas > 0 else None


def window(case: Case, live: Revision) -> RollbackWindow | None:
    """The window that is open now."""
    seconds, back = case.serve.spec.rollout.rollback_window_seconds, way_back(case, live)
    if back is None or live.promoted_at is None or seconds_since(live.promoted_at, case.now) >= seconds:
        return None
    until = datetime.fromisoformat(live.promoted_at) + timedelta(seconds=seconds)
    return RollbackWindow(revision=back, until=stamp(until), signals=signals(case, live, back))


def promoted(case: Case, candidate: Revision, replicas: int) -> Rollout:
    """A revision takes all the traffic, and from then on its window is open."""
    known = {"state": RevisionState.LIVE, "promoted_at": stamp(case.now), "strategy_message": None}
    live = candidate.model_copy(update=known)
    text = f"revision {live.name} serves"
    told = Rollout(Standing.SERVING, OperatorReason.Serving, text, live, replicas=replicas)
    opened = window(case, live)
    return told if opened is None else watched(case, told, opened)


def watched(case: Case, told: Rollout, opened: RollbackWindow) -> Rollout:
    """The way back is open: the revision before stays, and what sends no event is looked at in time."""
    assert told.live is not None
    left = -seconds_since(opened.until, case.now)
    looks = (told.requeue_after, left, until_unready(case, told.live))
    soonest = min(seconds for seconds in looks if seconds is not None)
    text = f"{told.message}; revision {opened.revision} stays warm until {opened.until}, and takes traffic again if"
    signals = " or ".join(s.value.lower() for s in opened.signals)
    return replace(told, message=f"{text} {signals} of {told.live.name} are bad", window=opened, requeue_after=soonest)


def signals(case: Case, watched: Revision, back: str) -> list[Signal]:
    """What is watched of a revision that takes traffic, while `back` can take it again."""
    return [*ALWAYS, *_counted(case, watched, back)]


def _counted(case: Case, live: Revision, back: str) -> list[Signal]:
    """What the watch's Job reads of the engines, unless it has ended."""
    on, counters = case.serve.spec.rollout.rollback_on, ENGINES[case.serve.spec.engine.type].counters
    watched = case.world.gates.get(watch_job(case.serve, live))
    if watched is not None and watched.verdict in (Verdict.UNKNOWN, Verdict.PASSED):  # it looks no more
        return []
    found = [Signal.ERRORS] if counters.has_errors and on.max_error_rate < 1 else []
    alike = _port(case, back) == _port(case, live.name) is not None
    return [*found, *([Signal.LATENCY] if on.max_slowdown is not None and alike else [])]


def _port(case: Case, revision: str) -> int | None:
    """The port of a revision's engine: another engine, which counts otherwise, has another."""
    manifest = case.world.records.get(revision)
    engine = {} if manifest is None else engine_of(manifest["spec"]["template"])
    return engine["ports"][0]["containerPort"] if engine else None


def watch_job(serve: ModelServe, live: Revision) -> str:
    """Name of the Job that reads what the engines of a revision count, since this promotion of it."""
    return object_name(serve.metadata.name, live.name, "watch", short_hash(live.promoted_at or "", length=6))


def fault(case: Case, target: Target, live: Revision) -> Trouble | None:
    """What the live revision does that it must not within its window."""
    deployed, on, since = case.world.deployed.get(live.name), case.serve.spec.rollout.rollback_on, live.promoted_at
    if deployed is None or since is None:
        return None
    found = _restarts(deployed, on, since) or _load(case, target, deployed) or _probes(deployed, on, case.now)
    found = found or _traffic(case, live)
    text = f"{round(seconds_since(since, case.now))} s after it took traffic"
    return found and replace(found, message=f"{text}, {found.message}")


def until_unready(case: Case, live: Revision) -> float | None:
    """Seconds until a pod that fails its probe now has failed it for too long: no event will tell."""
    deployed, longest = case.world.deployed.get(live.name), case.serve.spec.rollout.rollback_on.not_ready_seconds
    pods = deployed.pods if deployed else ()
    left = [longest - seconds_since(p.ready_changed_at, case.now) for p in pods if _fails_its_probe(p)]
    return min((seconds for seconds in left if seconds > 0), default=None)


def _restarts(deployed: Deployed, on: RollbackOn, since: str) -> Trouble | None:
    ended = [(pod, c) for pod in deployed.pods for c in pod.containers if c.name == ENGINE and _ended_after(c, since)]
    restarts = sum(max(1, c.restarts) for _, c in ended)
    if restarts <= on.max_restarts:
        return None
    pod, engine = ended[-1]
    reason = StepReason.OutOfMemory if engine.ended == "OOMKilled" else OperatorReason.EngineRestarted
    text = f"the engine of pod {pod.name} ended with exit code {engine.exit_code} ({engine.ended}), {restarts} restarts"
    return Trouble(reason, f"{text}; spec.rollout.rollbackOn.maxRestarts bears {on.max_restarts}")


def _ended_after(container: Container, since: str) -> bool:
    return container.ran_to is not None and datetime.fromisoformat(container.ran_to) >= datetime.fromisoformat(since)


def _load(case: Case, target: Target, deployed: Deployed) -> Trouble | None:
    """A pod that took the place of another can't load."""
    found = trouble(deployed, budget(case.serve.spec, target.model).start, case.now)
    return found if found is not None and found.bad else None


def _traffic(case: Case, live: Revision) -> Trouble | None:
    """What the watch has found in the engines' own counters."""
    watched = case.world.gates.get(watch_job(case.serve, live))
    if watched is None or watched.verdict is not Verdict.FAILED or watched.failure is None:
        return None
    return Trouble(watched.failure.reason, watched.failure.message)


def _probes(deployed: Deployed, on: RollbackOn, now: datetime) -> Trouble | None:
    failing = [
        p for p in deployed.pods if _fails_its_probe(p) and seconds_since(p.ready_changed_at, now) >= on.not_ready_seconds
    ]
    if not failing:
        return None
    text = f"{len(failing)} of {len(deployed.pods)} pods that had started have not been ready for {on.not_ready_seconds} s"
    return Trouble(
        OperatorReason.ProbesFailed, f"{text} (spec.rollout.rollbackOn.notReadySeconds), {failing[0].name} among them"
    )


def _fails_its_probe(pod: Pod) -> bool:
    """It answered once, and its engine runs, yet it is not ready."""
    return not pod.ready and pod.ready_changed_at != "" and any(c.name == ENGINE and c.started for c in pod.containers)
