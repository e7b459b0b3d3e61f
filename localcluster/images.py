"""The project's container images: built where something changed, pushed to the local registry, named by their content.

An image's tag is a hash of all that goes into it, so a reference changes exactly when the image does, and what the
registry has already need not be built. The references end up in `images.json` in the cache, as values for the Helm chart.
"""

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from localcluster import base_image, builder, debian, program_image, settings, toolchain, work
from localcluster.errors import BuildFailed

ROOT = Path(__file__).parent.parent
TRAINER_CODE = "trainer_image/finetune_trainer"
MANIFEST_TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
REGISTRY_SECONDS = 10


@dataclass(frozen=True)
class Image:
    """One image: `sources` are all that its Dockerfile copies; `parents` are build arguments that name other images here."""

    name: str
    dockerfile: str = ""  # of BASE there is none
    sources: tuple[str, ...] = ()
    target: str | None = None
    parents: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    program: str = ""  # of the toolchain, which is all that lies in it: there is no Dockerfile
    value: str = ""  # its name under `images` in the chart's values; empty: only other images need it
    cpu_seconds: int = 20  # of building and pushing it from nothing, on an image below that is there
    after: tuple[str, ...] = ()  # images whose first layers are its own too


BASE = Image("base", cpu_seconds=40)
BYTECODE, PACKAGES = "requirements/bytecode.sh", "requirements/packages.sh"
INSTALL = ("requirements/install.sh", BYTECODE, "requirements/uv.txt")
LLAMACPP = (
    *(PACKAGES, BYTECODE, "requirements/llamacpp.txt", "requirements/llamacpp-build.txt"),
    "serving_images/llamacpp/together.cmake",
)
TORCH = (PACKAGES, *INSTALL, "requirements/cpus.sh", "requirements/torch.txt")
IMAGES = {
    image.name: image
    for image in (
        BASE,
        Image(
            "llamacpp-build",
            "serving_images/llamacpp/Dockerfile",
            LLAMACPP,
            "llamacpp-build",
            {"BASE_IMAGE": "base"},
            cpu_seconds=600,
        ),
        Image(
            "operator",
            "operator/Dockerfile",
            (*INSTALL, "requirements/operator.txt", "operator/finetune_operator", TRAINER_CODE),
            None,
            {"BASE_IMAGE": "base"},
            value="operator",
            cpu_seconds=60,
        ),
        Image(
            "serve-llamacpp",
            "serving_images/llamacpp/Dockerfile",
            LLAMACPP,
            "serve",
            {"BASE_IMAGE": "base"},
            value="llamacpp",
            cpu_seconds=10,
            after=("llamacpp-build",),
        ),
        Image("ollama-build", program="ollama", cpu_seconds=5, after=("ollama",)),
        Image(
            "serve-ollama",
            "serving_images/ollama/Dockerfile",
            (PACKAGES, "serving_images/ollama/LICENSE"),
            "serve",
            {"BASE_IMAGE": "base", "OLLAMA_IMAGE": "ollama-build"},
            value="ollama",
            cpu_seconds=10,
        ),
        Image(
            "trainer-packages",
            "trainer_image/Dockerfile",
            (*TORCH, "requirements/trainer.txt"),
            "packages",
            {"BASE_IMAGE": "base"},
            {"DEVICE": "cpu"},
            cpu_seconds=380,
        ),
        Image(
            "trainer",
            "trainer_image/Dockerfile",
            (*TORCH, "requirements/trainer.txt", TRAINER_CODE),
            "trainer",
            {"BASE_IMAGE": "base", "PACKAGES_IMAGE": "trainer-packages", "LLAMACPP_IMAGE": "llamacpp-build"},
            value="trainer",
        ),
        Image(
            "quantizer",
            "trainer_image/Dockerfile",
            (*TORCH, "requirements/quantizer.txt", TRAINER_CODE),
            "quantizer",
            {"BASE_IMAGE": "base", "LLAMACPP_IMAGE": "llamacpp-build"},
            {"DEVICE": "cpu"},
            value="quantizer",
            cpu_seconds=400,
            after=("trainer-packages",),
        ),
        Image(
            "serve-vllm",
            "serving_images/vllm/Dockerfile",
            (*TORCH, "requirements/serve-vllm.txt"),
            "serve",
            {"BASE_IMAGE": "base"},
            {"DEVICE": "cpu"},
            value="vllm",
            cpu_seconds=400,
            after=("trainer-packages",),
        ),
        Image(
            "evaluator",
            "serving_images/vllm/Dockerfile",
            (*TORCH, "requirements/serve-vllm.txt", "requirements/evaluator.txt", TRAINER_CODE),
            "evaluator",
            {"BASE_IMAGE": "base", "VLLM_IMAGE": "serve-vllm"},
            value="evaluator",
            cpu_seconds=100,
        ),
    )
}


NAMES = [image.name for image in IMAGES.values() if image.value]


def ensure(chosen: settings.Settings, names: Sequence[str], beside: Sequence[work.Task] = ()) -> dict[str, str]:
    """Bring the named images (none means all that the chart names) into the registry, and write the chart's values.

    `beside` is other work that is done meanwhile. Returns name → reference. Raises BuildFailed with the last lines of the
    build, or if the registry does not answer.
    """
    if unknown := sorted(set(names) - set(IMAGES)):
        raise BuildFailed(f"there is no image {unknown[0]!r}: the names are {', '.join(IMAGES)}")
    debian.ensure_tools()
    storage = builder.Storage(chosen.cache / "buildah")
    references = {name: reference(chosen, IMAGES[name]) for name in names or NAMES}
    with builder.alone(storage):
        made = tasks(chosen, list(references))
        work.do([*made, *beside])
        for task in made:
            if task.name in IMAGES:
                builder.forget_others(storage, reference(chosen, IMAGES[task.name]))
    values_file(chosen).write_text(json.dumps(_values(chosen, references), indent=2) + "\n")
    print(f"references of the images, as Helm values: {values_file(chosen)}", flush=True)
    return references


def tasks(chosen: settings.Settings, names: Sequence[str]) -> list[work.Task]:
    """A task for each of these images that the registry lacks, for each that one is built from, and for their programs."""
    wanted: dict[str, Image] = {}
    below = [IMAGES[name] for name in names if not _is_in_registry(chosen, IMAGES[name])]
    while below:
        wanted |= {image.name: image for image in below}
        built = [image for image in below if not _is_in_registry(chosen, image)]
        below = [IMAGES[parent] for image in built for parent in image.parents.values() if parent not in wanted]
    programs = toolchain.tasks(chosen.cache, [image.program for image in wanted.values() if image.program])
    return [
        *programs,
        *(
            work.Task(image.name, image.cpu_seconds, partial(_make, chosen, image), (*image.parents.values(), *image.after))
            for image in wanted.values()
        ),
    ]


def values_file(chosen: settings.Settings) -> Path:
    """The file for `helm install --values` with the references of all images that the registry has."""
    return chosen.cache / "images.json"


def reference(chosen: settings.Settings, image: Image) -> str:
    """The image's full name, with the hash of its inputs as tag."""
    return f"{chosen.registry_address}/finetune/{image.name}:{key(image)}"


def key(image: Image) -> str:
    """Changes with each file that goes into the image, and with the images that it is built from."""
    if image is BASE:
        return base_image.key()
    if image.program:
        return program_image.key(image.program)
    digest = hashlib.sha256(json.dumps([image.target, dict(image.arguments)]).encode())
    for parent in image.parents.values():
        digest.update(key(IMAGES[parent]).encode())
    for file in _files(image):
        digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _files(image: Image) -> Iterator[Path]:
    for source in (image.dockerfile, *image.sources):
        path = ROOT / source
        inside = path.rglob("*") if path.is_dir() else [path]
        yield from sorted(file for file in inside if file.is_file() and file.suffix != ".pyc")


def _make(chosen: settings.Settings, image: Image, report: work.Report) -> None:
    """Have the image in buildah's storage, to build from, and in the registry."""
    storage, wanted = builder.Storage(chosen.cache / "buildah"), reference(chosen, image)
    is_in_registry = _is_in_registry(chosen, image)
    if builder.exists(storage, wanted):  # built, but by a run that was cut off, or for a registry that is gone
        pass
    elif is_in_registry:
        builder.pull(storage, wanted, report)
    else:
        build(chosen, image, wanted, report)
    if not is_in_registry:
        builder.push(storage, wanted, report)


def build(
    chosen: settings.Settings, image: Image, name: str, report: work.Report = work.silent, from_nothing: bool = False
) -> None:
    """Build one image under a name, from those below it, which the storage has."""
    storage = builder.Storage(chosen.cache / "buildah")
    if image is BASE:
        base_image.build(storage, name, from_nothing)
        return
    if image.program:
        program_image.build(storage, name, image.program)
        return
    arguments = {argument: reference(chosen, IMAGES[parent]) for argument, parent in image.parents.items()}
    recipe = builder.Recipe(ROOT / image.dockerfile, ROOT, {**image.arguments, **arguments}, image.target, from_nothing)
    builder.build(storage, name, recipe, report)


def _values(chosen: settings.Settings, fresh: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """`fresh` as it was built, though its sources may have changed meanwhile, and what else the registry has."""
    others = [image for image in IMAGES.values() if image.value and image.name not in fresh and _is_in_registry(chosen, image)]
    references = {image.name: reference(chosen, image) for image in others} | dict(fresh)
    return {"images": {IMAGES[name].value: references[name] for name in NAMES if name in references}}


def _is_in_registry(chosen: settings.Settings, image: Image) -> bool:
    url = f"http://{chosen.registry_address}/v2/finetune/{image.name}/manifests/{key(image)}"
    request = urllib.request.Request(url, headers={"Accept": MANIFEST_TYPES}, method="HEAD")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback: no proxy can reach it
    try:
        with direct.open(request, timeout=REGISTRY_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        raise BuildFailed(f"the registry {chosen.registry_address} answers {error.code} to {url}") from error
    except OSError as error:
        message = f"the registry {chosen.registry_address} does not answer: run `python3 -m localcluster up` first"
        raise BuildFailed(message) from error
