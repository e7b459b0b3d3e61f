"""Scores on spec.evaluation.tasks, by lm-evaluation-harness around a model that is loaded already.

Its rules are lm-eval's: prompts as the task's file writes them, without the chat template; log-likelihoods in float32; greedy
answers. One fixed batch size and one seed, no caches and no bootstrap, so that the same model has the same scores again.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune_trainer.contract.metrics import OF_TASK
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.tasks import Task
from finetune_trainer.failures import StepFailed, first_line
from finetune_trainer.scoring.task_files import Config

BATCH_ROWS = 8  # of one forward pass: its logits are a row's tokens times the vocabulary in float32
SEED = 1234  # lm-eval's own, of which rows are shown solved
DIGITS = 6  # behind the point
UNFILTERED = ",none"  # lm-eval's name of no filter


@dataclass(frozen=True)
class TaskScores:
    """Values by <task>/<metric>, those of which less is better, and what lm-eval says of each task beside them."""

    values: dict[str, float]
    lower_is_better: tuple[str, ...]
    record: dict[str, Any]


def check_installed() -> None:
    """Raises StepFailed where the image lacks lm-eval, which not every job needs."""
    if find_spec("lm_eval") is None:
        raise StepFailed(
            StepReason.ToolMissing,
            "spec.evaluation.tasks need the package lm-eval, which this image lacks: set spec.stages.prepare.image and"
            " spec.stages.evaluate.image to a trainer image with it",
        )


def load(tasks: Iterable[Task], configs: Mapping[str, Config], cache: Path) -> dict[str, Any]:
    """lm-eval's task by name, each with its rows read. `cache` is a folder for the rows as datasets keeps them.

    Raises StepFailed TasksNeedLmEval, TaskRefused and TaskUnusable.
    """
    check_installed()
    from lm_eval.tasks import TaskManager

    _use_sandbox()
    loaded = {}
    for task in tasks:
        config = configs[task.name]
        _check_metrics(task.name, config)
        shots = {} if task.num_fewshot is None else {"num_fewshot": task.num_fewshot}
        kwargs = config["dataset_kwargs"] | {"cache_dir": str(cache)}
        with _explained(task.name):
            made = TaskManager(include_defaults=False).load([config | shots | {"dataset_kwargs": kwargs}])
            loaded[task.name] = made["tasks"][task.name]
            loaded[task.name].set_fewshot_seed(SEED)
    return loaded


def write_questions(loaded: Mapping[str, Any], tasks: Iterable[Task]) -> None:
    """Every prompt of every task, for a look at whether that can be done. Raises StepFailed TaskUnusable."""
    for task in tasks:
        with _explained(task.name):
            loaded[task.name].build_all_requests(limit=task.limit, rank=0, world_size=1)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever jinja, datasets and lm-eval find wrong
        text = f"spec.evaluation.tasks: lm-eval can't ask the questions of {name}: {_why(error)}"
        raise StepFailed(StepReason.TaskUnusable, text) from error


def _why(error: Exception) -> str:
    """The error in words; what may quote rows goes to the pod's log alone."""
    from jinja2 import TemplateError

    if isinstance(error, TemplateError | KeyError):
        return f"{type(error).__name__}: {first_line(error, 160)}"
    print(first_line(error), file=sys.stderr)
    return f"{type(error).__name__}; the pod's log says more"


def _check_metrics(name: str, config: Config) -> None:
    """lm-eval would look for a metric that it doesn't know at a hub, and go on without it."""
    import lm_eval.api.metrics  # noqa: F401  (fills the registries)
    from lm_eval.api.registry import aggregation_registry, metric_registry

    for metric in config.get("metric_list") or ():
        for key, known in (("metric", metric_registry), ("aggregation", aggregation_registry)):
            if key in metric and metric[key] not in known:
                message = f"lm-eval has no {key} {metric[key]}, which {name} names; it has {', '.join(sorted(known))}"
                raise StepFailed(StepReason.TaskRefused, f"spec.evaluation.tasks: {message}")


def _use_sandbox() -> None:
    """lm-eval's own jinja environment lets a template reach all of Python by a value's attributes."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if not isinstance(utils.env, SandboxedEnvironment):
        given = utils.env
        utils.env = SandboxedEnvironment(
            loader=given.loader, undefined=given.undefined, keep_trailing_newline=given.keep_trailing_newline
        )
        utils.env.filters.update(given.filters)


def directions(loaded: Mapping[str, Any]) -> dict[str, bool]:
    """The scores that tasks will have, and of which of them more is better. Raises StepFailed where a name can't be shown."""
    better = {
        _score(name, metric, chain["name"]): more is not False
        for name, task in loaded.items()
        for metric, more in task.higher_is_better().items()
        for chain in task.config.filter_list or [{"name": UNFILTERED[1:]}]
    }
    for name in better:
        if re.fullmatch(OF_TASK, name) is None:
            raise StepFailed(
                StepReason.TaskRefused,
                f"spec.evaluation.tasks: {name} is no name for a score: use letters, digits and _ . + - in it",
            )
    return better


def _score(task: str, metric: str, filtered: str) -> str:
    return f"{task}/{metric},{filtered}".removesuffix(UNFILTERED)


def score(
    model: Any, tokenizer: Any, loaded: Mapping[str, Any], tasks: Iterable[Task], report: Callable[[str], None]
) -> TaskScores:
    """Ask a loaded causal model all the questions of the tasks; `report` is told the name of each before."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import set_seed

    asked = HFLM(model, backend="causal", tokenizer=tokenizer, batch_size=BATCH_ROWS, softmax_dtype="float32")
    for method in ("loglikelihood", "loglikelihood_rolling", "generate_until"):  # bars would drown the pod's own progress
        setattr(asked, method, partial(getattr(asked, method), disable_tqdm=True))
    better, values, record = directions(loaded), {}, {}
    for task in tasks:
        report(task.name)
        set_seed(SEED)
        given = {"tasks": {task.name: loaded[task.name]}, "groups": {}}
        found: Any = evaluate(asked, given, limit=task.limit, bootstrap_iters=0, log_samples=False)
        for key, value in found["results"][task.name].items():
            metric, _, filtered = key.partition(",")
            name = _score(task.name, metric, filtered)
            if name in better and (number := _number(value)) is not None:
                values[name] = number
        record[task.name] = {key: found[key][task.name] for key in ("results", "versions", "n-shot", "n-samples")}
    return TaskScores(values, tuple(n for n in values if not better[n]), record)


def _number(value: Any) -> float | None:
    """Rounded, the largest float for infinity, None for what is no number: JSON knows neither."""
    if isinstance(value, str) or value is None or math.isnan(value):
        return None
    return round(max(-sys.float_info.max, min(float(value), sys.float_info.max)), DIGITS)
