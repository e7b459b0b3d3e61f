"""A pod's part of a Ray cluster that starts with the attempt and ends with it. launching.py runs this as a program.

    pod 0:  ray start --head ─┬─ driver (ray_driver.py): Ray Train places one worker for each rank
    pod n:  ray start ────────┘                            └─► worker starts its rank as a process, and waits

A rank is the same process that torchrun would start, in a session of its own: when Ray's processes go because a node is
lost, it lives on for the seconds in which it notices that, reports it and ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from finetune_trainer import environment
from finetune_trainer.contract.devices import Devices
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.environment import ENV_LOG, Pod
from finetune_trainer.ranks.launching import JOIN_SECONDS

OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray takes: ranks pass no objects through it
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # the pod's own limit is the limit
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # a node whose head is gone ends
    "RAY_kill_child_processes_on_worker_exit": "false",
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",  # a rank takes its GPU by LOCAL_RANK, as under torchrun
}


def main(step: str, devices: Devices) -> int:
    """Run this node until its ranks have ended, whatever they report: 0. Else WORLD_INCOMPLETE, or the driver's status."""
    pod = environment.read()
    ranks = Ranks(environment.ends(), devices.ranks_per_node)
    signal.signal(signal.SIGTERM, ranks.terminate)
    environment.put(ENVIRONMENT | {ENV_LOG: f"/proc/{os.getpid()}/fd/1"})
    node = subprocess.Popen(_ray_start(devices, pod), stdout=sys.stderr)
    driver = None
    try:
        if pod.node_rank == 0:
            program = [sys.executable, "-m", "finetune_trainer.ranks.ray_driver", step, devices.model_dump_json()]
            driver = subprocess.Popen(program, stdout=sys.stderr)
        while not ranks.ended() and (ranks.running() or (node.poll() is None and (driver is None or driver.poll() is None))):
            time.sleep(0.2)
        if ranks.ended() and driver is not None:
            with suppress(subprocess.TimeoutExpired):
                driver.wait(timeout=20)  # it waits for the other nodes' workers
        status = 0 if ranks.ended() else (driver and driver.poll()) or int(ExitCode.WORLD_INCOMPLETE)
    finally:
        _stop()
    return int(ExitCode.TERMINATED) if status and ranks.told_to_stop else status


class Ranks:
    """The ranks that Ray's workers started on this node, each known by a file with its process id."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        self.told_to_stop = False

    def terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """Pass SIGTERM on; before there are ranks it ends this program."""
        self.told_to_stop = True
        running = self.running()
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        if not running:
            raise SystemExit(int(ExitCode.TERMINATED))

    def running(self) -> list[psutil.Process]:
        """Those that live. A process whose parent is gone may stay behind as a zombie, which has ended."""
        alive = []
        for path in self._folder.glob("pid-*"):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(path.read_text()))
                if process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive

    def ended(self) -> bool:
        """Whether all were started and none runs any more."""
        return len(list(self._folder.glob("pid-*"))) == self._count and not self.running()


def claim_local_rank(folder: Path, count: int) -> int:
    """The next free number among this pod's `count` ranks. Ray Train's own counts by address, which pods may share."""
    for number in range(count):
        with suppress(FileExistsError):
            (folder / f"claimed-{number}").touch(exist_ok=False)
            return number
    raise RuntimeError(f"Ray placed more than {count} workers on one node")


def note_process(folder: Path, local_rank: int, process: int) -> None:
    """Tell the pod's main process of a rank that was started. The file appears whole."""
    unfinished = folder / f"starting-{local_rank}"
    unfinished.write_text(str(process))
    unfinished.rename(folder / f"pid-{local_rank}")


def ray_address(master: str) -> str:
    """host:port of Ray's head, one above the port where the ranks meet."""
    host, _, port = master.partition(":")
    return f"{host}:{int(port) + 1}"


def _ray_start(devices: Devices, pod: Pod) -> list[str]:
    own = socket.gethostbyname(socket.gethostname())
    host, _, port = ray_address(pod.master).partition(":")
    options = [f"--num-cpus={devices.ranks_per_node}", f"--num-gpus={devices.gpus}"]
    options += [f"--node-ip-address={'127.0.0.1' if host == '127.0.0.1' else own}"]
    options += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats", "--block"]
    if pod.node_rank == 0:
        options += ["--head", f"--port={port}", "--include-dashboard=false"]
    else:
        _wait_for(host, int(port))
        options += [f"--address={host}:{port}"]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", *options]


def _wait_for(host: str, port: int) -> None:
    """Wait until the head listens; its pod may come much later. Gives up after JOIN_SECONDS, and `ray start` says why."""
    until = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < until:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)


def _stop() -> None:
    """End what runs of Ray here: by SIGTERM, which drains a node for long when it is not the head, then by SIGKILL."""
    left = psutil.Process().children(recursive=True)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(left, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Devices.model_validate_json(sys.argv[2])))
