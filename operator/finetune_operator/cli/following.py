"""What goes on in the cluster, shown as it happens: an object until it has what was asked for, and the logs of a job's pods."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live

from finetune_operator.cli import logs, status
from finetune_operator.cli.kept_logs import KeptLogs
from finetune_operator.cli.reach import Reach
from finetune_operator.errors import NotFound
from finetune_operator.meta import Object
from finetune_operator.names import STEP_CONTAINER, job_labels

GONE = 1  # exit status of an object that was deleted while it was followed


async def until_it_stands(reach: Reach, body: Object, console: Console) -> int:
    """Show the object each time it changes, live on a terminal and as lines elsewhere. Returns its exit status."""
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    last = ""
    with live or nullcontext():
        async for now in reach.follow(body["kind"], body["metadata"]["name"]):
            now = {**now, "kind": body["kind"]}
            ended = status.exit_status(now)
            if live is not None:
                live.update(status.shown(now, datetime.now(UTC)), refresh=True)
            elif (line := _line(now)) != last and ended is None:
                console.print(line, soft_wrap=True, highlight=False, markup=False)
                last = line
            if ended is not None:
                if live is None:
                    console.print(status.shown(now, datetime.now(UTC)))
                return ended
    console.print(f"{body['kind']} {body['metadata']['name']} was deleted")
    return GONE


def _line(body: Object) -> str:
    progress = status.job_status(body).progress if body["kind"] == "FineTuneJob" else None
    working = progress is not None and progress.activity
    return status.said(progress) if progress is not None and working else status.headline(body)


@dataclass(frozen=True)
class Printing:
    """How logs are printed: each line by `tell`, reports of progress as they are (`raw`) or in words."""

    reach: Reach
    tell: Callable[[str], None]
    raw: bool = False
    folder: Path | None = None  # with what the job's artifact store has

    async def all_there_is(self, job: Object, asked: logs.Asked) -> None:
        """The log of each pod that is there, and what is kept of those that are gone."""
        found, kept = logs.pieces(status.job_status(job), await self._pods(job), asked), self._kept(job)
        for piece in found:
            await self._print(piece, kept, follow=False)
        if not found:
            self.tell("no pod has started yet")

    async def until_the_end(self, job: Object, asked: logs.Asked) -> int:
        """The logs of the pods as they start, one after the other, until the job has ended. Returns its exit status."""
        seen: set[tuple[str, int, str]] = set()
        async for now in self.reach.follow("FineTuneJob", job["metadata"]["name"]):
            kept = self._kept(now)
            for piece in logs.pieces(status.job_status(now), await self._pods(now), asked):
                if (key := (piece.step, piece.attempt, piece.uid)) not in seen:
                    seen.add(key)
                    await self._print(piece, kept, follow=True)
            if (ended := status.exit_status({**now, "kind": "FineTuneJob"})) is not None:
                return ended
        return GONE

    def _kept(self, job: Object) -> KeptLogs:
        return KeptLogs(self.reach, job, self.folder)

    async def _pods(self, job: Object) -> list[Object]:
        return await self.reach.list("Pod", job_labels(job["metadata"]["name"]))

    async def _print(self, piece: logs.Piece, kept: KeptLogs, *, follow: bool) -> None:
        if piece.pod is None:
            for line in logs.kept_lines(piece, await kept.of(piece.step, piece.attempt)):
                self._line(line)
            return
        self.tell(piece.title)
        try:
            async for line in self.reach.log(piece.pod, STEP_CONTAINER, follow=follow):
                self._line(line)
        except NotFound:  # it went while we came to it
            self.tell("   (the pod is gone)")

    def _line(self, line: str) -> None:
        self.tell(line if self.raw else logs.readable(line))
