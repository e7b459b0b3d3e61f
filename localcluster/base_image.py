"""The Python base image, made from Debian packages alone where no public image can be pulled.

It stands in for `python:3.11-slim-bookworm`, the default of every Dockerfile's BASE_IMAGE: the same Debian, the same Python.
"""

import hashlib
import subprocess
import tempfile
from pathlib import Path

from localcluster import builder
from localcluster.errors import BuildFailed

SUITE = "bookworm"
PACKAGES = (
    "ca-certificates",
    "libgomp1",  # OpenMP: torch, llama.cpp, scikit-learn
    "libnuma1",  # vLLM's CPU worker pins its threads by it
    "python3",
    "python3-venv",
)
# Read by nobody in a container, and a tenth of the image. Licences (/usr/share/doc/*/copyright) stay.
UNUSED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/man", "usr/share/locale", "usr/share/info", "var/log")
DOCKERFILE = f"""FROM scratch
ADD . /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
LABEL org.opencontainers.image.title="finetune/base" org.opencontainers.image.description="Debian {SUITE} with Python"
CMD ["python3"]
"""


def key() -> str:
    """Changes with everything that goes into the image, but not with Debian's own updates."""
    return hashlib.sha256("\0".join((DOCKERFILE, *PACKAGES, *UNUSED)).encode()).hexdigest()[:16]


def build(storage: builder.Storage, reference: str, from_nothing: bool = False) -> None:
    """Unpack the packages and make them one layer of the image `reference`. Takes about a minute; needs root.

    Raises BuildFailed with debootstrap's last lines.
    """
    storage.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage.directory) as scratch:
        root = Path(scratch) / "root"
        include = f"--include={','.join(PACKAGES)}"
        command = ["debootstrap", "--variant=minbase", include, SUITE, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise BuildFailed(f"{' '.join(command)} failed:\n{last}")
        for folder in UNUSED:
            subprocess.run(["find", str(root / folder), "-mindepth", "1", "-delete"], check=False, stderr=subprocess.DEVNULL)
        dockerfile = Path(scratch) / "Dockerfile"
        dockerfile.write_text(DOCKERFILE)
        builder.build(storage, reference, builder.Recipe(dockerfile, root, from_nothing=from_nothing))
