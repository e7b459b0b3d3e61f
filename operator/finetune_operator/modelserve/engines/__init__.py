"""The engines that serve models. A new one is a module of its own, a line in each of the two here, and its image: a field
of settings.py and a name in the chart's images.
"""

from __future__ import annotations

from enum import StrEnum

from finetune_operator.modelserve.engines import llamacpp, ollama, transformers, vllm
from finetune_operator.modelserve.engines.engine import Engine


class EngineType(StrEnum):
    VLLM = "VLLM"
    LLAMA_CPP = "LlamaCpp"
    OLLAMA = "Ollama"
    TRANSFORMERS = "Transformers"


ENGINES: dict[EngineType, Engine] = {
    EngineType.VLLM: vllm.ENGINE,
    EngineType.LLAMA_CPP: llamacpp.ENGINE,
    EngineType.OLLAMA: ollama.ENGINE,
    EngineType.TRANSFORMERS: transformers.ENGINE,
}
