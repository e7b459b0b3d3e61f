"""Container images by buildah, kept in a folder of our own: the machine's own images are neither used nor touched."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localcluster import settings
from localcluster.errors import BuildFailed

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
SHOWN_LINES = 30  # of a failed build
SHOWN_COLUMNS = 80  # of a running one
PROGRESS_SECONDS = 20


@dataclass(frozen=True)
class Storage:
    """Where buildah keeps layers (`directory`) and what it said last (`logs`)."""

    directory: Path

    @property
    def options(self) -> list[str]:
        """The part of each command that keeps buildah inside `directory`."""
        roots = ["--root", str(self.directory / "root"), "--runroot", str(self.directory / "run")]
        return ["buildah", *roots, "--storage-driver", "overlay"]

    @property
    def environment(self) -> dict[str, str]:
        """`chroot` isolation needs no control groups and no user namespaces, so it works inside containers too."""
        scratch = self.directory / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        return settings.of_child({"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(scratch)})

    def log(self, reference: str) -> Path:
        """Where the output of building `reference` lies."""
        return self.directory / "logs" / (reference.rpartition("/")[2].replace(":", "-") + ".log")


def build(
    storage: Storage,
    reference: str,
    dockerfile: Path,
    context: Path,
    arguments: Mapping[str, str],
    target: str | None = None,
) -> None:
    """Build `reference`; layers whose instructions and files did not change come from the storage.

    The machine's certificate authorities are lent to the build, for networks that inspect TLS; no image keeps them.
    Raises BuildFailed with the last lines of the output.
    """
    command = [*storage.options, "build", "--layers", "--network=host", "--pull-never", "--format=oci"]
    command += ["--tag", reference, "--file", str(dockerfile)]
    if AUTHORITIES.exists():
        command += ["--volume", f"{AUTHORITIES}:{AUTHORITIES}:ro"]
    if target:
        command += ["--target", target]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    try:
        _run(storage, [*command, str(context)], storage.log(reference))
    finally:  # buildah leaves the containers of earlier stages behind, mounted; the caller holds the storage's lock
        subprocess.run([*storage.options, "rm", "--all"], env=storage.environment, capture_output=True, check=False)


def push(storage: Storage, reference: str) -> None:
    """Send `reference` to the registry that its name begins with, over plain HTTP; only layers that it lacks travel."""
    command = [*storage.options, "push", "--tls-verify=false", "--compression-format=zstd", "--compression-level=1"]
    _run(storage, [*command, reference, f"docker://{reference}"], storage.log(reference))


def exists(storage: Storage, reference: str) -> bool:
    """Whether the storage holds the image."""
    command = [*storage.options, "inspect", "--type=image", reference]
    return subprocess.run(command, env=storage.environment, capture_output=True, check=False).returncode == 0


def _run(storage: Storage, command: list[str], log: Path) -> None:
    """Run a command into a log; now and then the log's newest line is shown, for some builds take many minutes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = shown = time.monotonic()
    with (
        log.open("a") as output,
        subprocess.Popen(
            command, env=storage.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                output.write(line)
                now = time.monotonic()
                if now - shown > (1 if sys.stdout.isatty() else PROGRESS_SECONDS):
                    shown = now
                    _show(f"  {log.stem.rpartition('-')[0]}: {line.strip()[:SHOWN_COLUMNS]} ({now - begin:.0f} s)")
        except BaseException:  # Ctrl-C: nothing goes on building behind our back
            process.terminate()
            raise
    if process.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-SHOWN_LINES:])
        raise BuildFailed(f"{' '.join(command)} failed (all of its output: {log}):\n{last}")


def _show(line: str) -> None:
    """A line that the next one overwrites, where there is a terminal."""
    print(f"{line:<{SHOWN_COLUMNS + 40}}", end="\r" if sys.stdout.isatty() else "\n", flush=True)


def pull(storage: Storage, reference: str) -> None:
    """Take `reference` back from the registry, where the storage lost it."""
    _run(storage, [*storage.options, "pull", "--tls-verify=false", f"docker://{reference}"], storage.log(reference))


def forget_others(storage: Storage, reference: str) -> None:
    """Drop the images of the same name with other tags, and their layers that nothing else uses."""
    name = reference.rpartition(":")[0]
    listing = [*storage.options, "images", "--format", "{{.Name}}:{{.Tag}}"]
    told = subprocess.run(listing, env=storage.environment, capture_output=True, text=True, check=False).stdout
    for other in told.split():
        if other.startswith(f"{name}:") and other != reference:
            subprocess.run([*storage.options, "rmi", other], env=storage.environment, capture_output=True, check=False)


def run(
    storage: Storage, reference: str, command: list[str], folders: Mapping[Path, str], environment: Mapping[str, str]
) -> None:
    """Run a program of an image once, as root, with folders of this machine mounted at the places given."""
    options = [f"--volume={source}:{target}:rw" for source, target in folders.items()]
    options += [f"--env={name}={value}" for name, value in environment.items()]
    with _container(storage, reference) as container:
        _run(storage, [*storage.options, "run", "--user=0:0", *options, container, "--", *command], storage.log(reference))


def copy_out(storage: Storage, reference: str, source: str, target: Path) -> None:
    """Copy the folder `source` of an image to `target`, which must not be there yet."""
    with _container(storage, reference) as container:
        command = [*storage.options, "mount", container]
        place = subprocess.run(command, env=storage.environment, capture_output=True, text=True, check=True).stdout.strip()
        shutil.copytree(Path(place) / source.lstrip("/"), target, symlinks=True)


@contextmanager
def _container(storage: Storage, reference: str) -> Iterator[str]:
    """A container of the image, gone afterwards."""
    command = [*storage.options, "from", "--pull-never", reference]
    made = subprocess.run(command, env=storage.environment, capture_output=True, text=True, check=False)
    if made.returncode:
        raise BuildFailed(f"{' '.join(command)} failed: {made.stderr.strip()}")
    name = made.stdout.strip()
    try:
        yield name
    finally:
        subprocess.run([*storage.options, "rm", name], env=storage.environment, capture_output=True, check=False)
