"""A real control plane for the session, with our CRDs and the chart's rights; operators as processes behind a proxy."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from localcluster import control_plane, settings, toolchain
from localcluster.api import Api, ApiError
from localcluster.chart import render
from tests.integration.fault_proxy import FaultProxy
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SYSTEM = "finetune-system"
FINETUNE = "/apis/finetune.dev/v1alpha1"


@dataclass
class World:
    """The control plane as a test sees it."""

    plane: control_plane.ControlPlane
    api: Api
    server: str
    authority: str
    token: str

    def namespace(self, name: str) -> str:
        """A namespace of this name where pods must be `restricted`."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.api.apply(f"/api/v1/namespaces/{name}", body)
        wait_until(f"{name} has its service account", lambda: self.get(f"/api/v1/namespaces/{name}/serviceaccounts/default"))
        return name

    def read(self, path: str) -> dict[str, Any]:
        """An object or a list; ApiError where there is none."""
        return dict(self.api.request("GET", path))

    def get(self, path: str) -> dict[str, Any] | None:
        """An object or a list; None where there is none."""
        try:
            return self.read(path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def items(self, path: str) -> list[dict[str, Any]]:
        return list(self.read(path)["items"])

    def kubectl(self, *arguments: str) -> str:
        binary = toolchain.kubernetes(settings.read().cache, "kubectl")
        command = [str(binary), f"--kubeconfig={self.plane.kubeconfig}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with a_world() as made:
        yield made


@contextmanager
def a_world() -> Iterator[World]:
    """etcd, API server, controller manager and scheduler; CRDs; the chart's service account and rights."""
    directory = Path(tempfile.mkdtemp(prefix="finetune-integration-"))
    plane = control_plane.start(directory)
    try:
        config = json.loads(plane.kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        world = World(plane, Api.from_kubeconfig(plane.kubeconfig), cluster["server"], _decoded(cluster), "")
        for file in sorted((ROOT / "crds").glob("*.yaml")):
            world.kubectl("apply", "--server-side", "-f", str(file))
        world.namespace(SYSTEM)
        for body in chart():
            if body["kind"] != "Deployment":
                text = yaml.safe_dump(body)
                path = directory / "object.yaml"
                path.write_text(text)
                world.kubectl("apply", "--server-side", "-f", str(path))
        world.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        account = f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/finetune-operator/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
        world.token = world.api.request("POST", account, request)["status"]["token"]
        yield world
    finally:
        plane.stop()


def _decoded(cluster: dict[str, str]) -> str:
    return base64.b64decode(cluster["certificate-authority-data"]).decode()


def chart(*values: str, release: str = "finetune-operator", namespace: str = SYSTEM) -> list[dict[str, Any]]:
    """The chart's objects, as `helm template` makes them."""
    return render([f"--set={v}" for v in values], release, namespace)


@dataclass
class Operator:
    """One operator process, with the chart's rights, behind a proxy of its own."""

    world: World
    directory: Path
    program: tuple[str, ...]
    environment: dict[str, str]
    make_proxy: Callable[[str, str], FaultProxy] = FaultProxy
    proxy: FaultProxy = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.proxy = self.make_proxy(self.world.server, self.world.authority)

    def start(self) -> Operator:
        """Start it, or start it again after it was killed."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.proxy.url}}],
            "users": [{"name": "test", "user": {"token": self.world.token}}],
        }
        (self.directory / "kubeconfig").write_text(json.dumps(config))
        kept = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ}
        environment = kept | {
            "KUBECONFIG": str(self.directory / "kubeconfig"),
            "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer_image'}:{ROOT}",
            "FINETUNE_HTTP_PORT": "0",
            "FINETUNE_IDENTITY": "first",
            "MALLOC_ARENA_MAX": "2",
            **self.environment,
        }
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen([sys.executable, *self.program], env=environment, stdout=log, stderr=log)
        log.close()
        self.proxy.on_kill = self.process.kill
        return self

    def stop(self) -> int:
        """Ask it to end; returns its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def kill(self) -> None:
        """End it at once, in whatever it does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def refusals(self) -> list[str]:
        """What the API server forbade: with the chart's rights, nothing."""
        return [f"{r.method} {r.path}" for r in self.proxy.requests if r.code in (401, 403)]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.proxy.stop()


@pytest.fixture
def operators(world: World) -> Iterator[Callable[..., Operator]]:
    """Makes operators; ends them all after the test and shows the log of one that failed."""
    made: list[Operator] = []

    def make(*program: str, proxy: type[FaultProxy] = FaultProxy, **environment: str) -> Operator:
        directory = Path(tempfile.mkdtemp(prefix="finetune-operator-"))
        made.append(Operator(world, directory, program, environment, proxy))
        return made[-1]

    yield make
    for operator in made:
        operator.close()
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/finetune-operator"
    if made and world.get(lease):
        world.api.request("DELETE", lease)  # the next test's operator need not wait until it runs out
    for operator in made:
        if (operator.directory / "log").exists():
            print(operator.log[-6000:])
        shutil.rmtree(operator.directory)
