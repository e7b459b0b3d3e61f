"""Where llama.cpp lies: its programs, its converter, its libraries and their Python binding, all of one version.

$LLAMA_CPP_DIR/convert_hf_to_gguf.py   bin/llama-quantize   lib/*.so   python/llama_cpp
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_trainer import environment
from finetune_trainer.libraries import threads
from finetune_trainer.memory.shape import plain_attention_of

# Families of which its converter writes no window into the file, so that layers look back to the beginning.
WITHOUT_WINDOW = frozenset({
    "mistral", "mixtral", "ministral", "ministral3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "starcoder2",
})  # fmt: skip


def folder() -> Path:
    """llama.cpp's folder on this machine; nothing says that it is there."""
    return environment.read().llama_cpp


def window_left_out(config: Mapping[str, Any]) -> int | None:
    """How many tokens the layers of a model look back, where those of its GGUF file look back further; None else."""
    text = config.get("text_config", config)
    return plain_attention_of(config) if text.get("model_type") in WITHOUT_WINDOW else None


def binding() -> Any:
    """The module llama_cpp from below `folder`, or as it is installed. Raises ImportError where it is neither."""
    environment.offer({"LLAMA_CPP_LIB_PATH": str(folder() / "lib")})
    # Threads that spin while they wait eat the CPU that the others need: ten times slower where CPUs are shared.
    environment.offer({"OMP_WAIT_POLICY": "passive"})
    packages = str(folder() / "python")
    if packages not in sys.path:
        sys.path.append(packages)
    import llama_cpp

    return llama_cpp


def open_model(file: Path, context: int) -> Any:
    """llama_cpp's Llama over a GGUF file, on the CPU, with room for `context` tokens and logits at every position."""
    return binding().Llama(str(file), n_ctx=context, n_batch=512, n_threads=threads(), logits_all=True, verbose=False)


def logits(model: Any, tokens: Sequence[int]) -> Any:
    """Logits at every position, float32 of shape (tokens, vocabulary)."""
    import numpy

    model.reset()
    model.eval(list(tokens))
    return numpy.array(model.scores[: len(tokens)])
