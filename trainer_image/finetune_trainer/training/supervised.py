"""TRL's SFTTrainer as this project uses it: on rows that are tokenized already."""

from __future__ import annotations

from typing import Any

from trl import SFTTrainer

from finetune_trainer.training.loop import Loop


class SupervisedLoop(Loop, SFTTrainer):  # type: ignore[misc]
    """SFT. The loss of a step is the mean over the tokens of all its micro-batches."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the batch's tokens. TRL adds entropy and accuracy, for which a GPU waits three times a step."""
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        # FSDP answers in the compute type. The count is over all ranks, whose gradients are averaged afterwards.
        return -outputs.log_probs.float().sum() / num_items_in_batch * self.args.world_size
