"""The ModelServe's policy: what to read for one, and what follows from it. Pure: no client, no clock.

resolve the model ─► render the revision ─► observe ─► fitted ─► next_rollout ─► actions + status + events
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from finetune_operator.api.access import Autoscaling
from finetune_operator.api.modelserve import ModelServe, Revision, Signal
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.decision import Action, Apply, Create, Decision, Delete, Observed, Reads, Ref
from finetune_operator.meta import Object
from finetune_operator.modelserve import (
    adapter_gate,
    adapter_source,
    adapters,
    around,
    canary,
    gate,
    gateway,
    objects,
    pinned,
    route,
    sleeping,
    watch,
)
from finetune_operator.modelserve.adapter_pod import config_map_name, untold
from finetune_operator.modelserve.case import Case, Rollout, history_after
from finetune_operator.modelserve.deployed import revision_of
from finetune_operator.modelserve.fit import fitted
from finetune_operator.modelserve.gating import gate_of
from finetune_operator.modelserve.model import Obstacle, refs, resolve
from finetune_operator.modelserve.observed import AROUND, OF_A_REVISION, observe
from finetune_operator.modelserve.offered import offered, under_profile
from finetune_operator.modelserve.pacing import paced
from finetune_operator.modelserve.plan import target
from finetune_operator.modelserve.rollout import next_rollout
from finetune_operator.modelserve.status import events, next_status, rendered
from finetune_operator.modelserve.window import watch_job
from finetune_operator.names import LABEL_WATCH, object_name, serve_labels
from finetune_operator.settings import Settings

KINDS = (*OF_A_REVISION, *AROUND, "ConfigMap", "Pod")


def reads(serve: ModelServe) -> Reads:
    """Children by label; by name the stable Service, which may be a stranger's, and what the model refers to."""
    name, named = serve.metadata.name, (*refs(serve), *adapter_source.refs(serve))
    return Reads(serve_labels(name), KINDS, (Ref("Service", object_name(name)), *route.refs(serve), *named))


def decide(written: ModelServe, observed: Observed, settings: Settings, now: datetime) -> Decision:
    """One pass over one ModelServe. The same inputs give the same decision."""
    serve, settings = under_profile(written, settings), settings.under_profile(written.spec.profile)
    resolution = offered(resolve(serve, observed), serve.spec, settings)
    asked = target(serve, resolution.model, settings) if resolution.model is not None else None
    case = fitted(_pinned(Case(serve, resolution, asked, observe(serve, observed), now)))
    rollout = next_rollout(paced(case, observed, settings))
    steps = adapters.next_steps(serve, resolution.model, rollout.live, case.world, observed, now)
    told = next_status(case, rollout, [step.status for step in steps])
    looks = (rollout.requeue_after, *(step.requeue_after for step in steps))
    return Decision(
        actions=(*_of_adapters(case, rollout, steps, observed, settings), *_actions(case, rollout, settings)),
        status=rendered(told),
        events=tuple(events(serve.status, told)),
        requeue_after=min((seconds for seconds in looks if seconds is not None), default=None),
        intent=_is_news(serve.status.candidate, told.candidate) and case.world.live == (told.live and told.live.name),
    )


def _pinned(case: Case) -> Case:
    """The case with the revision that somebody asks for instead of the spec's: then nothing stands in the spec's way."""
    found = pinned.pin(case.serve, case.target, case.world)
    if found is None:
        return case
    followed = pinned.follow(case.serve, found, case.target, case.world)
    if isinstance(followed, Obstacle):
        return replace(case, target=None, resolution=replace(case.resolution, obstacle=followed))
    if followed.pinned_by is None:
        return case
    return replace(case, target=followed, resolution=replace(case.resolution, obstacle=None))


def _is_news(before: Revision | None, told: Revision | None) -> bool:
    """Whether the status must tell of the candidate before anything is done, unless traffic moves: a verdict's evidence goes
    with its gate, a gate that is asked again is known by its number, and an outage is foretold.
    """
    return told is not None and _gist(before) != _gist(told)


def _gist(revision: Revision | None) -> tuple[object, ...] | None:
    if revision is None:
        return None
    return revision.name, revision.trial, revision.state, revision.gates_lost, revision.strategy


def _actions(case: Case, rollout: Rollout, settings: Settings) -> Iterator[Action]:
    """First what serves, then what is on its way, each whole in each pass; then what nothing needs any more."""
    serve, wanted, live, candidate = case.serve, case.target, rollout.live, rollout.candidate
    if live is not None:
        yield from _whole(case, live.name, 0 if rollout.is_live_stopped else rollout.replicas)
        service = _service(case, rollout, live)
        yield Apply(gateway.led_through(serve, service) if sleeping.goes_through(case, live) else service)
    if rollout.window is not None:
        yield from _whole(case, rollout.window.revision, rollout.replicas)
    if wanted is not None and rollout.loading == wanted.revision:
        yield from _whole(case, wanted.revision, rollout.pods)
    if wanted is not None and rollout.ask:
        yield Create(gate.gate_prompts(serve, serve.spec.rollout.gate.prompts))
        against = None if live is None or rollout.is_live_stopped else live.name
        again = (candidate and candidate.gates_lost) or 0
        yield Create(gate.gate(serve, wanted, settings, live=against, again=again))
    yield from _watch(case, rollout, settings)
    yield from _around(case, rollout, settings)
    yield from _obsolete(case, rollout)


def _service(case: Case, rollout: Rollout, live: Revision) -> Object:
    """The Service of users, as it selects the pods that serve."""
    return objects.stable_service(case.serve, live.name, history_after(case, rollout), shared=rollout.is_shared)


def _of_adapters(
    case: Case, rollout: Rollout, steps: tuple[adapters.Step, ...], observed: Observed, settings: Settings
) -> Iterator[Action]:
    """What pods read comes before them, and before the gates that wait for it. A gate's Job goes once its verdict is told."""
    serve, live, model = case.serve, rollout.live, case.resolution.model
    if serve.spec.lora is not None:
        wanted = adapters.wanted_by(steps)
        yield Apply(adapters.config_map(steps, wanted, objects.owned(serve, config_map_name(serve), {})))
        yield from untold(observed.children.get("Pod", ()), wanted.version)
    if live is not None and any(adapters.is_asking(step.status) for step in steps):
        yield Apply(adapter_gate.each_pod(serve, live.name))
    for step in steps:
        if step.ask and live is not None and model is not None:
            yield Create(gate.gate_prompts(serve, step.adapter.gate.prompts))
            yield Create(adapter_gate.job(serve, step, live.name, model, settings))
    told = (*serve.status.adapters, *(step.status for step in steps))
    counting = {adapters.gate_job(serve, one) for one in told if adapters.is_asking(one)}
    for child in case.world.children:
        if adapters.is_gate(child) and child["metadata"]["name"] not in counting:
            yield Delete("Job", child["metadata"]["name"], child["metadata"]["uid"])


def _watch(case: Case, rollout: Rollout, settings: Settings) -> Iterator[Action]:
    """The Job that reads what the engines count while there is a way back, and what it needs; without one, none of it."""
    watched, opened = (rollout.live, rollout.window) if rollout.window else (rollout.candidate, canary.way_back(rollout))
    wanted: set[str] = set()
    if watched is not None and opened is not None:
        wanted = {watch_job(case.serve, watched)}  # one that came to no verdict stays, so that it is not begun again and again
        if {Signal.ERRORS, Signal.LATENCY} & set(opened.signals):
            needed = list(watch.services(case.serve, watched, opened))
            wanted |= {body["metadata"]["name"] for body in needed}
            yield from map(Apply, needed)
            if watch_job(case.serve, watched) not in case.world.gates:
                yield Create(watch.job(case.serve, watched, opened, settings, case.now))
    for child in case.world.children:
        if LABEL_WATCH in child["metadata"].get("labels", {}) and child["metadata"]["name"] not in wanted:
            yield Delete(child["kind"], child["metadata"]["name"], child["metadata"]["uid"])


def _around(case: Case, rollout: Rollout, settings: Settings) -> Iterator[Action]:
    """What belongs to no revision, as the spec asks for it now, once there is one."""
    live = None if rollout.live is None else rollout.live.name
    model = case.target.model if case.target else case.resolution.model
    wanted: list[Object] = []
    if live or rollout.loading:
        wanted += around.wanted(case.serve, model, live, settings)
    if live and case.serve.spec.route is not None and case.world.may_route:
        wanted.append(around.http_route(case.serve, case.serve.spec.route, *rollout.routed))
    wanted += _gateway(case, rollout, model, settings)
    yield from (Apply(body) for body in wanted if body["kind"] != "Job")
    yield from (Create(body) for body in wanted if body["kind"] == "Job" and body["metadata"]["name"] not in case.world.gates)
    stays = {(body["kind"], body["metadata"]["name"]) for body in wanted}
    for child in case.world.around:
        if (child["kind"], child["metadata"]["name"]) not in stays:
            yield Delete(child["kind"], child["metadata"]["name"], child["metadata"]["uid"])


def _gateway(case: Case, rollout: Rollout, model: ResolvedModel | None, settings: Settings) -> Iterator[Object]:
    """What stands before a revision that sleeps while nobody asks, and the Job that tells when that changes. What the gateway
    leads to stays until its last pod has gone.
    """
    serve, live, scaling = case.serve, rollout.live, case.serve.spec.autoscaling
    if live is None or not (sleeping.has_gateway(case, live) or case.world.gateway_pods):
        return
    yield gateway.live_service(serve, _service(case, rollout, live))
    if not sleeping.has_gateway(case, live):
        return
    scaling = scaling or Autoscaling(max_replicas=1)  # it is to sleep no more, and its pods are not there yet
    yield from gateway.wanted(serve, scaling, settings)
    if serve.spec.network.policy and settings.network_policies:
        yield around.gateway_policy(serve, model, settings)
    if (waited := sleeping.waits_for(case, rollout)) is not None and not sleeping.is_lost(case.world.gates.get(waited[0])):
        yield gateway.look(serve, live.name, *waited, scaling, settings)


def _whole(case: Case, revision: str, replicas: int) -> Iterator[Action]:
    """All that a revision needs, rendered as it was first: the spec may ask for another by now."""
    manifest = case.world.records.get(revision)
    if manifest is None:
        found = case.world.deployed.get(revision)
        if found is not None:
            manifest = objects.as_found(found.body)
        elif case.target is not None and case.target.revision == revision:
            manifest = objects.deployment(case.serve, case.target)
        else:
            return  # gone, and nothing tells what it was
        yield Create(objects.record(case.serve, revision, manifest))
    yield Apply(objects.scaled(manifest, replicas))
    yield Apply(objects.revision_service(case.serve, revision))


def _obsolete(case: Case, rollout: Rollout) -> Iterator[Action]:
    """Objects of revisions that neither serve nor load. While Service and route are moved over, the old ones still stay, and
    all of them while a stranger has its name: what served may serve again. Whose they are is told by their names: a label
    may have been edited, and is put back.
    """
    if case.world.stranger:
        return
    kept = rollout.kept | case.world.taking
    limit = case.serve.spec.rollout.revision_history_limit
    remembered = kept | {p.revision for p in case.world.history[: limit + 1]}
    for child in case.world.children:
        meta, revision = child["metadata"], revision_of(child)
        if LABEL_WATCH in meta.get("labels", {}):
            continue  # the window's, not the revision's
        stays = remembered if child["kind"] == "ControllerRevision" else kept
        if meta["name"] in {objects.revision_name(case.serve, name) for name in stays}:
            continue
        if revision and (revision not in stays or _superseded(case, rollout, child)):
            yield Delete(child["kind"], meta["name"], meta["uid"])


def _superseded(case: Case, rollout: Rollout, child: Object) -> bool:
    """A gate's Job of the candidate that no longer counts."""
    candidate = rollout.candidate
    if candidate is None or child["kind"] != "Job" or revision_of(child) != candidate.name:
        return False
    return bool(child["metadata"]["name"] != gate_of(case.serve, candidate))
