"""A containerd of our own: its root, state, sockets and configuration are all in the cluster's directory."""

import hashlib
import io
import json
import socket
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from localcluster import kubelet, toolchain
from localcluster.debian import Runtime
from localcluster.errors import CommandFailed
from localcluster.processes import Process
from localcluster.settings import Settings

PAUSE_IMAGE = "finetune.dev/pause:1"
CONFIGURATION = """\
version = 2
root = "{directory}/containerd"
state = "{directory}/containerd-state"
disabled_plugins = ["io.containerd.internal.v1.tracing"]

[grpc]
address = "{directory}/containerd.sock"

[ttrpc]
address = "{directory}/containerd.sock.ttrpc"

[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/containerd-opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
stream_server_address = "127.0.0.1"
stream_server_port = "0"
disable_apparmor = true
# A root without CAP_SYS_RESOURCE (a sandboxed machine) may not lower a score: containers would die at once.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
# The registry on this machine has every layer: a second copy would only fill the disk.
discard_unpacked_layers = true

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
BinaryName = "{runc}"
Root = "{directory}/runc"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{directory}/cni"

[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{directory}/registries"
"""
HOST = """\
server = "{url}"

[host."{url}"]
capabilities = ["pull", "resolve"]
"""
# containerd puts the sockets of its shims here whatever its state directory is.
SHIM_SOCKETS = Path("/run/containerd/s")


@dataclass(frozen=True)
class Containerd:
    """containerd for the cluster of `settings`, made of `runtime`'s programs."""

    settings: Settings
    runtime: Runtime

    @property
    def socket(self) -> Path:
        return self.settings.directory / "containerd.sock"

    def ensure(self) -> None:
        """Write the configuration, start containerd and give it the pause image."""
        directory = self.settings.directory
        programs = {"runc": self.runtime.runc, "plugins": self.runtime.plugins}
        configuration = directory / "containerd.toml"
        configuration.write_text(CONFIGURATION.format(directory=directory, pause=PAUSE_IMAGE, **programs))
        hosts = directory / "registries" / self.settings.registry_address
        hosts.mkdir(parents=True, exist_ok=True)
        (hosts / "hosts.toml").write_text(HOST.format(url=f"http://{self.settings.registry_address}"))
        command = [str(self.runtime.containerd), "--config", str(configuration)]
        environment = {"PATH": self.runtime.search_path}
        process = Process(directory, "containerd", command, environment, configuration=(configuration,))
        process.ensure()
        process.wait(self._answers)
        if not self._ctr("images", "list", "--quiet", f"name=={PAUSE_IMAGE}").strip():
            self._import_pause_image()

    def pull(self, reference: str) -> None:
        """Fetch an image from the cluster's registry and unpack it, as the kubelet would."""
        self._ctr("images", "pull", "--hosts-dir", str(self.settings.directory / "registries"), reference)

    def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        return subprocess.run(self._ctr_command("version"), capture_output=True, check=False).returncode == 0

    def _import_pause_image(self) -> None:
        archive = self.settings.directory / "pause.tar"
        write_image(archive, PAUSE_IMAGE, toolchain.binary(self.settings.cache, "pause"))
        self._ctr("images", "import", str(archive))
        archive.unlink()

    def _ctr_command(self, *arguments: str) -> list[str]:
        ctr = self.runtime.containerd.with_name("ctr")
        return [str(ctr), "--address", str(self.socket), "--namespace", "k8s.io", *arguments]

    def _ctr(self, *arguments: str) -> str:
        done = subprocess.run(self._ctr_command(*arguments), capture_output=True, text=True, check=False)
        if done.returncode:
            raise CommandFailed(f"ctr {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout


def sandboxes(directory: Path) -> set[str]:
    """The ids of all pod sandboxes whose files lie in the cluster's directory."""
    folders = directory.glob("containerd*/io.containerd.grpc.v1.cri/sandboxes/*")
    return {folder.name for folder in folders}


def remove_shim_sockets() -> None:
    """Delete the sockets of shims that were killed: those that nobody listens at. Living ones are another's."""
    for path in SHIM_SOCKETS.glob("*"):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)


def write_image(archive: Path, name: str, program: Path) -> None:
    """Write an OCI image archive that holds one static program and runs it as nobody."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry = tarfile.TarInfo(program.name)
        entry.size, entry.mode = program.stat().st_size, 0o755
        with program.open("rb") as stream:
            tar.addfile(entry, stream)
    layer_digest = _digest(layer.getvalue())
    config = _json(
        {
            "architecture": kubelet.architecture(),
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer.getvalue())],
        }
    )
    described = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    described["annotations"] = {"io.containerd.image.name": name}
    index = _json({"schemaVersion": 2, "manifests": [described]})
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": index}
    for blob in (layer.getvalue(), config, manifest):
        files["blobs/" + _digest(blob).replace(":", "/")] = blob
    with tarfile.open(archive, "w") as tar:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def _descriptor(media_type: str, blob: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
