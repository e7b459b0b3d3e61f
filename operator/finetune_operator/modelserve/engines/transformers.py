"""`transformers serve`: any architecture that transformers has, on GPUs or CPUs; slower than vLLM, and there sooner.

It is in vLLM's image, with all that it needs. It writes answers and does little else: its front does the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_operator.api.access import Load
from finetune_operator.modelserve.engines.engine import MODEL, UNREAD, Engine, Launch, Memory, counted, cpus
from finetune_trainer.contract.formats import SAFETENSORS
from finetune_trainer.contract.manners import Lacks, Manners

if TYPE_CHECKING:
    from finetune_operator.api.modelserve import ModelServeSpec

METRICS = "transformers"
# It calls a model as the path that it was loaded from: here that is the served name. Kubernetes has its own meaning for $(…).
SERVE = f"""
there=/tmp/served/$0
mkdir -p `dirname "$there"` && ln -sfn {MODEL} "$there" && cd /tmp/served && exec transformers serve "$0" "$@"
""".strip()
LACKS = Lacks(
    metrics=METRICS,
    reached=("/v1/chat/completions", "/v1/completions"),
    ignored={
        **UNREAD,
        "presence_penalty": 0,
        "response_format": {"type": "text"},
        "stream_options": {"include_usage": True},  # which its streams do in any case
    },
    renamed={"max_completion_tokens": "max_tokens"},
    tokens=1024,
)


def launch(spec: ModelServeSpec, served_name: str, port: int) -> Launch:
    """It ends its answers at SIGTERM, but tells nobody who keeps a connection: its front drains."""
    args = ["--host", "127.0.0.1", "--port", str(port), "--device", "auto" if spec.parallelism.gpus else "cpu"]
    env = {"USER": "finetune", "HF_HUB_OFFLINE": "1"}  # torch asks for the user's name; all that it needs lies in the folder
    if (threads := cpus(spec)) is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    return Launch(
        command=["sh", "-c", SERVE, served_name],
        args=[*args, *spec.engine.args],
        env=env,
        pre_stop_seconds=spec.drain.seconds,
    )


ENGINE = Engine(
    serves="safetensors, by the library itself",
    formats=(SAFETENSORS,),
    best=None,
    port=8000,
    launch=launch,
    image=lambda settings: settings.vllm_image,
    api_key_variable=None,
    counters=counted(METRICS),
    loads={Load.WAITING_REQUESTS: f"{METRICS}_num_requests_waiting"},
    manners=Manners(lacks=LACKS),
    takes_tokens=False,
    memory=Memory(
        fixed=512 << 20,  # Python with torch
        gpu_percent=100,
        takes_all_context=False,  # it grows with what is asked
        said_by=frozenset({"--dtype", "--quantization", "--cache-implementation", "--device"}),
    ),
)
