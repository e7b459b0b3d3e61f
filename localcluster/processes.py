"""Long-running processes that outlive the command that started them.

A process is known by its pid together with its start time, so that a pid which the machine has given to somebody
else is never signalled. Each process also carries the cluster's identity in its environment: that finds the ones
whose record was never written, because `up` itself was killed.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from localcluster import ownership
from localcluster.errors import ProcessFailed

MARKER = "FINETUNE_LOCALCLUSTER"
POLL_SECONDS = 0.1
_children: dict[int, subprocess.Popen[bytes]] = {}  # by pid; held, as Python warns when it forgets a child that still runs


@dataclass(frozen=True)
class Record:
    """What tells a process apart from a later one of the same pid."""

    pid: int
    start_time: int | None
    command: Sequence[str]
    configuration: str = ""  # digest of the files that it read when it started

    def is_alive(self) -> bool:
        return self.start_time is not None and start_time(self.pid) == self.start_time


@dataclass(frozen=True)
class Process:
    """One supervised program: `name` picks its record (`run/`) and its log (`logs/`) under `directory`."""

    directory: Path
    name: str
    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    configuration: Sequence[Path] = ()  # files that the program reads once: when they change it is started again
    listens_on: tuple[str, int] | None = None  # checked before the start, lest somebody else's answer be taken for its

    @property
    def log(self) -> Path:
        return self.directory / "logs" / f"{self.name}.log"

    def ensure(self) -> bool:
        """Start the program unless it runs with this very command and configuration; True if it was started now."""
        record = _read_record(self.directory, self.name)
        if record and record.is_alive():
            if (record.command, record.configuration) == (list(self.command), self._digest()):
                return False
            stop(self.directory, self.name)
        self._start()
        return True

    def _start(self) -> None:
        if self.listens_on:
            _check_free(self.name, *self.listens_on)
        run = self.directory / "run"
        for folder in (run, self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        # A clean environment: a proxy or a KUBECONFIG of the caller must not change what the cluster does.
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.directory),
            MARKER: ownership.identity(self.directory),
            **(self.environment or {}),
        }
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                self.command,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _children[child.pid] = child
        partial = run / f".{self.name}.json"
        record = Record(child.pid, start_time(child.pid), list(self.command), self._digest())
        partial.write_text(json.dumps(asdict(record)))
        partial.rename(run / f"{self.name}.json")

    def wait(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        """Return once `ready()`; raise ProcessFailed with the log's end if the program ends or time runs out."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not is_running(self.directory, self.name):
                _reap()
                raise ProcessFailed(f"{self.name} ended while it was starting; {self._tail()}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} is not ready after {seconds:.0f} s; {self._tail()}")
            time.sleep(POLL_SECONDS)

    def _digest(self) -> str:
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in self.configuration)).hexdigest()[:16]

    def _tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join([f"its log {self.log} ends with:", *(f"    {line[:300]}" for line in lines)])


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200: the readiness of a part that speaks HTTP."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:  # urllib's own errors are of this kind too
        return False


def _check_free(name: str, address: str, port: int) -> None:
    try:
        socket.create_server((address, port)).close()
    except OSError as error:
        variable = f"LOCALCLUSTER_{name.upper()}_PORT"
        raise ProcessFailed(f"{name} cannot listen on {address}:{port} ({error}): set {variable} to a free port") from error


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of `pid`; None if there is no such process or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def is_running(directory: Path, name: str) -> bool:
    record = _read_record(directory, name)
    return record is not None and record.is_alive()


def pid_of(directory: Path, name: str) -> int | None:
    """The pid of the part `name`, None if it does not run."""
    record = _read_record(directory, name)
    return record.pid if record and record.is_alive() else None


def stop(directory: Path, name: str, seconds: float = 10) -> None:
    """End the part: SIGTERM, then SIGKILL after `seconds`. A part that does not run is no error."""
    record = _read_record(directory, name)
    if record and record.is_alive():
        end([record.pid], seconds)
    (directory / "run" / f"{name}.json").unlink(missing_ok=True)


def strays(directory: Path) -> list[int]:
    """Every process that was started for the cluster in `directory`, recorded or not (containerd's shims included)."""
    wanted = f"{MARKER}={ownership.identity(directory)}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def end(pids: Sequence[int], seconds: float = 10) -> None:
    """SIGTERM to all of `pids`, SIGKILL to those left after `seconds`, return when all are gone."""
    born = {pid: start_time(pid) for pid in pids}
    alive = {pid for pid in pids if born[pid] is not None}
    for sign, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 10.0)):
        for pid in alive:
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while alive and time.monotonic() < deadline:
            alive = {pid for pid in alive if start_time(pid) == born[pid]}
            _reap()  # after the look, which takes a zombie for ended: nobody would look again
            time.sleep(POLL_SECONDS / 2)
    if alive:
        raise ProcessFailed(f"processes {sorted(alive)} do not end, not even by SIGKILL: a disk or mount hangs")


def _reap() -> None:
    """Collect the children of this very command that have ended, lest they stay zombies."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]


def _read_record(directory: Path, name: str) -> Record | None:
    try:
        return Record(**json.loads((directory / "run" / f"{name}.json").read_text()))
    except FileNotFoundError:
        return None


def leads_session(pid: int) -> bool:
    """Whether `pid` was started by `Process` itself: containerd's shims and hooks lead no session."""
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False
