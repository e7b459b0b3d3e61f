"""A ModelServe under the profile that it names, and what it asks for that the operator does not offer. Pure."""

from __future__ import annotations

from finetune_operator.api.modelserve import ModelServe, ModelServeSpec
from finetune_operator.modelserve.model import Obstacle, Resolution
from finetune_operator.platforms import Asked, refusals
from finetune_operator.settings import Settings
from finetune_trainer.contract.reasons.operator import OperatorReason


def under_profile(serve: ModelServe, settings: Settings) -> ModelServe:
    """The ModelServe with what its profile says where it says nothing itself."""
    profile = settings.platform.profiles.get(serve.spec.profile or "")
    if profile is None:
        return serve
    template = profile.under(serve.spec.pod_template)
    return serve.model_copy(update={"spec": serve.spec.model_copy(update={"pod_template": template})})


def problems(spec: ModelServeSpec, settings: Settings) -> list[str]:
    """What of the spec is not offered, a sentence each."""
    asked = (
        Asked("images", "spec.engine.image", spec.engine.image),
        Asked("service_accounts", "spec.podTemplate.serviceAccountName", spec.pod_template.service_account_name),
    )
    return refusals(settings.platform, spec.profile, asked)


def offered(resolution: Resolution, spec: ModelServeSpec, settings: Settings) -> Resolution:
    """The resolution, with what is not offered in its way: no new revision starts, and the live one goes on."""
    found = problems(spec, settings)
    if not found or resolution.obstacle is not None:
        return resolution
    return Resolution(resolution.model, Obstacle(OperatorReason.NotOffered, "; ".join(found), blocks=True))
