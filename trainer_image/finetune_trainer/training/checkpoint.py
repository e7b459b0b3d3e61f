"""Training state in the artifact store: saved by step, by time and on SIGTERM; read back from the newest that is whole.

A checkpoint is the folder that transformers' Trainer writes (trained weights, optimizer, schedule, random generators,
trainer_state.json), so a resumed run repeats the unbroken one step by step.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils.constants import FSDP_MODEL_NAME
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import File
from finetune_trainer.contract.training import Training
from finetune_trainer.failures import StepFailed
from finetune_trainer.ranks import distributed, zero
from finetune_trainer.store.entries import Store
from finetune_trainer.training.preemption import Preemption, preempted
from finetune_trainer.training.validation import best_step

GO_ON, SAVE, LEAVE = range(3)  # what ranks agree on after each step: the most that one of them wants


def restore(store: Store, fingerprint: str, into: Path, strategy: Strategy | None = None, ranks: int = 1) -> Path | None:
    """The newest checkpoint that verifies and serves `strategy`, copied below `into`, or None; the same one on every node.

    One that FSDP wrote serves only FSDP, whatever the number of ranks; one of ZeRO only the same stage with as many `ranks`.
    """
    wanted = _kind(strategy, ranks)
    with distributed.first_on_node() as first:
        found = _newest(store, fingerprint, into, wanted) if first else next(into.glob("checkpoint-*"), None)
    step = -1 if found is None else int(found.name.rpartition("-")[2])
    if distributed.agree(step) != step:
        message = f"the nodes of this attempt read different checkpoints; this one has step {step}"
        raise StepFailed(StepReason.CheckpointsDiffer, message)
    return found


def _kind(strategy: Strategy | None, ranks: int) -> str:
    """Equal for strategies that read each other's checkpoints."""
    if strategy in zero.STAGES:
        return f"{strategy} {ranks}"
    return str(Strategy.FSDP) if strategy is Strategy.FSDP else str(Strategy.DDP)


def _kind_of(folder: Path) -> str:
    strategy, ranks = zero.written_by(folder)
    if strategy is None and any(folder.glob(f"{FSDP_MODEL_NAME}*")):
        strategy = Strategy.FSDP
    return _kind(strategy, ranks)


def _newest(store: Store, fingerprint: str, into: Path, wanted: str) -> Path | None:
    """Damaged ones are passed over, and those of a strategy that the job had before it was edited."""
    for step in store.checkpoints(fingerprint):
        folder = into / f"checkpoint-{step}"
        try:
            found = store.load_checkpoint(fingerprint, step, folder)
        except StepFailed as failure:
            if failure.reason is not StepReason.CheckpointDamaged:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            print(f"the checkpoint of step {step} is damaged: taking the one before", flush=True)
            continue
        if _kind_of(found) == wanted:
            return found
        shutil.rmtree(folder, ignore_errors=True)
        print(f"the checkpoint of step {step} was made with another spec.parallelism: passed over", flush=True)
    return None


class SaveCheckpoints(TrainerCallback):
    """Tells the Trainer when to save, and moves what it saved into the store."""

    def __init__(
        self,
        store: Store,
        fingerprint: str,
        attempt: str,
        training: Training,
        preemption: Preemption,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._fingerprint, self._attempt = store, fingerprint, attempt
        self._plan, self._keeps_best = training.checkpoint, training.keep_checkpoint == "Best"
        self._preemption = preemption
        self._clock = clock
        self._last_save = clock()
        self._generators: dict[str, Any] = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        self._generators = generator_states()
        what = distributed.agree(LEAVE if self._preemption.requested else SAVE if self._is_due(state.global_step) else GO_ON)
        control.should_save = what >= SAVE
        if what == LEAVE:
            control.should_training_stop = self._preemption.requested = True
        return control

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """Leave a step between two of its micro-batches, since the rest of it may outlast the grace period.

        One of many ranks can't leave alone: they agree on it at the end of the step.
        """
        if self._preemption.requested and not distributed.is_rank():
            raise preempted(f"within step {state.global_step + 1}")
        return control

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """The Trainer validates before it saves: what is the best so far is saved at once, and told apart by its loss."""
        if self._keeps_best and best_step(state.log_history) == state.global_step:
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The Trainer has written its folder: keep it, and no more of the older ones than asked for."""
        assert args.output_dir is not None
        best = best_step(state.log_history) if self._keeps_best else None
        self.keep(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step, best)

    def save_unfinished(self, trainer: Any) -> None:
        """Save the state after the last whole step, once a step was left between two micro-batches."""
        if self._generators:  # none: not one step was finished since the start, so the store has all there is
            restore_generator_states(self._generators)
            trainer._save_checkpoint(trainer.model, trial=None)
            self.on_save(trainer.args, trainer.state, trainer.control)

    def load_best(self, trainer: Any) -> None:
        """Put the weights of the best validation into the trained model. Raises StepFailed where they are not whole."""
        best = best_step(trainer.state.log_history)
        if best is None or best == trainer.state.global_step:
            return
        folder = Path(trainer.args.output_dir) / f"best-{best}"
        with distributed.first_on_node() as first:
            if first:
                self._store.load_checkpoint(self._fingerprint, best, folder)
        trainer._load_from_checkpoint(str(folder))
        print(f"validation was best after step {best}: its weights are kept", flush=True)

    def keep(self, folder: Path, step: int, best: int | None = None) -> None:
        """Move one checkpoint into the store, each node what its ranks wrote, and drop the older ones that nobody needs."""
        self._last_save = self._clock()
        attempt = distributed.of_first(lambda: self._attempt)  # the same in all pods, and once each rank has written
        files: tuple[File, ...] = ()
        if distributed.is_first_on_node():
            files = self._store.upload_checkpoint(self._fingerprint, step, folder, attempt)
            shutil.rmtree(folder)
        of_nodes = distributed.gathered(files)
        if of_nodes is not None:
            self._store.commit_checkpoint(self._fingerprint, step, attempt, (file for node in of_nodes for file in node))
            self._store.drop_checkpoints(self._fingerprint, self._plan.keep, best)
        self._last_save = self._clock()

    def _is_due(self, step: int) -> bool:
        if self._plan.every_steps is not None:
            return step % self._plan.every_steps == 0
        return self._clock() - self._last_save >= self._plan.interval_seconds


def generator_states() -> dict[str, Any]:
    """State of each random generator that training draws from."""
    import random

    import numpy
    import torch

    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_generator_states(states: dict[str, Any]) -> None:
    """Put the random generators back to where `generator_states` saw them."""
    import random

    import numpy
    import torch

    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
