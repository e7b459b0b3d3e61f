"""python -m supply licences | sbom IMAGE… | audit | check TAG | image NAME | chart NAME"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from localcluster import builder, images, settings
from localcluster.errors import BuildFailed, LocalclusterError

from supply import locks, release


def main() -> int:
    """0 where all is as it should be; 1 with a sentence for each thing that is not."""
    parser = argparse.ArgumentParser(prog="supply", description=__doc__)
    parser.add_argument("command", choices=["licences", "sbom", "audit", "check", "image", "chart"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="images, charts, or a tag")
    parser.add_argument("--registry", default="", help="where to push: host and path, as ghcr.io/somebody")
    parser.add_argument("--base", default=release.PYTHON, help="image that all are built on")
    parser.add_argument("--outputs", type=Path, help="file to which name= and digest= are added")
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except LocalclusterError as error:
        print(error, file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    match arguments.command:
        case "licences":
            return _licences()
        case "sbom":
            return _sbom(arguments.names)
        case "audit":
            return _audit()
        case "check":
            release.check(*arguments.names)
        case "image":
            for name in arguments.names:
                reference, digest = release.image(name, _registry(arguments), arguments.base)
                _write_bill(name, release.version(), digest, release.storage(), reference)
                release.outputs(arguments.outputs, reference, digest)
        case "chart":
            for name in arguments.names:
                release.outputs(arguments.outputs, *release.chart(name, _registry(arguments)))
    return 0


def _registry(arguments: argparse.Namespace) -> str:
    if not arguments.registry:
        raise BuildFailed("where to push is missing: REGISTRY=ghcr.io/somebody")
    return str(arguments.registry).lower()


def _licences() -> int:
    """Write the page anew; the environments that it is made from are filled first."""
    from supply import licences

    locks.make_environments()
    locked, said = locks.locked(), licences.rules()
    verdicts = licences.judged(locked, locks.installed(locks.folders()), {}, said)
    for problem in verdicts.problems:
        print(problem, file=sys.stderr)
    if verdicts.problems:
        return 1
    licences.PAGE.write_text(licences.page(locked, verdicts, said))
    print(f"{len(locked)} packages, each under a licence that may be passed on: {licences.PAGE}")
    return 0


def _sbom(names: list[str]) -> int:
    """Write the bills of images of the local cluster."""
    chosen = settings.read()
    storage = builder.Storage(chosen.cache / "buildah")
    references = images.ensure(chosen, names)
    with builder.alone(storage):
        for name, reference in references.items():
            if not builder.exists(storage, reference):
                builder.pull(storage, reference)
            _write_bill(name, reference.rpartition(":")[2], builder.digest(storage, reference), storage, reference)
    return 0


def _write_bill(name: str, version: str, digest: str, storage: builder.Storage, reference: str) -> None:
    from supply import sbom

    with builder.files(storage, reference) as root:
        text = sbom.bill(f"finetune/{name}", version, digest, root)
    release.DIST.mkdir(exist_ok=True)
    path = release.DIST / f"{name}.cdx.json"
    path.write_text(text + "\n")
    print(f"{path}: {text.count(chr(34) + 'bom-ref' + chr(34))} components")


def _audit() -> int:
    from supply import audit

    try:
        holes = audit.found()
    except audit.Unreachable as error:
        print(f"nobody could be asked for known holes: {error}", file=sys.stderr)
        return 2
    problems = audit.problems(holes, audit.answered())
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(locks.locked())} packages, {len(holes)} known holes, {len(problems)} to be dealt with")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
