"""QLoRA throughput on one GPU: our trainer, plain TRL and Unsloth on the same rows, each in a process of its own.

    python benchmarks/h100.py make DIR [LAYERS]          Mistral-7B's shape, random weights; 6,000 rows of Dolly-like lengths
    python benchmarks/h100.py rows DIR                   the rows alone
    python benchmarks/h100.py ours DIR GIB [MICRO] [FIELD=VALUE…]    `finetune_trainer prepare` and `train`, told of GIB
    python benchmarks/h100.py trl DIR padded|packed|curve   a plain TRL script (h100_others.py)
    python benchmarks/h100.py unsloth DIR ROWS CHECKPOINTING
    python benchmarks/h100.py curve DIR                  our loss over 200 steps, to lay beside `trl DIR curve`
    python benchmarks/h100.py recompute DIR              each gradientCheckpointing off the fused path; made with 8 layers

Each prints one JSON line: tokens that carry loss per second over the steps after the fourth (ours after the twelfth), peak
memory, and the loss. LENGTH makes each row one document of so many tokens instead; BATCH is how many rows a step takes, STEPS
how many steps of ours there are.
The 4N limit of 7.24e9 parameters at the measured 795 TFLOP/s is 27,450 tokens a second (docs/training-speed.md).
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

USUAL, WORDS = 2048, 32000
LENGTH = int(os.environ.get("LENGTH", USUAL))
ROWS = 6000 if LENGTH == USUAL else 128
GPUS = 1
BATCH, STEPS = int(os.environ.get("BATCH", "8")), int(os.environ.get("STEPS", "24"))
WARM_UP, CURVE_STEPS = 4, 200
RECORDING = STEPS // 2  # of our steps: by then the layers' work is recorded for most lines of documents, some 0.3 s for each


def lengths() -> list[int]:
    """Log-normal with median 150 and sigma 0.9, from 16 to 2048 tokens: Dolly-15k's shape; or all of LENGTH."""
    if LENGTH != USUAL:
        return [LENGTH] * ROWS
    draw = random.Random(1)
    return [int(min(LENGTH, max(16, math.exp(draw.gauss(math.log(150), 0.9))))) for _ in range(ROWS)]


def make(folder: Path, layers: int = 32) -> None:
    """The model, of Mistral-7B's depth or less, and the rows."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = MistralForCausalLM(MistralConfig(sliding_window=None, num_hidden_layers=layers))
    model.save_pretrained(folder / "model", max_shard_size="4GB")
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + [f"w{i}" for i in range(4, WORDS)])}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder / "model")
    make_rows(folder)
    print(json.dumps({"made": sum(p.numel() for p in model.parameters())}))


def make_rows(folder: Path) -> None:
    """Words follow Zipf's law over 512 of the vocabulary's, so that there is something to learn."""
    draw = random.Random(2)
    weights = [1 / (i + 1) for i in range(512)]
    words = [f"w{4 + 61 * i}" for i in range(512)]
    with (folder / "rows.jsonl").open("w") as out:
        for length in lengths():
            out.write(json.dumps({"text": " ".join(draw.choices(words, weights, k=length - 1))}) + "\n")
    (folder / "test.jsonl").write_text(json.dumps({"text": " ".join(words[:32])}) + "\n")


# ── Ours: the very programs that the pods run ─────────────────────────────────────────────────────────────────────────


def ours(
    folder: Path, gib: float, micro: int | None, steps: int = STEPS, batch: int = BATCH, **training: Any
) -> dict[str, Any]:
    run = {
        "namespace": "bench",
        "name": f"gib-{gib:g}-{micro}-{steps}",
        "model": {"uri": "pvc://bench/model"},
        "dataset": {"uri": "pvc://bench/rows.jsonl", "format": "Text", "test": {"uri": "pvc://bench/test.jsonl"}},
        "training": {
            "packing": True,
            "maxLength": LENGTH,
            "maxSteps": steps,
            "seed": int(1000 * gib) + (micro or 0),  # another fingerprint, so that each run trains
            "globalBatchSize": batch,
            "learningRate": 1e-4,
            "microBatchSize": micro,
        }
        | training,
        "devices": {"gpus": GPUS, "memoryBytes": int(gib * 2**30)},
        "store": {"uri": "pvc://bench/store"},
    }
    mounts = folder / "mounts"
    (mounts / "claims").mkdir(parents=True, exist_ok=True)
    if not (mounts / "claims/bench").exists():
        (mounts / "claims/bench").symlink_to(folder.resolve())
    path = folder / f"{run['name']}.json"
    path.write_text(json.dumps(run))
    for step in ("prepare", "train"):
        result, lines = step_of(step, path, mounts, folder)
    facts, fit = result["train"], result["fit"]
    return rate(lines) | {
        "micro_batch": fit["microBatchSize"],
        "checkpointing": fit["gradientCheckpointing"],
        "predicted_gib": round(fit["predictedBytes"] / 2**30, 2),
        "peak_gib": round(facts["peakMemoryBytes"] / 2**30, 2),
        "losses": {line["step"]: round(line["loss"], 4) for line in lines if "loss" in line},
    }


def recompute(folder: Path) -> None:
    """What the fused path does not do, without gradient checkpointing and with either kind: one line for each."""
    recipes: dict[str, dict[str, Any]] = {
        "Full": {"method": "Full", "learningRate": 1e-5},
        "LoRA with dropout": {"method": "LoRA", "lora": {"dropout": 0.05}},
        "QLoRA with DoRA": {"lora": {"dora": True}},
    }
    shutil.rmtree(folder / "store", ignore_errors=True)  # of an earlier run, which would be all there is to tell
    for name, asked in recipes.items():
        for mode in ("Off", "Selective", "Full"):
            found = ours(folder, 78, 4, gradientCheckpointing=mode, **asked)
            print(json.dumps({"what": "recompute", "recipe": name} | found), flush=True)


def step_of(step: str, run: Path, mounts: Path, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run one step; its result and its readings while it trained. What else it says goes on to standard error."""
    environment = os.environ | {
        "FINETUNE_RUN_FILE": str(run),
        "FINETUNE_MOUNTS": str(mounts),
        "FINETUNE_SCRATCH": str(folder / "scratch"),
        "FINETUNE_TERMINATION_LOG": str(folder / "termination"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", step], env=environment, text=True, stdout=subprocess.PIPE, check=False
    )
    print(*(line for line in done.stdout.splitlines() if not line.startswith("{")), sep="\n", file=sys.stderr, flush=True)
    said = json.loads((folder / "termination").read_text())
    if done.returncode:
        raise SystemExit(f"{step} ended with {done.returncode}: {said.get('failure')}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"kind":"progress"')]
    return said["result"], [line for line in lines if line["activity"] == "training"]


def rate(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens with loss per second in the second half. The first reading tells when training began, each later one the mean
    rate since; a document's first token carries no loss."""
    start = lines[0]["time"]
    first, last = next(line for line in lines if line["step"] >= RECORDING), lines[-1]
    if first is last:
        raise SystemExit("the second half of the steps told of itself but once: give it more STEPS")
    tokens = [line["tokensPerSecond"] * (line["time"] - start) for line in (first, last)]
    with_loss = 1 - ROWS / sum(lengths())
    return {"tokens_per_second": round(with_loss * (tokens[1] - tokens[0]) / (last["time"] - first["time"]))}


def main(arguments: list[str]) -> None:
    import h100_others  # which takes this module's constants

    what, folder, *rest = arguments
    place = Path(folder)
    if what == "make":
        place.mkdir(parents=True, exist_ok=True)
        return make(place, int(rest[0]) if rest else 32)
    if what == "rows":
        return make_rows(place)
    if what == "recompute":
        return recompute(place)
    if what == "ours":
        fields: dict[str, Any] = dict(word.split("=", 1) for word in rest[1:] if "=" in word)  # of spec.training: method=LoRA
        if "products" in fields:
            fields["quantization"] = {"products": fields.pop("products")}
        if fields.get("method") == "Full":
            fields["learningRate"] = 1e-5
        found = ours(place, float(rest[0]), next((int(r) for r in rest[1:] if r.isdigit()), None), **fields)
    elif what == "curve":
        found = ours(place, 78, 1, steps=CURVE_STEPS, batch=1, seed=42)
    elif what == "trl":
        found = h100_others.trl(place, rest[0])
    else:
        found = h100_others.unsloth(place, int(rest[0]), rest[1])
    print(json.dumps({"what": " ".join([what, *rest])} | found), flush=True)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
