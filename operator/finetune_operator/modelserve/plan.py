"""What the spec and its model come to: the revision that is asked for, rendered and named by its hash."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from finetune_operator import credentials
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.api.rollout import ServeGate
from finetune_operator.api.served_model import ResolvedModel
from finetune_operator.meta import Object
from finetune_operator.modelserve.deployed import engine_of
from finetune_operator.modelserve.engines import ENGINES
from finetune_operator.modelserve.pod import pod_template, secrets
from finetune_operator.names import ANNOTATION_RETRY, short_hash
from finetune_operator.settings import Settings

LOADER_OF_OLD = ("python", "-m", "finetune_trainer.load")  # as every revision has been hashed from the first release on

SPEED = ("min_tokens_per_second", "max_first_token_milliseconds")  # fields of the gate


@dataclass(frozen=True)
class Target:
    """One revision: what runs, and what it is tried with."""

    revision: str
    trial: str
    model: ResolvedModel
    template: Object  # of the pods, without the revision's label
    pinned_by: str | None = None  # what asks for it instead of the spec's; it has passed its gate


def target(serve: ModelServe, model: ResolvedModel, settings: Settings) -> Target:
    """The same spec, model and settings give the same revision. No part of it are replicas, gate, the loader's image, the front
    and the chart's pull secrets: none of them may restart what serves.

    Test rows, speed, heldOut and judge are part of the trial where they are asked, so that who asks for none is tried as before
    there were any.
    """
    template = pod_template(serve, model, settings)
    asked = pod_template(serve, model, replace(settings, image_pull_secrets=""), fronted=False)
    revision = _revision(asked, model)
    gate = serve.spec.rollout.gate
    retry = serve.metadata.annotations.get(ANNOTATION_RETRY, "")
    rows = asked_rows(serve, model)
    more = [] if rows is None else [gate.test_rows.model_dump_json(), rows]
    if asks_speed(gate):
        more.append(f"{gate.min_tokens_per_second} {gate.max_first_token_milliseconds}")
    more += [asked.model_dump_json() for asked in (gate.held_out, gate.judge) if asked is not None]
    trial = short_hash(gate.model_dump_json(exclude={"test_rows", "held_out", "judge", *SPEED}), retry, *more, length=6)
    return Target(revision, trial, model, template)


def asks_only_new_defaults(serve: ModelServe, wanted: Target, live: str, manifest: Object, settings: Settings) -> bool:
    """Whether the target would be the live revision, whose Deployment `manifest` is, had the operator's default image of the
    engine and its pull policy stayed as they were.
    """
    before = engine_of(manifest["spec"]["template"])
    settings = replace(settings, image_pull_secrets="", image_pull_policy=before.get("imagePullPolicy", ""))
    asked = pod_template(serve, wanted.model, settings, fronted=False)
    if serve.spec.engine.image is None:
        engine_of(asked)["image"] = before.get("image")
    return wanted.pinned_by is None and wanted.revision != live == _revision(asked, wanted.model)


def _revision(asked: Object, model: ResolvedModel) -> str:
    return short_hash(_identity(asked, model), model.uri, model.digest or "", length=10)


def asks_speed(gate: ServeGate) -> bool:
    """Whether the gate measures how fast a revision answers."""
    return any(getattr(gate, name) is not None for name in SPEED)


def asked_rows(serve: ModelServe, model: ResolvedModel) -> str | None:
    """The evaluation whose test rows a revision is asked; None where it is asked none, as by an engine that takes no tokens."""
    takes_any = ENGINES[serve.spec.engine.type].takes_tokens
    return model.evaluation if takes_any and serve.spec.rollout.gate.test_rows.count else None


def _identity(template: Object, model: ResolvedModel) -> str:
    """The loader comes with the operator: neither its image nor its program's path, nor its resources, nor how it is
    given credentials may load every model of a cluster anew. They are hashed as the first release had them."""
    spec, mounted = template["spec"], credentials.mounts(secrets(model))
    (loader,) = spec["initContainers"]
    loader = {k: v for k, v in loader.items() if k not in ("image", "resources")}
    loader["command"] = [*LOADER_OF_OLD, *loader["command"][3:]]
    loader["volumeMounts"] = [mount for mount in loader["volumeMounts"] if mount not in mounted]
    if model.secret is not None:
        loader["envFrom"] = [{"secretRef": {"name": model.secret}}]
    volumes = [volume for volume in spec["volumes"] if volume not in credentials.volumes(secrets(model))]
    return json.dumps({**template, "spec": {**spec, "initContainers": [loader], "volumes": volumes}}, sort_keys=True)
