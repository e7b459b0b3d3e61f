"""CEL rules of spec.training.objective: the rows that each learns from, and the settings that go with it."""

from __future__ import annotations

from finetune_operator.api.rules.table import of_table
from finetune_operator.meta import Rule
from finetune_trainer.contract import combinations

OBJECTIVE_RULES = (
    Rule(
        "spec",
        "self.training.objective in ['SFT', 'Distillation', 'KTO'] || self.dataset.format in ['Auto', 'Preference']",
        "spec.training.objective DPO and ORPO learn from pairs of answers; set spec.dataset.format to Preference, or"
        " objective to SFT",
    ),
    Rule(
        "spec",
        "self.training.objective != 'KTO' || self.dataset.format in ['Auto', 'Preference', 'UnpairedPreference']",
        "spec.training.objective KTO learns from desirable and undesirable answers; set spec.dataset.format to"
        " UnpairedPreference or Preference, or objective to SFT",
    ),
    Rule(
        "spec",
        "self.dataset.format != 'UnpairedPreference' || self.training.objective == 'KTO'",
        "spec.dataset.format UnpairedPreference is for objective KTO; set spec.training.objective to KTO, or format to"
        " PromptCompletion",
    ),
    *of_table(combinations.OBJECTIVES),
    Rule(
        "spec",
        "!has(self.evaluation.gates) || self.dataset.format in ['Auto', 'Preference']"
        " || !self.evaluation.gates.exists(g, g.metric == 'preferenceAccuracy')",
        "spec.evaluation.gates[].metric preferenceAccuracy is for rows with a chosen and a rejected answer; set"
        " spec.dataset.format to Preference, or judge loss",
    ),
)
