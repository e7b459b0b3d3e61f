"""The demo on kind: a cluster in Docker's containers, which images that Docker built are loaded into."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from localcluster import images, settings, toolchain, work
from localcluster.images import IMAGES, Image

from demo.console import DemoFailed

NAME = "finetune-demo"
START_SECONDS = 120  # of a cluster, its node's image pulled
ROOT = Path(__file__).parent.parent


def build(names: Sequence[str]) -> dict[str, str]:
    """Build the named images with Docker, those side by side that need nothing of each other; returns name → reference."""
    work.do(tasks(names))
    return {name: reference(IMAGES[name]) for name in names}


def tasks(names: Sequence[str]) -> list[work.Task]:
    """A task for each image that Docker lacks, and for each that one is built from; the base is Docker's own Python image."""
    wanted: dict[str, Image] = {}
    below = [IMAGES[name] for name in names]
    while below:
        below = [image for image in below if not _is_public(image) and not _exists(image)]
        wanted |= {image.name: image for image in below}
        below = [IMAGES[parent] for image in below for parent in image.parents.values() if parent not in wanted]
    return [work.Task(i.name, i.cpu_seconds, partial(_build, i), (*i.parents.values(), *i.after)) for i in wanted.values()]


def reference(image: Image) -> str:
    """A name that no registry is asked for: the node has the image, or the pod says that it has not."""
    return f"finetune.local/{image.name}:{images.key(image)}"


def start(directory: Path) -> Path:
    """The cluster, made if it is not there; returns its kubeconfig. Raises DemoFailed with what kind said."""
    if NAME not in _kind("get", "clusters").split():
        _kind("create", "cluster", "--name", NAME, "--wait", f"{START_SECONDS}s")
    directory.mkdir(parents=True, exist_ok=True)
    kubeconfig = directory / "kind.kubeconfig"
    kubeconfig.touch(mode=0o600)
    kubeconfig.write_text(_kind("get", "kubeconfig", "--name", NAME))
    return kubeconfig


def load(references: Mapping[str, str]) -> None:
    """Give the images to the cluster's node; those that it has are left."""
    _kind("load", "docker-image", "--name", NAME, *references.values())


def _build(image: Image, report: work.Report) -> None:
    command = ["docker", "build", "--progress=plain", "--tag", reference(image), "--file", image.dockerfile]
    if image.target:
        command += ["--target", image.target]
    parents = {name: reference(IMAGES[parent]) for name, parent in image.parents.items() if not _is_public(IMAGES[parent])}
    for name, value in {**image.arguments, **parents}.items():
        command += ["--build-arg", f"{name}={value}"]
    last: list[str] = []
    with subprocess.Popen(
        [*command, "."], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = [*last[-30:], line.rstrip()]
                report(None, line.strip()[:60])
        except BaseException:  # another task failed, or Ctrl-C
            process.terminate()
            raise
    if process.returncode:
        raise DemoFailed(f"{' '.join(command)} failed:\n" + "\n".join(last))


def _is_public(image: Image) -> bool:
    """Whether Docker pulls what the image stands in for, as the Dockerfile's default says."""
    return image is images.BASE or bool(image.program)


def _exists(image: Image) -> bool:
    command = ["docker", "image", "inspect", reference(image)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _kind(*arguments: str) -> str:
    program = shutil.which("kind") or str(toolchain.binary(settings.read().cache, "kind"))
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoFailed(f"kind {' '.join(arguments)} failed: {done.stderr.strip()[-3000:]}")
    return done.stdout
