"""The log of a pod, kept in the artifact store when its step has ended: pods go soon after, and their logs with them.

    the pod's first process ──fork──► the step, whatever becomes of it
      │   ▲                             │
      │   └──────── what it prints ─────┘
      ├──► its own stdout and stderr, as it comes
      └──► the last of it, in memory ── the step has ended, or was killed ──► the store

A process of its own hears also what a crash, a hang or a library leaves behind. It is killed with the step where the whole
pod is: where the pod's memory ends, and where its node does. The log of that attempt is lost then.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from pydantic import ValidationError

from finetune_trainer import environment
from finetune_trainer.contract import kept_log
from finetune_trainer.contract.kept_log import PodEnd
from finetune_trainer.contract.reports import Failure, Progress, Termination
from finetune_trainer.environment import Pod

KEEP_SECONDS = 30.0  # that a pod may go on for its log's sake
RESERVE_SECONDS = 1.0  # of the grace period, in which the exit status must still come out
LOOK_SECONDS = 0.5  # between two looks whether the step has ended; so long is listened to what it left unread
LONGEST_LINE = 1 << 16  # bytes; a longer one is taken apart
PROGRESS = b'"kind":"progress"'
HIDDEN = b"***"
STDOUT, STDERR = 1, 2
PR_SET_PDEATHSIG = 1


class Heard:
    """The last of what a step has printed, line by line, and the last line that reports progress."""

    def __init__(self, limit: int = kept_log.LIMIT) -> None:
        self._limit = limit
        self._open: dict[int, bytes] = {}
        self._kept = bytearray()
        self._bytes = 0
        self.progress: Progress | None = None

    def hear(self, stream: int, chunk: bytes) -> None:
        """Bytes of one of the two streams: what both print is woven line by line."""
        *lines, rest = (self._open.get(stream, b"") + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        self._open[stream] = rest
        for line in lines:
            self._add(line)

    def end(self) -> None:
        """Nothing comes any more: a line without an end is one as well."""
        for line in self._open.values():
            if line:
                self._add(line)
        self._open = {}

    @property
    def text(self) -> bytes:
        """What is kept, from the begin of a line on."""
        surplus = len(self._kept) - self._limit
        if surplus <= 0:
            return bytes(self._kept)
        begin = self._kept.find(b"\n", surplus - 1) + 1
        return bytes(self._kept[begin if 0 < begin < len(self._kept) else surplus :])

    @property
    def left_out(self) -> int:
        """Bytes that came before those."""
        return self._bytes - len(self.text)

    def _add(self, line: bytes) -> None:
        if PROGRESS in line and line.startswith(b"{"):
            with suppress(ValidationError):
                self.progress = Progress.model_validate_json(line)
        self._kept += line + b"\n"
        self._bytes += len(line) + 1
        if len(self._kept) > 2 * self._limit:  # seldom, as each cut moves all that is kept
            self._kept = bytearray(self.text)


def follow(pod: Pod) -> int | None:
    """Go on in a process of its own: None is returned there. Here, once that has ended, the exit status that it came to."""
    watcher, heard = os.getpid(), Heard()
    pipes = {stream: os.pipe() for stream in (STDOUT, STDERR)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    step = os.fork()
    if step == 0:
        for stream, (read, write) in pipes.items():
            os.dup2(write, stream)
            os.close(read)
            os.close(write)
        _die_with(watcher)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    stopping = _Stopping(step)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for _, write in pipes.values():
        os.close(write)
    status = _listen(step, {read: stream for stream, (read, _) in pipes.items()}, heard)
    heard.end()
    _in_time(lambda: keep(pod, heard, status), stopping.seconds_left(pod))
    return status


def keep(pod: Pod, heard: Heard, status: int) -> None:
    """Write the log and how the pod ended into the run's store. Raises StepFailed where that does not take it."""
    from finetune_trainer.context import read_run
    from finetune_trainer.store.entries import open_store

    objects = open_store(read_run(pod.run_file).store, pod.mounts).objects
    text, place = heard.text, f"{pod.kept_log}/{pod.node_rank}"
    for secret in environment.hidden():
        text = text.replace(secret.encode(), HIDDEN)
    end = PodEnd(exit_code=status, failure=_failure(pod), progress=heard.progress, left_out=heard.left_out)
    objects.overwrite(f"{place}{kept_log.LOG}", text)
    objects.overwrite(f"{place}{kept_log.END}", end.model_dump_json(by_alias=True, exclude_none=True).encode())


class _Stopping:
    """SIGTERM goes on to the step, which may save a checkpoint; when it came says how long there is for the log."""

    def __init__(self, step: int) -> None:
        self._step, self._told_at = step, 0.0
        signal.signal(signal.SIGTERM, self._pass_on)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the step itself

    def seconds_left(self, pod: Pod) -> float:
        """For the log: KEEP_SECONDS, and less in a pod that is to go."""
        if not self._told_at:
            return KEEP_SECONDS
        return min(KEEP_SECONDS, self._told_at + pod.grace_seconds - RESERVE_SECONDS - time.monotonic())

    def _pass_on(self, *_: object) -> None:
        self._told_at = self._told_at or time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(self._step, signal.SIGTERM)


def _listen(step: int, streams: dict[int, int], heard: Heard) -> int:
    """Pass on what the step prints until it has ended. Returns its exit status, as a shell tells it where a signal ended it.

    What it left unread comes after its end; others that hold its pipes open are not waited for.
    """
    status: int | None = None
    selector, until = selectors.DefaultSelector(), float("inf")
    for read in streams:
        selector.register(read, selectors.EVENT_READ)
    while selector.get_map() and time.monotonic() < until:
        ready = selector.select(LOOK_SECONDS if status is None else 0)
        if status is None:
            status = _ended(step, os.WNOHANG)
            until = until if status is None else time.monotonic() + LOOK_SECONDS
        elif not ready:
            break
        for key, _ in ready:
            chunk = os.read(key.fd, LONGEST_LINE)
            if chunk:
                _print(streams[key.fd], chunk)
                heard.hear(streams[key.fd], chunk)
            else:
                selector.unregister(key.fd)
    found = _ended(step, 0) if status is None else status
    assert found is not None, "whoever waits without WNOHANG learns of an end"
    return found


def _ended(step: int, options: int) -> int | None:
    process, status = os.waitpid(step, options)
    if process == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _print(stream: int, chunk: bytes) -> None:
    with suppress(BrokenPipeError):  # nobody reads any more: the step goes on all the same
        while chunk:
            chunk = chunk[os.write(stream, chunk) :]


def _in_time(keeping: Callable[[], None], seconds: float) -> None:
    """Keep the log if that takes no longer than this. Whatever is in its way costs the pod nothing but the log."""

    def work() -> None:
        try:
            keeping()
        except Exception as error:
            print(f"the log is not kept: {error}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=work, name="kept log", daemon=True)
    if seconds > 0:
        thread.start()
        thread.join(seconds)


def _failure(pod: Pod) -> Failure | None:
    """What the step told the kubelet of its failure."""
    try:
        return Termination.model_validate_json(pod.termination_log.read_bytes()).failure
    except (OSError, ValidationError):
        return None


def _die_with(watcher: int) -> None:
    """Nobody hears a step whose watcher was killed: it is killed, too, as a pod's processes are with the first one."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != watcher:
        os._exit(128 + signal.SIGKILL)
