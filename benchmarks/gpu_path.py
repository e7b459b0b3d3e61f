"""The whole path of one job on a GPU, by the code of `finetune run --local`, and what a served model makes of its artifacts.

    python benchmarks/gpu_path.py make DIR MODEL ROWS     a model's folder and rows of questions and answers, laid out in DIR
    python benchmarks/gpu_path.py all DIR                 every part below, each a process of its own with its own limit
    python benchmarks/gpu_path.py PART DIR

machine   what the card and its driver are, with the fields that metrics of a GPU are made of
job       prepare, QLoRA, merge, FP8, W4A16, AWQ, NF4, evaluation by vLLM
rate      answers a second of vLLM and of transformers over the job's test rows
served    each artifact and the adapter by `vllm serve` as a ModelServe starts it, held against the evaluation's answers
memory    training whose card holds less than it was told: smaller micro-batches, the same losses
stopped   training that SIGTERM ends within a step: the same losses when it is started again

DIR/out has a log and a JSON file for each. QUANTIZER and EVALUATOR name the Pythons that stand for those
images, GIB the memory that the job is told, ROWS how many test rows are answered, LENGTH and GPUS are for a rehearsal on CPUs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune_operator.cli import local
from finetune_operator.cli.document import read_document
from finetune_operator.cli.pythons import Pythons
from finetune_operator.cli.workdir import Given, prepare_workdir
from finetune_operator.finetunejob.runs import current_run
from finetune_trainer.contract.reports import Progress

LIMITS = {"machine": 30, "job": 900, "rate": 200, "served": 1200, "memory": 120, "stopped": 120}  # seconds
GIB, ROWS = float(os.environ.get("GIB", "78")), int(os.environ.get("ROWS", "200"))
GPUS = int(os.environ.get("GPUS", "1"))
PYTHONS = Pythons(os.environ.get("QUANTIZER", ""), os.environ.get("EVALUATOR", ""))
EVALUATOR = PYTHONS.evaluator or sys.executable
ANSWERS = str(Path(__file__).with_name("gpu_answers.py"))
PROGRAMS = {"rate": (EVALUATOR, ANSWERS), "served": (sys.executable, ANSWERS)}
ARTIFACTS = {"fp8": "FP8", "w4a16": "W4A16", "awq": "AWQ", "nf4": "NF4"}
STOPPED_AT, STEPS, BATCH, RANK = 10, 40, 16, 16
LENGTH, EPOCHS = int(os.environ.get("LENGTH", "2048")), 4
FIELDS = (
    "name,driver_version,pstate,utilization.gpu,utilization.memory,memory.total,memory.used,temperature.gpu,temperature.memory"
    ",power.draw,power.limit,clocks.sm,clocks.mem,clocks_event_reasons.active,ecc.errors.corrected.volatile.total"
    ",ecc.errors.uncorrected.volatile.total,remapped_rows.pending,remapped_rows.failure,pcie.link.gen.current"
    ",pcie.link.width.current,mig.mode.current"
)


def make(folder: Path, model: Path, rows: Path) -> None:
    """Every fifth row is a test row, as far as they are wanted."""
    claim = folder / "bench"
    claim.mkdir(parents=True, exist_ok=True)
    (claim / "model").symlink_to(model.resolve())
    lines = rows.read_text().splitlines()
    test = lines[::5][:ROWS]
    (claim / "test.jsonl").write_text("\n".join(test) + "\n")
    (claim / "train.jsonl").write_text("\n".join(line for line in lines if line not in set(test)) + "\n")


# ── One job ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Told:
    """What a job said on its way."""

    readings: list[Progress] = dataclasses.field(default_factory=list)
    again: list[str] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def losses(self) -> dict[int, float]:
        return {r.step: r.loss for r in self.readings if r.loss is not None}


class Enough(Exception):
    """The last step that was wanted has ended."""


def run(
    folder: Path,
    name: str,
    more: dict[str, Any],
    last: str = "",
    heard: Callable[[Progress], None] | None = None,
    told: Told | None = None,
) -> Any:
    """A job through `finetune run --local`'s own code, up to the step `last`; what it said, and its status at the end."""
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(_job(name, more)))  # JSON is YAML
    document = read_document(file)
    ran, _ = current_run(document.job)
    told, begun = told or Told(), time.monotonic()

    def progress(reading: Progress) -> None:
        told.readings.append(reading)
        if heard is not None:
            heard(reading)

    def ended(step: Any, state: Any) -> None:
        told.seconds[step.name] = round(time.monotonic() - begun, 1)
        print(f"{step.name}: {state} after {told.seconds[step.name]} s", flush=True)
        if step.name == last:
            raise Enough

    def again(_step: Any, why: str) -> None:
        told.again.append(why)

    given = Given(claims={"bench": folder / "bench"}, secrets={}, pythons=PYTHONS)
    workdir = prepare_workdir(document, ran, folder / name, given)
    watcher = local.Watcher(lambda step: print(f"{step.name}: started", flush=True), progress, again, ended, print)
    try:
        return told, local.run_locally(document, workdir, watcher).status
    except Enough:
        return told, None
    except local.StepStopped as stop:
        print(f"{stop.log.read_text()[-6000:]}\n{stop.step} failed: {stop.reason}: {stop.message}", flush=True)
        raise


def _job(name: str, more: dict[str, Any]) -> dict[str, Any]:
    spec = {
        "model": {"uri": "pvc://bench/model"},
        "dataset": {
            "uri": "pvc://bench/train.jsonl",
            "columns": {"prompt": "question", "completion": "answer"},
            "test": {"uri": "pvc://bench/test.jsonl"},
        },
        "parallelism": {"gpusPerNode": GPUS} | ({"gpu": {"memory": f"{GIB:g}Gi"}} if GPUS else {}),
    }
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec | more}


def _training(**more: Any) -> dict[str, Any]:
    lora = {"rank": RANK, "alpha": 2 * RANK}
    return {"method": "QLoRA", "packing": True, "maxLength": LENGTH, "learningRate": 3e-4, "lora": lora} | more


def job(folder: Path) -> dict[str, Any]:
    """An artifact that can't be made or scored is left out, and why is told: nothing else is done again."""
    evaluation = {"engine": "VLLM" if GPUS else "Transformers", "samples": ROWS, "maxNewTokens": 64}
    training = _training(globalBatchSize=4, epochs=EPOCHS)
    left, failed, told = dict(ARTIFACTS), dict[str, str](), Told()
    status = None
    while status is None:
        made = [
            {"name": name, "format": "BitsAndBytes" if q == "NF4" else "CompressedTensors", "quantization": q}
            for name, q in left.items()
        ]
        try:
            _, status = run(folder, "path", {"training": training, "artifacts": made, "evaluation": evaluation}, told=told)
        except local.StepStopped as stop:
            name = (
                (stop.step if stop.step.startswith("quantize") else told.readings[-1].activity)
                .split("quantize-")[-1]
                .split()[-1]
            )
            if name not in left:
                raise
            failed[name] = stop.message
            del left[name]
    return {
        "failed": failed,
        "seconds": told.seconds,
        "losses": told.losses,
        "tokensPerSecond": next((r.tokens_per_second for r in reversed(told.readings) if r.tokens_per_second), None),
        "fit": status.fit.model_dump(mode="json", exclude={"terms"}),
        "scores": {s.subject: s.values | {"engine": s.engine} for s in status.scores},
        "artifacts": {a.name: a.model_dump(mode="json") for a in status.artifacts},
    }


# ── What goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────────


def memory(folder: Path) -> dict[str, Any]:
    """Something else holds the card's memory but for two thirds of what the micro-batch was seen to take."""
    spec = {"training": _training(globalBatchSize=BATCH, maxSteps=STEPS)}
    unbroken, _ = run(folder, "unbroken", spec, last="train")
    peak = _trained(folder, "unbroken")["unbroken"]["peakMemoryBytes"]
    with _held(peak * 2 // 3):
        short, _ = run(folder, "short", spec, last="train")
    told = {"peak_gib": round(peak / 2**30, 2), "again": short.again}
    return told | _trained(folder, "unbroken", "short") | _beside(unbroken, short)


@contextlib.contextmanager
def _held(left: int) -> Iterator[None]:
    """All of the GPU's memory but `left` bytes, by a process of its own."""
    take = f"import torch, sys; f, _ = torch.cuda.mem_get_info(); x = torch.empty(f - {left}, dtype=torch.uint8, device='cuda')"
    command = [sys.executable, "-c", f"{take}; print('held', flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield
        finally:
            holder.kill()


def stopped(folder: Path) -> dict[str, Any]:
    """SIGTERM while the step after STOPPED_AT is at work."""
    spec = {"training": _training(globalBatchSize=BATCH, maxSteps=STEPS)}
    unbroken, _ = run(folder, "unbroken", spec, last="train")
    if not unbroken.losses:  # it was there already
        shutil.rmtree(folder / "unbroken")
        unbroken, _ = run(folder, "unbroken", spec, last="train")

    stops: list[int] = []

    def stop(reading: Progress) -> None:
        if reading.loss is not None and reading.step >= STOPPED_AT and not stops:
            stops.append(reading.step)
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        run(folder, "stopped", spec, last="train", heard=stop)
        raise SystemExit("SIGTERM did not end it")
    except local.Interrupted as said:
        ended = str(said)
    resumed, _ = run(folder, "stopped", spec, last="train")
    return {"ended_by": ended, "after_step": stops[0]} | _trained(folder, "unbroken", "stopped") | _beside(unbroken, resumed)


def _beside(unbroken: Told, other: Told) -> dict[str, Any]:
    """Losses of the steps that both reported: a reading is written every two seconds at most."""
    pairs = {step: (unbroken.losses[step], loss) for step, loss in other.losses.items() if step in unbroken.losses}
    return {"losses": pairs, "largest_difference": max((abs(a - b) for a, b in pairs.values()), default=None)}


def _trained(folder: Path, *names: str) -> dict[str, Any]:
    """The mean loss over the last tenth of a training's steps, the first row's loss after them, and where it began."""
    found: dict[str, Any] = {}
    for name in names:
        (file,) = (folder / name).glob(f"mounts/claims/{name}-artifacts/{name}/train/*/manifest.json")
        manifest = json.loads(file.read_text())
        train = manifest["result"]["train"]
        found[name] = {key: train[key] for key in ("loss", "resumedFromStep", "peakMemoryBytes")} | manifest["inputs"]
    return found


def machine(_folder: Path) -> dict[str, Any]:
    """The card, and the fields of which the metrics of dcgm-exporter are made."""
    query = subprocess.run(["nvidia-smi", f"--query-gpu={FIELDS}", "--format=csv,noheader"], capture_output=True, text=True)
    known = ("torch", "transformers", "trl", "peft", "bitsandbytes", "liger-kernel", "datasets")
    return {
        "fields": dict(zip(FIELDS.split(","), query.stdout.strip().split(", "), strict=False)),
        "said": query.stderr[-500:],
        "versions": {name: importlib.metadata.version(name) for name in known},
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "machine": machine,
    "job": job,
    "memory": memory,
    "stopped": stopped,
}


def every(folder: Path, parts: list[str]) -> None:
    """Each part on its own, so that one that fails takes nothing with it."""
    for part in parts:
        begun = time.monotonic()
        with (folder / f"out/{part}.log").open("w") as log:
            python, file = PROGRAMS.get(part, (sys.executable, __file__))
            command = ["timeout", "--kill-after=10", str(LIMITS[part]), python, file, part, str(folder)]
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        found = folder / f"out/{part}.json"
        print(f"== {part}: exit {code} after {time.monotonic() - begun:.0f} s", flush=True)
        print(found.read_text() if found.is_file() else (folder / f"out/{part}.log").read_text()[-1500:], flush=True)


def main(arguments: list[str]) -> None:
    what, place, *rest = arguments
    folder = Path(place).resolve()
    (folder / "out").mkdir(parents=True, exist_ok=True)
    if what == "make":
        make(folder, Path(rest[0]), Path(rest[1]))
    elif what == "all":
        every(folder, rest or list(LIMITS))
    else:
        (folder / f"out/{what}.json").write_text(json.dumps(PARTS[what](folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
