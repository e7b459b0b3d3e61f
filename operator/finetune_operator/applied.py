"""Whether an object stands as we want it: then applying it again would be a request for nothing.

A pass wants the whole set of what serves, each time. What was found is as wanted where it contains all that is wanted,
or where it is as the API server left it when the same was applied last: a webhook, or another owner's field, may have
the last word.
"""

from __future__ import annotations

import json
from typing import Any

from finetune_operator.meta import GROUP, Key, Object, quantity_of
from finetune_operator.names import short_hash

WHOLE = ("selector", "nodeSelector")  # one word more selects other pods, or none
AMOUNTS = ("limits", "requests", "sizeLimit")


class Applied:
    """What our writes came to, as hashes and versions. It is kept in memory only: a fresh process may apply once more."""

    def __init__(self) -> None:
        self._left: dict[Key, tuple[str, str]] = {}
        self._statuses: dict[Key, str] = {}

    def stands(self, wanted: Object, found: Object) -> bool:
        """Whether there is nothing to apply."""
        if contains(_shape(found), _shape(wanted)):
            return True
        return self._left.get(_key(wanted)) == (_hash(wanted), _hash(_shape(found)))

    def keep(self, wanted: Object, answer: Object) -> None:
        """What the API server answered to an apply."""
        self._left[_key(wanted)] = (_hash(wanted), _hash(_shape(answer)))

    def keep_status(self, answer: Object) -> None:
        """What the API server answered to a status of ours."""
        self._statuses[_key(answer)] = answer["metadata"]["resourceVersion"]

    def is_ours(self, body: Object) -> bool:
        """Whether nobody has written to the object since: its status is what this very release made of it."""
        return bool(self._statuses.get(_key(body)) == body["metadata"]["resourceVersion"])

    def forget(self, key: Key) -> None:
        """Its object is gone."""
        self._statuses.pop(key, None)


def contains(found: Any, wanted: Any, *, amounts: bool = False) -> bool:
    """Whether all that is wanted was found; defaults that the API server added do not count. Of `amounts`, 1000m is 1."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            k in found and (found[k] == v if k in WHOLE else contains(found[k], v, amounts=amounts or k in AMOUNTS))
            for k, v in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(contains(f, w) for f, w in zip(found, wanted, strict=True))
        )
    return bool(found == wanted) or (amounts and quantity_of(wanted) == quantity_of(found) is not None)


def replacing(found: Any, wanted: Any) -> Any:
    """A merge patch that makes what was found as wanted, others' items of lists and words of selectors included."""
    if not isinstance(wanted, dict) or not isinstance(found, dict):
        return wanted
    patch = {k: replacing(found.get(k), v) for k, v in wanted.items()}
    for name in WHOLE:
        if isinstance(patch.get(name), dict) and isinstance(found.get(name), dict):
            patch[name] = dict.fromkeys(found[name]) | wanted[name]
    return patch


def _shape(body: Object) -> Object:
    """What we may want of an object: not its status, nor the notes that other controllers make on it."""
    meta = body["metadata"]
    notes = {k: v for k, v in (meta.get("annotations") or {}).items() if k.startswith(GROUP)}
    owners = {owner["uid"]: True for owner in meta.get("ownerReferences") or ()}
    shape = {"labels": meta.get("labels") or {}, "annotations": notes, "owners": owners, "spec": body.get("spec") or {}}
    return shape | ({"data": body.get("data") or {}} if body["kind"] == "ConfigMap" else {})


def _key(body: Object) -> Key:
    return Key(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])


def _hash(value: Any) -> str:
    return short_hash(json.dumps(value, sort_keys=True), length=32)
