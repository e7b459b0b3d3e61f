"""Which cluster the demo runs on: the fastest real one that this machine can have, unless $CLUSTER names one."""

from __future__ import annotations

import os
import shutil
import subprocess
from enum import StrEnum

from demo.console import DemoFailed

# A job that trains, merges, quantizes, evaluates and serves the quickstart's small model, on two cores.
JOB_SECONDS = 420


class Way(StrEnum):
    """A value of $CLUSTER."""

    CURRENT = "current"
    KIND = "kind"
    LOCAL = "local"
    PROCESSES = "none"


WHY = {
    Way.CURRENT: "the cluster of your kubeconfig's current context, as CLUSTER=current asks",
    Way.KIND: "kind, a cluster in Docker's containers, as Docker runs here (CLUSTER=local: one without Docker)",
    Way.LOCAL: "a Kubernetes of one node on this machine, made here, as no Docker runs (CLUSTER=current: your kubeconfig's)",
    Way.PROCESSES: "no cluster, as one needs root or Docker: the same file as processes of this machine (`sudo make demo`)",
}


def choose(wanted: str, has_docker: bool, is_root: bool) -> Way:
    """The way that was asked for, else the fastest there is. Raises DemoFailed where there is no such way here."""
    if wanted and wanted not in set(Way):
        raise DemoFailed(f"CLUSTER={wanted} is no cluster that the demo knows: it may be {', '.join(Way)}, or left out")
    way = Way(wanted) if wanted else Way.KIND if has_docker else Way.LOCAL if is_root else Way.PROCESSES
    if way is Way.KIND and not has_docker:
        raise DemoFailed("CLUSTER=kind needs kubectl and a Docker that answers `docker info`: start it, or leave CLUSTER out")
    if way is Way.LOCAL and not is_root:
        raise DemoFailed("CLUSTER=local needs root, for containers: `sudo make demo`, or leave CLUSTER out")
    return way


def chosen(wanted: str) -> Way:
    """The way for this machine."""
    return choose(wanted, has_docker(), os.geteuid() == 0)


def has_docker() -> bool:
    """Whether a Docker engine answers, and kubectl is there to talk to a cluster in it."""
    if shutil.which("docker") is None or shutil.which("kubectl") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30).returncode == 0


def in_minutes(seconds: float) -> str:
    """A guess as people make one."""
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} minute{'s' if minutes > 1 else ''}"
