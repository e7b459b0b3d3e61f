"""What goes on in the cluster, shown as it happens: an object until it has what was asked for, and the logs of a job's pods."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live

from finetune_operator.cli import logs, status
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


async def print_logs(reach: Reach, job: Object, asked: logs.Asked, tell: Callable[[str], None], *, raw: bool) -> None:
    """The log of each pod that is there, and which are gone."""
    found = logs.pieces(status.job_status(job), await _pods(reach, job), asked)
    for piece in found:
        await _print(reach, piece, tell, raw=raw, follow=False)
    if not found:
        tell("no pod has started yet")


async def follow_logs(reach: Reach, job: Object, asked: logs.Asked, tell: Callable[[str], None], *, raw: bool) -> int:
    """The logs of the pods as they start, one after the other, until the job has ended. Returns its exit status."""
    seen: set[tuple[str, int, str]] = set()
    async for now in reach.follow("FineTuneJob", job["metadata"]["name"]):
        for piece in logs.pieces(status.job_status(now), await _pods(reach, now), asked):
            if (key := (piece.step, piece.attempt, piece.uid)) not in seen:
                seen.add(key)
                await _print(reach, piece, tell, raw=raw, follow=True)
        if (ended := status.exit_status({**now, "kind": "FineTuneJob"})) is not None:
            return ended
    return GONE


async def _pods(reach: Reach, job: Object) -> list[Object]:
    return await reach.list("Pod", job_labels(job["metadata"]["name"]))


async def _print(reach: Reach, piece: logs.Piece, tell: Callable[[str], None], *, raw: bool, follow: bool) -> None:
    tell(piece.title)
    if piece.pod is None:
        return
    try:
        async for line in reach.log(piece.pod, STEP_CONTAINER, follow=follow):
            tell(line if raw else logs.readable(line))
    except NotFound:  # it went while we came to it
        tell("   (the pod is gone)")
