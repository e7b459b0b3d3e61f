"""CEL rules of spec.evaluation: gates and benchmark tasks."""

from __future__ import annotations

from finetune_operator.meta import Rule
from finetune_trainer.contract.formats import FORMATS

_SCORED_APART = [name for name, format in FORMATS.items() if format.scored_by is not None]
_APART = " || ".join(f"a.format == '{name}'" for name in _SCORED_APART)
EVALUATION_RULES = (
    Rule(
        "spec.evaluation.gates[]",
        "[has(self.min), has(self.max), has(self.minImprovementOverBase), has(self.maxRegressionFromMerged)]"
        ".filter(given, given).size() == 1",
        "spec.evaluation.gates[] takes exactly one of min, max, minImprovementOverBase and maxRegressionFromMerged;"
        " write one gate for each bound",
    ),
    Rule(
        "spec.evaluation.gates[]",
        "!has(self.maxRegressionFromMerged) || self.artifact != 'merged'",
        "spec.evaluation.gates[].maxRegressionFromMerged compares an artifact with the merged model;"
        " set artifact to a name from spec.artifacts",
    ),
    Rule(
        "spec",
        "!has(self.evaluation.gates) || self.evaluation.gates.all(g, g.artifact == 'merged'"
        " || (has(self.artifacts) && self.artifacts.exists(a, a.name == g.artifact)))",
        "spec.evaluation.gates[].artifact is not made by this job; use merged or a name from spec.artifacts",
    ),
    Rule(
        "spec",
        "!has(self.evaluation.gates) || self.evaluation.gates.size() == 0"
        " || !has(self.dataset.test.fraction) || self.dataset.test.fraction > 0.0",
        "spec.evaluation.gates need test rows; set spec.dataset.test.uri, or spec.dataset.test.fraction above 0",
    ),
    Rule(
        "spec",
        "has(self.evaluation.taskFiles) == (has(self.evaluation.tasks) && self.evaluation.tasks.size() > 0)",
        "spec.evaluation.taskFiles says where the files of spec.evaluation.tasks lie; set both, or neither",
    ),
    Rule(
        "spec",
        "!has(self.evaluation.gates) || self.evaluation.gates.all(g, !g.metric.contains('/')"
        " || (has(self.evaluation.tasks) && self.evaluation.tasks.exists(t, g.metric.startsWith(t.name + '/'))))",
        "spec.evaluation.gates[].metric <task>/<metric> is for a task that is scored; name it in spec.evaluation.tasks",
    ),
    Rule(
        "spec",
        "!has(self.evaluation.gates) || !has(self.artifacts) || self.evaluation.gates.all(g, !g.metric.contains('/')"
        f" || !self.artifacts.exists(a, a.name == g.artifact && {_APART}))",
        f"spec.evaluation.gates[].metric <task>/<metric> is not scored for {' or '.join(_SCORED_APART)} artifacts; judge"
        " merged, or another metric",
    ),
    Rule(
        "spec",
        "!has(self.evaluation.gates) || self.dataset.format in ['Auto', 'Classification']"
        " || !self.evaluation.gates.exists(g, g.metric in ['accuracy', 'macroF1'])",
        "spec.evaluation.gates[].metric accuracy and macroF1 are for rows with labels; set spec.dataset.format to"
        " Classification, or judge exactMatch",
    ),
)
