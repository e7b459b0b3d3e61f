"""vLLM: safetensors and CompressedTensors folders, on GPUs or, slowly, on CPUs."""

from __future__ import annotations

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.modelserve.engines import MODEL, Launch

PORT = 8000
ENDPOINTS_SECONDS = 5  # until every node knows that a pod takes no more requests


def launch(spec: ModelServeSpec, served_name: str) -> Launch:
    """`vllm serve`, which stops taking requests at SIGTERM and then finishes those it has."""
    args = [MODEL, "--served-model-name", served_name, "--port", str(PORT)]
    if spec.engine.max_model_length is not None:
        args += ["--max-model-len", str(spec.engine.max_model_length)]
    if spec.parallelism.tensor > 1:
        args += ["--tensor-parallel-size", str(spec.parallelism.tensor)]
    if not spec.parallelism.gpus:
        args.append("--enforce-eager")  # compiling for a CPU needs a C++ compiler in the image
    args += ["--shutdown-timeout", str(spec.drain.seconds)]
    env = {
        "USER": "finetune",  # torch asks for the user's name, and the image need not know the pod's uid
        "HF_HUB_OFFLINE": "1",  # all it needs lies in the folder
        "VLLM_NO_USAGE_STATS": "1",
    }
    if not spec.parallelism.gpus:
        env["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; its default is half of the node's memory
    return Launch(
        port=PORT,
        command=["vllm", "serve"],
        args=[*args, *spec.engine.args],
        env=env,
        pre_stop_seconds=min(ENDPOINTS_SECONDS, spec.drain.seconds),
        shutdown_seconds=spec.drain.seconds,
        shared_memory=True,
    )
