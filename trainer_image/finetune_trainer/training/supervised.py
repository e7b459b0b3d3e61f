"""TRL's SFTTrainer as this project uses it: on rows that are tokenized already."""

from __future__ import annotations

from typing import Any

from trl import SFTConfig, SFTTrainer

from finetune_trainer.contract.training import Training
from finetune_trainer.data.tokenized import IGNORED
from finetune_trainer.data.tokenized import rows as read
from finetune_trainer.training import head
from finetune_trainer.training.loop import Loop

__all__ = ["SupervisedLoop", "config", "make_loop", "read"]


def config(training: Training, shared: dict[str, Any], padded: bool) -> SFTConfig:
    """What SFTTrainer takes beside what all objectives do."""
    return SFTConfig(
        **shared,
        max_length=training.max_length if training.packing else None,  # prepare dropped what is longer
        packing=training.packing,
        padding_free=not padded,
        eval_packing=False,
    )


def make_loop(_training: Training, _reference: None, **options: Any) -> Loop:
    loop = SupervisedLoop(**options)
    loop.count_beforehand()
    return loop


class SupervisedLoop(Loop, SFTTrainer):  # type: ignore[misc]
    """SFT. The loss of a step is the mean over the tokens of all its micro-batches."""

    def count_beforehand(self) -> None:
        """Let the collator tell which tokens count, where rows share a line and each rank has the whole model."""
        network = _network(self.model)
        is_shared_out = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.args.padding_free and not is_shared_out and not head.is_scaled_otherwise(network):
            self.data_collator = head.Counting(self.data_collator)
            head.answer_counted(self.model, network)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the batch's tokens. TRL adds entropy and accuracy, for which a GPU waits three times a step."""
        counted = inputs.pop(head.COUNTED, None)
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.recorded is not None:
            inputs = self.recorded.line.filled(inputs, IGNORED)
        if counted is None:
            told = model(**inputs, use_cache=False, fused_lm_head=True).log_probs
        else:
            told = model(**inputs, counted=counted)
        # FSDP answers in the compute type. The count is over all ranks, whose gradients are averaged afterwards.
        return -told.float().sum() / num_items_in_batch * self.args.world_size


def _network(model: Any) -> Any:
    """transformers' model, the adapters within it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
