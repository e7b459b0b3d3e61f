"""Learning from pairs of answers by TRL's trainers, on rows that are tokenized already.

DPO    -log σ(β (Δ chosen - Δ rejected)), where Δ is how much an answer's log-probability grew since the start
       (Rafailov et al. 2023)
KTO    the same Δ, of each answer by itself, against its mean over answers to other prompts (Ethayarajh et al. 2024)
ORPO   loss on the chosen answer - β log σ(log odds of the chosen one over the rejected one), against nothing
       (Hong et al. 2024)

The model at the start is the network with its adapters switched off; where every weight is trained, a frozen copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.utils import add_fused_lm_head

from finetune_trainer import environment
from finetune_trainer.contract.objectives import Objective
from finetune_trainer.contract.training import Training
from finetune_trainer.data.tokenized import IGNORED
from finetune_trainer.data.tokenized import preferences as read
from finetune_trainer.training.loop import Loop

environment.offer({"TRL_EXPERIMENTAL_SILENCE": "1"})  # its versions are locked here
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402 - it reads that as it is imported

__all__ = ["DirectPreferenceLoop", "OddsRatioLoop", "UnpairedLoop", "config", "make_loop", "read"]
REFERENCE_ADAPTER = "ref"


def config(training: Training, shared: dict[str, Any], _padded: bool) -> DPOConfig | KTOConfig | ORPOConfig:
    """What TRL's trainer of the objective takes beside what all objectives do. Its batches are padded in any case."""
    given = training.preference
    shared = shared | {"beta": given.beta, "disable_dropout": training.lora.dropout == 0, "remove_unused_columns": False}
    match training.objective:
        case Objective.KTO:
            weights = {"desirable_weight": given.desirable_weight, "undesirable_weight": given.undesirable_weight}
            return KTOConfig(**shared, **weights, max_length=None)
        case Objective.ORPO:
            return ORPOConfig(**shared, max_length=training.max_length)
    return DPOConfig(**shared, max_length=None)


def make_loop(training: Training, reference: Any, **options: Any) -> Loop:
    """The loop of the objective. ORPO compares with nothing."""
    match training.objective:
        case Objective.KTO:
            return UnpairedLoop(**options, ref_model=reference)
        case Objective.ORPO:
            return OddsRatioLoop(**options)
    return DirectPreferenceLoop(**options, ref_model=reference)


class DirectPreferenceLoop(Loop, DPOTrainer):  # type: ignore[misc]
    """DPO."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _forget_copied_adapter(self.model)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class UnpairedLoop(Loop, KTOTrainer):  # type: ignore[misc]
    """KTO: rows with one answer, desirable or not; a pair gives one of each."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=EachAnswer(kwargs["processing_class"].pad_token_id), **kwargs)
        self.args.train_sampling_strategy = "random"  # TRL's own rows are tied to their order, ours are not
        _forget_copied_adapter(self.model)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class OddsRatioLoop(Loop, ORPOTrainer):  # type: ignore[misc]
    """ORPO. Neither its loss nor TRL's tiles of the loss head need the logits as a whole."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=DataCollatorForPreference(kwargs["processing_class"].pad_token_id), **kwargs)
        self.use_dpo_data_collator = True  # else it warns at each validation of a collator that it does not know
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        add_fused_lm_head(inner, outputs=("log_probs", "mean_logits"))

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        return feature

    def concatenated_forward(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Mean log-probability of each chosen and rejected answer, their mean logits, and the loss on the chosen ones.

        TRL's own counts the prompts in that loss; the paper's, as any loss here, is on the answer alone.
        """
        mask = batch["completion_mask"]
        outputs = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["input_ids"].masked_fill(mask == 0, IGNORED),
            use_cache=False,
            fused_lm_head=True,
        )
        sums, counts = outputs.log_probs.sum(-1), mask[:, 1:].sum(-1)
        chosen, rejected = (sums / counts).chunk(2)
        chosen_logits, rejected_logits = outputs.mean_logits.chunk(2)
        return chosen, rejected, chosen_logits, rejected_logits, -sums.chunk(2)[0].sum() / counts.chunk(2)[0].sum()


class EachAnswer:
    """Batches for KTO: each row's answer with its label, of pairs the chosen answers and then the rejected ones; and beside
    each another row's answer for the KL term.

    The answers are rotated by one within the batch, as TRL does with rows that come apart.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._collate = DataCollatorForUnpairedPreference(pad_token_id)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "completion_ids" in rows[0]:
            answers = [(row["prompt_ids"], row["completion_ids"], row["label"]) for row in rows]
        else:
            kinds = (("chosen_ids", True), ("rejected_ids", False))
            answers = [(pair["prompt_ids"], pair[name], label) for name, label in kinds for pair in rows]
        others = [answers[-1], *answers[:-1]]
        collated: dict[str, torch.Tensor] = self._collate(
            [
                {"prompt_ids": prompt, "completion_ids": answer, "label": label, "KL_completion_ids": other}
                for (prompt, answer, label), (_, other, _) in zip(answers, others, strict=True)
            ]
        )
        return collated


def _forget_copied_adapter(model: Any) -> None:
    """TRL copies adapters that it finds in place as its reference; these are new, so switched off they are the same."""
    if REFERENCE_ADAPTER in getattr(model, "peft_config", {}):
        model.delete_adapter(REFERENCE_ADAPTER)
