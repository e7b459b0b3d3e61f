"""What running pods last said of their progress: the tail of their logs, read every few seconds, outside of any pass.

    pod events ─ watch, forget ─► pods that run ─ read_all (throttled) ─► last progress line by pod ─► owner is woken

It is kept in memory only. A pod whose log can't be read keeps its last line, which grows stale and is shown as such.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import structlog

from finetune_operator.decoding import decode_line
from finetune_operator.errors import ClusterError, NotFound
from finetune_operator.meta import Key

TAIL_LINES = 20
AT_ONCE = 8  # logs that are read side by side: each is a connection from the API server to a kubelet


log = structlog.get_logger("progress")


class Logs(Protocol):
    """The one call of the Cluster that is needed here."""

    async def log_tail(self, namespace: str, pod: str, lines: int) -> str: ...


class ProgressReader:
    """The pods that run a step, whom they belong to, and the last progress line of each."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs
        self._owners: dict[tuple[str, str], Key] = {}
        self._pods: dict[Key, set[str]] = {}
        self._lines: dict[tuple[str, str], dict[str, Any]] = {}

    def watch(self, namespace: str, pod: str, owner: Key) -> None:
        """This pod runs a step of that owner."""
        self._disown(namespace, pod, but=owner)
        self._owners[namespace, pod] = owner
        self._pods.setdefault(owner, set()).add(pod)

    def forget(self, namespace: str, pod: str) -> None:
        """This pod runs no more."""
        self._disown(namespace, pod)
        self._lines.pop((namespace, pod), None)

    def _disown(self, namespace: str, pod: str, but: Key | None = None) -> None:
        """This pod belongs to nobody, or to another."""
        owner = self._owners.get((namespace, pod))
        if owner is None or owner == but:
            return
        del self._owners[namespace, pod]
        self._pods[owner].discard(pod)
        if not self._pods[owner]:
            del self._pods[owner]

    def of(self, owner: Key) -> dict[str, dict[str, Any]]:
        """The last progress line of each running pod of this owner, by the pod's name."""
        pods = self._pods.get(owner, ())
        return {pod: self._lines[owner.namespace, pod] for pod in pods if (owner.namespace, pod) in self._lines}

    async def read_all(self) -> set[Key]:
        """Read each running pod's tail once. Returns the owners that have something new."""
        gate = asyncio.Semaphore(AT_ONCE)
        pods = list(self._owners)
        changed = await asyncio.gather(*(self._read(pod, gate) for pod in pods))
        return {self._owners[pod] for pod, new in zip(pods, changed, strict=True) if new and pod in self._owners}

    async def _read(self, pod: tuple[str, str], gate: asyncio.Semaphore) -> bool:
        try:
            async with gate:
                line = last_progress(await self._logs.log_tail(*pod, TAIL_LINES))
        except NotFound:
            self.forget(*pod)
            return False
        except ClusterError:
            return False  # the container is starting, or its node does not answer: the next round reads again
        except Exception:  # whatever one pod's log does to us, the others are read
            log.exception("log not read", namespace=pod[0], pod=pod[1])
            return False
        if line is None or line == self._lines.get(pod) or pod not in self._owners:
            return False
        self._lines[pod] = line
        return True


def last_progress(tail: str) -> dict[str, Any] | None:
    """The last line that is a progress report (contract.Progress); None where there is none."""
    for text in reversed(tail.splitlines()):
        line = decode_line(text)
        if line is not None and line.get("kind") == "progress":
            return line
    return None
