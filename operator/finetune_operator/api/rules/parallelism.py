"""CEL rules of spec.parallelism: ranks, how they share the work out, and what can't be shared out."""

from __future__ import annotations

from finetune_operator.api.rules.table import of_table
from finetune_operator.meta import Rule
from finetune_trainer.contract import combinations, places
from finetune_trainer.contract.places import Reach, Use

_BUCKETS = places.either(place.prefix for place in places.usable(Use.STORE, Reach.BUCKET))

PARALLELISM_RULES = (
    *of_table(combinations.RANKS),
    Rule(
        "spec",
        "self.parallelism.numNodes == 1 || has(self.storage.artifacts.uri) || has(self.storage.artifacts.storageClassName)",
        "spec.parallelism.numNodes above 1 needs a store that several nodes reach; set spec.storage.artifacts.uri to"
        f" {_BUCKETS} or to a claim with ReadWriteMany, or storageClassName to a class that makes such claims",
    ),
    *of_table(combinations.WHOLE_MODELS),
)
