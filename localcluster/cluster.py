"""The whole cluster: what is started in which order, and how all of it is taken away."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from localcluster import (
    cgroup,
    control_plane,
    debian,
    dns,
    footprint,
    hub,
    kubelet,
    network,
    ownership,
    processes,
    registry,
    storage,
    toolchain,
    work,
)
from localcluster.api import Api
from localcluster.containerd import Containerd, remove_shim_sockets, sandboxes
from localcluster.errors import LocalclusterError
from localcluster.pki import Authority
from localcluster.settings import NODE_ADDRESS, Settings

API_PORT = 6443  # on the node's own address, where nothing else listens
PARTS = (*control_plane.PARTS, "containerd", "kubelet", "kube-proxy", "coredns", "registry", "storage", "hub")
STOP_FIRST = ("kubelet", "kube-controller-manager", "kube-scheduler", "storage")  # they would start pods again

Tell = Callable[[str], None]


def say(text: str) -> None:
    """Print at once, also into a file."""
    print(text, flush=True)


def pull(settings: Settings, reference: str) -> None:
    """Have an image on the node before a pod asks for it."""
    Containerd(settings, debian.runtime(settings.cache)).pull(reference)


def up_registry(settings: Settings) -> None:
    """Start the registry alone, which images are pushed to while the programs of the cluster are compiled."""
    with _claimed(settings):
        with _step("packages"):
            debian.ensure_tools()
        with _step("registry"):
            registry.ensure(settings)


@contextmanager
def _claimed(settings: Settings) -> Iterator[None]:
    """The machine can hold a cluster, and while the block runs nobody else makes or ends this one."""
    _check_machine()
    with ownership.exclusively(settings.directory):
        ownership.claim(settings.directory)
        _end_unrecorded(settings.directory)
        yield


def up(settings: Settings, tell: Tell = say) -> None:
    """Start what does not run; returns when the node is Ready. Can be called at any time, also after a crash.

    `tell` gets a line as each part begins and ends.
    """
    with _claimed(settings):
        with _step("packages", tell):
            debian.ensure_tools()
            runtime = debian.runtime(settings.cache)
        with _step("programs", tell):
            work.do(toolchain.tasks(settings.cache, toolchain.CLUSTER))
        with _step("network", tell):
            footprint.remember(settings.directory)
            network.ensure(settings.directory)
            cgroup.ensure(settings.directory)
        with _step("registry", tell):
            registry.ensure(settings)
        with _step("control plane", tell):
            endpoint = control_plane.Endpoint(NODE_ADDRESS, API_PORT, for_pods=True)
            plane = control_plane.start(settings.directory, endpoint, settings.cache)
        _start_node(settings, runtime, Api.from_kubeconfig(plane.kubeconfig), tell)
    tell(f"kubeconfig: {settings.kubeconfig}\nregistry:   {settings.registry_address}\nmodel hub:  {settings.hub_url}")


def _start_node(settings: Settings, runtime: debian.Runtime, api: Api, tell: Tell) -> None:
    server = f"https://{NODE_ADDRESS}:{API_PORT}"
    with _step("dns", tell):
        dns.ensure(settings, api, server)
    with _step("storage class, model hub", tell):
        storage.ensure(settings, api, server)
        hub.ensure(settings)
    with _step("service proxy", tell):
        identity = Authority(settings.directory / "pki").issue("kube-proxy", "system:kube-proxy")
        kubeconfig = identity.write_kubeconfig(settings.directory / "kube-proxy.kubeconfig", server)
        network.start_proxy(settings.directory, settings.cache, kubeconfig)
    with _step("containerd", tell):
        containerd = Containerd(settings, runtime)
        containerd.ensure()
    with _step("node", tell):
        kubelet.Kubelet(settings, containerd.socket).ensure(api, server)


def down(settings: Settings) -> None:
    """End every process and remove every trace but the cache. Works from any half-made or half-removed state."""
    directory = settings.directory
    if not (directory / ownership.STAMP).exists():
        print(f"no cluster in {directory}")
        return
    with ownership.exclusively(directory):
        with _step("pods"):
            for part in STOP_FIRST:
                processes.stop(directory, part)
            cgroup.kill(directory)
        with _step("processes"):
            for part in reversed(PARTS):
                processes.stop(directory, part)
            processes.end(processes.strays(directory))
            cgroup.kill(directory)
            remove_shim_sockets()
        with _step("mounts"):
            for point in ownership.mounts_below(directory):
                subprocess.run(["umount", "--lazy", str(point)], check=True)
        with _step("network, control groups, kernel parameters"):
            network.remove(directory)
            cgroup.remove(directory)
            footprint.put_back(directory, sandboxes(directory))
        with _step(f"{directory}"):
            ownership.remove(directory)


def up_control_plane(settings: Settings) -> None:
    """Start the control plane alone, on free loopback ports; no root is needed."""
    with _step("programs"):
        toolchain.binary(settings.cache, "kubernetes")
    with _step("control plane"):
        plane = control_plane.start(settings.directory, cache=settings.cache)
    print(f"kubeconfig: {plane.kubeconfig}")


def states(settings: Settings) -> list[tuple[str, str, str]]:
    """(part, state, detail) of each part, in starting order; a part is Running, Down or NotReady."""
    rows = []
    for part in PARTS:
        pid = processes.pid_of(settings.directory, part)
        rows.append((part, "Running" if pid else "Down", f"pid {pid}" if pid else ""))
    if settings.kubeconfig.exists():
        api = Api.from_kubeconfig(settings.kubeconfig)
        rows.append(("api", "Ready" if api.is_ready() else "NotReady", f"https://{NODE_ADDRESS}:{API_PORT}"))
        rows.append(("node", "Ready" if kubelet.is_ready(api) else "NotReady", NODE_ADDRESS))
    return rows


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise LocalclusterError("pods need root: run this as root, or `up --control-plane-only`, which needs none")


def _end_unrecorded(directory: Path) -> None:
    """End parts that an `up` started but was killed before it could write them down: they hold our ports."""
    recorded = {processes.pid_of(directory, part) for part in PARTS}
    lost = [pid for pid in processes.strays(directory) if pid not in recorded and processes.leads_session(pid)]
    processes.end(lost)


@contextmanager
def _step(name: str, tell: Tell = say) -> Iterator[None]:
    begin = time.monotonic()
    tell(f"{name} ...")
    yield
    tell(f"{name}: {time.monotonic() - begin:.1f} s")
