"""A training that makes no step for many medians ends; one that validates, saves or has just begun does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.trainer.entries import prepare
from tests.trainer.pods import environment
from tests.trainer.training.test_train import LORA, MakeRun

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import ENV_HANG_AFTER
from finetune_trainer.training.hang import FLOOR_SECONDS, StepClock, Watchdog


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def watched(steps: int, seconds: float = 10, medians: int = 5) -> tuple[Watchdog, Clock]:
    """A watchdog whose training has ended this many steps; its thread is not started."""
    clock = Clock()
    dog = Watchdog(medians, print, clock, floor=1)
    for _ in range(steps):
        clock.now += seconds
        end_step(dog)
    return dog, clock


def end_step(dog: Watchdog, **control: bool) -> None:
    asked = {"should_evaluate": False, "should_save": False, "should_training_stop": False}
    call(dog.on_step_end, **asked | control)


def call(hook: Any, world_size: int = 1, **control: bool) -> None:
    hook(SimpleNamespace(world_size=world_size), SimpleNamespace(), SimpleNamespace(**control))


def test_a_step_that_takes_many_medians_is_a_hang() -> None:
    dog, clock = watched(steps=4)
    clock.now += 50
    assert dog.steps.overdue() is None
    clock.now += 1
    said = dog.steps.overdue()
    assert said is not None
    assert said.startswith("no step for 51 s, while steps take 10.0 s")
    assert "spec.retry.hangAfterMedianSteps" in said


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_first_steps_may_take_long(steps: int) -> None:
    """The first loads and compiles, so it is no measure either: three more are needed for a median."""
    dog, clock = watched(steps)
    clock.now += 10**6
    assert dog.steps.overdue() is None


def test_no_limit_is_below_the_floor() -> None:
    clock = Clock()
    steps = StepClock(5, clock, FLOOR_SECONDS)
    for _ in range(4):
        steps.begin()
        clock.now += 0.1
        steps.end()
    steps.begin()
    clock.now += FLOOR_SECONDS
    assert steps.overdue() is None
    clock.now += 1
    assert steps.overdue() is not None


def test_validation_and_saving_are_no_hang_and_no_steps() -> None:
    dog, clock = watched(steps=5)
    clock.now += 10
    end_step(dog, should_evaluate=True, should_save=True)
    clock.now += 10**4
    assert dog.steps.overdue() is None
    call(dog.on_evaluate, should_save=True)
    clock.now += 10**4
    assert dog.steps.overdue() is None
    call(dog.on_save)
    clock.now += 51
    assert dog.steps.overdue() is not None  # it is watched again, and by the median of steps alone


def test_many_ranks_wait_for_the_one_that_saves() -> None:
    dog, clock = watched(steps=5)
    clock.now += 10
    end_step(dog, should_save=True)
    call(dog.on_save, world_size=2)
    clock.now += 10**4
    assert dog.steps.overdue() is None
    end_step(dog)
    clock.now += 51
    assert dog.steps.overdue() is not None


def test_what_comes_after_training_is_not_watched() -> None:
    dog, clock = watched(steps=5)
    call(dog.on_train_end)
    clock.now += 10**4
    assert dog.steps.overdue() is None


STUCK = """
import sys, threading
from finetune_trainer import __main__
from finetune_trainer.training import hang
from finetune_trainer.training.loop import Loop

hang.FLOOR_SECONDS = 0.5
plain = Loop.get_batch_samples


def rows_that_never_come(loop, *args):
    if loop.state.global_step == 6:
        threading.Event().wait()
    return plain(loop, *args)


Loop.get_batch_samples = rows_that_never_come
sys.exit(__main__.main(["train"]))
"""


@pytest.mark.slow
def test_a_stuck_dataloader_ends_the_pod_with_the_stacks_in_its_log(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(training=LORA | {"maxSteps": 10000, "checkpoint": {"everySteps": 2}})
    prepare(run, tmp_path)
    given = environment(run, tmp_path, **{ENV_HANG_AFTER: "2"})
    pod = subprocess.run([sys.executable, "-c", STUCK], env=given, capture_output=True, text=True, check=False)
    assert pod.returncode == ExitCode.HANG, pod.stderr[-2000:]
    failure = json.loads((tmp_path / "termination").read_text())["failure"]
    assert failure["reason"] == "Hang"
    assert failure["message"].startswith("no step for ")
    assert "in rows_that_never_come" in pod.stderr
    assert "in _train" in pod.stderr
