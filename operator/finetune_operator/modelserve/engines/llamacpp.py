"""llama.cpp's own server: one GGUF file, on CPUs or GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_operator.api.access import Load
from finetune_operator.modelserve.engines.engine import MODEL_FILE, Engine, Launch, Memory, cpus
from finetune_trainer.contract.formats import ArtifactFormat
from finetune_trainer.contract.manners import Manners
from finetune_trainer.contract.traffic import Counters, Series

if TYPE_CHECKING:
    from finetune_operator.api.modelserve import ModelServeSpec

SLOTS = 4  # requests that are answered side by side
MANNERS = Manners(
    hidden=("/slots", "/props", "/lora-adapters"),  # the last one sets what everybody is answered with
    askers_faults=(
        "input is not supported",  # images and sound
        "Context size has been exceeded",
        "too large to process",
        "requires --jinja",
        "Jinja Exception",  # the model's chat template refuses the messages
    ),
)

MEMORY = Memory(
    fixed=64 << 20,  # where it computes
    slots=SLOTS,
    said_by=frozenset(
        {"-c", "--ctx-size", "-np", "--parallel", "-ctk", "--cache-type-k", "-ctv", "--cache-type-v", "-kvu", "--kv-unified"}
        | {"-m", "--model", "-fit", "--fit", "--swa-full", "LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_N_PARALLEL", "LLAMA_ARG_FIT"}
        | {"LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_V"}
    ),
)


def launch(spec: ModelServeSpec, served_name: str, port: int) -> Launch:
    """llama-server, the entry point of its images. It breaks off its answers at SIGTERM: the drain comes before that."""
    args = ["--model", MODEL_FILE, "--alias", served_name, "--host", "0.0.0.0", "--port", str(port), "--metrics"]
    args += ["--no-slots"]  # it would show everybody what others ask
    args += _context(spec.engine.max_model_length)
    if (threads := cpus(spec)) is not None:
        args += ["--threads", str(threads)]
    # Threads that spin while they wait eat the CPU that the others need: ten times slower where CPUs are shared.
    env = {"OMP_WAIT_POLICY": "passive"}
    return Launch(args=[*args, *spec.engine.args], env=env, pre_stop_seconds=spec.drain.seconds)


def _context(longest: int | None) -> list[str]:
    """Room of its own for each request: in a cache that all share, a long one breaks off the answers to others."""
    if longest is None:
        return ["--parallel", "1"]
    return ["--ctx-size", str(longest * SLOTS), "--parallel", str(SLOTS), "--no-kv-unified"]


ENGINE = Engine(
    serves="GGUF",
    formats=(ArtifactFormat.GGUF,),
    best=ArtifactFormat.GGUF,
    port=8080,
    launch=launch,
    image=lambda settings: settings.llamacpp_image,
    api_key_variable="LLAMA_API_KEY",
    counters=Counters(  # it counts neither requests nor errors
        tokens=Series(name="llamacpp:tokens_predicted_total"),
        token_seconds=Series(name="llamacpp:tokens_predicted_seconds_total"),
    ),
    loads={Load.WAITING_REQUESTS: "llamacpp_requests_deferred"},
    manners=MANNERS,
    takes_file=True,
    memory=MEMORY,
)
