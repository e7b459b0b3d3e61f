"""The kubelet of the one node: everything that the machine has is the node's."""

import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from localcluster import cgroup, toolchain
from localcluster.api import Api, ApiError
from localcluster.pki import Authority
from localcluster.processes import Process
from localcluster.settings import DNS_SERVICE, NODE_ADDRESS, NODE_NAME, Settings

READY_SECONDS = 120
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE_NAME}"
DISK_SIGNALS = ("nodefs.available", "nodefs.inodesFree", "imagefs.available")
RESOLVED = Path("/run/systemd/resolve/resolv.conf")  # the real servers behind systemd-resolved's loopback address


@dataclass(frozen=True)
class Kubelet:
    """The kubelet for the cluster of `settings`; `runtime_socket` is containerd's."""

    settings: Settings
    runtime_socket: Path

    def ensure(self, api: Api, server: str) -> None:
        """Start the kubelet and return when its node is Ready."""
        directory = self.settings.directory
        authority = Authority(directory / "pki")
        authority.issue("kubelet-serving", NODE_NAME, addresses=[NODE_NAME, NODE_ADDRESS])
        identity = authority.issue("kubelet", f"system:node:{NODE_NAME}", "system:nodes")
        kubeconfig = identity.write_kubeconfig(directory / "kubelet.kubeconfig", server)
        file = directory / "kubelet.json"
        file.write_text(json.dumps(self._configuration(), indent=2))
        process = Process(
            directory,
            "kubelet",
            [
                str(toolchain.kubernetes(self.settings.cache, "kubelet")),
                f"--config={file}",
                f"--kubeconfig={kubeconfig}",
                f"--root-dir={directory}/kubelet",
                f"--cert-dir={directory}/kubelet/pki",
                f"--hostname-override={NODE_NAME}",
                f"--node-ip={NODE_ADDRESS}",
            ],
            configuration=(file,),
        )
        started = datetime.now(UTC) if process.ensure() else datetime.min.replace(tzinfo=UTC)
        process.wait(lambda: is_ready(api, since=started), READY_SECONDS)

    def _configuration(self) -> dict[str, object]:
        directory = self.settings.directory
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_ADDRESS,
            "healthzBindAddress": NODE_ADDRESS,
            "tlsCertFile": f"{directory}/pki/kubelet-serving.crt",
            "tlsPrivateKeyFile": f"{directory}/pki/kubelet-serving.key",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{directory}/pki/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "resolvConf": str(RESOLVED if RESOLVED.exists() else Path("/etc/resolv.conf")),
            "containerRuntimeEndpoint": f"unix://{self.runtime_socket}",
            "runtimeRequestTimeout": "30m",  # an image of several GB is unpacked on a slow disk
            "podLogsDir": f"{directory}/pod-logs",
            "volumePluginDir": f"{directory}/kubelet-volume-plugins",
            "staticPodPath": "",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroup.name(directory)}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "enforceNodeAllocatable": ["pods"],
            "makeIPTablesUtilChains": False,  # for the proxy's iptables mode, which is not used
            "seccompDefault": True,
            "serializeImagePulls": False,
            # A developer's disk is often nearly full: neither images nor pods are thrown out before it really is.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "100Mi", **dict.fromkeys(DISK_SIGNALS, "1%")},
            "evictionPressureTransitionPeriod": "30s",
            "nodeStatusUpdateFrequency": "10s",
            "containerLogMaxSize": "50Mi",
        }


def is_ready(api: Api, since: datetime | None = None) -> bool:
    """Whether the node says Ready, and a kubelet has been heard of since then: Ready outlives a killed one a while."""
    try:
        node = api.request("GET", f"/api/v1/nodes/{NODE_NAME}")
        lease = api.request("GET", LEASE)
    except (OSError, ApiError):
        return False
    if since and datetime.fromisoformat(lease["spec"]["renewTime"]) < since:
        return False
    conditions = node["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def architecture() -> str:
    """The machine's architecture in the words of Go and of image manifests."""
    return {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
