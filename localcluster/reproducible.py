"""Does an image built twice from nothing have the same digest? And if not, which files differ?

    python3 -m localcluster.reproducible [NAME …]        the operator's, where none is named

What is below an image is as it is in the storage, so `reproducible base operator` tells of both. Debian's packages are those of
the day: the same digest on another day is only had while the archive has the same versions.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from localcluster import builder, images, settings
from localcluster.errors import BuildFailed, LocalclusterError

SHOWN = 20  # files that differ


def built_twice(chosen: settings.Settings, names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Name → the digests of two builds, none of which took anything from an earlier one. Raises BuildFailed, naming files,
    where they differ."""
    images.ensure(chosen, names)
    storage = builder.Storage(chosen.cache / "buildah")
    digests = {}
    with builder.alone(storage):
        for name in names:
            image, again = images.IMAGES[name], [f"localhost/again/{name}:{turn}" for turn in ("first", "second")]
            for parent in image.parents.values():
                if not builder.exists(storage, images.reference(chosen, images.IMAGES[parent])):
                    builder.pull(storage, images.reference(chosen, images.IMAGES[parent]))
            for reference in again:
                images.build(chosen, image, reference, from_nothing=True)
            first, second = (builder.digest(storage, reference) for reference in again)
            if first != second:
                different = list(_differences(storage, *again))
                shown = "\n  ".join(different[:SHOWN]) or "(no file: what is said of the image)"
                raise BuildFailed(f"{name} is {first}, then {second}; {len(different)} files differ:\n  {shown}")
            digests[name] = (first, second)
            for reference in again:
                builder.forget(storage, reference)
    return digests


def _differences(storage: builder.Storage, first: str, second: str) -> Iterator[str]:
    """Paths that are in one image only, or of other content or rights in the other."""
    with builder.files(storage, first) as one, builder.files(storage, second) as other:
        left, right = ({str(path.relative_to(root)): _told(path) for path in root.rglob("*")} for root in (one, other))
    yield from sorted(path for path in left.keys() | right.keys() if left.get(path) != right.get(path))


def _told(path: Path) -> tuple[object, ...]:
    stat = path.lstat()
    content = str(path.readlink()) if path.is_symlink() else ""
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    return (stat.st_mode, stat.st_uid, stat.st_gid, int(stat.st_mtime) if path.is_file() else 0, content)


def main() -> int:
    """0 if each image named is the same twice."""
    try:
        for name, (first, second) in built_twice(settings.read(), sys.argv[1:] or ["operator"]).items():
            print(f"{name}\n  first build   {first}\n  second build  {second}")
    except LocalclusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
