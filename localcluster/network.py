"""Pod networking: a node address of our own, a veth pair a pod, Services by kube-proxy.

    pod 198.18.0.0/20 ──veth── host ──── node address 198.18.255.1 (API server, hub, DNS)
                                 └─ nftables: Services (kube-proxy's table) and masquerading to the outside (ours)

Each pod hangs on its own veth pair (CNI `ptp`) instead of a bridge, so that all its traffic is routed: Services
work without the bridge-netfilter module.
"""

import json
import shutil
import subprocess
from pathlib import Path

from localcluster import settings, toolchain
from localcluster.debian import SYSTEM_PATH
from localcluster.errors import CommandFailed, NotOurs
from localcluster.processes import Process
from localcluster.settings import LINK, NODE_ADDRESS, OWNER, POD_RANGE, SERVICE_RANGE

PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
MASQUERADE = f"""
table ip {OWNER}
delete table ip {OWNER}
table ip {OWNER} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ip saddr {POD_RANGE} ip daddr != {{ {POD_RANGE}, {SERVICE_RANGE}, {NODE_ADDRESS} }} masquerade
  }}
}}
"""


def ensure(directory: Path) -> None:
    """The link with the node address, the route that keeps Service addresses here, masquerading, CNI configuration."""
    if owner() not in (None, directory):
        raise NotOurs(f"a local cluster in {owner()} uses this machine's network: take it down first")
    if owner() is None:
        if any(_has_table(*table) for table in PROXY_TABLES):
            raise NotOurs("this machine is a node of another cluster: its kube-proxy's tables are in nftables")
        # A bridge without ports, because a `dummy` link needs a module that some kernels lack.
        _run("ip", "link", "add", LINK, "type", "bridge")
        _run("ip", "link", "set", LINK, "alias", str(directory))
    _run("ip", "address", "replace", f"{NODE_ADDRESS}/32", "dev", LINK)
    _run("ip", "link", "set", LINK, "up")
    _run("ip", "route", "replace", SERVICE_RANGE, "dev", LINK)
    _run("nft", "-f", "-", text=MASQUERADE)
    _accept_pods()
    folder = directory / "cni"
    folder.mkdir(exist_ok=True)
    (folder / "10-pods.conflist").write_text(json.dumps(_cni_network(directory), indent=2))


def owner() -> Path | None:
    """The directory of the cluster that the network belongs to; None if there is no network."""
    told = subprocess.run(["ip", "-json", "link", "show", LINK], capture_output=True, text=True, check=False)
    links = json.loads(told.stdout or "[]")
    return Path(links[0].get("ifalias", "")) if links else None


def _has_table(family: str, table: str) -> bool:
    return subprocess.run(["nft", "list", "table", family, table], capture_output=True, check=False).returncode == 0


def _cni_network(directory: Path) -> dict[str, object]:
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(directory / "cni-addresses"),
    }
    return {"cniVersion": "0.4.0", "name": OWNER, "plugins": [{"type": "ptp", "ipam": addresses, "mtu": 1500}]}


def _accept_pods() -> None:
    """Let pods through a firewall that drops by default, as Docker's and ufw's do; other machines stay untouched."""
    for rule in _dropping_rules():
        if subprocess.run(["iptables", "-C", *rule], capture_output=True, check=False).returncode:
            _run("iptables", "-I", *rule)


def _dropping_rules() -> list[list[str]]:
    if shutil.which("iptables", path=SYSTEM_PATH) is None:
        return []
    told = subprocess.run(["iptables", "-S"], capture_output=True, text=True, check=False).stdout.splitlines()
    comment = ["-m", "comment", "--comment", OWNER, "-j", "ACCEPT"]
    rules = []
    if "-P FORWARD DROP" in told:
        rules += [["FORWARD", "-s", POD_RANGE, *comment], ["FORWARD", "-d", POD_RANGE, *comment]]
    if "-P INPUT DROP" in told:
        rules += [["INPUT", "-s", POD_RANGE, *comment]]
    return rules


def start_proxy(directory: Path, cache: Path, kubeconfig: Path) -> Process:
    """kube-proxy with nftables; connection tracking limits of the machine stay as they are."""
    process = Process(
        directory,
        "kube-proxy",
        [
            str(toolchain.kubernetes(cache, "kube-proxy")),
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={settings.NODE_NAME}",
            "--proxy-mode=nftables",
            f"--cluster-cidr={POD_RANGE}",
            "--nodeport-addresses=primary",
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
            f"--healthz-bind-address={NODE_ADDRESS}:10256",
            f"--metrics-bind-address={NODE_ADDRESS}:10249",
        ],
    )
    process.ensure()
    return process


def remove(directory: Path) -> None:
    """Take away all of the above. The link goes last: while it is there, what else there is is known to be ours."""
    if owner() != directory:
        return
    for family, table in (*PROXY_TABLES, ("ip", OWNER)):
        subprocess.run(["nft", "delete", "table", family, table], capture_output=True, check=False)
    for rule in _dropping_rules():
        subprocess.run(["iptables", "-D", *rule], capture_output=True, check=False)
    for link in _pod_links():
        subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
    _run("ip", "link", "delete", LINK)


def _pod_links() -> list[str]:
    """Host ends of pods whose network namespace somebody keeps open; they are known by the gateway's address."""
    gateway = POD_RANGE.partition("/")[0].rpartition(".")[0] + ".1"
    show = ["ip", "-json", "address", "show", "to", f"{gateway}/32"]
    told = subprocess.run(show, capture_output=True, text=True, check=True)
    return [link["ifname"] for link in json.loads(told.stdout or "[]") if link.get("ifname")]


def _run(*command: str, text: str | None = None) -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)} failed: {done.stderr.strip()}")
