"""What a value must look like, in words: for patterns, which few people read, and for what pydantic has its own names for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from finetune_operator.meta import CONTROLLER_NAME, QUANTITY
from finetune_trainer.contract import places
from finetune_trainer.contract.metrics import SCORE, WORD, Metric
from finetune_trainer.contract.places import Place, Use

_NAME = "small letters, digits and -, such as {like}"
PATTERNS: Mapping[str, str] = {
    r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$": _NAME,
    r"^[a-z]([a-z0-9-]*[a-z0-9])?$": f"{_NAME}, beginning with a letter",
    r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$": "small letters, digits, - and ., such as {like}",
    r"^[A-Za-z0-9_]+$": "letters, digits and _",
    r"^[-._a-zA-Z0-9]+$": "letters, digits, -, . and _",
    f"^{WORD}$": "letters, digits, -, ., _ and +",
    r"^[A-Za-z0-9][A-Za-z0-9._/-]*$": "letters, digits, ., _, / and -, beginning with a letter or a digit",
    r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$": "letters, digits, -, _ and ., of which the last three stand inside",
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$": "a host's name, such as models.example.com",
    r"^https?://.+": "a URL that begins with https:// or http://",
    CONTROLLER_NAME: "a domain and a path, such as kueue.x-k8s.io/multikueue",
    QUANTITY: "a quantity such as 500m, 2 or 24Gi",
    SCORE: f"{', '.join(Metric)} or <task>/<metric>",
}
URIS = {places.pattern(use): use for use in Use}
SYNONYMS = {  # of schemes
    "huggingface": places.HF, "gcs": places.GS, "azure": places.AZ, "abfs": places.AZ, "abfss": places.AZ, "wasbs": places.AZ,
    "s3a": places.S3, "s3n": places.S3, "claim": places.PVC, "cm": places.CONFIG_MAP, "http": places.HTTPS,
}  # fmt: skip
_HUB_PAGE = re.compile(r"https?://(?:huggingface\.co|hf\.co)/(?:datasets/|models/)?([^/]+/[^/@#?]+)")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_SCHEME = re.compile(r"([A-Za-z0-9]+):?/+(.+)")

# What pydantic finds wrong, by its names for it; what stands in braces is of its context.
WRONG: Mapping[str, str] = {
    "string_type": "it takes text; put it in quotes",
    "string_too_short": "it must not be empty",
    "string_too_long": "it takes at most {max_length} characters",
    "too_short": "it must not be empty",
    "too_long": "it takes at most {max_length} entries",
    "number_type": "it takes a number, without quotes",
    "float_type": "it takes a number",
    "int_type": "it takes a whole number",
    "int_from_float": "it takes a whole number",
    "int_parsing_size": "it takes a smaller number",
    "finite_number": "it takes a finite number",
    "truth_type": "it takes true or false, without quotes",
    "bool_type": "it takes true or false",
    "model_type": "it takes a mapping of fields",
    "model_attributes_type": "it takes a mapping of fields",
    "dict_type": "it takes a mapping",
    "list_type": "it takes a list",
}


def of_pattern(pattern: str, given: str) -> str:
    """What to write in place of a text that does not match."""
    if pattern in URIS:
        return _of_uri(given, URIS[pattern])
    like = re.sub(r"[^a-z0-9]+", "-", given.lower()).strip("-") or "a-1"
    return f"it takes {PATTERNS[pattern].format(like=like)}" if pattern in PATTERNS else f"it must match {pattern}"


def of_error(kind: str, context: Mapping[str, Any], value: Any) -> str | None:
    """What a value of the wrong type or length must be; None for what has no words here."""
    if kind == "list_type" and isinstance(value, str) and value:
        return f"{WRONG[kind]}, such as [{value[:60]}]"
    return WRONG[kind].format(**context) if kind in WRONG else None


def _of_uri(given: str, use: Use) -> str:
    meant = _meant(given.strip(), places.usable(use))
    return f"write {meant}" if meant and re.match(places.pattern(use), meant) else f"write {places.forms(use)}"


def _meant(given: str, usable: tuple[Place, ...]) -> str | None:
    """The uri that was meant where it differs in its scheme alone: a page of the hub, a repository's name, s3:/, S3://, gcs://."""
    if (page := _HUB_PAGE.match(given)) is not None:
        return f"{places.HF.prefix}{page[1]}"
    if _REPOSITORY.fullmatch(given):
        return f"{places.HF.prefix}{given}"
    if (parts := _SCHEME.fullmatch(given)) is None:
        return None
    schemes = {place.scheme: place for place in usable} | {name: place for name, place in SYNONYMS.items() if place in usable}
    near = difflib.get_close_matches(parts[1].lower(), schemes, n=1, cutoff=0.6)
    return f"{schemes[near[0]].prefix}{parts[2]}" if near else None
