"""The two kinds that are reconciled."""

from __future__ import annotations

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.modelserve import ModelServe
from finetune_operator.finetunejob import policy as finetunejob_policy
from finetune_operator.modelserve import policy as modelserve_policy
from finetune_operator.reconcile import Kind

KINDS = {
    "FineTuneJob": Kind(FineTuneJob, finetunejob_policy),
    "ModelServe": Kind(ModelServe, modelserve_policy),
}
