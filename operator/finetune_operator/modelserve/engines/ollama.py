"""Ollama: one GGUF file with the Modelfile beside it, on CPUs or GPUs, for those who have their other models there.

It keeps models in a store of its own, which is empty in a new pod. There the model is made of the file that is mounted, under
the served name, before the pod is ready; a link stands for the weights, so that none are copied. Tried with 0.6.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_operator.api.access import Load
from finetune_operator.modelserve.engines.engine import MODEL, MODEL_FILE, UNREAD, Engine, Launch, Memory, counted, cpus
from finetune_trainer.contract.formats import ArtifactFormat
from finetune_trainer.contract.manners import Lacks, Manners

if TYPE_CHECKING:
    from finetune_operator.api.modelserve import ModelServeSpec

METRICS = "ollama"
SLOTS = 4  # requests that are answered side by side, each with all of the context
STORE = "/tmp/ollama"
RAW = "raw"  # tag of the same model without a chat template, for completions
WORD, WORD_WITHOUT_DOTS = "[A-Za-z0-9][A-Za-z0-9._-]{0,79}", "[A-Za-z0-9][A-Za-z0-9_-]{0,79}"
# The model is made while the server runs; where that fails, both end. Whatever a Modelfile is FROM, the file is what was loaded
# and checked. `ollama run` without words loads the model. Kubernetes has its own meaning for $(…) and for a second dollar.
SERVE = f"""
name=$0 context=$1 threads=$2 folder={MODEL} file={MODEL_FILE} store=$OLLAMA_MODELS
shift 2
make() {{
  sum=`sha256sum <$file` && ln -sfn $file $store/blobs/sha256-${{sum%% *}} || return
  if [ -f $folder/Modelfile ]; then sed "s#^FROM .*#FROM $file#I;T;:rest;n;b rest" $folder/Modelfile >$store/given
  else echo "FROM $file" >$store/given; echo "no Modelfile lies beside the GGUF file: Ollama guesses the chat template"; fi
  if grep -qi "^MESSAGE " $store/given; then
    echo "the Modelfile has MESSAGE lines, which Ollama leaves out of long conversations: give them in requests" >&2; return 1
  fi
  until ollama ls >/dev/null 2>&1; do sleep 1; done
  ollama create "$name" -f $store/given || return
  longest=`ollama show "$name" | sed -n 's/^ *context length *\\([0-9]*\\).*/\\1/p'`
  if [ "${{longest:-$context}}" -lt "$context" ]; then
    echo "spec.engine.maxModelLength is $context, and the model reads $longest tokens at most: lower it" >&2; return 1
  fi
  printf 'FROM %s\\nPARAMETER num_ctx %s\\n' "$name" "$context" >$store/fitted
  if [ "$threads" != 0 ]; then echo "PARAMETER num_thread $threads" >>$store/fitted; fi
  printf 'FROM %s\\nTEMPLATE "{{{{ .Prompt }}}}"\\n' "$name" >$store/{RAW}
  ollama create "$name" -f $store/fitted && ollama create "$name:{RAW}" -f $store/{RAW} &&
    ollama run "$name" </dev/null && touch $store/made
}}
mkdir -p $store/blobs && rm -f $store/made
ollama serve "$@" & server=$!
trap 'kill $server' TERM
{{ make || kill $server; }} &
wait $server; wait $server
[ -f $store/made ]
""".strip()
IS_MADE = 'ollama ps | sed "${1:+1d}" | grep -q .'  # before it serves, whether a model is below the head: there is no other
LACKS = Lacks(
    metrics=METRICS,
    reached=("/v1/chat/completions", "/v1/completions"),
    ignored=UNREAD,
    known=(
        *("messages", "prompt", "suffix", "max_tokens", "stop", "stream", "stream_options", "response_format", "tools"),
        *("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty"),
    ),
    renamed={"max_completion_tokens": "max_tokens"},
    tokens=1024,
    health="/api/version",
    at_once=SLOTS,
    called={"/v1/completions": f":{RAW}"},
    leaves_out=True,
)
MANNERS = Manners(askers_faults=("invalid JSON schema",), lacks=LACKS)


def launch(spec: ModelServeSpec, served_name: str, port: int) -> Launch:
    """`ollama serve`, and the making of its model. It breaks off its answers at SIGTERM: its front drains before."""
    start = ["sh", "-c", SERVE, served_name, str(spec.engine.max_model_length), str(cpus(spec) or 0)]
    return Launch(command=start, args=spec.engine.args, env=environment(port), pre_stop_seconds=spec.drain.seconds)


def environment(port: int) -> dict[str, str]:
    """What the server and the programs that ask it are told: one model, which stays in memory."""
    return {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": STORE,
        "OLLAMA_NOPRUNE": "1",  # at its start it would remove blobs of which no model tells yet
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NUM_PARALLEL": str(SLOTS),
        "GIN_MODE": "release",  # its log begins with a page for its developers
        "OLLAMA_ORIGINS": "*",  # its front asks for the key, whatever page a browser comes from
    }


ENGINE = Engine(
    serves="GGUF, by Ollama",
    formats=(ArtifactFormat.GGUF,),
    best=ArtifactFormat.GGUF,
    port=11434,
    launch=launch,
    image=lambda settings: settings.ollama_image,
    api_key_variable=None,
    counters=counted(METRICS),
    loads={Load.WAITING_REQUESTS: f"{METRICS}_num_requests_waiting"},
    healthy=IS_MADE,
    manners=MANNERS,
    memory=Memory(fixed=64 << 20, slots=SLOTS, said_by=frozenset({"OLLAMA_KV_CACHE_TYPE", "OLLAMA_NUM_PARALLEL"})),
    takes_file=True,
    takes_tokens=False,
    takes_names=f"(({WORD}/)?{WORD_WITHOUT_DOTS}/)?{WORD}",
    needs_length=True,
)
