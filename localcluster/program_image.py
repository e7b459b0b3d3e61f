"""A program of the toolchain as an image, in the places where the project's own image of it has it: others copy it from there.

It stands in for that image, the default of a Dockerfile's argument, where no public image can be pulled.
"""

import hashlib
import platform
import shutil
import tempfile
from pathlib import Path

from localcluster import builder, settings, toolchain
from localcluster.errors import BuildFailed

GLIBC = (2, 36)  # of the base image: a program that was linked here runs there where it was linked with no newer one
NO_LIBRARIES = "libggml-none"  # the published image has libraries for several CPUs there, and an instruction that copies them


def dockerfile(name: str) -> str:
    """Instructions for the image of one program."""
    program = toolchain.PROGRAMS[name]
    return f"""FROM scratch
COPY {NO_LIBRARIES} /usr/lib/{name}/
COPY {name} /usr/bin/{name}
LABEL org.opencontainers.image.title="finetune/{name}-build" \\
      org.opencontainers.image.description="{program.package} {program.version}"
"""


def key(name: str) -> str:
    """Changes with the program's version and with what is done with it."""
    text = f"{toolchain.PROGRAMS[name].key}\0{dockerfile(name)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(storage: builder.Storage, reference: str, name: str) -> None:
    """Build the image `reference` of a program, and the program if the cache lacks it.

    Raises BuildFailed where it would not run in an image that it is copied to.
    """
    _, version = platform.libc_ver()
    if tuple(map(int, version.split("."))) > GLIBC:
        wanted = ".".join(map(str, GLIBC))
        raise BuildFailed(
            f"{name} would be linked with this machine's glibc {version}, and the images have {wanted}: use Debian 12"
        )
    storage.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage.directory) as scratch:
        folder = Path(scratch)
        shutil.copy(toolchain.binary(settings.read().cache, name), folder / name)
        (folder / NO_LIBRARIES).touch()
        (folder / "Dockerfile").write_text(dockerfile(name))
        builder.build(storage, reference, builder.Recipe(folder / "Dockerfile", folder))
