"""vLLM: safetensors and CompressedTensors folders, on GPUs or, slowly, on CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_operator.api.access import Load
from finetune_operator.api.adapters import MOST_ADAPTERS, Lora
from finetune_operator.modelserve.engines.engine import MODEL, Engine, Launch, Memory, counted
from finetune_trainer.contract.formats import SAFETENSORS, ArtifactFormat
from finetune_trainer.contract.served_adapters import rank_for

if TYPE_CHECKING:
    from finetune_operator.api.modelserve import ModelServeSpec

KEPT = 2 * MOST_ADAPTERS  # adapters in memory: all that serve, and as many that follow them
CPU_CACHE, CPU_CACHE_GIB = "VLLM_CPU_KVCACHE_SPACE", 1  # its default is half of the node's memory
MEMORY = Memory(
    fixed=1 << 30,  # CUDA's context and a step's activations; on CPUs Python with torch
    gpu_percent=92,  # its default
    cache_on_cpus=(CPU_CACHE, CPU_CACHE_GIB << 30),
    said_by=frozenset(
        {"--max-model-len", "--gpu-memory-utilization", "--kv-cache-dtype", "--kv-cache-memory-bytes", "--kv-cache-memory"}
        | {"--cpu-offload-gb", "--kv-offloading-size", "--swap-space", "--quantization", "-q", "--dtype", "--load-format"}
        | {"--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--num-gpu-blocks-override", "--config"}
        | {"--hf-overrides", "--runner", "--enable-expert-parallel", "--data-parallel-size", "-dp", CPU_CACHE}
    ),
)
ENDPOINTS_SECONDS = 5  # until every node knows that a pod takes no more requests


def launch(spec: ModelServeSpec, served_name: str, port: int) -> Launch:
    """`vllm serve`, which stops taking requests at SIGTERM and then finishes those it has."""
    args = [MODEL, "--served-model-name", served_name, "--port", str(port)]
    if spec.engine.max_model_length is not None:
        args += ["--max-model-len", str(spec.engine.max_model_length)]
    if spec.parallelism.tensor > 1:
        args += ["--tensor-parallel-size", str(spec.parallelism.tensor)]
    if not spec.parallelism.gpus:
        args.append("--enforce-eager")  # compiling for a CPU needs a C++ compiler in the image
    args += ["--shutdown-timeout", str(spec.drain.seconds), *_room(spec.lora, gpus=spec.parallelism.gpus)]
    env = {
        "USER": "finetune",  # torch asks for the user's name, and the image need not know the pod's uid
        "HF_HUB_OFFLINE": "1",  # all it needs lies in the folder
        "VLLM_NO_USAGE_STATS": "1",
    }
    if not spec.parallelism.gpus:
        env[CPU_CACHE] = str(CPU_CACHE_GIB)
    if spec.lora is not None:
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return Launch(
        command=["vllm", "serve"],
        args=[*args, *spec.engine.args],
        env=env,
        # With adapters or a cache it has a front, which must come to its end first.
        pre_stop_seconds=spec.drain.seconds if spec.lora or spec.response_cache else min(ENDPOINTS_SECONDS, spec.drain.seconds),
        shutdown_seconds=spec.drain.seconds,
        shared_memory=True,
    )


def _room(lora: Lora | None, *, gpus: bool) -> list[str]:
    """Room for adapters. The API for them asks for no key of its own, so the engine listens on the pod's loopback alone.

    On CPUs it answers for the base model with whatever adapter lies in its last slot: there it has a slot more than are ever
    loaded, and slots are filled from the first on.
    """
    if lora is None:
        return []
    slots, kept = (lora.max_active, KEPT) if gpus else (KEPT + 1, KEPT + 1)
    ranks = ["--enable-lora", "--max-lora-rank", str(rank_for(lora.max_rank)), "--max-loras", str(slots)]
    return [*ranks, "--max-cpu-loras", str(kept), "--host", "127.0.0.1"]


ENGINE = Engine(
    serves="safetensors",
    formats=(SAFETENSORS, ArtifactFormat.COMPRESSED_TENSORS, ArtifactFormat.BITS_AND_BYTES),
    best=ArtifactFormat.COMPRESSED_TENSORS,
    port=8000,
    launch=launch,
    image=lambda settings: settings.vllm_image,
    api_key_variable="VLLM_API_KEY",
    counters=counted("vllm"),
    loads={Load.WAITING_REQUESTS: "vllm_num_requests_waiting", Load.CACHE_USAGE: "vllm_kv_cache_usage_perc"},
    on_gpus_only=(ArtifactFormat.BITS_AND_BYTES,),
    takes_adapters=True,
    drains=True,
    splits_tensors=True,
    memory=MEMORY,
)
