"""A FineTuneJob under the profile that it names, and what it asks for that the operator does not offer. Pure.

Only what is rendered comes under the profile: what a job was run with, and what it succeeded with, is what users wrote.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from finetune_operator.api.finetunejob import FineTuneJob, FineTuneJobSpec
from finetune_operator.finetunejob import handover
from finetune_operator.modelserve import offered as serving
from finetune_operator.platforms import Asked, refusals
from finetune_operator.settings import Settings


def under_profile(job: FineTuneJob, settings: Settings) -> FineTuneJob:
    """The job with what its profile says where it says nothing itself."""
    profile = settings.platform.profiles.get(job.spec.profile or "")
    if profile is None:
        return job
    spec, store = job.spec, job.spec.storage.artifacts
    named = {"storage_class_name": store.storage_class_name or profile.storage_class_name}
    storage = spec.storage.model_copy(update={"artifacts": store.model_copy(update=named)})
    queue = {"queue_name": spec.scheduling.queue_name or profile.queue_name}
    filled = {
        "pod_template": profile.under(spec.pod_template),
        "storage": storage,
        "scheduling": spec.scheduling.model_copy(update=queue),
    }
    return job.model_copy(update={"spec": spec.model_copy(update=filled)})


def problems(spec: FineTuneJobSpec, settings: Settings) -> list[str]:
    """What of the spec is not offered, told before anything is trained: also what it will ask of a ModelServe."""
    found = refusals(settings.platform, spec.profile, _asked(spec))
    return [*found, *(f"spec.serving.template: {sentence}" for sentence in _of_serving(spec, settings))]


def _asked(spec: FineTuneJobSpec) -> Iterator[Asked]:
    for name in type(spec.stages).model_fields:
        stage = getattr(spec.stages, name)
        yield Asked("images", f"spec.stages.{name}.image", stage.image)
        yield Asked("service_accounts", f"spec.stages.{name}.serviceAccountName", stage.service_account_name)
    yield Asked("service_accounts", "spec.podTemplate.serviceAccountName", spec.pod_template.service_account_name)
    yield Asked("storage", "spec.storage.artifacts.uri", spec.storage.artifacts.uri)
    yield Asked("storage_classes", "spec.storage.artifacts.storageClassName", spec.storage.artifacts.storage_class_name)
    for i, place in enumerate(spec.publish):
        yield Asked("storage", f"spec.publish[{i}].uri", place.uri)


def _of_serving(spec: FineTuneJobSpec, settings: Settings) -> list[str]:
    if spec.serving is None:
        return []
    try:
        return serving.problems(handover.served_spec(spec.serving), settings)
    except ValidationError:
        return []  # admission tells that
