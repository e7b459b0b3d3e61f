"""Keys and certificates by the openssl command line: one authority, one certificate a component, ten years.

Files are made once; a second call leaves them alone, so that a kubeconfig handed out stays valid.
"""

import base64
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import CommandFailed

DAYS = "3650"


@dataclass(frozen=True)
class Authority:
    """The certificate authority in `directory`."""

    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def key(self) -> Path:
        return self.directory / "ca.key"

    def ensure(self) -> None:
        if self.certificate.exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        partial = self.directory / "ca.partial"
        subject = ["-subj", "/CN=finetune-localcluster"]
        files = ["-keyout", str(self.key), "-out", str(partial)]
        _openssl("req", "-x509", *_EC_KEY, *files, "-days", DAYS, *subject)
        partial.rename(self.certificate)

    def issue(self, name: str, user: str, group: str = "", addresses: Sequence[str] = ()) -> "Identity":
        """A certificate for `user` of `group` (Kubernetes reads CN and O), for `addresses` too if it serves."""
        identity = Identity(self, self.directory / f"{name}.crt", self.directory / f"{name}.key")
        if identity.certificate.exists():
            return identity
        request = self.directory / f"{name}.csr"
        extensions = self.directory / f"{name}.ext"
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        lines = ["keyUsage=digitalSignature", "extendedKeyUsage=clientAuth,serverAuth"]
        if addresses:
            lines.append("subjectAltName=" + ",".join(_alternative_name(address) for address in addresses))
        extensions.write_text("\n".join(lines) + "\n")
        _openssl("req", "-new", *_EC_KEY, "-keyout", str(identity.key), "-out", str(request), "-subj", subject)
        partial = self.directory / f"{name}.partial"
        signed_by = ["-CA", str(self.certificate), "-CAkey", str(self.key), "-CAcreateserial"]
        files = ["-in", str(request), "-out", str(partial), "-extfile", str(extensions)]
        _openssl("x509", "-req", *files, *signed_by, "-days", DAYS)
        partial.rename(identity.certificate)
        for left_over in (request, extensions):
            left_over.unlink()
        return identity

    def signing_key(self, name: str) -> tuple[Path, Path]:
        """An RSA key pair (private, public) for service account tokens."""
        private, public = self.directory / f"{name}.key", self.directory / f"{name}.pub"
        if not public.exists():
            _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(private))
            partial = self.directory / f"{name}.partial"
            _openssl("pkey", "-in", str(private), "-pubout", "-out", str(partial))
            partial.rename(public)
        return private, public


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, signed by `authority`."""

    authority: Authority
    certificate: Path
    key: Path

    def write_kubeconfig(self, path: Path, server: str) -> Path:
        """Write a kubeconfig with everything embedded (JSON, which is YAML): it can be copied anywhere."""
        user = {"client-certificate-data": _embedded(self.certificate), "client-key-data": _embedded(self.key)}
        cluster = {"server": server, "certificate-authority-data": _embedded(self.authority.certificate)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "localcluster", "cluster": cluster}],
            "users": [{"name": "localcluster", "user": user}],
            "contexts": [{"name": "localcluster", "context": {"cluster": "localcluster", "user": "localcluster"}}],
            "current-context": "localcluster",
        }
        partial = path.with_name(f".{path.name}")
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(config, indent=2) + "\n")
        partial.rename(path)
        return path


_EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _alternative_name(address: str) -> str:
    return ("IP:" if address.replace(".", "").isdigit() else "DNS:") + address


def _embedded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _openssl(*arguments: str) -> None:
    try:
        done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CommandFailed("openssl is missing: apt-get install openssl") from error
    if done.returncode:
        raise CommandFailed(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
