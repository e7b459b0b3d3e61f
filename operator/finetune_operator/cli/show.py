"""What `finetune run` shows: bars on a terminal, plain lines elsewhere, and a table of the result."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from finetune_operator.api.finetunejob_status import ArtifactStatus, StepState
from finetune_operator.cli.local import Ending, Watcher
from finetune_operator.cli.words import describe, duration, scores_table, verdicts_table, warning
from finetune_operator.cli.workdir import Workdir
from finetune_trainer.contract.formats import FORMATS, ArtifactFormat
from finetune_trainer.contract.pipeline import MERGED, Step
from finetune_trainer.contract.places import mounted_path
from finetune_trainer.contract.reports import Progress, Remark

PLAIN_SECONDS = 10.0  # between two lines about the same activity
WORD = {StepState.SUCCEEDED: "done", StepState.REUSED: "reused"}


class Lines:
    """Plain lines, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._shown_at = time.monotonic()
        self._activity = ""

    def watcher(self) -> Watcher:
        return Watcher(self._started, self._progress, self._again, self._ended, self._warned)

    def _started(self, step: Step) -> None:
        self._began, self._shown_at, self._activity = time.monotonic(), 0.0, ""
        self._console.print(f"{step.name}: started")

    def _progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.activity == self._activity and now - self._shown_at < PLAIN_SECONDS:
            return
        self._activity, self._shown_at = progress.activity, now
        self._console.print(f"{progress.step_name}: {describe(progress)}")

    def _again(self, step: Step, why: str) -> None:
        self._console.print(f"{step.name}: {why}", soft_wrap=True, highlight=False, markup=False)

    def _warned(self, remark: Remark) -> None:
        self._console.print(warning(remark), soft_wrap=True, highlight=False, markup=False)

    def _ended(self, step: Step, state: StepState) -> None:
        seconds = "" if state is StepState.REUSED else f" in {duration(time.monotonic() - self._began)}"
        self._console.print(f"{step.name}: {WORD[state]}{seconds}")


class LiveBars:
    """One bar for each step, for terminals."""

    def __init__(self, console: Console) -> None:
        self.bars = Bars(
            TextColumn("{task.fields[name]:<16}"), BarColumn(24), TextColumn("{task.description}"), console=console
        )
        self._task = TaskID(0)
        self._began = 0.0

    def watcher(self) -> Watcher:
        return Watcher(self._started, self._progress, self._again, self._ended, self._warned)

    def _started(self, step: Step) -> None:
        self._began = time.monotonic()
        self._task = self.bars.add_task("starting", name=step.name, total=None)

    def _progress(self, progress: Progress) -> None:
        self.bars.update(self._task, total=progress.total or None, completed=progress.step, description=describe(progress))

    def _again(self, step: Step, why: str) -> None:
        self.bars.print(f"{step.name}: {why}", soft_wrap=True, highlight=False, markup=False)

    def _warned(self, remark: Remark) -> None:
        self.bars.print(warning(remark), soft_wrap=True, highlight=False, markup=False)

    def _ended(self, step: Step, state: StepState) -> None:
        if state is StepState.REUSED:
            self._task = self.bars.add_task("", name=step.name, total=1)
            self._began = time.monotonic()
        took = "" if state is StepState.REUSED else f" in {duration(time.monotonic() - self._began)}"
        self.bars.update(self._task, total=1, completed=1, description=f"{WORD[state]}{took}")


def show_result(console: Console, ending: Ending, workdir: Workdir, file: Path) -> None:
    """Scores, verdicts, artifacts with their paths, and what to do next."""
    console.print(scores_table(ending.status.scores))
    console.print(verdicts_table(ending.verdicts))
    artifacts = [(a, path_of(a, workdir)) for a in ending.status.artifacts]
    table = Table("artifact", "format", "MB", title="Artifacts", title_justify="left")
    for artifact, _ in artifacts:
        kind = " ".join(filter(None, (artifact.format, artifact.quantization)))
        table.add_row(artifact.name, kind, f"{artifact.bytes / 1e6:.1f}")
    console.print(table)
    for artifact, path in artifacts:  # outside the table, so that a path can be copied whole
        console.print(f"{artifact.name}: {path}", soft_wrap=True, highlight=False)
    for uri in ending.status.published:
        console.print(f"published: {uri}", soft_wrap=True, highlight=False)
    console.print("\nNext:")
    for command in next_commands(artifacts, file):
        console.print(f"  {command}", soft_wrap=True, highlight=False)


def path_of(artifact: ArtifactStatus, workdir: Workdir) -> str:
    return mounted_path(artifact.uri, str(workdir.mounts)) or artifact.uri


def next_commands(artifacts: list[tuple[ArtifactStatus, str]], file: Path) -> list[str]:
    """Commands that use what was made."""
    commands = []
    for artifact, path in artifacts:
        if artifact.name == MERGED:
            commands.append(f"vllm serve {path}")
        elif artifact.format in list(ArtifactFormat):
            tried_by = FORMATS[ArtifactFormat(artifact.format)].tried_by
            told = [command.format(folder=path, name=artifact.name) for command in tried_by]
            # Where Ollama's template language can't say a model's chat template there is no Modelfile.
            commands += [command for command in told if "Modelfile" not in command or (Path(path) / "Modelfile").is_file()]
    return [*commands, f"kubectl apply -f {file}"]
