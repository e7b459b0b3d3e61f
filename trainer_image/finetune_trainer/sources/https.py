"""One file over https://, taken up where the connection broke, and checked against the digest that its address ends in.

    https://host/path/rows.jsonl#sha256=<64 hexadecimal digits>

A bearer token or another credential is the key HTTPS_AUTHORIZATION of the source's Secret, which is sent as the header
Authorization; SSL_CERT_FILE names the certificates to trust.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.digests import sha256
from finetune_trainer.failures import StepFailed
from finetune_trainer.sources.retries import TRANSIENT, wait_asked_for, with_retries
from finetune_trainer.sources.source import Listing, Source

if TYPE_CHECKING:
    import httpx2

TIMEOUT = 60.0  # seconds without a byte


def fetch_file(source: Source, into: Path) -> str:
    """Download the file of an https:// source into a folder; returns its name. Raises StepFailed."""
    import httpx2

    url, _, fragment = source.uri.partition("#")
    wanted = fragment.removeprefix("sha256=")
    name = unquote(urlsplit(url).path.rpartition("/")[2]) or "data"
    source.check(Listing([name], [name], lambda _: ""))
    into.mkdir(parents=True, exist_ok=True)
    target, part = into / name, into / f"{name}.part"
    secret = source.access.https_authorization
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": secret} if secret else {})
    with httpx2.Client(headers=headers, timeout=TIMEOUT, follow_redirects=True) as client:
        download = _Download(client, url, part)
        with_retries(download.go_on, partial(_meaning, source), source.unavailable)
    if fragment and (found := sha256(part)) != wanted.lower():
        part.unlink()
        raise StepFailed(
            StepReason.DatasetDigestMismatch,  # only rows come from https
            f"{source.field}: {url} has the sha256 {found}, not the one after #sha256=; correct one of them",
        )
    part.replace(target)
    return name


class _Download:
    """One file that grows in `part` over several connections, as long as the server says that it is still the same file."""

    def __init__(self, client: httpx2.Client, url: str, part: Path) -> None:
        self._client, self._url, self._part = client, url, part
        self._version = ""  # the server's own name of this state of the file
        part.unlink(missing_ok=True)

    def go_on(self) -> None:
        """Fetch what is missing. Raises an error of httpx2 where the server refuses or the connection breaks."""
        have = self._part.stat().st_size if self._part.is_file() and self._version else 0
        headers = {"Range": f"bytes={have}-", "If-Range": self._version} if have else {}
        with self._client.stream("GET", self._url, headers=headers) as answer:
            answer.raise_for_status()
            # A weak tag doesn't promise the same bytes, and so can't be gone on from.
            tag = answer.headers.get("ETag", "")
            self._version = answer.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag
            with self._part.open("ab" if answer.status_code == 206 else "wb") as stream:
                for chunk in answer.iter_raw():  # as they come: what is held back would be lost with the connection
                    stream.write(chunk)


def _meaning(source: Source, error: Exception) -> StepFailed | float | None:
    import httpx2

    url = source.uri.partition("#")[0]
    if isinstance(error, httpx2.HTTPStatusError):
        status = error.response.status_code
        if status in TRANSIENT:
            return wait_asked_for(error.response.headers.get("Retry-After"))
        if status in (401, 403):
            return source.denied(
                f"{url} was refused (HTTP {status}): set {source.secret} to a Secret with the key HTTPS_AUTHORIZATION, whose"
                " value is sent as the header Authorization"
            )
        return source.not_found(f"{url} answered HTTP {status}: check the address")
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return source.not_found(f"{url} is no address that can be fetched: {error}")
    return 0.0 if isinstance(error, httpx2.TransportError) else None
