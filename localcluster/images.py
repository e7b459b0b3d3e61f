"""The project's container images: built where something changed, pushed to the local registry, named by their content.

An image's tag is a hash of all that goes into it, so a reference changes exactly when the image does, and what the
registry has already need not be built. The references end up in `images.json` in the cache, as values for the Helm chart.
"""

import hashlib
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from localcluster import base_image, builder, debian, ownership, settings
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
    value: str = ""  # its name under `images` in the chart's values; empty: only other images need it


BASE = Image("base")
IMAGES = {
    image.name: image
    for image in (
        BASE,
        Image(
            "llamacpp-build",
            "serving_images/llamacpp/Dockerfile",
            ("requirements/llamacpp.txt", "requirements/llamacpp-build.txt"),
            "llamacpp-build",
            {"BASE_IMAGE": "base"},
        ),
        Image(
            "operator",
            "operator/Dockerfile",
            (
                "requirements/install.sh",
                "requirements/uv.txt",
                "requirements/operator.txt",
                "operator/finetune_operator",
                TRAINER_CODE,
            ),
            None,
            {"BASE_IMAGE": "base"},
            {},
            "operator",
        ),
        Image(
            "serve-llamacpp",
            "serving_images/llamacpp/Dockerfile",
            ("requirements/llamacpp.txt", "requirements/llamacpp-build.txt"),
            "serve",
            {"BASE_IMAGE": "base"},
            {},
            "llamacpp",
        ),
        Image(
            "trainer",
            "trainer_image/Dockerfile",
            (
                "requirements/install.sh",
                "requirements/uv.txt",
                "requirements/torch.txt",
                "requirements/trainer.txt",
                TRAINER_CODE,
            ),
            "trainer",
            {"BASE_IMAGE": "base", "LLAMACPP_IMAGE": "llamacpp-build"},
            {"DEVICE": "cpu"},
            "trainer",
        ),
        Image(
            "quantizer",
            "trainer_image/Dockerfile",
            (
                "requirements/install.sh",
                "requirements/uv.txt",
                "requirements/torch.txt",
                "requirements/quantizer.txt",
                TRAINER_CODE,
            ),
            "quantizer",
            {"BASE_IMAGE": "base", "LLAMACPP_IMAGE": "llamacpp-build"},
            {},
            "quantizer",
        ),
        Image(
            "serve-vllm",
            "serving_images/vllm/Dockerfile",
            ("requirements/install.sh", "requirements/uv.txt", "requirements/torch.txt", "requirements/serve-vllm.txt"),
            "serve",
            {"BASE_IMAGE": "base"},
            {},
            "vllm",
        ),
        Image(
            "evaluator",
            "serving_images/vllm/Dockerfile",
            (
                "requirements/install.sh",
                "requirements/uv.txt",
                "requirements/torch.txt",
                "requirements/serve-vllm.txt",
                "requirements/evaluator.txt",
                TRAINER_CODE,
            ),
            "evaluator",
            {"BASE_IMAGE": "base", "VLLM_IMAGE": "serve-vllm"},
            {},
            "evaluator",
        ),
    )
}


NAMES = [image.name for image in IMAGES.values() if image.value]


def ensure(chosen: settings.Settings, names: Sequence[str]) -> dict[str, str]:
    """Bring the named images (none means all that the chart names) into the registry, and write the chart's values.

    Returns name → reference. Raises BuildFailed with the last lines of the build, or if the registry does not answer.
    """
    if unknown := sorted(set(names) - set(IMAGES)):
        raise BuildFailed(f"there is no image {unknown[0]!r}: the names are {', '.join(IMAGES)}")
    debian.ensure_tools()
    storage = builder.Storage(chosen.cache / "buildah")
    references = {name: reference(chosen, IMAGES[name]) for name in names or NAMES}
    with ownership.exclusively(storage.directory):
        for name in references:
            _ensure(chosen, storage, IMAGES[name])
    values_file(chosen).write_text(json.dumps(_values(chosen, references), indent=2) + "\n")
    print(f"references of the images, as Helm values: {values_file(chosen)}", flush=True)
    return references


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


def _ensure(chosen: settings.Settings, storage: builder.Storage, image: Image) -> None:
    """Build and push one image, and first the images that it is built from."""
    wanted = reference(chosen, image)
    if _is_in_registry(chosen, image):
        print(f"{image.name:<16} unchanged    {wanted}", flush=True)
        return
    begin = time.monotonic()
    if not builder.exists(storage, wanted):  # built, but by a run that was cut off, or for a registry that is gone
        _build(chosen, storage, image)
    built = time.monotonic()
    builder.push(storage, wanted)
    builder.forget_others(storage, wanted)
    print(f"{image.name:<16} built {built - begin:4.0f} s, pushed {time.monotonic() - built:3.0f} s    {wanted}", flush=True)


def _build(chosen: settings.Settings, storage: builder.Storage, image: Image) -> None:
    wanted = reference(chosen, image)
    if image is BASE:
        base_image.build(storage, wanted)
        return
    arguments = dict(image.arguments)
    for argument, parent in image.parents.items():
        arguments[argument] = _local(chosen, storage, IMAGES[parent])
    builder.build(storage, wanted, ROOT / image.dockerfile, ROOT, arguments, image.target)


def _local(chosen: settings.Settings, storage: builder.Storage, image: Image) -> str:
    """The reference of an image to build from, once buildah has it: built now, or before and then perhaps forgotten."""
    wanted = reference(chosen, image)
    if not _is_in_registry(chosen, image):
        _ensure(chosen, storage, image)
    elif not builder.exists(storage, wanted):
        builder.pull(storage, wanted)
    return wanted


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
