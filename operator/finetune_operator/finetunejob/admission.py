"""What is wrong with a spec, told before any pod is started: what neither the schema nor a rule can say, and what doesn't go
together, of which a job that an older CRD let in was not told.
"""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_letters

from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.finetunejob import gates, handover
from finetune_operator.finetunejob.run_config import devices
from finetune_operator.meta import quantity_value
from finetune_trainer.contract import combinations

IN_BYTES = ("memory", "ephemeral-storage")
LEAST_BYTES = 2**20


def problems(spec: FineTuneJobSpec) -> list[str]:
    """Sentences that name the field and the remedy; none for a spec that can be run."""
    together = combinations.refusals(spec.training, devices(spec))
    own = (*_duplicates(spec), *_amounts(spec), *gates.problems(spec.evaluation.gates), *handover.problems(spec))
    return [*together, *own]


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


def _amounts(spec: FineTuneJobSpec) -> Iterator[str]:
    """A number without its unit is bytes, and nobody means so few; Kubernetes takes no request above its limit."""
    storage = spec.storage
    told = {
        "spec.parallelism.gpu.memory": spec.parallelism.gpu.memory,
        "spec.storage.artifacts.size": storage.artifacts.size,
        "spec.storage.scratch.size": storage.scratch.size,
    }
    for name, stage in spec.stages:
        at, held = f"spec.stages.{name}.resources", stage.resources
        for field, amounts in (("requests", held.requests), ("limits", held.limits)):
            told |= {f"{at}.{field}.{kind}": amount for kind, amount in amounts.items() if kind in IN_BYTES}
        for kind in held.requests.keys() & held.limits.keys():
            if quantity_value(held.requests[kind]) > quantity_value(held.limits[kind]):
                yield f"{at}.requests.{kind} is {held.requests[kind]}, above its limit {held.limits[kind]}; raise that limit"
    for path, amount in told.items():
        if amount is not None and quantity_value(amount) < LEAST_BYTES:
            number = amount.rstrip(ascii_letters)
            yield f"{path} is {amount}, which is less than 1Mi; write it with its unit, such as {number}Gi"
