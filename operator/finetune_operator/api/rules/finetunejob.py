"""What must hold between the fields of a FineTuneJob. Bounds of single fields are in api/finetunejob.py and the contract; what
goes together in training is in the contract's combinations.
"""

from __future__ import annotations

from finetune_operator.api.rules import pods
from finetune_operator.api.rules.evaluation import EVALUATION_RULES
from finetune_operator.api.rules.objectives import OBJECTIVE_RULES
from finetune_operator.api.rules.parallelism import PARALLELISM_RULES
from finetune_operator.api.rules.table import of_table
from finetune_operator.meta import Rule
from finetune_trainer.contract import combinations
from finetune_trainer.contract.formats import FORMATS, ArtifactFormat
from finetune_trainer.contract.places import HF, S3

_PAIRS = [f"{format.named} with {name}" for name, format in FORMATS.items()]
_STAGES = ("prepare", "train", "merge", "quantize", "evaluate", "publish", "clean")


def compute_only(at: str) -> Rule:
    """A Resources value that names no GPUs."""
    names = "['cpu', 'memory', 'ephemeral-storage']"
    return Rule(
        at,
        f"(!has(self.requests) || self.requests.all(r, r in {names}))"
        f" && (!has(self.limits) || self.limits.all(r, r in {names}))",
        f"{at}.requests and .limits take cpu, memory and ephemeral-storage only; ask for GPUs in spec.parallelism",
    )


def _split(at: str) -> Rule:
    return Rule(
        at,
        "[has(self.uri), has(self.split), has(self.fraction)].filter(given, given).size() == 1",
        f"{at} takes exactly one of uri (rows of their own), split (of dataset.uri) and fraction (a share of its rows)",
    )


def _stratified(at: str) -> Rule:
    return Rule(
        at,
        "!has(self.stratifyBy) || has(self.fraction)",
        f"{at}.stratifyBy says how a fraction of dataset.uri's rows is chosen; set {at}.fraction, or remove it",
    )


RULES = (
    _split("spec.dataset.test"),
    _split("spec.dataset.validation"),
    _stratified("spec.dataset.test"),
    _stratified("spec.dataset.validation"),
    Rule(
        "spec.dataset",
        "[has(self.test.split) ? self.test.split : '', has(self.validation) && has(self.validation.split)"
        " ? self.validation.split : ''].all(held, held != (has(self.split) ? self.split : 'train'))",
        "spec.dataset.test.split and validation.split can't be the split that is trained on (train, where spec.dataset.split is"
        " unset); name another one",
    ),
    Rule(
        "spec.dataset",
        "!has(self.test.split) || !has(self.validation) || !has(self.validation.split)"
        " || self.test.split != self.validation.split",
        "spec.dataset.test.split and validation.split are the same rows, but nothing that chooses a checkpoint may score it;"
        " name another one",
    ),
    Rule(
        "spec.dataset",
        "!has(self.labels) || self.labels.size() == 0 || self.format in ['Auto', 'Classification']",
        "spec.dataset.labels is for rows with labels; set spec.dataset.format to Classification, or remove labels",
    ),
    Rule(
        "spec.dataset",
        "!has(self.validation) || !has(self.validation.fraction) || !has(self.test.fraction)"
        " || self.validation.fraction + self.test.fraction < 1.0",
        "spec.dataset.test.fraction and validation.fraction leave no rows to train on; make their sum less than 1",
    ),
    Rule(
        "spec",
        "!has(self.training.evaluateEverySteps) || has(self.dataset.validation)",
        "spec.training.evaluateEverySteps needs validation rows; set spec.dataset.validation.uri or .fraction",
    ),
    *of_table(combinations.SETTINGS),
    Rule(
        "spec.artifacts[]",
        "!(self.name in ['adapter', 'merged', 'base'])",
        "spec.artifacts[].name can't be adapter, merged or base: those are always there; choose another name",
    ),
    Rule(
        "spec.artifacts[]",
        " || ".join(f"(self.format == '{f}' && self.quantization in {list(FORMATS[f].quantizations)})" for f in ArtifactFormat),
        f"spec.artifacts[].quantization does not go with its format; use {', '.join(_PAIRS[:-1])}, and {_PAIRS[-1]}",
    ),
    Rule(
        "spec.artifacts[]",
        "!has(self.imatrix) || !self.imatrix || self.quantization.contains('_K')",
        "spec.artifacts[].imatrix is for Q6_K, Q5_K_M and Q4_K_M; take one of those, or remove imatrix",
    ),
    Rule(
        "spec",
        "!has(self.publish) || self.publish.all(p, p.artifacts.all(n, n in ['adapter', 'merged']"
        " || (has(self.artifacts) && self.artifacts.exists(a, a.name == n))))",
        "spec.publish[].artifacts has one that is not made by this job; use adapter, merged or names from spec.artifacts",
    ),
    Rule(
        "spec.publish[]",
        f"!self.uri.startsWith('{HF.prefix}') || has(self.secretRef)",
        f"spec.publish[].secretRef is needed to write to {HF.prefix}; name a Secret with the key {HF.keys[0]}",
    ),
    Rule(
        "spec",
        f"!has(self.publish) || self.publish.all(p, !p.uri.startsWith('{HF.prefix}')"
        " || self.publish.filter(other, other.uri == p.uri).size() == 1)",
        f"spec.publish[].uri names one {HF.prefix} repository twice, and one entry would undo the other; list the artifacts in"
        " one",
    ),
    Rule(
        "spec",
        "!has(self.serving) || !has(self.serving.artifact) || self.serving.artifact == 'merged'"
        " || (has(self.artifacts) && self.artifacts.exists(a, a.name == self.serving.artifact))",
        "spec.serving.artifact is not made by this job; use merged or a name from spec.artifacts",
    ),
    Rule(
        "spec.serving",
        "!has(self.adapterOf) || (!has(self.artifact) && self.deletionPolicy == 'Orphan')",
        "spec.serving.adapterOf goes without artifact and deletionPolicy Delete; remove them",
    ),
    Rule(
        "spec.storage.artifacts",
        f"(!has(self.endpoint) && !has(self.region) && !has(self.caSecretRef)) || (has(self.uri)"
        f" && self.uri.startsWith('{S3.prefix}'))",
        f"spec.storage.artifacts.endpoint, .region and .caSecretRef go with an {S3.prefix} uri only; set uri, or remove them",
    ),
    *(compute_only(f"spec.stages.{stage}.resources") for stage in _STAGES),
    *pods.RULES,
    *(
        Rule(
            "spec",
            f"!has(self.podTemplate.{field}) || !has(self.scheduling.{field})",
            f"spec.podTemplate.{field} and spec.scheduling.{field} say the same; set one of them",
        )
        for field in ("priorityClassName", "schedulerName")
    ),
    Rule(
        "spec",
        "has(self.managedBy) == has(oldSelf.managedBy) && (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)",
        "spec.managedBy can't be changed: two controllers would be at the job; delete the job and make another",
    ),
    *EVALUATION_RULES,
    *OBJECTIVE_RULES,
    *PARALLELISM_RULES,
)
