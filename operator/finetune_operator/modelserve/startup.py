"""How long a revision may take to load, computed from its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.api.served_model import ResolvedModel

LEAST_SECONDS = 600
UNKNOWN_SIZE_SECONDS = 1800
BYTES_PER_SECOND = 25_000_000  # of a slow disk or network, read and then loaded
SCHEDULING_SECONDS = 600  # a node must be found and images of several GB pulled


@dataclass(frozen=True)
class Budget:
    """Seconds."""

    load: int  # of the init container, which reads every byte once
    start: int  # of the engine, from its start until it answers

    @property
    def deadline(self) -> int:
        """Seconds from the Deployment's creation until its pods must be ready."""
        return SCHEDULING_SECONDS + self.load + self.start + 60


def budget(spec: ModelServeSpec, model: ResolvedModel) -> Budget:
    """rollout.startupTimeoutSeconds where it is set."""
    computed = UNKNOWN_SIZE_SECONDS if model.bytes is None else max(LEAST_SECONDS, model.bytes // BYTES_PER_SECOND)
    return Budget(load=computed, start=spec.rollout.startup_timeout_seconds or computed)
