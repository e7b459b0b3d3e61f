"""Models and rows from a bucket."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from obstore.exceptions import BaseError

from finetune_trainer.buckets import UNTRUSTED, download, is_denied, is_not_found, is_untrusted, open_bucket
from finetune_trainer.failures import StepFailed
from finetune_trainer.sources.retries import with_retries
from finetune_trainer.sources.source import Fetched, Listing, Source


def _fetch_from_bucket(source: Source, into: Path, endpoint: str | None, region: str | None) -> Fetched:
    """Objects below a prefix, or the one object of that name."""
    bucket, _, prefix = source.uri.removeprefix(source.place.prefix).rstrip("/").partition("/")
    meaning = partial(_meaning_at_bucket, source)
    access, root = source.access, f"{source.place.prefix}{bucket}"
    endpoint, region = access.own_s3_endpoint or endpoint, access.own_s3_region or region
    store = with_retries(lambda: open_bucket(root, access, endpoint, region), meaning, source.unavailable)

    def describe() -> dict[str, int]:
        found = {str(o["path"]): int(o["size"]) for o in store.list(prefix or None).collect()}
        if not found and prefix:
            head = store.head(prefix)
            return {str(head["path"]): int(head["size"])}
        return found

    sizes = with_retries(describe, meaning, source.unavailable)
    above = f"{prefix}/" if prefix and prefix not in sizes else prefix.rpartition("/")[0] + "/" if "/" in prefix else ""
    names = {path.removeprefix(above): path for path in sizes}
    if not sizes:
        raise source.not_found(f"nothing lies at {source.uri}")

    def read(name: str) -> str:
        content = with_retries(lambda: bytes(store.get(names[name]).bytes()), meaning, source.unavailable)
        return content.decode(errors="replace")

    if prefix in sizes:
        files = [next(iter(names))]
        source.check(Listing(files, files, read))
    else:
        files = source.chosen(names, read)
    for name in files:
        target = into / name
        if not target.is_file() or target.stat().st_size != sizes[names[name]]:
            target.parent.mkdir(parents=True, exist_ok=True)
            with_retries(partial(download, store, names[name], target), meaning, source.unavailable)
    return Fetched(into, tuple(files), "")


def _meaning_at_bucket(source: Source, error: Exception) -> StepFailed | float | None:
    if is_untrusted(error):
        return source.denied(f"{source.uri}: {UNTRUSTED}")
    if is_not_found(error):
        return source.not_found(f"nothing lies at {source.uri}: check bucket and path")
    if "<Code>AuthorizationHeaderMalformed</Code>" in str(error):
        where = f"set spec.storage.artifacts.region, or the key AWS_REGION in {source.secret}"
        return source.denied(f"{source.uri}: the bucket is in another region: {where}")
    if is_denied(error):
        return source.denied(f"{source.uri} was refused: check {' and '.join(source.place.keys)} in {source.secret}")
    return 0.0 if isinstance(error, BaseError | ConnectionError | TimeoutError) else None
