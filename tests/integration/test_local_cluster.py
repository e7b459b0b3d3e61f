"""What the local cluster and the demo rest on, against a real API server: CoreDNS's plugins, the overlay over install/."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
from pathlib import Path

from demo import installation
from localcluster import dns, settings, toolchain
from localcluster.processes import answers
from tests.integration.conftest import SYSTEM, World
from tests.waiting import wait_until

ADDRESS = "127.0.0.1"


def test_coredns_has_the_plugins_of_its_configuration_and_answers_for_a_service(world: World, tmp_path: Path) -> None:
    port, ready = _free_ports()
    (tmp_path / "Corefile").write_text(dns.corefile(ADDRESS, port, ready, world.plane.kubeconfig))
    program = str(toolchain.binary(settings.read().cache, "coredns"))
    with subprocess.Popen([program, "-conf", str(tmp_path / "Corefile")], stdout=subprocess.DEVNULL) as process:
        try:
            wait_until("CoreDNS is ready", lambda: answers(f"http://{ADDRESS}:{ready}/ready"))
            assert _asked(port, "kubernetes.default.svc.cluster.local") == [settings.KUBERNETES_SERVICE]
            assert _asked(port, "nothing.default.svc.cluster.local") == []
        finally:
            process.terminate()


def test_the_api_server_takes_the_demos_overlay(world: World, tmp_path: Path) -> None:
    images = {"operator": "here/operator:1", "trainer": "here/trainer:2"}
    overlay = installation.customized(os.path.relpath(installation.ROOT / "install", tmp_path), images, "http://hub")
    (tmp_path / "kustomization.yaml").write_text(json.dumps(overlay))
    applied = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-k", str(tmp_path))
    bodies = json.loads(world.kubectl(*applied, "-o", "json"))["items"]
    (deployment,) = [body for body in bodies if body["kind"] == "Deployment"]
    assert (deployment["metadata"]["namespace"], deployment["spec"]["replicas"]) == (SYSTEM, 1)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert container["image"] == "here/operator:1"
    assert environment["FINETUNE_TRAINER_IMAGE"] == "here/trainer:2"
    assert environment["FINETUNE_HUB_ENDPOINT"] == "http://hub"
    assert environment["FINETUNE_QUANTIZER_IMAGE"], "what the overlay leaves out stays as the chart has it"


def _free_ports() -> tuple[int, int]:
    held = [socket.create_server((ADDRESS, 0)) for _ in range(2)]
    first, second = (sock.getsockname()[1] for sock in held)
    for sock in held:
        sock.close()
    return first, second


def _asked(port: int, name: str) -> list[str]:
    """The addresses of a name, by a query of type A as RFC 1035 lays it out."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)

    def ask() -> bytes:
        """Nothing where the question was lost: CoreDNS says that it is ready a moment before it listens."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(1)
            asking.sendto(question, (ADDRESS, port))
            try:
                return asking.recv(512)
            except TimeoutError:
                return b""

    answer = wait_until(f"{name} is answered", ask)
    (count,) = struct.unpack(">H", answer[6:8])
    return [socket.inet_ntoa(answer[-4:])] if count else []
