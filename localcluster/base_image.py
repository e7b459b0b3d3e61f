"""The Python base image, made from Debian packages alone where no public image can be pulled.

It stands in for `python:3.11-slim-bookworm`, the default of every Dockerfile's BASE_IMAGE: the same Debian, the same Python.
"""

import hashlib
import subprocess
import tempfile
from pathlib import Path

from localcluster import builder, settings
from localcluster.errors import BuildFailed

SUITE = "bookworm"
PACKAGES = (
    "ca-certificates",
    "libgomp1",  # OpenMP: torch, llama.cpp, scikit-learn
    "libnuma1",  # vLLM's CPU worker pins its threads by it
    "python3",
    "python3-venv",
)
# Read by nobody in a container, and a tenth of the image, or what an installation notes of itself, with times. Licences
# (/usr/share/doc/*/copyright) stay.
UNUSED = (
    *("var/cache/apt", "var/cache/ldconfig", "var/lib/apt/lists", "var/log"),
    *("usr/share/man", "usr/share/locale", "usr/share/info"),
)
OF_THIS_MACHINE = ("etc/hostname", "etc/resolv.conf")  # debootstrap copies them; each container has its own
PYTHONS = ("/usr/lib/python3", "/usr/lib/python3.11")
BYTECODE = Path(__file__).parents[1] / "requirements/bytecode.sh"
DOCKERFILE = f"""FROM scratch
ADD . /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
LABEL org.opencontainers.image.title="finetune/base" org.opencontainers.image.description="Debian {SUITE} with Python"
CMD ["python3"]
"""


def key() -> str:
    """Changes with everything that goes into the image, but not with Debian's own updates."""
    parts = (DOCKERFILE, *PACKAGES, *UNUSED, *OF_THIS_MACHINE, *PYTHONS, BYTECODE.read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def build(storage: builder.Storage, reference: str, from_nothing: bool = False) -> None:
    """Unpack the packages and make them one layer of the image `reference`. Takes about a minute; needs root.

    Raises BuildFailed with debootstrap's last lines.
    """
    storage.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=storage.directory) as scratch:
        root = Path(scratch) / "root"
        include = f"--include={','.join(PACKAGES)}"
        command = ["debootstrap", "--variant=minbase", include, SUITE, str(root)]
        _run(command)
        _run(["chroot", str(root), "sh", "-s", *PYTHONS], BYTECODE.read_text())
        for folder in UNUSED:
            subprocess.run(["find", str(root / folder), "-mindepth", "1", "-delete"], check=False, stderr=subprocess.DEVNULL)
        for file in (*root.glob("var/lib/dpkg/*-old"), *root.glob("var/cache/debconf/*-old")):
            file.unlink()
        for name in OF_THIS_MACHINE:
            (root / name).write_text("")
        dockerfile = Path(scratch) / "Dockerfile"
        dockerfile.write_text(DOCKERFILE)
        builder.build(storage, reference, builder.Recipe(dockerfile, root, from_nothing=from_nothing))


def _run(command: list[str], text: str = "") -> None:
    """Run a command with `text` as its input; what it writes of times, as the days of passwords, is the image's time."""
    environment = settings.of_child({"SOURCE_DATE_EPOCH": settings.source_date_epoch()})
    done = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise BuildFailed(f"{' '.join(command)} failed:\n{last}")
