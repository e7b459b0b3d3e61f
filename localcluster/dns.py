"""Cluster DNS: CoreDNS as a process of the host behind the Service `kube-dns`."""

from pathlib import Path

from localcluster import access, kubelet, toolchain
from localcluster.api import Api, Object
from localcluster.pki import Authority
from localcluster.processes import Process, answers
from localcluster.settings import DNS_SERVICE, NODE_ADDRESS, Settings

PORT = 10053  # 53 and 5353 may be taken on every address of the machine
READY_PORT = 10054
READY_URL = f"http://{NODE_ADDRESS}:{READY_PORT}/ready"
USER = "finetune-localcluster:dns"
RULES: list[Object] = [
    {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
]
CONFIGURATION = """\
.:{port} {{
    bind {address}
    errors
    ready {address}:{ready}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }}
    {forward}
    cache 5 {{
        denial 1000 1
    }}
}}
"""


def ensure(settings: Settings, api: Api, server: str) -> None:
    """Apply the Service and its endpoint, start CoreDNS and return when it has read the cluster's Services."""
    identity = Authority(settings.directory / "pki").issue("dns", USER)
    kubeconfig = identity.write_kubeconfig(settings.directory / "dns.kubeconfig", server)
    access.grant(api, USER, RULES)
    _apply_service(api)
    file = settings.directory / "Corefile"
    file.write_text(corefile(NODE_ADDRESS, PORT, READY_PORT, kubeconfig))
    command = [str(toolchain.binary(settings.cache, "coredns")), "-conf", str(file)]
    process = Process(settings.directory, "coredns", command, configuration=(file,))
    process.ensure()
    process.wait(lambda: answers(READY_URL))


def corefile(address: str, port: int, ready: int, kubeconfig: Path) -> str:
    """The configuration: Services of the cluster, and all else from the machine's own resolver, if it has one."""
    resolver = kubelet.RESOLVED if kubelet.RESOLVED.exists() else Path("/etc/resolv.conf")
    has_servers = resolver.exists() and "nameserver" in resolver.read_text()
    forward = f"forward . {resolver}" if has_servers else ""
    return CONFIGURATION.format(port=port, ready=ready, address=address, kubeconfig=kubeconfig, forward=forward)


def _apply_service(api: Api) -> None:
    labels = {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}
    protocols = ("UDP", "TCP")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "labels": labels},
        "spec": {
            "clusterIP": DNS_SERVICE,
            "ports": [{"name": f"dns-{p.lower()}", "port": 53, "targetPort": PORT, "protocol": p} for p in protocols],
        },
    }
    endpoint = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns-host", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
        "ports": [{"name": f"dns-{p.lower()}", "port": PORT, "protocol": p} for p in protocols],
    }
    api.apply("/api/v1/namespaces/kube-system/services/kube-dns", service)
    api.apply("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns-host", endpoint)
