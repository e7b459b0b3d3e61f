"""The longest rows first: one forward and backward pass over them before step 1, so that what the memory does not hold shows in
the first minute and not in hour six. Nothing is learned, and the random generators are put back: no later number differs.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.context import Context
from finetune_trainer.contract.reports import FitFacts, Progress
from finetune_trainer.model.compute import peak_memory
from finetune_trainer.ranks import distributed
from finetune_trainer.training.checkpoint import generator_states, restore_generator_states
from finetune_trainer.training.loop import Loop

GIB = 1 << 30


class Rehearsal(TrainerCallback):
    """Takes the longest micro-batch through the model once, and reports the peak beside what was predicted."""

    def __init__(self, context: Context, loop: Loop, fit: FitFacts) -> None:
        self._context, self._loop, self._fit = context, loop, fit

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._context.progress("measuring the longest rows", state.global_step, state.max_steps)
        generators = generator_states()
        self._loop.current_gradient_accumulation_steps = 1
        for _pass in range(1 if self._loop.recorded is None else 2):  # layers are watched once, then recorded
            batches, count = self._loop.get_batch_samples(iter([longest(self._loop)]), 1, args.device)
            self._loop.training_step(self._loop.model_wrapped, batches[0], count)
            self._loop.forget_step()
        restore_generator_states(generators)
        peak = peak_memory(args.device.type)
        self._context.report(
            Progress(
                step_name=self._context.step.name,
                activity="measured the longest rows",
                step=state.global_step,
                total=state.max_steps,
                memory_bytes=peak,
            )
        )
        predicted = self._fit.predicted_bytes
        if distributed.is_first():
            print(f"memory for the longest rows: {peak / GIB:.2f} GiB, predicted {predicted / GIB:.2f} GiB", flush=True)


def longest(loop: Loop) -> dict[str, Any]:
    """A micro-batch of the rows with the most tokens, as the loop's own collator makes it."""
    dataset: Any = loop.train_dataset
    counted = [name for name in dataset.column_names if name.endswith("_ids")]
    lengths = [sum(map(len, row)) for row in zip(*(dataset[name] for name in counted), strict=True)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    rows = dataset.select(order[: loop.args.per_device_train_batch_size])
    kept = loop._remove_unused_columns(rows)
    batch: dict[str, Any] = loop.data_collator([kept[index] for index in range(len(kept))])
    return batch
