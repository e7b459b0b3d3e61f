"""What must hold between the fields of a ModelServe. Bounds of single fields are in api.py."""

from __future__ import annotations

import re
from itertools import pairwise

from finetune_operator.api.access import Load
from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.api.rollout import PromotionPolicy, Strategy
from finetune_operator.api.rules import pods
from finetune_operator.api.rules.finetunejob import compute_only
from finetune_operator.meta import Rule
from finetune_operator.modelserve.engines import ENGINES, EngineType
from finetune_operator.modelserve.engines.engine import ANY_NAME
from finetune_trainer.contract import places
from finetune_trainer.contract.places import S3, Reach, Use

_SPLITTING = [name for name, engine in ENGINES.items() if engine.splits_tensors]
_NO_SPLIT = f"spec.parallelism.tensor above 1 needs spec.engine.type {' or '.join(_SPLITTING)}; set one or the other"
_NO_GPUS = "spec.parallelism.tensor counts GPUs; set it to 1 where spec.parallelism.gpus is false"


_MEASURED: dict[Load, list[EngineType]] = {
    load: [name for name, engine in ENGINES.items() if load in engine.loads] for load in Load if load is not Load.CPU
}
_MEASURING = {load: engines for load, engines in _MEASURED.items() if len(engines) < len(ENGINES)}  # not by all
_NO_LOAD = {
    load: f"spec.autoscaling.metric {load} is measured by {' and '.join(engines)} only; write another metric"
    for load, engines in _MEASURING.items()
}
_NO_RANGE = "spec.autoscaling.minReplicas must be at most maxReplicas"
_NO_SHARE = "spec.autoscaling.metric CPU is a share of what is asked for: set spec.resources.requests.cpu"
_NO_PERCENT = "spec.autoscaling.target of the metric CPU is a whole number of percent, such as 80"
_NOBODY_ANSWERS = (
    "spec.rollout.strategy Recreate stops the live revision first, so spec.rollout.promotion Manual would leave nothing that"
    " answers until somebody comes; set one or the other"
)
_NOTHING_TO_COMPARE = (
    "spec.rollout.strategy Recreate stops the live revision first, so spec.rollout.gate.heldOut and judge have nothing to"
    " compare with; set one or the other"
)
_NOTHING_TO_SHARE = (
    "spec.rollout.strategy Recreate stops the live revision first, so spec.rollout.canary has nobody to share the traffic with;"
    " set one or the other"
)
_TAKING = [name for name, engine in ENGINES.items() if engine.takes_adapters]
_NO_ADAPTERS = (
    f"spec.lora needs spec.engine.type {' or '.join(_TAKING)}: other engines take no adapter while they run; serve the merged"
    " model there, or change the engine"
)
_ASKED_LENGTH = [name for name, engine in ENGINES.items() if engine.needs_length]
_NO_LENGTH = (
    f"spec.engine.type {' or '.join(_ASKED_LENGTH)} needs spec.engine.maxModelLength, the longest context: it has a short one"
    " of its own, and would cut longer prompts in silence"
)
_NAMES = {name: engine.takes_names for name, engine in ENGINES.items() if engine.takes_names != ANY_NAME}
_NO_NAME = {
    name: f"spec.servedName is none that {name} can have: it must be NAME, TEAM/NAME or HOST/TEAM/NAME, of letters, digits, -,"
    " _ and, but in TEAM, dots, each at most 80 long"
    for name in _NAMES
}
_TEXT_ALONE = [name for name, engine in ENGINES.items() if not engine.takes_tokens]
_NO_TOKENS = (
    "spec.rollout.gate.heldOut and judge ask by token ids, as training has them, and spec.engine.type"
    f" {' and '.join(_TEXT_ALONE)} take texts alone; leave them out, or change the engine"
)
_NO_ROOM = "spec.adapters needs room in the engine: set spec.lora, {} for the usual"
_NOT_RISING = "spec.rollout.canary.steps must rise: write each weight above the one before"
_NO_TEST_ROWS = "spec.rollout.gate.heldOut and judge take the test rows of an evaluation; set spec.model.evaluation beside uri"
_NO_ROWS = "spec.rollout.gate.heldOut.minRows must be at most rows"
_NO_PAIRS = "spec.rollout.gate.judge.maxCalls must be at least twice minPairs: a pair takes two"


def broken_by(spec: ModelServeSpec) -> list[str]:
    """The rules below between fields other than the model's, for a template that a FineTuneJob will hand over."""
    split, rollout = spec.parallelism.tensor > 1, spec.rollout
    rules = {
        _NO_SPLIT: split and not ENGINES[spec.engine.type].splits_tensors,
        _NO_GPUS: split and not spec.parallelism.gpus,
        _NOBODY_ANSWERS: rollout.strategy is Strategy.RECREATE and rollout.promotion is PromotionPolicy.MANUAL,
        _NOTHING_TO_COMPARE: rollout.strategy is Strategy.RECREATE and rollout.gate.compares,
        _NOTHING_TO_SHARE: rollout.strategy is Strategy.RECREATE and rollout.canary is not None,
        _NO_ADAPTERS: spec.lora is not None and not ENGINES[spec.engine.type].takes_adapters,
        _NO_LENGTH: ENGINES[spec.engine.type].needs_length and spec.engine.max_model_length is None,
        _NO_NAME.get(spec.engine.type, ""): not re.fullmatch(ENGINES[spec.engine.type].takes_names, spec.served_name or "any"),
        _NO_TOKENS: rollout.gate.compares and not ENGINES[spec.engine.type].takes_tokens,
        _NO_ROOM: bool(spec.adapters) and spec.lora is None,
        _NOT_RISING: not _rises([] if rollout.canary is None else [step.weight for step in rollout.canary.steps]),
        _NO_ROWS: (held_out := rollout.gate.held_out) is not None and held_out.min_rows > held_out.rows,
        _NO_PAIRS: (judge := rollout.gate.judge) is not None and judge.max_calls < 2 * judge.min_pairs,
    }
    found = [sentence for sentence, broken in rules.items() if broken]
    return [*found, *_scaling_broken_by(spec), *pods.broken_by(spec.pod_template)]


def _rises(weights: list[int]) -> bool:
    return all(before < after for before, after in pairwise(weights))


def _scaling_broken_by(spec: ModelServeSpec) -> list[str]:
    wanted = spec.autoscaling
    if wanted is None:
        return []
    on_cpu = wanted.metric is Load.CPU
    found = {
        _NO_RANGE: wanted.min_replicas > wanted.max_replicas,
        _NO_LOAD.get(wanted.metric, ""): spec.engine.type not in _MEASURING.get(wanted.metric, [*ENGINES]),
        _NO_SHARE: on_cpu and "cpu" not in spec.resources.requests,
        _NO_PERCENT: on_cpu and wanted.target is not None and not wanted.target.isdigit(),
    }
    return [sentence for sentence, broken in found.items() if broken]


_ALIKE = " && ".join(
    f"self.evaluation.startsWith('{place.prefix}') == self.uri.startsWith('{place.prefix}')"
    for place in places.usable(Use.SERVE, Reach.BUCKET)
)

_COMPARES = "has(self.rollout.gate.heldOut) || has(self.rollout.gate.judge)"

RULES = (
    Rule(
        "spec.model",
        "has(self.jobRef) != has(self.uri)",
        "spec.model takes exactly one of jobRef (an artifact of a FineTuneJob) and uri (a model folder)",
    ),
    Rule(
        "spec.model",
        "has(self.uri) || !(has(self.digest) || has(self.evaluation) || has(self.secretRef) || has(self.endpoint)"
        " || has(self.region) || has(self.caSecretRef))",
        "spec.model.digest, .evaluation, .secretRef, .endpoint, .region and .caSecretRef go with uri; remove them: the"
        " jobRef's job has them",
    ),
    Rule(
        "spec.model",
        f"!has(self.uri) || !has(self.evaluation) || {_ALIKE}",
        "spec.model.evaluation must lie in a claim or in a bucket, as uri does: the credentials are the same",
    ),
    Rule(
        "spec.model",
        f"!has(self.uri) || self.uri.startsWith('{S3.prefix}')"
        " || !(has(self.endpoint) || has(self.region) || has(self.caSecretRef))",
        f"spec.model.endpoint, .region and .caSecretRef go with an {S3.prefix} uri only; remove them",
    ),
    Rule(
        "spec",
        "".join(f"self.engine.type == '{name}' || " for name in _SPLITTING) + "self.parallelism.tensor == 1",
        _NO_SPLIT,
    ),
    Rule(
        "spec",
        "self.parallelism.gpus || self.parallelism.tensor == 1",
        _NO_GPUS,
    ),
    Rule("spec.autoscaling", "self.minReplicas <= self.maxReplicas", _NO_RANGE),
    Rule(
        "spec.autoscaling",
        f"self.metric != '{Load.CPU}' || !has(self.target) || string(self.target).matches('^[0-9]+$')",
        _NO_PERCENT,
    ),
    Rule(
        "spec",
        f"!has(self.autoscaling) || self.autoscaling.metric != '{Load.CPU}'"
        " || (has(self.resources.requests) && 'cpu' in self.resources.requests)",
        _NO_SHARE,
    ),
    *(
        Rule(
            "spec",
            f"!has(self.autoscaling) || self.autoscaling.metric != '{load}' || self.engine.type in {[str(e) for e in engines]}",
            _NO_LOAD[load],
        )
        for load, engines in _MEASURING.items()
    ),
    Rule(
        "spec",
        "self.rollout.strategy != 'Recreate' || self.rollout.promotion != 'Manual'",
        _NOBODY_ANSWERS,
    ),
    Rule("spec", f"self.rollout.strategy != 'Recreate' || !({_COMPARES})", _NOTHING_TO_COMPARE),
    Rule("spec", "self.rollout.strategy != 'Recreate' || !has(self.rollout.canary)", _NOTHING_TO_SHARE),
    Rule(
        "spec.rollout.canary",
        "self.steps.map(s, s.weight).isSorted() && self.steps.all(s, self.steps.exists_one(t, t.weight == s.weight))",
        _NOT_RISING,
    ),
    Rule("spec", f"!({_COMPARES}) || !has(self.model.uri) || has(self.model.evaluation)", _NO_TEST_ROWS),
    Rule("spec.rollout.gate.heldOut", "self.minRows <= self.rows", _NO_ROWS),
    Rule("spec.rollout.gate.judge", "self.maxCalls >= 2 * self.minPairs", _NO_PAIRS),
    Rule(
        "spec",
        "!has(self.lora)" + "".join(f" || self.engine.type == '{name}'" for name in _TAKING),
        _NO_ADAPTERS,
    ),
    Rule(
        "spec",
        f"has(self.engine.maxModelLength) || !(self.engine.type in {[str(name) for name in _ASKED_LENGTH]})",
        _NO_LENGTH,
    ),
    *(
        Rule(
            "spec",
            f"self.engine.type != '{name}' || !has(self.servedName) || self.servedName.matches('^{names}$')",
            _NO_NAME[name],
        )
        for name, names in _NAMES.items()
    ),
    Rule("spec", f"!({_COMPARES}) || !(self.engine.type in {[str(name) for name in _TEXT_ALONE]})", _NO_TOKENS),
    Rule("spec", "!has(self.adapters) || size(self.adapters) == 0 || has(self.lora)", _NO_ROOM),
    Rule(
        "spec.adapters[]",
        "has(self.jobRef) != has(self.uri) && has(self.uri) == has(self.digest) && (has(self.uri) || !has(self.evaluation))",
        "spec.adapters[] takes either jobRef (a FineTuneJob that trains an adapter), or uri and digest (its folder)",
    ),
    compute_only("spec.resources"),
    *pods.RULES,
)
