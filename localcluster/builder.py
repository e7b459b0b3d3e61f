"""Container images by buildah, kept in a folder of our own: the machine's own images are neither used nor touched."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from localcluster import ownership, settings
from localcluster.errors import BuildFailed
from localcluster.work import Report, silent

AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
SHOWN_LINES = 30  # of a failed build
SHOWN_COLUMNS = 60  # of a running one


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


@dataclass(frozen=True)
class Recipe:
    """What an image is built of; `target` is the Dockerfile's stage, its last one if there is none."""

    dockerfile: Path
    context: Path
    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    from_nothing: bool = False  # without what the storage has of earlier builds


def build(storage: Storage, reference: str, recipe: Recipe, report: Report = silent) -> None:
    """Build `reference`; layers whose instructions and files did not change come from the storage.

    Files and image bear one time (settings.source_date_epoch), so that the same inputs have the same digest.
    The machine's certificate authorities are lent to the build, for networks that inspect TLS; no image keeps them.
    Raises BuildFailed with the last lines of the output.
    """
    command = [*storage.options, "build", "--layers", "--network=host", "--pull-never", "--format=oci"]
    command += ["--timestamp", settings.source_date_epoch(), "--identity-label=false"]
    command += ["--tag", reference, "--file", str(recipe.dockerfile)]
    if AUTHORITIES.exists():
        command += ["--volume", f"{AUTHORITIES}:{AUTHORITIES}:ro"]
    if recipe.from_nothing:
        command.append("--no-cache")
    if recipe.target:
        command += ["--target", recipe.target]
    for name, value in recipe.arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    _run(storage, [*command, str(recipe.context)], storage.log(reference), report)


@contextmanager
def alone(storage: Storage) -> Iterator[None]:
    """Nobody else uses the storage while the block runs. buildah leaves the containers of earlier stages behind, mounted."""
    with ownership.exclusively(storage.directory):
        try:
            yield
        finally:
            if (storage.directory / "root").exists():  # else nothing was built
                subprocess.run([*storage.options, "rm", "--all"], env=storage.environment, capture_output=True, check=False)


def push(storage: Storage, reference: str, report: Report = silent) -> None:
    """Send `reference` to the registry that its name begins with; only layers that it lacks travel."""
    command = [*storage.options, "push", _tls(reference), "--compression-format=zstd", "--compression-level=1"]
    _run(storage, [*command, reference, f"docker://{reference}"], storage.log(reference), report)


def publish(storage: Storage, reference: str) -> str:
    """Push `reference` as every registry and runtime understands it, and return the digest under which it lies there."""
    told = storage.log(reference).with_suffix(".digest")
    command = [*storage.options, "push", _tls(reference), "--format=oci", f"--digestfile={told}"]
    _run(storage, [*command, reference, f"docker://{reference}"], storage.log(reference))
    return told.read_text().strip()


def _tls(reference: str) -> str:
    """A registry on this machine speaks plain HTTP, every other one TLS."""
    return f"--tls-verify={str(not reference.startswith('localhost:')).lower()}"


def exists(storage: Storage, reference: str) -> bool:
    """Whether the storage holds the image."""
    command = [*storage.options, "inspect", "--type=image", reference]
    return subprocess.run(command, env=storage.environment, capture_output=True, check=False).returncode == 0


def _run(storage: Storage, command: list[str], log: Path, report: Report = silent) -> None:
    """Run a command into a log, and report its newest line."""
    log.parent.mkdir(parents=True, exist_ok=True)
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
                report(share_of(line), line.strip()[:SHOWN_COLUMNS])
        except BaseException:  # another task failed, or Ctrl-C: nothing goes on building behind our back
            process.terminate()
            raise
    if process.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-SHOWN_LINES:])
        raise BuildFailed(f"{' '.join(command)} failed (all of its output: {log}):\n{last}")


def share_of(line: str) -> float | None:
    """How far a compilation is, by what Ninja prints; other lines don't tell."""
    found = re.match(r"\[(\d+)/(\d+)\] (?:Building|Linking|Generating)", line)
    return int(found[1]) / int(found[2]) if found else None


def pull(storage: Storage, reference: str, report: Report = silent) -> None:
    """Take `reference` from its registry, as where the storage lost it."""
    _run(storage, [*storage.options, "pull", _tls(reference), f"docker://{reference}"], storage.log(reference), report)


def forget_others(storage: Storage, reference: str) -> None:
    """Drop the images of the same name with other tags, and their layers that nothing else uses."""
    name = reference.rpartition(":")[0]
    listing = [*storage.options, "images", "--format", "{{.Name}}:{{.Tag}}"]
    told = subprocess.run(listing, env=storage.environment, capture_output=True, text=True, check=False).stdout
    for other in told.split():
        if other.startswith(f"{name}:") and other != reference:
            forget(storage, other)


def forget(storage: Storage, reference: str) -> None:
    """Drop an image, and its layers that nothing else uses."""
    subprocess.run([*storage.options, "rmi", reference], env=storage.environment, capture_output=True, check=False)


def run(
    storage: Storage, reference: str, command: list[str], folders: Mapping[Path, str], environment: Mapping[str, str]
) -> None:
    """Run a program of an image once, as root, with folders of this machine mounted at the places given."""
    options = [f"--volume={source}:{target}:rw" for source, target in folders.items()]
    options += [f"--env={name}={value}" for name, value in environment.items()]
    with _container(storage, reference) as container:
        _run(storage, [*storage.options, "run", "--user=0:0", *options, container, "--", *command], storage.log(reference))


def digest(storage: Storage, reference: str) -> str:
    """The digest of an image that the storage holds: of its configuration, which names each layer by what is in it."""
    command = [*storage.options, "inspect", "--type=image", "--format={{.FromImageID}}", reference]
    return subprocess.run(command, env=storage.environment, capture_output=True, text=True, check=True).stdout.strip()


def copy_out(storage: Storage, reference: str, source: str, target: Path) -> None:
    """Copy the folder `source` of an image to `target`, which must not be there yet."""
    with files(storage, reference) as root:
        shutil.copytree(root / source.lstrip("/"), target, symlinks=True)


@contextmanager
def files(storage: Storage, reference: str) -> Iterator[Path]:
    """The folder in which an image's files lie while the block runs."""
    with _container(storage, reference) as container:
        command = [*storage.options, "mount", container]
        yield Path(subprocess.run(command, env=storage.environment, capture_output=True, text=True, check=True).stdout.strip())


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
