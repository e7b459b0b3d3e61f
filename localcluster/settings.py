"""Where the local cluster lives and which addresses it uses: read from the environment once, frozen.

The addresses come from 198.18.0.0/15, the range set aside for benchmarks (RFC 2544): no office, home or cloud network
should use it, so the cluster runs beside whatever network the machine is in.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NODE_NAME = "node-1"
NODE_ADDRESS = "198.18.255.1"  # on a link of our own: the API server, the kubelet and the hub listen here
POD_RANGE = "198.18.0.0/20"
SERVICE_RANGE = "198.19.0.0/16"
KUBERNETES_SERVICE = "198.19.0.1"  # the first address of the range goes to the Service `kubernetes`
DNS_SERVICE = "198.19.0.10"
LINK = "ftlocal0"
EPOCH = 1767225600  # 2026-01-01: a time for all that lies in an image, so that its bytes tell what it holds and not when
OWNER = "finetune-localcluster"  # names our CNI network, nftables table and control group


@dataclass(frozen=True)
class Settings:
    """Paths and ports of one local cluster.

    `directory` is what `down` removes; `cache` is what it keeps (binaries, registry, models).
    """

    directory: Path
    cache: Path
    registry_port: int = 5000
    hub_port: int = 5001

    @property
    def registry_address(self) -> str:
        """The registry as `buildah push` and a pod's `image:` both name it; it speaks plain HTTP."""
        return f"localhost:{self.registry_port}"

    @property
    def hub_url(self) -> str:
        """The model hub, for HF_ENDPOINT on the host and in pods."""
        return f"http://{NODE_ADDRESS}:{self.hub_port}"

    @property
    def hub_directory(self) -> Path:
        """Repositories as ORG/NAME (models) and datasets/ORG/NAME."""
        return Path(os.environ.get("LOCALCLUSTER_HUB", self.cache / "hub"))

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "kubeconfig"


def source_date_epoch() -> str:
    """The time that all files of an image get: SOURCE_DATE_EPOCH, where somebody sets it."""
    return os.environ.get("SOURCE_DATE_EPOCH") or str(EPOCH)


def of_child(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program that is started from here: this process's own, with these in their place."""
    return {**os.environ, **variables}


def read() -> Settings:
    """Settings from LOCALCLUSTER_DIR, LOCALCLUSTER_REGISTRY_PORT, LOCALCLUSTER_HUB_PORT and XDG_CACHE_HOME."""
    home_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Settings(
        directory=Path(os.environ.get("LOCALCLUSTER_DIR", "/var/lib/finetune-localcluster")).absolute(),
        cache=home_cache / "finetune-operator",
        registry_port=int(os.environ.get("LOCALCLUSTER_REGISTRY_PORT", "5000")),
        hub_port=int(os.environ.get("LOCALCLUSTER_HUB_PORT", "5001")),
    )
