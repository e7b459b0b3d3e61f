"""The little that the cluster itself asks of the API server: JSON over HTTPS with a client certificate."""

import base64
import http.client
import json
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FIELD_MANAGER = "finetune-localcluster"
TIMEOUT_SECONDS = 10
JSON = "application/json"
Object = dict[str, Any]


class ApiError(RuntimeError):
    """The API server refused; `code` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True)
class Api:
    """One kubeconfig's API server. Each call opens a connection of its own: calls are few."""

    host: str
    port: int
    context: ssl.SSLContext

    @classmethod
    def from_kubeconfig(cls, path: Path) -> "Api":
        """Read a kubeconfig that `pki` wrote."""
        config = json.loads(path.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        server = urlsplit(cluster["server"])
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile() as pair:  # Python's ssl takes a client certificate from a file only
            for field in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(user[field]) + b"\n")
            pair.flush()
            context.load_cert_chain(pair.name)
        assert server.hostname is not None
        assert server.port is not None
        return cls(server.hostname, server.port, context)

    def is_ready(self) -> bool:
        """Whether the API server answers `/readyz` with 200."""
        try:
            self.request("GET", "/readyz")
        except (OSError, http.client.HTTPException, ApiError):
            return False
        return True

    def request(self, method: str, path: str, body: Object | None = None, content_type: str = JSON) -> Object:
        """One call; raises ApiError for a refusal and OSError where there is no server. Text answers come as {}."""
        connection = http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=TIMEOUT_SECONDS)
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, path, payload, {"Content-Type": content_type, "Accept": JSON})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise ApiError(response.status, _message(content))
        is_json = "json" in (response.getheader("Content-Type") or "")
        return json.loads(content) if is_json else {}

    def apply(self, path: str, body: Object) -> Object:
        """Server-side apply: the object at `path` becomes as `body` says, whatever was there."""
        query = f"?fieldManager={FIELD_MANAGER}&force=true"
        return self.request("PATCH", path + query, body, "application/apply-patch+yaml")


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace")[:300]
