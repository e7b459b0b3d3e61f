"""What each engine needs to serve a folder: command line, environment, how it stops. Pure.

Both speak the OpenAI API, answer /health with 200 once they can work, and list their models at /v1/models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_operator.api.modelserve import EngineType, ModelServeSpec

MODEL = "/mnt/model/model"  # the folder, as the loader leaves it
MODEL_GGUF = "/mnt/model/model.gguf"  # its one GGUF file


@dataclass(frozen=True)
class Launch:
    """How an engine is started and stopped. Seconds."""

    port: int
    args: list[str]
    command: list[str] = field(default_factory=list)  # empty: the image's own entry point
    env: dict[str, str] = field(default_factory=dict)
    pre_stop_seconds: int = 0  # between being taken out of the Service and SIGTERM
    shutdown_seconds: int = 0  # that the engine itself then waits for its answers
    shared_memory: bool = False  # wants a large /dev/shm


def launch(spec: ModelServeSpec, served_name: str) -> Launch:
    """The engine of a spec, with the user's own arguments last so that they win."""
    from finetune_operator.modelserve.engines import llamacpp, vllm

    engines: dict[EngineType, Callable[[ModelServeSpec, str], Launch]] = {
        EngineType.VLLM: vllm.launch,
        EngineType.LLAMA_CPP: llamacpp.launch,
    }
    return engines[spec.engine.type](spec, served_name)
