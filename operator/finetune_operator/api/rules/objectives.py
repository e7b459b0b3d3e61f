"""CEL rules of spec.training.objective: the rows that each learns from, and the settings that go with it."""

from __future__ import annotations

from finetune_operator.meta import Rule

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
    Rule(
        "spec",
        "self.training.objective in ['SFT', 'Distillation']"
        " || !(self.training.packing || has(self.training.neftuneNoiseAlpha) || !self.training.completionOnlyLoss)",
        "spec.training.packing, neftuneNoiseAlpha and completionOnlyLoss: false are for objective SFT; remove them, or set"
        " objective to SFT",
    ),
    Rule(
        "spec",
        "(self.training.objective == 'Distillation') == has(self.training.distillation)",
        "spec.training.distillation names the teacher of objective Distillation; set both, or neither",
    ),
    Rule(
        "spec",
        "self.training.objective == 'KTO' || (self.training.preference.desirableWeight == 1.0"
        " && self.training.preference.undesirableWeight == 1.0)",
        "spec.training.preference.desirableWeight and .undesirableWeight are for objective KTO; remove them, or set objective"
        " to KTO",
    ),
    Rule(
        "spec",
        "self.training.objective != 'KTO' || ((!has(self.training.microBatchSize) || self.training.microBatchSize > 1)"
        " && self.training.globalBatchSize > 1)",
        "spec.training.objective KTO compares the rows of a micro-batch; make microBatchSize and globalBatchSize 2 or more",
    ),
    Rule(
        "spec",
        "!has(self.evaluation.gates) || self.dataset.format in ['Auto', 'Preference']"
        " || !self.evaluation.gates.exists(g, g.metric == 'preferenceAccuracy')",
        "spec.evaluation.gates[].metric preferenceAccuracy is for rows with a chosen and a rejected answer; set"
        " spec.dataset.format to Preference, or judge loss",
    ),
)
