"""What is said of an engine, whichever it is: what it serves, from which image, and how it is started and stopped. Pure.

All speak the OpenAI API, answer /health with 200 once they can work, and list their models at /v1/models; where one does not,
its front does (contract/manners.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_operator.api.access import Load
from finetune_operator.meta import quantity_value
from finetune_trainer.contract.formats import ArtifactFormat
from finetune_trainer.contract.manners import HEALTH, Manners
from finetune_trainer.contract.traffic import Counters, Series

if TYPE_CHECKING:
    from finetune_operator.api.modelserve import ModelServeSpec
    from finetune_operator.settings import Settings

ANY_NAME = ".+"
MODEL = "/mnt/model/model"  # the folder, as the loader leaves it
MODEL_FILE = "/mnt/model/model.gguf"  # its one GGUF file
# llama.cpp lists its model while it still loads it, so health is asked first; images have curl or Python, not always both.
_GET = r"""
get() {
  if command -v curl >/dev/null; then curl -fsS -m 5 "$1"
  else python3 -c 'import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())' "$1"; fi
}
""".lstrip()
IS_HEALTHY = f'{_GET}get "$0{HEALTH}" >/dev/null'
IS_SERVED = f"""{IS_HEALTHY} && get "$0/v1/models" | tr -d ' \\n' | grep -qF "\\"id\\":\\"$1\\"\""""

# Before an engine is told to stop: until its front, at port $0, has ended, or $1 seconds are over. A front that
# answers late is there: only a port that takes no connection is gone.
UNTIL_DRAINED = r"""
gone() {
  if command -v curl >/dev/null; then curl -s -o /dev/null -m 2 "http://127.0.0.1:$0/health"; [ $? -eq 7 ]
  elif ! command -v python3 >/dev/null; then ! bash -c ": <>/dev/tcp/127.0.0.1/$0" 2>/dev/null
  else python3 -c 'import socket, sys
try: socket.create_connection(("127.0.0.1", int(sys.argv[1])), 2)
except ConnectionRefusedError: sys.exit(0)
except OSError: pass
sys.exit(1)' "$0"; fi
}
end=$(($(date +%s) + $1))
until gone || [ "$(date +%s)" -ge "$end" ]; do sleep 1; done
""".lstrip()

# Fields of OpenAI's API that engines made for one person's machine pass over, with the value that asks for nothing.
UNREAD: dict[str, Any] = {
    "audio": None,
    "best_of": 1,
    "echo": False,
    "function_call": "none",
    "functions": [],
    "logprobs": False,
    "metadata": None,
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "prediction": None,
    "reasoning_effort": None,
    "service_tier": "auto",
    "store": False,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "user": None,
    "web_search_options": None,
}


def cpus(spec: ModelServeSpec) -> int | None:
    """How many an engine without GPUs may use, where that is said: it would count the node's, not its own."""
    limit = spec.resources.limits.get("cpu")
    return None if limit is None or spec.parallelism.gpus else math.ceil(quantity_value(limit))


def counted(metrics: str) -> Counters:
    """Counters under vLLM's names, below a name of the engine's own: what a front counts for an engine is called so, too."""
    asked = {"handler": "/v1/.*", "method": "POST"}  # requests that the engine works for
    return Counters(
        requests=Series(name="http_requests_total", labels=asked),
        errors=Series(name="http_requests_total", labels={**asked, "status": "5.."}),
        tokens=Series(name=f"{metrics}:inter_token_latency_seconds_count"),
        token_seconds=Series(name=f"{metrics}:inter_token_latency_seconds_sum"),
    )


def is_served(api_key_variable: str | None) -> str:
    """The script of IS_SERVED, with the API key that the engine asks for, if it does."""
    if api_key_variable is None:
        return IS_SERVED
    bearer = f"Authorization: Bearer ${api_key_variable}"
    python = 'r.Request(sys.argv[1], headers=dict([sys.argv[2].split(": ", 1)]))'
    return (
        IS_SERVED.replace('-m 5 "$1"', f'-m 5 -H "{bearer}" "$1"')
        .replace("r.urlopen(sys.argv[1],", f"r.urlopen({python},")
        .replace('.decode())\' "$1"', f'.decode())\' "$1" "{bearer}"')
    )


@dataclass(frozen=True)
class Launch:
    """How an engine is started and stopped. Seconds."""

    args: list[str]
    command: list[str] = field(default_factory=list)  # empty: the image's own entry point
    env: dict[str, str] = field(default_factory=dict)
    pre_stop_seconds: int = 0  # between being taken out of the Service and SIGTERM
    shutdown_seconds: int = 0  # that the engine itself then waits for its answers
    shared_memory: bool = False  # wants a large /dev/shm


@dataclass(frozen=True)
class Memory:
    """What an engine takes at least, so that what can't fit is refused before pods are made. Bytes."""

    fixed: int  # beside weights and what is kept of contexts
    slots: int = 1  # requests that each have room of their own, where the spec says how long they may be
    gpu_percent: int | None = None  # of a GPU that it fills; None: what fits there lies there, and the rest elsewhere
    cache_on_cpus: tuple[str, int] | None = None  # for contexts, where it takes just so much: the variable that says it
    takes_all_context: bool = True  # that the model has, from its start, where the spec says nothing
    said_by: frozenset[str] = frozenset()  # arguments and variables of its own that change any of this


@dataclass(frozen=True)
class Engine:
    """One of them. `launch` takes the spec, the model's name in the API, and the port where the engine is to listen; the user's
    own arguments come last and win.
    """

    serves: str  # in a word
    formats: tuple[str, ...]
    best: ArtifactFormat | None  # which of a job's artifacts it serves where the job names none; None: the merged model
    port: int  # where its pods take requests
    launch: Callable[[ModelServeSpec, str, int], Launch]
    image: Callable[[Settings], str]
    api_key_variable: str | None  # of its environment: requests must bring its value; None: its front asks for it
    counters: Counters  # of its traffic, as it calls them itself
    loads: Mapping[Load, str]  # names of its metrics, as a metrics adapter serves them: a colon is an underscore there
    on_gpus_only: tuple[str, ...] = ()  # of the formats
    takes_adapters: bool = False  # while it runs, by vLLM's API for them
    drains: bool = False  # at SIGTERM it ends its answers, and tells whoever keeps a connection
    healthy: str = IS_HEALTHY  # whether it works, at $0, where it listens in its pod alone; before it serves, with the name $1
    manners: Manners | None = None  # where it does otherwise than the OpenAI API says: its pods have a front, which does not
    takes_file: bool = False  # instead of a folder
    takes_tokens: bool = True  # prompts of token ids, and says which those of a text are
    takes_names: str = ANY_NAME  # served names that it can have
    needs_length: bool = False  # it knows nothing of the model's own
    splits_tensors: bool = False  # over several GPUs
    memory: Memory | None = None  # None: nothing is known of it, and nothing refused
