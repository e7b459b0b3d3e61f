"""What the train pods hold, and how ranks share the work."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from finetune_trainer.contract.fields import Strict


class Strategy(StrEnum):
    AUTO = "Auto"
    DDP = "DDP"
    FSDP = "FSDP"
    ZERO2 = "ZeRO2"
    ZERO3 = "ZeRO3"


SHARES_WEIGHTS = frozenset({Strategy.FSDP, Strategy.ZERO3})  # no rank has the model as a whole


class Launcher(StrEnum):
    TORCHRUN = "Torchrun"
    RAY = "Ray"


class Devices(Strict):
    """What the train pods hold. No GPU means that all runs on CPUs, as one rank in each pod."""

    gpus: int = Field(0, ge=0)  # of one pod
    memory_bytes: int | None = None  # of one GPU, or the train pod's limit where it has none; unset: not known
    nodes: int = Field(1, ge=1)
    strategy: Strategy = Strategy.AUTO
    launcher: Launcher = Launcher.TORCHRUN

    @property
    def ranks_per_node(self) -> int:
        return max(1, self.gpus)

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node
