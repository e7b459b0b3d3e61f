"""bitsandbytes' optimizers without the waits that only their paged states need."""

from __future__ import annotations

import sys
from typing import Any


def wait_for_pages_only(optimizer: Any) -> None:
    """Let `step` of an optimizer whose states lie on the device queue its work and go on.

    bitsandbytes waits for the whole device after each parameter. Its kernels run in the order in which they were queued; only
    states that are paged in from the host's memory must be there first. A process trains with one optimizer, so the wait is
    taken out of the module by which it is called.
    """
    module = sys.modules.get("bitsandbytes.optim.optimizer")  # not imported here: most runs do without
    if module is not None and isinstance(optimizer, module.Optimizer8bit) and not optimizer.is_paged:
        module.sync_gpu = _no_wait  # type: ignore[attr-defined]


def _no_wait(_parameter: Any) -> None:
    return None
