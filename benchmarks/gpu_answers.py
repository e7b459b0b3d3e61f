"""What engines on a GPU make of the artifacts of `gpu_path.py job`: answers a second, and whether they are the evaluation's.

    python benchmarks/gpu_answers.py rate DIR     vLLM beside transformers, over the job's test rows
    python benchmarks/gpu_answers.py served DIR   each artifact and the adapter by `vllm serve` as a ModelServe starts it

`rate` runs under a Python that has vLLM; EVALUATOR names it for `served`, which runs under any.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpu_path import EVALUATOR, GPUS, RANK, ROWS

from finetune_operator.api.modelserve import ModelServeSpec
from finetune_operator.modelserve.engines import vllm
from finetune_trainer.contract.places import mounted_path

SHARE, PORT, READY_SECONDS = 0.12, 8100, 200  # of the card for each of the engines that are up together


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
    said["transformers"] = [a for batch in _batches(rows, 64, BATCH_ROWS) for a in judge._answers(batch)]
    found["transformers"] = _seconds(begun, loaded, len(rows))
    del judge

    begun = time.monotonic()
    scorer = VllmScorer(*arguments)
    engine = scorer._engine()
    loaded = time.monotonic()
    ids = scorer._generated(engine, rows)
    found["vllm"] = _seconds(begun, loaded, len(rows))
    engine.llm_engine.engine_core.shutdown()
    ends = arguments[2]
    said["vllm"] = [str(tokenizer.decode([t for t in one if t not in ends])).strip() for one in ids]
    found["same_beginnings"] = sum(a[:40] == b[:40] for a, b in zip(*said.values(), strict=True))
    return found


def _seconds(begun: float, loaded: float, rows: int) -> dict[str, float]:
    took = time.monotonic() - loaded
    return {"load_s": round(loaded - begun, 2), "answer_s": round(took, 2), "answers_per_second": round(rows / took, 1)}


def served(folder: Path) -> dict[str, Any]:
    """All engines at once, each with its share of the card."""
    adapter = _artifact(folder, "adapter")
    with contextlib.ExitStack() as stack:
        servers = {
            name: (stack.enter_context(_server(folder, name, _artifact(folder, name), PORT + number)), PORT + number)
            for number, name in enumerate(n for n in _facts(folder)["artifacts"] if n != "adapter")
        }
        port = PORT + len(servers)
        lora = ["--enable-lora", "--max-lora-rank", str(RANK)]
        servers["adapter"] = (stack.enter_context(_server(folder, "base", folder / "bench/model", port, *lora)), port)
        found: dict[str, Any] = {}
        for name, (process, port) in servers.items():
            seconds = _ready(process, port)
            if seconds is None:
                found[name] = {"failed": "the server did not come up", "log": str(folder / f"out/serve-{name}.log")}
                continue
            if name == "adapter":
                found["refused"] = _load_adapter(port, "absent", folder / "no-such-folder")
                found["loaded"] = _load_adapter(port, "adapter", adapter)
            found[name] = {"ready_s": seconds} | _ask(folder, name, port)
    return found


@contextlib.contextmanager
def _server(folder: Path, name: str, model: Path, port: int, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """`vllm serve` with the arguments that a ModelServe gives it, another port and a share of the card."""
    spec = ModelServeSpec.model_validate({"model": {"uri": "pvc://bench/model"}, "engine": {"type": "VLLM"}})
    launch = vllm.launch(spec, name)
    own = ["--gpu-memory-utilization", str(SHARE), "--max-model-len", "4096", *more]
    arguments = [str(model), *launch.args[1:], *own]
    arguments[arguments.index("--port") + 1] = str(port)
    command = [
        EVALUATOR,
        "-c",
        "import sys; from vllm.entrypoints.cli.main import main; sys.exit(main())",
        "serve",
        *arguments,
    ]
    environment = os.environ | launch.env | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with (folder / f"out/serve-{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _ready(process: subprocess.Popen[bytes], port: int) -> float | None:
    begun = time.monotonic()
    while time.monotonic() - begun < READY_SECONDS and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return round(time.monotonic() - begun, 1)
        time.sleep(1)
    return None


def _load_adapter(port: int, name: str, folder: Path) -> dict[str, Any]:
    body = json.dumps({"lora_name": name, "lora_path": str(folder)}).encode()
    url, headers = f"http://127.0.0.1:{port}/v1/load_lora_adapter", {"Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return {"status": answer.status, "said": answer.read().decode()[:300]}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "said": error.read().decode()[:300]}


def _ask(folder: Path, name: str, port: int) -> dict[str, Any]:
    """What a ModelServe's gate finds: test rows whose token ids and whose answers are the evaluation's."""
    subject = "merged" if name == "adapter" else name
    uri = _facts(folder)["artifacts"][subject]["evaluation"]
    prompts, termination = folder / "out/prompts.json", folder / f"out/ask-{name}.json"
    prompts.write_text(json.dumps([{"prompt": "What is 2 + 3?"}]))
    options = ["--url", f"http://127.0.0.1:{port}/v1", "--model", name, "--prompts", str(prompts), "--rows", uri]
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
    what, place = arguments
    folder = Path(place).resolve()
    found = rate(folder) if what == "rate" else served(folder)
    (folder / f"out/{what}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
