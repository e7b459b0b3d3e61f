"""The operator as Helm installs it, of this checkout or as it landed earlier: chart, definitions and image."""

from __future__ import annotations

import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import yaml
from demo.installation import ROOT, SYSTEM, Installation
from demo.kubectl import Object
from localcluster import builder, images, settings, toolchain

RELEASE = "finetune-operator"
KEPT = ("CustomResourceDefinition", "Namespace")


@dataclass(frozen=True)
class Version:
    """A checkout, with the operator's image made of it."""

    folder: Path
    operator_image: str


def earlier(commit: str, folder: Path) -> Version:
    """The operator as it landed with a commit of this repository's history."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    (folder / "all.tar").write_bytes(archive.stdout)
    with tarfile.open(folder / "all.tar") as packed:
        packed.extractall(folder / "tree", filter="data")
    chosen = settings.read()
    storage, reference = builder.Storage(chosen.cache / "buildah"), f"{chosen.registry_address}/finetune/operator:{commit[:12]}"
    with builder.alone(storage):
        if not builder.exists(storage, reference):
            base = images.reference(chosen, images.BASE)
            if not builder.exists(storage, base):
                builder.pull(storage, base)
            recipe = builder.Recipe(folder / "tree/operator/Dockerfile", folder / "tree", {"BASE_IMAGE": base})
            builder.build(storage, reference, recipe)
        builder.push(storage, reference)
    return Version(folder / "tree", reference)


@dataclass(frozen=True)
class Helm:
    """Helm against the cluster of an installation."""

    installation: Installation

    def __call__(self, *arguments: str) -> None:
        command = [str(toolchain.binary(settings.read().cache, "helm")), *arguments, "-n", SYSTEM]
        environment = self.installation.kubectl.environment
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"

    def to(self, version: Version) -> None:
        """Install a version, or upgrade to it: definitions first, as docs/operations.md says."""
        chosen = settings.read()
        images_of = json.loads(images.values_file(chosen).read_text())["images"] | {"operator": version.operator_image}
        values = version.folder / "build/e2e-values.json"
        values.parent.mkdir(exist_ok=True)
        values.write_text(json.dumps({"images": images_of, "hubEndpoint": chosen.hub_url, "replicas": 1}))
        upgrade = ("upgrade", "--install", "--wait", "--timeout=240s")
        self(*upgrade, f"{RELEASE}-crds", str(version.folder / f"charts/{RELEASE}-crds"), "--take-ownership")
        self(*upgrade, RELEASE, str(version.folder / f"charts/{RELEASE}"), "--values", str(values))

    def back(self) -> None:
        """Go back to what was installed before."""
        self("rollback", RELEASE, "--wait", "--timeout=240s")
        self("rollback", f"{RELEASE}-crds", "--wait")


def take_away(installation: Installation) -> None:
    """Remove what install/install.yaml made, but for the definitions and the namespace: what there is of our kinds stays."""
    bodies: list[Object] = [b for b in yaml.safe_load_all((ROOT / "install/install.yaml").read_text()) if b]
    for body in bodies:
        if body["kind"] not in KEPT:
            place = ("-n", body["metadata"]["namespace"]) if "namespace" in body["metadata"] else ()
            installation.kubectl("delete", body["kind"], body["metadata"]["name"], *place, "--ignore-not-found", "--wait")
