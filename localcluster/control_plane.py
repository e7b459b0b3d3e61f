"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes on this machine.

    plane = control_plane.start(directory)     # no root needed; free ports on loopback
    ...                                        # plane.kubeconfig
    plane.stop()

That is all an integration test needs: objects are stored, admitted, scheduled and owned for real; nodes are whatever
the test makes of them. The full cluster starts the same four on its own node address.
"""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster import ownership, settings, toolchain
from localcluster.api import Api, ApiError
from localcluster.pki import Authority
from localcluster.processes import Process, end, stop, strays

PARTS = toolchain.CONTROL_PLANE
SERVICE_NAME = "kubernetes.default.svc.cluster.local"
API_SERVER_NAMES = (
    *("kubernetes", "kubernetes.default", "kubernetes.default.svc", SERVICE_NAME, "localhost"),
    *("127.0.0.1", settings.KUBERNETES_SERVICE, settings.NODE_ADDRESS),
)
START_SECONDS = 120  # a busy two-core machine needs 10 to 20


@dataclass(frozen=True)
class ControlPlane:
    """A running control plane; `kubeconfig` is an administrator's."""

    directory: Path
    kubeconfig: Path

    def stop(self) -> None:
        """End the processes and remove the directory with everything stored."""
        if not (self.directory / ownership.STAMP).exists():
            return
        for part in reversed(PARTS):
            stop(self.directory, part)
        end(strays(self.directory))
        ownership.remove(self.directory)


@dataclass(frozen=True)
class Endpoint:
    """Where the API server listens, and whether pods reach it there through the Service `kubernetes`."""

    address: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    for_pods: bool = False


def start(directory: Path | str, endpoint: Endpoint | None = None, cache: Path | None = None) -> ControlPlane:
    """Start what does not run yet and return when the API server is ready and has its namespaces.

    `directory` is empty or one that an earlier call filled. Raises ProcessFailed with the log's last lines if a
    part does not start.
    """
    directory = Path(directory).absolute()
    ownership.claim(directory)
    endpoint = endpoint or Endpoint()
    plane = _Parts(directory, cache or settings.read().cache, endpoint, _ports(directory, endpoint))
    plane.write_identities()
    api = Api.from_kubeconfig(directory / "kubeconfig")
    plane.etcd().ensure()
    server = plane.apiserver()
    server.ensure()
    server.wait(api.is_ready, START_SECONDS)
    controllers = plane.controller_manager()
    controllers.ensure()
    plane.scheduler().ensure()
    # Without this a test's first pod may be refused: its service account is made by the controller manager.
    controllers.wait(lambda: _exists(api, "/api/v1/namespaces/default/serviceaccounts/default"), START_SECONDS)
    return ControlPlane(directory, directory / "kubeconfig")


@dataclass(frozen=True)
class _Parts:
    directory: Path
    cache: Path
    endpoint: Endpoint
    ports: dict[str, int]

    @property
    def authority(self) -> Authority:
        return Authority(self.directory / "pki")

    @property
    def server(self) -> str:
        return f"https://{self.endpoint.address}:{self.ports['apiserver']}"

    @property
    def etcd_url(self) -> str:
        return f"https://127.0.0.1:{self.ports['etcd']}"

    def write_identities(self) -> None:
        authority = self.authority
        authority.ensure()
        authority.issue("apiserver", "kube-apiserver", addresses=API_SERVER_NAMES)
        authority.issue("etcd", "etcd", addresses=["127.0.0.1", "localhost"])
        authority.issue("etcd-client", "kube-apiserver-etcd-client")
        authority.issue("kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
        authority.signing_key("service-account")
        people = {
            "kubeconfig": authority.issue("admin", "localcluster-admin", "system:masters"),
            "controller-manager.kubeconfig": authority.issue("controller-manager", "system:kube-controller-manager"),
            "scheduler.kubeconfig": authority.issue("scheduler", "system:kube-scheduler"),
        }
        for file, identity in people.items():
            if not (self.directory / file).exists():
                identity.write_kubeconfig(self.directory / file, self.server)

    def etcd(self) -> Process:
        pki = self.authority.directory
        peer = f"https://127.0.0.1:{self.ports['etcd-peer']}"
        return self._process(
            "etcd",
            [
                f"--data-dir={self.directory}/etcd",
                f"--listen-client-urls={self.etcd_url}",
                f"--advertise-client-urls={self.etcd_url}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--unsafe-no-fsync",  # what a power cut loses here is a test cluster
                "--log-level=warn",
                f"--cert-file={pki}/etcd.crt",
                f"--key-file={pki}/etcd.key",
                f"--trusted-ca-file={pki}/ca.crt",
                "--client-cert-auth",
                f"--peer-cert-file={pki}/etcd.crt",
                f"--peer-key-file={pki}/etcd.key",
                f"--peer-trusted-ca-file={pki}/ca.crt",
                "--peer-client-cert-auth",
            ],
        )

    def apiserver(self) -> Process:
        pki = self.authority.directory
        if self.endpoint.for_pods:
            reach = [f"--advertise-address={self.endpoint.address}", f"--kubelet-certificate-authority={pki}/ca.crt"]
        else:
            reach = ["--endpoint-reconciler-type=none"]  # a loopback address may not be an endpoint of a Service
        return self._process(
            "kube-apiserver",
            [
                f"--bind-address={self.endpoint.address}",
                f"--secure-port={self.ports['apiserver']}",
                f"--etcd-servers={self.etcd_url}",
                f"--etcd-cafile={pki}/ca.crt",
                f"--etcd-certfile={pki}/etcd-client.crt",
                f"--etcd-keyfile={pki}/etcd-client.key",
                f"--client-ca-file={pki}/ca.crt",
                f"--tls-cert-file={pki}/apiserver.crt",
                f"--tls-private-key-file={pki}/apiserver.key",
                f"--kubelet-client-certificate={pki}/kubelet-client.crt",
                f"--kubelet-client-key={pki}/kubelet-client.key",
                "--kubelet-preferred-address-types=InternalIP",
                f"--service-account-key-file={pki}/service-account.pub",
                f"--service-account-signing-key-file={pki}/service-account.key",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                f"--service-cluster-ip-range={settings.SERVICE_RANGE}",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--shutdown-delay-duration=0s",
                *reach,
            ],
        )

    def controller_manager(self) -> Process:
        pki = self.authority.directory
        # Nothing here makes volumes: each 15 s an event about every claim that waits would be most of a large test's load.
        claims = [] if self.endpoint.for_pods else ["--pvclaimbinder-sync-period=1h"]
        return self._process(
            "kube-controller-manager",
            [
                *self._client("controller-manager"),
                f"--service-account-private-key-file={pki}/service-account.key",
                f"--root-ca-file={pki}/ca.crt",
                f"--cluster-signing-cert-file={pki}/ca.crt",
                f"--cluster-signing-key-file={pki}/ca.key",
                "--use-service-account-credentials=true",
                "--kube-api-qps=200",  # the default of 20 is less than two of a test's Jobs a second
                "--kube-api-burst=400",
                *claims,
            ],
        )

    def scheduler(self) -> Process:
        return self._process("kube-scheduler", self._client("scheduler"))

    def _client(self, name: str) -> list[str]:
        config = self.directory / f"{name}.kubeconfig"
        return [
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.ports[name]}",
        ]

    def _process(self, name: str, arguments: Sequence[str]) -> Process:
        return Process(self.directory, name, [str(toolchain.kubernetes(self.cache, name)), *arguments])


def _ports(directory: Path, endpoint: Endpoint) -> dict[str, int]:
    """Free loopback ports, chosen once: a second `start` finds the same, so that a kubeconfig stays valid."""
    file = directory / "ports.json"
    if not file.exists():
        names = ("apiserver", "etcd", "etcd-peer", "controller-manager", "scheduler")
        held = [socket.create_server(("127.0.0.1", 0)) for _ in names]  # held together, so that all differ
        ports = {name: sock.getsockname()[1] for name, sock in zip(names, held, strict=True)}
        for sock in held:
            sock.close()
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(ports | ({"apiserver": endpoint.port} if endpoint.port else {})))
        partial.rename(file)
    ports = json.loads(file.read_text())
    return {str(name): int(port) for name, port in ports.items()}


def _exists(api: Api, path: str) -> bool:
    try:
        api.request("GET", path)
    except (OSError, ApiError):
        return False
    return True
