"""The run that a spec asks for, as its pods get it."""

from __future__ import annotations

import pytest
from tests.builders import make_job

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.finetunejob.run_config import run_config


def test_prepare_gets_to_know_which_scores_of_tasks_gates_name() -> None:
    named = ("loss", "arc/acc", "arc/f1", "arc/acc")
    gates = [{"name": f"gate-{number}", "metric": metric, "max": 1} for number, metric in enumerate(named)]
    evaluation = {"tasks": [{"name": "arc"}], "taskFiles": {"uri": "pvc://shelf/tasks"}, "gates": gates}
    tasks = run_config(FineTuneJob.model_validate(make_job(evaluation=evaluation))).tasks
    assert tasks is not None
    assert tasks.judged == ("arc/acc", "arc/f1")


@pytest.mark.parametrize(("gpus", "memory"), [(0, 8 * 2**30), (1, 80 * 2**30)])
def test_training_has_the_memory_of_its_device(gpus: int, memory: int) -> None:
    parallelism = {"gpusPerNode": gpus, "gpu": {"memory": "80Gi"}}
    stages = {"train": {"resources": {"limits": {"memory": "8Gi"}}}}
    job = FineTuneJob.model_validate(make_job(parallelism=parallelism, stages=stages))
    assert run_config(job).devices.memory_bytes == memory


def test_a_store_is_a_folder_with_or_without_a_slash_behind_it() -> None:
    job = FineTuneJob.model_validate(make_job(storage={"artifacts": {"uri": "pvc://shelf/box/"}}))
    assert run_config(job).store.uri == "pvc://shelf/box"
