"""Claims, as far as it counts who may mount them at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache

from finetune_operator.meta import Object

CLAIM = "ClaimModes"  # a Ref of this kind is a claim of which its access modes are asked, which never change

Get = Callable[[str, str, str], Awaitable[Object | None]]  # of a kind, a namespace and a name


async def claim_modes(get: Get, namespace: str, name: str) -> Object | None:
    """A claim's access modes alone; None where there is no claim. Each job has one that is remembered: whole, it takes 7 KB."""
    found = await get("PersistentVolumeClaim", namespace, name)
    return None if found is None else _with(tuple((found.get("spec") or {}).get("accessModes") or ()))


@lru_cache(maxsize=64)
def _with(modes: tuple[str, ...]) -> Object:
    """One object for all claims with these modes."""
    return {"kind": "PersistentVolumeClaim", "spec": {"accessModes": modes}}
