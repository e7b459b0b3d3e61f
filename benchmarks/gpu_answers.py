"""What engines on a GPU make of the artifacts of `gpu_path.py job`: answers a second, and whether they are the evaluation's.

    python benchmarks/gpu_answers.py rate DIR             vLLM beside transformers, over the job's test rows
    python benchmarks/gpu_answers.py served DIR [NAME…]   artifacts and the adapter by `vllm serve` as a ModelServe starts it

`rate` runs under a Python that has vLLM; EVALUATOR names it for `served`, which runs under any.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_path import EVALUATOR, GPUS, RANK, ROWS

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.modelserve.engines import vllm
from finetune_trainer.contract.places import mounted_path

PORT, READY_SECONDS = 8100, 200


def rate(folder: Path) -> dict[str, Any]:
    """Seconds that each engine takes to load the merged model and to answer the test rows, as an evaluation asks them."""

    from finetune_trainer.contract.devices import Devices
    from finetune_trainer.contract.training import Precision
    from finetune_trainer.data import rendered
    from finetune_trainer.libraries import quieten
    from finetune_trainer.model.compute import compute_for
    from finetune_trainer.model.loading import end_tokens, load_tokenizer
    from finetune_trainer.scoring.by_transformers import BATCH_ROWS, TransformersScorer, _batches
    from finetune_trainer.scoring.by_vllm import VllmScorer

    quieten()
    base, merged = folder / "bench/model", _artifact(folder, "merged")
    tokenizer: Any = load_tokenizer(base)
    (data,) = (folder / "path/mounts/claims/path-artifacts").glob("path/data/*/*/test.jsonl")
    rows = rendered.read(data.parent, rendered.TEST, ROWS)
    arguments = (merged, tokenizer, end_tokens(tokenizer, base), 64, compute_for(Precision.AUTO, Devices(gpus=GPUS)))
    found: dict[str, Any] = {"rows": len(rows)}
    said: dict[str, list[str]] = {}

    begun = time.monotonic()
    judge = TransformersScorer(*arguments)
    loaded = time.monotonic()
    said["transformers"] = [a for batch in _batches(rows, 64, BATCH_ROWS) for a in judge._answers(batch, 64)]
    found["transformers"] = _seconds(begun, loaded, len(rows))
    del judge

    begun = time.monotonic()
    scorer = VllmScorer(*arguments)
    engine = scorer._engine()
    loaded = time.monotonic()
    said["vllm"] = scorer._generated(engine, rows, 64)
    found["vllm"] = _seconds(begun, loaded, len(rows))
    engine.llm_engine.engine_core.shutdown()
    found["same_beginnings"] = sum(a[:40] == b[:40] for a, b in zip(*said.values(), strict=True))
    return found


def _seconds(begun: float, loaded: float, rows: int) -> dict[str, float]:
    took = time.monotonic() - loaded
    return {"load_s": round(loaded - begun, 2), "answer_s": round(took, 2), "answers_per_second": round(rows / took, 1)}


def served(folder: Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """One server after the other: several that start at once on a card take each other's memory for their own. The adapter is
    laid over the base as it was fetched, and over one that vLLM rounds to NF4, as the adapter was trained.
    """
    lora = ["--enable-lora", "--max-lora-rank", str(RANK)]
    servers: dict[str, tuple[Path, list[str]]] = {
        n: (_artifact(folder, n), []) for n in _facts(folder)["artifacts"] if n != "adapter"
    }
    servers["adapter"] = folder / "bench/model", lora
    servers["adapter-on-nf4"] = folder / "bench/model", [*lora, "--quantization", "bitsandbytes"]
    found: dict[str, Any] = {}
    for index, (name, (model, more)) in enumerate(servers.items()):
        if names and name not in names:
            continue
        with _server(folder, name, model, PORT + index, *more) as server:
            seconds = _ready(server)
            if seconds is None:
                found[name] = {"failed": "the server did not come up", "log": str(folder / f"out/serve-{name}.log")}
            else:
                told = _load_adapters(folder, name, server.url) if more else {}
                found[name] = {"ready_s": seconds} | told | _ask(folder, name, server.url)
        (folder / f"out/served-{name}.json").write_text(json.dumps(found[name]))
    return found


@dataclasses.dataclass
class Server:
    """One `vllm serve`."""

    process: subprocess.Popen[bytes]
    url: str  # without /v1


def _load_adapters(folder: Path, name: str, url: str) -> dict[str, Any]:
    """What vLLM says to the job's adapter, and to those that it must refuse."""
    adapter = _artifact(folder, "adapter")
    wrong = (folder / "no-such-folder", _of_rank(adapter, 4 * RANK), _of_other_modules(adapter))
    refused = {w.name: _load_adapter(url, w.name, w) for w in wrong}
    return refused | {"loaded": _load_adapter(url, f"{name}-of-the-job", adapter)}


def _of_rank(adapter: Path, rank: int) -> Path:
    """A copy whose configuration tells another rank."""
    copy = shutil.copytree(adapter, adapter.parents[2] / f"rank-{rank}", dirs_exist_ok=True)
    file = copy / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": rank}))
    return copy


def _of_other_modules(adapter: Path) -> Path:
    """A copy whose tensors belong to modules that the model does not have."""
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(adapter, adapter.parents[2] / "other-modules", dirs_exist_ok=True)
    file = copy / "adapter_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    save_file({name.replace("q_proj", "query_proj"): tensor for name, tensor in tensors.items()}, file)
    return copy


@contextlib.contextmanager
def _server(folder: Path, name: str, model: Path, port: int, *more: str) -> Iterator[Server]:
    """`vllm serve` with the arguments that a ModelServe gives it, at another port."""
    spec = ModelServeSpec.model_validate({"model": {"uri": "pvc://bench/model"}, "engine": {"type": "VLLM"}})
    launch = vllm.launch(spec, name, port)
    arguments = [str(model), *launch.args[1:], *more]
    command = [
        EVALUATOR,
        "-c",
        "import sys; from vllm.entrypoints.cli.main import main; sys.exit(main())",
        "serve",
        *arguments,
    ]
    environment = (
        os.environ
        | launch.env
        | {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
            "VLLM_USE_FLASHINFER_SAMPLER": "0",  # where FlashInfer is absent; the gate's questions are greedy
        }
    )
    with (folder / f"out/serve-{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield Server(process, f"http://127.0.0.1:{port}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ready(server: Server) -> float | None:
    begun = time.monotonic()
    while time.monotonic() - begun < READY_SECONDS and server.process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{server.url}/health", timeout=2)
            return round(time.monotonic() - begun, 1)
        time.sleep(1)
    return None


def _load_adapter(server: str, name: str, folder: Path) -> dict[str, Any]:
    body = json.dumps({"lora_name": name, "lora_path": str(folder)}).encode()
    url, headers = f"{server}/v1/load_lora_adapter", {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return {"status": answer.status, "said": answer.read().decode()[:300]}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "said": error.read().decode()[:300]}


def _ask(folder: Path, name: str, url: str) -> dict[str, Any]:
    """What a ModelServe's gate finds: test rows whose token ids and whose answers are the evaluation's."""
    subject = "merged" if name.startswith("adapter") else name
    uri = _facts(folder)["artifacts"][subject]["evaluation"]
    model = f"{name}-of-the-job" if name.startswith("adapter") else name
    prompts, termination = folder / f"out/prompts-{name}.json", folder / f"out/ask-{name}.json"
    prompts.write_text(json.dumps([{"prompt": "What is 2 + 3?"}]))
    options = ["--url", f"{url}/v1", "--model", model, "--prompts", str(prompts), "--rows", uri]
    environment = os.environ | {
        "FINETUNE_MOUNTS": str(folder / "path/mounts"),
        "FINETUNE_TERMINATION_LOG": str(termination),
    }
    subprocess.run([sys.executable, "-m", "finetune_trainer.serving.ask", *options], env=environment, check=False)
    said = json.loads(termination.read_text())
    return dict(said.get("servedRows", {})) | ({"failure": said["failure"]["message"]} if "failure" in said else {})


def _facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out/job.json").read_text()))


def _artifact(folder: Path, name: str) -> Path:
    return Path(str(mounted_path(_facts(folder)["artifacts"][name]["uri"], str(folder / "path/mounts"))))


def main(arguments: list[str]) -> None:
    what, place, *names = arguments
    folder = Path(place).resolve()
    found = rate(folder) if what == "rate" else served(folder, names)
    (folder / f"out/{what}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
