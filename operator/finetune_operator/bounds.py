"""A status within the bounds of its schema: the API server takes it, whatever a webhook, a library or a uri said.

What is written is cut to its bounds; what was read is freed of values that only a newer release knows. A value that no cut
makes right is left out, and with it the item that requires it.
"""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

from pydantic import BaseModel

from finetune_operator.api.crdgen import Schema, schema_of

LARGEST_INTEGER = 2**63 - 1
CUT = "…"
_ABSENT = object()


@cache
def status_schema(kind: type[BaseModel]) -> Schema:
    """Schema of the status of one of our kinds, as its CRD has it."""
    status = kind.model_fields["status"].annotation
    assert isinstance(status, type)
    return schema_of(status, defaults=False)


def bounded(status: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """The status as the schema takes it."""
    found = _bounded(status, schema)
    return found if isinstance(found, dict) else {}


def _bounded(value: Any, schema: Schema) -> Any:
    match schema.get("type"):
        case "object" if isinstance(value, dict):
            return _object(value, schema)
        case "array" if isinstance(value, list | tuple):
            return _list(value, schema)
        case "string" if isinstance(value, str):
            return _text(value, schema)
        case "boolean" if isinstance(value, bool):
            return value
        case "integer" if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INTEGER:
            return value
        case "number" if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return value
    return _ABSENT


def _object(value: dict[str, Any], schema: Schema) -> Any:
    if "properties" not in schema:
        values = schema.get("additionalProperties", {"type": "string"})
        inner = {k: _bounded(v, values) for k, v in list(value.items())[: schema.get("maxProperties")]}
    else:
        inner = {k: _bounded(value[k], s) for k, s in schema["properties"].items() if value.get(k) is not None}
    kept = {k: v for k, v in inner.items() if v is not _ABSENT}
    return kept if all(name in kept for name in schema.get("required", ())) else _ABSENT


def _list(value: list[Any] | tuple[Any, ...], schema: Schema) -> list[Any]:
    """The items within their bounds; the last of those with the same key, as the API server takes no two."""
    items = [item for item in (_bounded(v, schema["items"]) for v in value) if item is not _ABSENT]
    if keys := schema.get("x-kubernetes-list-map-keys"):
        items = list({tuple(item.get(k) for k in keys): item for item in items}.values())
    return items[: schema.get("maxItems")]


def _text(value: str, schema: Schema) -> Any:
    text = value.encode("utf-8", "replace").decode()  # a lone surrogate is no text
    if "enum" in schema:
        return text if text in schema["enum"] else _ABSENT
    longest = schema.get("maxLength", len(text))
    if len(text) > longest:
        text = text[: longest - len(CUT)] + CUT
    pattern = schema.get("pattern")
    return _ABSENT if len(text) < schema.get("minLength", 0) or (pattern and not re.search(pattern, text)) else text
