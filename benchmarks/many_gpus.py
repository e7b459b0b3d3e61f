"""Every strategy of training on several GPUs of one machine, beside one GPU on the same rows: loss, speed, peak.

    python benchmarks/many_gpus.py make DIR [LAYERS]       layers of Mistral-7B's shape with random weights (8: 2 billion)
    python benchmarks/many_gpus.py run DIR GPUS RECIPE…    recipes: one line of JSON for each; `all` for all of them
    python benchmarks/many_gpus.py resume DIR GPUS RECIPE  stopped after four steps and started again

What trains is `finetune_trainer prepare` and `train`, as in the pods. BATCH and MICRO tell how many rows a step and a
micro-batch have.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from h100 import make, rate, step_of

STEPS, LENGTH = 24, 2048
BATCH, MICRO = int(os.environ.get("BATCH", "8")), int(os.environ.get("MICRO", "2"))
RECIPES: dict[str, dict[str, Any]] = {
    f"{method}-{strategy}": {"method": method, "strategy": strategy}
    for method, strategies in {
        "QLoRA": ("one", "DDP", "FSDP", "ZeRO2", "ZeRO3"),
        "LoRA": ("one", "DDP", "FSDP", "ZeRO2", "ZeRO3"),
        "Full": ("one", "FSDP", "ZeRO2", "ZeRO3"),
        "DPO": ("one", "DDP"),
    }.items()
    for strategy in strategies
}


def make_all(folder: Path, layers: int) -> None:
    """The model and its rows, and rows of preferences beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    make(folder, layers)
    draw = random.Random(3)
    words = [f"w{4 + 61 * i}" for i in range(512)]

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length))

    with (folder / "pairs.jsonl").open("w") as out:
        for _ in range(64):
            out.write(json.dumps({"prompt": text(64) + " ", "chosen": text(200), "rejected": text(200)}) + "\n")


def config(folder: Path, gpus: int, recipe: str, **training: Any) -> Path:
    """The run's file."""
    asked = RECIPES[recipe]
    alone, pairs = asked["strategy"] == "one", asked["method"] == "DPO"
    devices = {"gpus": 1 if alone else gpus, "memoryBytes": 78 << 30}
    what = {"objective": "DPO", "method": "QLoRA"} if pairs else {"method": asked["method"], "packing": True}
    rows = (
        {"uri": "pvc://bench/pairs.jsonl"} if pairs else {"uri": "pvc://bench/rows.jsonl", "format": "Text", "maxSamples": 1500}
    )
    run = {
        "namespace": "bench",
        "name": recipe.lower(),
        "model": {"uri": "pvc://bench/model"},
        "dataset": rows | {"test": {"fraction": 0.05}},
        "training": {
            "maxLength": LENGTH,
            "maxSteps": STEPS,
            "globalBatchSize": BATCH,
            "microBatchSize": MICRO,
            "learningRate": 1e-5 if asked["method"] == "Full" else 1e-4,
        }
        | what
        | training,
        "devices": devices if alone else devices | {"strategy": asked["strategy"]},
        "store": {"uri": f"pvc://bench/store-{recipe.lower()}"},
    }
    mounts = folder / "mounts"
    (mounts / "claims").mkdir(parents=True, exist_ok=True)
    if not (mounts / "claims/bench").exists():
        (mounts / "claims/bench").symlink_to(folder.resolve())
    path = folder / f"{recipe.lower()}.json"
    path.write_text(json.dumps(run))
    prepared = folder / f"prepared-{'pairs' if pairs else 'rows'}"
    store = folder / f"store-{recipe.lower()}"
    shutil.rmtree(store, ignore_errors=True)
    if prepared.is_dir():
        shutil.copytree(prepared, store)
    else:
        step_of("prepare", path, mounts, folder)
        shutil.copytree(store, prepared)
    return path


def train(folder: Path, gpus: int, recipe: str) -> dict[str, Any]:
    """One run from rows to adapter; a failure is a result as well."""
    begun = time.monotonic()
    try:
        path = config(folder, gpus, recipe)
        result, lines = step_of("train", path, folder / "mounts", folder)
    except SystemExit as failed:
        return {"failed": str(failed)[:400]}
    facts, fit = result["train"], result["fit"]
    return rate(lines) | {
        "losses": {line["step"]: round(line["loss"], 4) for line in lines if "loss" in line},
        "peak_gib": round(facts["peakMemoryBytes"] / 2**30, 2),
        "predicted_gib": round(fit["predictedBytes"] / 2**30, 2),
        "ranks": facts.get("worldSize", 1),
        "seconds": round(time.monotonic() - begun),
    }


def resume(folder: Path, gpus: int, recipe: str) -> dict[str, Any]:
    """Stop the pod after a few steps, as the kubelet does, and start its next attempt."""
    path = config(folder, gpus, recipe, checkpoint={"everySteps": 2})
    environment = os.environ | {
        "FINETUNE_RUN_FILE": str(path),
        "FINETUNE_MOUNTS": str(folder / "mounts"),
        "FINETUNE_SCRATCH": str(folder / "scratch"),
        "FINETUNE_TERMINATION_LOG": str(folder / "termination"),
    }
    pod = subprocess.Popen(
        [sys.executable, "-m", "finetune_trainer", "train"], env=environment, text=True, stdout=subprocess.PIPE
    )
    assert pod.stdout is not None
    for line in pod.stdout:
        if line.startswith('{"kind":"progress"') and "loss" in line and json.loads(line)["step"] >= 4:
            pod.send_signal(signal.SIGTERM)
            break
    pod.communicate()
    result, lines = step_of("train", path, folder / "mounts", folder)
    return {
        "stopped_with": pod.returncode,
        "resumed_from": result["train"]["resumedFromStep"],
        "losses": {line["step"]: round(line["loss"], 4) for line in lines if "loss" in line},
    }


def main(arguments: list[str]) -> None:
    what, folder, *rest = arguments
    place = Path(folder)
    if what == "make":
        return make_all(place, int(rest[0]) if rest else 8)
    gpus, *recipes = rest
    for recipe in RECIPES if recipes == ["all"] else recipes:
        found = resume(place, int(gpus), recipe) if what == "resume" else train(place, int(gpus), recipe)
        print(json.dumps({"what": what, "recipe": recipe} | found), flush=True)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
