"""The CRDs may come after the operator, as where Git decides the order. Kopf looks for its kinds once, so it waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

import structlog

from finetune_operator.errors import ClusterError
from finetune_operator.meta import GROUP
from finetune_operator.probes import Readiness

PAUSE_SECONDS = 1.0  # one small request each time

log = structlog.get_logger("crds")


class Discovery(Protocol):
    """The call of the Cluster that this needs."""

    async def own_resources(self) -> Collection[str]: ...


async def wait_for(
    wanted: Collection[str],
    discovery: Discovery,
    readiness: Readiness,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Return when the API server serves all resources in `wanted` (plural names); until then /readyz says what is missing."""
    while why := await _missing(wanted, discovery):
        if why != readiness.waits_for:
            log.warning("waiting", reason=why)
        readiness.waits_for = why
        await sleep(PAUSE_SECONDS)
    readiness.waits_for = ""


async def _missing(wanted: Collection[str], discovery: Discovery) -> str:
    try:
        served = await discovery.own_resources()
    except ClusterError as error:
        return f"the API server does not say what it serves: {error}"
    names = ", ".join(f"{plural}.{GROUP}" for plural in wanted if plural not in served)
    return f"the cluster has no CRD {names}: apply crds/" if names else ""
