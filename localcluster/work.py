"""Work that is done side by side: what needs what, and one line that says how far all of it is and what is left.

Each task's weight is what it costs from nothing in CPU seconds. The first guess of what is left is taken from the number of
cores; what has been done since then corrects it, so that a busy machine is told the truth after a minute or two.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

Report = Callable[[float | None, str], None]  # share done (None: nobody can say), what is at hand

AT_ONCE = 4  # more would only take memory: each of these uses all cores while it can
GUESSED_SECONDS = 60  # how long the guess from the number of cores weighs as much as what was seen
UNKNOWN_AT_MOST = 0.95  # of a task that can't say how far it is
SECONDS_BETWEEN_LINES = 20.0  # where the output is no terminal
BAR = 24  # columns
SHOWN_TASKS = 2


def silent(share: float | None, text: str) -> None:
    """A report that nobody reads."""


class Stopped(Exception):
    """Raised inside a task's `report` once the work as a whole has failed or was interrupted."""


@dataclass(frozen=True)
class Task:
    """`run` gets a function that it tells its progress to. It waits for those of `needs` that are among the tasks."""

    name: str
    cpu_seconds: float
    run: Callable[[Report], None]
    needs: tuple[str, ...] = ()


@dataclass
class Progress:
    """How far a list of tasks is. `now` is in seconds of any clock that runs evenly."""

    tasks: Sequence[Task]
    cores: int
    begin: float
    shown_at: float = 0.0
    shares: dict[str, tuple[float | None, str, float]] = field(default_factory=dict)  # name → share, at hand, since

    @property
    def total(self) -> float:
        return sum(task.cpu_seconds for task in self.tasks)

    def done(self, now: float) -> float:
        """CPU seconds of the work that need not be done any more."""
        return sum(task.cpu_seconds * self._share(task, now) for task in self.tasks)

    def seconds_left(self, now: float) -> float:
        """Wall time that the rest takes if it goes on at the speed seen so far."""
        done = self.done(now)
        speed = (done + GUESSED_SECONDS * self.cores) / (now - self.begin + GUESSED_SECONDS)
        return (self.total - done) / speed

    def line(self, now: float) -> str:
        """The bar, the share done, what is left, and what is at hand."""
        share = self.done(now) / (self.total or 1)
        bar = "█" * int(share * BAR)
        running = [f"{name} {text}".strip() for name, (part, text, _) in self.shares.items() if part != 1]
        return f"{bar:░<{BAR}} {share:4.0%}  {duration(self.seconds_left(now))} left  {' · '.join(running[:SHOWN_TASKS])}"

    def _share(self, task: Task, now: float) -> float:
        share, _, since = self.shares.get(task.name, (0.0, "", now))
        if share is None:
            return min(UNKNOWN_AT_MOST, (now - since) * self.cores / AT_ONCE / max(task.cpu_seconds, 1))
        return share


def estimate(tasks: Sequence[Task]) -> float:
    """Wall time in seconds that the tasks take on this machine if nothing else runs on it."""
    return Progress(tasks, os.cpu_count() or 1, 0).seconds_left(0)


def do(tasks: Sequence[Task]) -> None:
    """Run all of `tasks`; where one fails the others are stopped, and its error is raised."""
    if not tasks:
        return
    progress = Progress(tasks, os.cpu_count() or 1, time.monotonic())
    lock, stop = threading.Lock(), threading.Event()
    names = {task.name for task in tasks}
    order = TopologicalSorter({task.name: names.intersection(task.needs) for task in tasks})
    order.prepare()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            _finish(order, {task.name: task for task in tasks}, lambda task: pool.submit(_run, task, progress, lock, stop))
        finally:  # also on Ctrl-C: nothing goes on behind our back
            stop.set()


def _finish(order: "TopologicalSorter[str]", tasks: dict[str, Task], begin: Callable[[Task], "Future[None]"]) -> None:
    """Begin each task once it may, the costliest first, until all are done. Raises the first error."""
    running: dict[Future[None], str] = {}
    while order.is_active():
        ready = sorted(order.get_ready(), key=lambda name: -tasks[name].cpu_seconds)
        running |= {begin(tasks[name]): name for name in ready}
        ended, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            future.result()
            order.done(running.pop(future))


def _run(task: Task, progress: Progress, lock: threading.Lock, stop: threading.Event) -> None:
    begin = time.monotonic()

    def report(share: float | None, text: str) -> None:
        if stop.is_set():
            raise Stopped(task.name)
        with lock:
            progress.shares[task.name] = (share, text, begin)
            _show(progress)

    report(None, "")
    task.run(report)
    with lock:
        progress.shares[task.name] = (1.0, "", begin)
        _clear()
        print(f"   {task.name}: {duration(time.monotonic() - begin)}", flush=True)


def _show(progress: Progress) -> None:
    """The progress, over the last line on a terminal; elsewhere on a line of its own now and then."""
    now = time.monotonic()
    if now - progress.shown_at < (1.0 if sys.stdout.isatty() else SECONDS_BETWEEN_LINES):
        return
    progress.shown_at = now
    line = f"   {progress.line(now)}"
    if sys.stdout.isatty():
        print(f"\r\033[K{line[: _columns()]}", end="", flush=True)
    else:
        print(line, flush=True)


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="", flush=True)


def _columns() -> int:
    return os.get_terminal_size().columns - 1


def duration(seconds: float) -> str:
    """Seconds as people say them: 8s, 3m05s, 1h02m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02}m"
