"""A bill of materials for an image, in CycloneDX: its packages of Python and Debian, and llama.cpp and Ollama where they are.

It is read from the image's own files, so it names what is in the image and not what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from localcluster import toolchain
from packageurl import PackageURL

from supply import licences
from supply.locks import REQUIREMENTS, Pin, installed, pins

PYTHONS = ("opt/venv/lib/python3*/site-packages", "opt/llama.cpp/python", "usr/lib/python3/dist-packages")
DPKG = "var/lib/dpkg/status"
LLAMA_CPP = "opt/llama.cpp/LICENSE"
OLLAMA = "usr/bin/ollama"


class Incomplete(Exception):
    """An image whose bill can't be written as it should be."""


def bill(name: str, version: str, digest: str, root: Path) -> str:
    """The bill of an image whose files lie in `root`, as JSON. Raises Incomplete where it isn't as the schema wants it."""
    bom = Bom()
    bom.metadata.component = Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=version,
        bom_ref=f"image:{name}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))],
    )
    parts = [*_of_python(root), *_of_debian(root), *_of_llama_cpp(root), *_of_ollama(root)]
    if not parts:
        raise Incomplete(f"{name} holds no package that can be named")
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(bom.metadata.component, parts)
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise Incomplete(f"the bill of {name}: {problem}")
    return text


def _of_python(root: Path) -> Iterator[Component]:
    said = licences.rules()
    places = [place for pattern in PYTHONS for place in sorted(root.glob(pattern))]
    for pin, metadata in sorted(installed(places).items()):
        yield Component(
            type=ComponentType.LIBRARY,
            name=pin.name,
            version=pin.version,
            bom_ref=f"pypi:{pin.name}@{pin.version}",
            purl=PackageURL("pypi", None, pin.name, pin.version),
            licenses=[_licence(pin, metadata, said)],
            description=str(metadata.get("Summary") or "") or None,
        )


def _licence(pin: Pin, metadata: Message, said: licences.Rules) -> License:
    told = licences.expression(metadata, said.words)
    row = said.answer(pin.name)
    if row and (not told or not licences.is_allowed(told, said.allowed)):
        told = row[1].licence
    return LicenseFactory().make_from_string(told or "NOASSERTION")


def _of_debian(root: Path) -> Iterator[Component]:
    status = root / DPKG
    for block in status.read_text().split("\n\n") if status.exists() else ():
        fields = dict(re.findall(r"^([A-Za-z-]+): (.+)$", block, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            yield Component(
                type=ComponentType.LIBRARY,
                name=fields["Package"],
                version=fields["Version"],
                bom_ref=f"deb:{fields['Package']}@{fields['Version']}",
                purl=PackageURL("deb", "debian", fields["Package"], fields["Version"], {"arch": fields["Architecture"]}),
                properties=[Property(name="debian:source", value=fields.get("Source", fields["Package"]))],
            )


def _of_ollama(root: Path) -> Iterator[Component]:
    """Ollama with the llama.cpp inside of it; what it is built of else is the Go module's to say."""
    if (root / OLLAMA).exists():
        version = toolchain.PROGRAMS["ollama"].version
        yield Component(
            type=ComponentType.APPLICATION,
            name="ollama",
            version=version,
            bom_ref="ollama",
            purl=PackageURL("golang", "github.com/ollama", "ollama", version),
            licenses=[LicenseFactory().make_from_string("MIT")],
        )


def _of_llama_cpp(root: Path) -> Iterator[Component]:
    """llama.cpp as the sdist of its binding has it: of one version with that."""
    if (root / LLAMA_CPP).exists():
        (pin,) = pins(REQUIREMENTS / "llamacpp.txt")
        yield Component(
            type=ComponentType.LIBRARY,
            name="llama.cpp",
            version=f"in llama-cpp-python {pin.version}",
            bom_ref="llama.cpp",
            purl=PackageURL("github", "ggml-org", "llama.cpp"),
            licenses=[LicenseFactory().make_from_string("MIT")],
        )
