"""The control group that all pods live under, in each hierarchy (v1) or in the one (v2)."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from localcluster import ownership
from localcluster.errors import ProcessFailed
from localcluster.settings import OWNER

V2_CONTROLLERS = "+cpuset +cpu +io +memory +pids"
PATIENCE_SECONDS = 10


def name(directory: Path) -> str:
    """The group's name; it differs with the cluster, so that `down` of one never ends pods of another."""
    return f"{OWNER}-{ownership.identity(directory)[:8]}"


def ensure(directory: Path) -> None:
    """Make the group; the kubelet wants it to be there with every controller."""
    for mount, kind in _hierarchies():
        group = mount / name(directory)
        group.mkdir(exist_ok=True)
        if kind == "cgroup2":
            for controller in V2_CONTROLLERS.split():
                for parent in (mount, group):
                    with contextlib.suppress(OSError):  # a controller that this kernel lacks, or that v1 holds
                        (parent / "cgroup.subtree_control").write_text(controller)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # v1 starts them empty, and then nothing may run in the group
            file = group / setting
            if kind == "cgroup" and file.exists() and not file.read_text().strip():
                file.write_text((mount / setting).read_text())


def kill(directory: Path) -> None:
    """SIGKILL to every process of every pod; returns when none is left."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while pids := set(_processes(directory)):
        if time.monotonic() > deadline:
            raise ProcessFailed(f"pod processes {sorted(pids)} do not end, not even by SIGKILL: a disk or mount hangs")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def remove(directory: Path) -> None:
    """Delete the group with all below it."""
    for mount, _ in _hierarchies():
        for folder, _, _ in os.walk(mount / name(directory), topdown=False):
            _remove_one(Path(folder))


def _remove_one(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # its last process has been killed but not yet collected
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _processes(directory: Path) -> Iterator[int]:
    for mount, _ in _hierarchies():
        for folder, _, _ in os.walk(mount / name(directory)):
            with contextlib.suppress(OSError):
                yield from (int(pid) for pid in (Path(folder) / "cgroup.procs").read_text().split())


def _hierarchies() -> list[tuple[Path, str]]:
    """Mount point and file system type of each hierarchy that holds controllers."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind_and_more = line.partition(" - ")
        kind = kind_and_more.split()[0]
        if kind in ("cgroup", "cgroup2"):
            found.append((Path(fields.split()[4]), kind))
    return found
