"""Distillation (Hinton et al. 2015): the student learns a teacher's predictions of the rows' answers, and the answers.

    loss = alpha T² KL(teacher ‖ student), both at temperature T, + (1 - alpha) · loss on the answer

TRL's distillation trainers let the student write the answers; here they are the rows', so that nothing is generated. The
divergence is TRL's kernel, which works in tiles: no model's logits exist as a whole.
"""

from __future__ import annotations

from typing import Any

import torch
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from finetune_trainer.contract.objectives import Distillation
from finetune_trainer.contract.training import Training
from finetune_trainer.data.tokenized import IGNORED
from finetune_trainer.training.head import head_of, scale_of
from finetune_trainer.training.loop import Loop
from finetune_trainer.training.supervised import SupervisedLoop, config, read

__all__ = ["DistillationLoop", "config", "make_loop", "read"]
TEACHER_TO_STUDENT = 0.0  # TRL's beta: 0 is KL(teacher || student)


def make_loop(training: Training, teacher: Any, **options: Any) -> Loop:
    assert training.distillation is not None  # a CEL rule
    return DistillationLoop(**options, teacher=teacher, distillation=training.distillation)


class DistillationLoop(SupervisedLoop):
    """SFT whose loss is the teacher's. What is validated is the loss on the answers, as in SFT."""

    def __init__(self, *args: Any, teacher: Any, distillation: Distillation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._teacher = self.accelerator.prepare_model(teacher.requires_grad_(False), evaluation_mode=True)
        self._settings = distillation
        self._student = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self._hidden: Any = None
        self._student.base_model.register_forward_hook(self._keep_hidden)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the batch's answer tokens."""
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        read = {name: value for name, value in inputs.items() if name != "labels"}
        with torch.no_grad():  # first, so that what it takes is gone before the student's activations are kept
            taught = self._teacher.base_model(**read, use_cache=False).last_hidden_state
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        learned, self._hidden = self._hidden, None
        counted = inputs["labels"][:, 1:] != IGNORED
        divergence, _ = ChunkedDivergenceFunction.apply(
            learned[:, :-1][counted],
            *head_of(self._student),
            taught[:, :-1][counted],
            *head_of(self._teacher),
            TEACHER_TO_STUDENT,
            self._settings.temperature,
            *scale_of(self._student),
            *scale_of(self._teacher),
        )
        alpha, temperature = self._settings.alpha, self._settings.temperature
        loss = alpha * temperature**2 * divergence.sum() - (1 - alpha) * outputs.log_probs.sum()
        return loss / num_items_in_batch * self.args.world_size

    def _keep_hidden(self, module: Any, given: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state if module.training else None
