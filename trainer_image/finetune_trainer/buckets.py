"""Buckets of S3, Google and Azure, opened by obstore, and what their errors mean: for the artifact store and for sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Here, and not where they are used: the first import from two threads at once finds a library that is half loaded.
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError, UnknownConfigurationKeyError
from obstore.store import AzureStore, GCSStore, S3Store

from finetune_trainer.contract import places
from finetune_trainer.contract.places import AZ, GS
from finetune_trainer.environment import Access

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

Bucket = S3Store | GCSStore | AzureStore
MIB = 1 << 20
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")  # codes of the servers' answers
DECIDED = ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_REGION")  # with what the spec says: Access has them
NO_ACCOUNT = "Account must be specified"  # AZURE_STORAGE_ACCOUNT_NAME is unset


UNTRUSTED = (
    "the server's certificate is not trusted: set spec.storage.artifacts.caSecretRef to a Secret with that of its authority"
)


RETRIES: RetryConfig = {"max_retries": 8, "retry_timeout": timedelta(minutes=3)}


def open_bucket(uri: str, access: Access, endpoint: str | None, region: str | None, retries: RetryConfig = RETRIES) -> Bucket:
    """A client for a bucket's uri; paths are relative to its prefix. Retries server errors, by default for three minutes.

    What the access's Secret says of the place counts before what the environment says.
    S3: unset endpoint and region come from AWS_ENDPOINT_URL and AWS_REGION; AWS_CA_BUNDLE names more trusted certificates.
    Google: GOOGLE_SERVICE_ACCOUNT_KEY or GOOGLE_BEARER_TOKEN, else the pod's own identity; GOOGLE_BASE_URL is another server.
    Azure: AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or a SAS token, else the pod's own identity;
    AZURE_STORAGE_ENDPOINT is another server.
    """
    place = places.of(uri)
    bucket, _, prefix = uri.removeprefix(place.prefix).partition("/")
    below = prefix.rstrip("/") or None
    if place is AZ:
        config, client = _understood(AzureStore, access.secret), _client(access.azure_endpoint, access)
        return AzureStore(bucket, prefix=below, config=config, client_options=client, retry_config=retries)
    if place is GS:
        config, client = _understood(GCSStore, access.secret), _client(access.google_endpoint, access)
        return GCSStore(bucket, prefix=below, config=config, client_options=client, retry_config=retries)
    endpoint = endpoint or access.s3_endpoint
    config = _understood(S3Store, {k: v for k, v in access.secret.items() if k not in DECIDED})
    config |= {"region": region or access.s3_region or "us-east-1"} | ({"endpoint": endpoint} if endpoint else {})
    return S3Store(bucket, prefix=below, config=config, client_options=_client(endpoint, access), retry_config=retries)


def _understood(kind: Callable[..., Bucket], told: Mapping[str, str]) -> Any:
    """Those of the variables that a client knows: a Secret may hold what others read as well."""

    def known(name: str) -> bool:
        try:
            kind("any", config={name: told[name]})
        except UnknownConfigurationKeyError:
            return False
        except BaseError:
            pass  # it misses the other variables
        return True

    return {name: told[name] for name in told if known(name)}


def _client(endpoint: str | None, access: Access) -> ClientConfig:
    client: ClientConfig = {"timeout": timedelta(minutes=10), "connect_timeout": timedelta(seconds=10)}
    if endpoint is not None and endpoint.startswith("http://"):
        client["allow_http"] = True
    if access.ca_bundle is not None:
        client["root_certificate"] = access.ca_bundle.read_bytes()
    return client


def is_not_found(error: Exception) -> bool:
    """Whether object or bucket don't exist."""
    return isinstance(error, FileNotFoundError) or any(f"<Code>{code}</Code>" in str(error) for code in NO_BUCKET)


def is_denied(error: Exception) -> bool:
    """Whether the credentials are missing, wrong or not enough."""
    known = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    return known or any(said in str(error) for said in ("status code: 403", "status code: 401", NO_ACCOUNT))


def is_untrusted(error: Exception) -> bool:
    """Whether nobody who is trusted has signed the server's certificate."""
    return "InvalidCertificate" in str(error)


def download(store: Bucket, path: str, target: Path) -> None:
    """Stream one object to a file; it has its name only when it is whole."""
    part = target.with_name(target.name + ".part")
    with part.open("wb") as stream:
        for chunk in store.get(path).stream(min_chunk_size=8 * MIB):
            stream.write(chunk)
    part.replace(target)
