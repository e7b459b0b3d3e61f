"""llama.cpp's own server: one GGUF file, on CPUs or GPUs."""

from __future__ import annotations

from finetune_operator.modelserve.api import ModelServeSpec
from finetune_operator.modelserve.engines import MODEL_GGUF, Launch

PORT = 8080


def launch(spec: ModelServeSpec, served_name: str) -> Launch:
    """llama-server, the entry point of its images. It breaks off its answers at SIGTERM: the drain comes before that."""
    args = ["--model", MODEL_GGUF, "--alias", served_name, "--host", "0.0.0.0", "--port", str(PORT), "--metrics"]
    if spec.engine.max_model_length is not None:
        args += ["--ctx-size", str(spec.engine.max_model_length)]
    return Launch(port=PORT, args=[*args, *spec.engine.args], pre_stop_seconds=spec.drain.seconds)
