"""What is wrong with a spec, told before any pod is started: what neither the schema nor a rule can say, and what doesn't go
together, of which a job that an older CRD let in was not told.
"""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.finetunejob import gates, handover
from finetune_operator.finetunejob.run_config import devices
from finetune_trainer.contract import combinations


def problems(spec: FineTuneJobSpec) -> list[str]:
    """Sentences that name the field and the remedy; none for a spec that can be run."""
    together = combinations.refusals(spec.training, devices(spec))
    return [*together, *_duplicates(spec), *gates.problems(spec.evaluation.gates), *handover.problems(spec)]


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
