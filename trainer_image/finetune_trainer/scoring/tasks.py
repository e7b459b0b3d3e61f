"""What prepare does for spec.evaluation.tasks: fetch their files, ask lm-eval whether it can use them, and keep them.

The run then scores what was kept, whatever becomes of the files. Needs no GPU and no model.
"""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.context import Context
from finetune_trainer.contract import pipeline
from finetune_trainer.contract.metrics import MOST_SCORES, Metric
from finetune_trainer.contract.places import mounted_path
from finetune_trainer.contract.pod import TERMINATION_LIMIT
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Scores, StepResult, Termination
from finetune_trainer.contract.tasks import Tasks
from finetune_trainer.failures import StepFailed
from finetune_trainer.inputs import TASKS
from finetune_trainer.scoring import task_files, task_scores
from finetune_trainer.scoring.task_files import Folder
from finetune_trainer.sources.fetch import fetch
from finetune_trainer.sources.source import Source
from finetune_trainer.store.files import describe, folder_digest

FIELD = "spec.evaluation.taskFiles.uri"


def make_entry(context: Context) -> None:
    """Commit the files of the run's tasks where the store has none, and check what is asked of them.

    Raises StepFailed: TasksNeedLmEval, TaskNotFound, TaskFileMissing, TaskRefused, TaskUnusable, TasksChanged,
    TaskScoreUnknown, TooManyScores, or a reason of sources.
    """
    asked = context.run.tasks
    if asked is None:
        return
    task_scores.check_installed()
    context.progress("checking the tasks")
    fingerprint = pipeline.tasks_fingerprint(asked)
    known = context.store.read(TASKS, fingerprint)
    mounted = mounted_path(asked.files.uri, context.pod.mounts) is not None
    if known is None or mounted:
        folder = _fetched(context, asked)
        if known is None:
            _check(context, asked, folder)
            result = StepResult(step=context.step.name, fingerprint=fingerprint)
            context.keep(TASKS, folder, result, {"uri": asked.files.uri})
            return
        if folder_digest(describe(folder)) != folder_digest(known.files):
            raise StepFailed(
                StepReason.TasksChanged,
                f"spec.evaluation.taskFiles: the files at {asked.files.uri} are not those that this store's scores were made"
                " of; put those back, or give the new ones a name of their own",
            )
    _check(context, asked, context.inputs.tasks())


def _fetched(context: Context, asked: Tasks) -> Path:
    """A folder with what is kept of the files."""
    store = context.run.store
    source = Source(asked.files.uri, "TaskFiles", FIELD, ("*",))
    found = fetch(source, context.scratch / "task-files", context.pod.mounts, store.endpoint, store.region)
    folder = Folder(found.folder, found.files, asked.files.uri)
    into = context.scratch / "tasks"
    task_files.copy(folder, task_files.read(folder, [task.name for task in asked.named]), into)
    return into


def _check(context: Context, asked: Tasks, folder: Path) -> None:
    """Limits and shots may be another job's than those that the files were first used with, so this is done each time."""
    loaded = task_scores.load(asked.named, task_files.kept(folder), context.scratch / "task-rows")
    task_scores.write_questions(loaded, asked.named)
    more_is_better = task_scores.directions(loaded)
    names = tuple(more_is_better)
    for judged in asked.judged:
        if judged not in names:
            task = judged.partition("/")[0]
            there = ", ".join(name for name in names if name.startswith(f"{task}/"))
            raise StepFailed(
                StepReason.TaskScoreUnknown, f"spec.evaluation.gates[].metric: there is no {judged}; {task} has {there}"
            )
    _check_room(context, names, tuple(name for name in names if not more_is_better[name]))


def _check_room(context: Context, names: tuple[str, ...], lower: tuple[str, ...]) -> None:
    """A pod's report has few bytes, and a longer one would be cut."""
    values = dict.fromkeys((*Metric, *names[: MOST_SCORES - len(Metric)]), 1 / 7)
    (step,) = (step for step in pipeline.steps(context.run) if step.name == pipeline.EVALUATE)
    subjects = pipeline.subjects(context.run, step)
    scores = tuple(Scores(subject=s, samples=10**5, values=values, lower_is_better=lower) for s in subjects)
    report = Termination(result=StepResult(step=step.name, fingerprint="f" * 20, scores=scores))
    text = report.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)
    if len(names) + len(Metric) > MOST_SCORES or len(text) > TERMINATION_LIMIT:
        raise StepFailed(
            StepReason.TooManyScores,
            f"spec.evaluation.tasks: {len(names)} scores of {len(scores)} models are more than a pod can report; name fewer"
            " tasks, or fewer metrics in their metric_list",
        )
