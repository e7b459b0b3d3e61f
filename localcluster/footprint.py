"""What the cluster's parts change outside its directory, remembered before and put back after.

The kubelet sets kernel parameters and uses folders with fixed names; CNI keeps results in one.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from localcluster.settings import OWNER

KERNEL_PARAMETERS = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
SHARED_FOLDERS = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers", "/run/containerd", "/opt/containerd")
CNI_RESULTS = Path("/var/lib/cni/results")
LOG_LINKS = Path("/var/log/containers")


def remember(directory: Path) -> None:
    """Write down what is there before anything is changed, once; then switch IP forwarding on for the pods."""
    file = directory / "footprint.json"
    if not file.exists():
        present = [name for name in KERNEL_PARAMETERS if _parameter(name).exists()]
        parameters = {name: _parameter(name).read_text().strip() for name in present}
        folders = [folder for folder in SHARED_FOLDERS if Path(folder).exists()]
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"parameters": parameters, "folders": folders}, indent=2))
        partial.rename(file)
    _parameter("net/ipv4/ip_forward").write_text("1")


def put_back(directory: Path, sandboxes: Iterable[str]) -> None:
    """Restore kernel parameters and remove our entries from shared folders, and the folders that we made."""
    file = directory / "footprint.json"
    if not file.exists():
        return
    before = json.loads(file.read_text())
    for name, value in before["parameters"].items():
        if _parameter(name).read_text().strip() != value:
            _parameter(name).write_text(value)
    ours = {result.name.removeprefix(f"{OWNER}-").rpartition("-")[0] for result in CNI_RESULTS.glob(f"{OWNER}-*")}
    for sandbox in ours | set(sandboxes):
        for result in (CNI_RESULTS / f"{OWNER}-{sandbox}-eth0", CNI_RESULTS / f"cni-loopback-{sandbox}-lo"):
            result.unlink(missing_ok=True)
    for link in LOG_LINKS.glob("*.log"):
        if link.is_symlink() and Path(os.readlink(link)).is_relative_to(directory):
            link.unlink()
    for folder in SHARED_FOLDERS:
        if folder not in before["folders"]:
            _remove_made_folder(Path(folder))


def _remove_made_folder(folder: Path) -> None:
    """Remove a folder that was not there before; a program that came since may use it, so only the kubelet's own
    files are deleted with it."""
    if folder.name == "kubelet":
        shutil.rmtree(folder, ignore_errors=True)
        return
    for inner, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # not empty: it is somebody's
            os.rmdir(inner)


def _parameter(name: str) -> Path:
    return Path("/proc/sys") / name
