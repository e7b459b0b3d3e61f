"""The run that a spec asks for, as its pods get it."""

from __future__ import annotations

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
