"""What is wrong with a spec, told before any pod is started: what neither the schema nor a rule can say, and what doesn't go
together, of which a job that an older CRD let in was not told.
"""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.finetunejob import handover
from finetune_operator.finetunejob.run_config import devices
from finetune_trainer.contract import combinations
from finetune_trainer.contract.fields import SecretRef

_Named = tuple[str, str, SecretRef | None]  # field, uri, secret


def problems(spec: FineTuneJobSpec) -> list[str]:
    """Sentences that name the field and the remedy; none for a spec that can be run."""
    together = combinations.refusals(spec.training, devices(spec))
    return [*together, *_duplicates(spec), *_secret_conflicts(spec), *handover.problems(spec)]


def _duplicates(spec: FineTuneJobSpec) -> Iterator[str]:
    """The API server sees to this; a file that is run without one comes here unchecked."""
    named = {
        "spec.artifacts": [a.name for a in spec.artifacts],
        "spec.evaluation.gates": [g.name for g in spec.evaluation.gates],
        "spec.evaluation.tasks": [t.name for t in spec.evaluation.tasks],
    }
    for field, names in named.items():
        for name in sorted({n for n in names if names.count(n) > 1}):
            yield f"{field}[].name {name} is there twice; give each its own"


def _secret_conflicts(spec: FineTuneJobSpec) -> Iterator[str]:
    """Secrets become environment variables, so one pod can't hold two different sets of the same source's keys."""
    store = spec.storage.artifacts
    kept: _Named = ("spec.storage.artifacts.secretRef", store.uri or "", store.secret_ref)
    model: _Named = ("spec.model.secretRef", spec.model.uri, spec.model.secret_ref)
    dataset: _Named = ("spec.dataset.secretRef", spec.dataset.uri, spec.dataset.secret_ref)
    distillation = spec.training.distillation
    field = "spec.training.distillation.teacher.secretRef"
    taught: list[_Named] = [(field, distillation.teacher.uri, distillation.teacher.secret_ref)] if distillation else []
    teachers = [(teacher, other) for teacher in taught for other in (model, dataset, kept)]
    targets: list[_Named] = [(f"spec.publish[{i}].secretRef", p.uri, p.secret_ref) for i, p in enumerate(spec.publish)]
    for one, other in ((model, dataset), (model, kept), (dataset, kept), *teachers, *((t, kept) for t in targets)):
        same_source = one[1].partition("://")[0] == other[1].partition("://")[0]
        if same_source and one[2] and other[2] and one[2] != other[2]:
            yield f"{one[0]} and {other[0]} give one pod two sets of the same keys; use one Secret that may do both"
