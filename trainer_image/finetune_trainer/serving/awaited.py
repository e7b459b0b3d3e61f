"""Wait until each ready pod of a revision has loaded an adapter, or one of them has refused it."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Failure
from finetune_trainer.contract.served_adapters import PATH, Awaited, LoadedAdapter, PodAdapters
from finetune_trainer.failures import StepFailed

PERIOD_SECONDS = 1.0
TIMEOUT_SECONDS = 5.0


def await_adapter(awaited: Awaited, pause: Callable[[float], None] = time.sleep) -> Failure | None:
    """What a pod says that has refused it; None once all have it. Raises StepFailed AdapterNotLoaded when that takes long."""
    begun, told = time.monotonic(), ""
    while True:
        found = list(_pods(awaited))
        for _, one in found:
            if one is not None and one.reason is not None:
                return Failure(reason=one.reason, message=one.message or one.reason)
        before, told = told, "; ".join(f"{address}: {_told(one)}" for address, one in found) or "no pod is ready"
        if told != before:
            print(told, flush=True)
        late = [one for _, one in found if not _is_there(one, awaited)]
        is_over = time.monotonic() - begun >= awaited.seconds
        if found and not late and (is_over or len(found) >= awaited.pods):
            return None
        if is_over:
            text = f"{len(late)} of {len(found)} pods have not loaded it after {awaited.seconds} s"
            raise StepFailed(StepReason.AdapterNotLoaded, f"{text}: {_told(late[0]) if late else 'no pod is ready'}")
        pause(PERIOD_SECONDS)


def _is_there(one: LoadedAdapter | None, awaited: Awaited) -> bool:
    return one is not None and one.loaded and (one.serves or not awaited.serves)


def _told(one: LoadedAdapter | None) -> str:
    if one is None:
        return "it was not told of the adapter yet"
    if one.loaded:
        return "loaded, and its name leads to it" if one.serves else "loaded"
    return one.message or "it is being loaded"


def _pods(awaited: Awaited) -> Iterator[tuple[str, LoadedAdapter | None]]:
    """How the adapter stands in each pod, by its address; None where a pod knows nothing of what is wanted now."""
    try:
        found = socket.getaddrinfo(awaited.host, awaited.port, type=socket.SOCK_STREAM)
    except OSError:  # a name without a ready pod has no address
        return
    for address in sorted({str(info[4][0]) for info in found}):
        shown = f"[{address}]" if ":" in address else address
        yield address, _of_pod(f"http://{shown}:{awaited.port}{PATH}", awaited)


def _of_pod(url: str, awaited: Awaited) -> LoadedAdapter | None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            told = PodAdapters.model_validate(json.load(response))
    except (OSError, ValueError):
        return None
    asked = (awaited.engine_name, awaited.trial)
    return next((a for a in told.adapters if (a.engine_name, a.trial) == asked), None)
