"""A version's images and charts, built here and pushed to a registry: what .github/workflows/release.yml calls for each.

An image lies there under NAME:VERSION, a chart under charts/NAME:VERSION; what is packaged or told of them is left in dist/.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from localcluster import builder, debian, images, settings, toolchain
from localcluster.errors import BuildFailed

from supply.locks import ROOT

DIST = ROOT / "dist"
PYTHON = "docker.io/library/python:3.11-slim-bookworm"
VLLM = "docker.io/vllm/vllm-openai:v0.32.0"
OLLAMA = "docker.io/ollama/ollama:0.6.5"
# What differs from the images of the local cluster, which has no GPU: arguments, and what they are built on.
ARGUMENTS = {"trainer-packages": {"DEVICE": "cuda"}, "quantizer": {"DEVICE": "cuda"}}
FOREIGN = {("evaluator", "VLLM_IMAGE"): VLLM, ("serve-ollama", "OLLAMA_IMAGE"): OLLAMA}


def version() -> str:
    """The project's version, which both charts have, too."""
    (found,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    return str(found)


def check(tag: str) -> None:
    """Raises BuildFailed where a tag is not that of the project's version, or the changelog does not know it."""
    if tag != f"v{version()}":
        raise BuildFailed(f"the tag is {tag}, but pyproject.toml has version {version()}: see RELEASING.md")
    if f"## [{version()}]" not in (ROOT / "CHANGELOG.md").read_text():
        raise BuildFailed(f"CHANGELOG.md has no heading [{version()}]: see RELEASING.md")


def storage() -> builder.Storage:
    """Where released images are built: apart from those of the local cluster, which may be built from other bases."""
    return builder.Storage(settings.read().cache / "release")


def image(name: str, registry: str, base: str = PYTHON) -> tuple[str, str]:
    """Build an image of the project's version from published bases and push it. Returns its reference and its digest."""
    if name not in images.NAMES:
        raise BuildFailed(f"there is no image {name!r}: the names are {', '.join(images.NAMES)}")
    debian.ensure_tools()
    with builder.alone(storage()):
        reference = _built(name, registry, base)
        digest = builder.publish(storage(), reference)
    return reference, digest


def _built(name: str, registry: str, base: str) -> str:
    """Build it, and first what it is built from."""
    wanted, reference = images.IMAGES[name], f"{registry}/{name}:{version()}"
    arguments = dict(wanted.arguments) | ARGUMENTS.get(name, {})
    for argument, parent in wanted.parents.items():
        foreign = base if parent == images.BASE.name else FOREIGN.get((name, argument))
        if foreign is None:
            arguments[argument] = _built(parent, registry, base)
        else:
            builder.pull(storage(), foreign)
            arguments[argument] = foreign
    builder.build(storage(), reference, builder.Recipe(ROOT / wanted.dockerfile, ROOT, arguments, wanted.target))
    return reference


def chart(name: str, registry: str) -> tuple[str, str]:
    """Package a chart and push it. Returns its reference and its digest."""
    if not (ROOT / "charts" / name / "Chart.yaml").exists():
        raise BuildFailed(f"there is no chart {name!r} in charts/")
    helm = str(toolchain.binary(settings.read().cache, "helm"))
    DIST.mkdir(exist_ok=True)
    _told([helm, "package", str(ROOT / "charts" / name), "--destination", str(DIST)])
    plain = ["--plain-http"] if registry.startswith("localhost:") else []
    told = _told([helm, "push", str(DIST / f"{name}-{version()}.tgz"), f"oci://{registry}/charts", *plain])
    (digest,) = re.findall(r"^Digest: (\S+)$", told, re.MULTILINE)
    return f"{registry}/charts/{name}:{version()}", digest


def _told(command: list[str]) -> str:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    return done.stdout


def outputs(file: Path | None, reference: str, digest: str) -> None:
    """Print what was pushed, and leave it where a workflow's next steps read it."""
    print(f"{reference}@{digest}")
    if file is not None:
        with file.open("a") as told:
            told.write(f"name={reference.rpartition(':')[0]}\ndigest={digest}\n")
