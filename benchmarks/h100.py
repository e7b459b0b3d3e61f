"""QLoRA throughput on one GPU: our trainer, plain TRL and Unsloth on the same rows, each in a process of its own.

    python benchmarks/h100.py make DIR [LAYERS]          Mistral-7B's shape, random weights; 6,000 rows of Dolly-like lengths
    python benchmarks/h100.py ours DIR GIB [MICRO]       `finetune_trainer prepare` and `train`, told the card has GIB of memory
    python benchmarks/h100.py trl DIR padded|packed|curve   a plain TRL script
    python benchmarks/h100.py unsloth DIR ROWS CHECKPOINTING
    python benchmarks/h100.py curve DIR                  our loss over 200 steps, to lay beside `trl DIR curve`
    python benchmarks/h100.py recompute DIR              each gradientCheckpointing off the fused path; made with 8 layers

Each prints one JSON line: tokens that carry loss per second over the steps after the fourth (ours after the twelfth), peak
memory, and the loss.
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
import time
from pathlib import Path
from typing import Any

LENGTH, ROWS, WORDS = 2048, 6000, 32000
GPUS = 1
WARM_UP, STEPS, CURVE_STEPS = 4, 24, 200
RECORDING = 12  # of our steps: by then the layers' work is recorded for most lines of documents, some 0.3 s for each kind


def lengths() -> list[int]:
    """Log-normal with median 150 and sigma 0.9, from 16 to 2048 tokens: Dolly-15k's shape."""
    draw = random.Random(1)
    return [int(min(LENGTH, max(16, math.exp(draw.gauss(math.log(150), 0.9))))) for _ in range(ROWS)]


def make(folder: Path, layers: int = 32) -> None:
    """The model, of Mistral-7B's depth or less, and the rows.

    Words follow Zipf's law over 512 of the vocabulary's, so that there is something to learn."""
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
    draw = random.Random(2)
    weights = [1 / (i + 1) for i in range(512)]
    words = [f"w{4 + 61 * i}" for i in range(512)]
    with (folder / "rows.jsonl").open("w") as out:
        for length in lengths():
            out.write(json.dumps({"text": " ".join(draw.choices(words, weights, k=length - 1))}) + "\n")
    (folder / "test.jsonl").write_text(json.dumps({"text": " ".join(words[:32])}) + "\n")
    print(json.dumps({"made": sum(p.numel() for p in model.parameters())}))


# ── Ours: the very programs that the pods run ─────────────────────────────────────────────────────────────────────────


def ours(folder: Path, gib: float, micro: int | None, steps: int = STEPS, batch: int = 8, **training: Any) -> dict[str, Any]:
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
    """Run one step; its result and its readings while it trained."""
    environment = os.environ | {
        "FINETUNE_RUN_FILE": str(run),
        "FINETUNE_MOUNTS": str(mounts),
        "FINETUNE_SCRATCH": str(folder / "scratch"),
        "FINETUNE_TERMINATION_LOG": str(folder / "termination"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", step], env=environment, text=True, stdout=subprocess.PIPE, check=False
    )
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
    tokens = [line["tokensPerSecond"] * (line["time"] - start) for line in (first, last)]
    with_loss = 1 - ROWS / sum(lengths())
    return {"tokens_per_second": round(with_loss * (tokens[1] - tokens[0]) / (last["time"] - first["time"]))}


# ── The others ────────────────────────────────────────────────────────────────────────────────────────────────────────


def token_rows(folder: Path) -> Any:
    """The same rows as token ids, end token included, as prepare renders them."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts = [json.loads(line)["text"] for line in (folder / "rows.jsonl").open()]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return tokenizer, Dataset.from_list([{"input_ids": [*row, tokenizer.eos_token_id]} for row in ids])


class Clock:
    """Counts a trainer's loss-carrying tokens and times its steps from outside."""

    def __init__(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        self.tokens: list[int] = []
        self.times: list[float] = []
        step, clock = trainer.training_step, self

        def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            clock.tokens.append(int((inputs["labels"] != -100).sum()))
            return step(model, inputs, *args, **kwargs)

        class OnStep(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                import torch

                torch.cuda.synchronize()
                clock.times.append(time.time())

        trainer.training_step = counted
        trainer.add_callback(OnStep())

    def report(self, trainer: Any) -> dict[str, Any]:
        import torch

        seconds = self.times[-1] - self.times[WARM_UP - 1]
        return {
            "tokens_per_second": round(sum(self.tokens[WARM_UP:]) / seconds),
            "peak_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
            "losses": {e["step"]: round(e["loss"], 4) for e in trainer.state.log_history if "loss" in e},
        }


def trl(folder: Path, kind: str) -> dict[str, Any]:
    """What a careful user of TRL writes: NF4, double quantization, bf16, all linear layers, checkpointing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    tokenizer, rows = token_rows(folder)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", quantization_config=nf4, dtype=torch.bfloat16, device_map={"": 0}, attn_implementation="sdpa"
    )
    torch.manual_seed(42)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=CURVE_STEPS if kind == "curve" else WARM_UP + 8,
        per_device_train_batch_size={"padded": 8, "packed": 4, "curve": 1}[kind],
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        warmup_steps=int(0.03 * CURVE_STEPS) if kind == "curve" else 0,
        bf16=True,
        max_length=LENGTH,
        packing=kind != "padded",
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=42,
    )
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    clock = Clock(trainer)
    trainer.train()
    return clock.report(trainer)


def unsloth(folder: Path, rows_per_step: int, checkpointing: str) -> dict[str, Any]:
    """Unsloth as installed, packed."""
    from unsloth import FastLanguageModel  # isort: skip - it patches the libraries that are imported after it

    import torch
    from trl import SFTConfig, SFTTrainer

    tokenizer, rows = token_rows(folder)
    model, _ = FastLanguageModel.from_pretrained(
        str(folder / "model"), max_seq_length=LENGTH, dtype=torch.bfloat16, load_in_4bit=True, local_files_only=True
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    mode: Any = {"unsloth": "unsloth", "full": True, "off": False}[checkpointing]
    options = {"r": 16, "lora_alpha": 32, "lora_dropout": 0, "bias": "none", "target_modules": targets}
    model = FastLanguageModel.get_peft_model(model, use_gradient_checkpointing=mode, **options)
    arguments = SFTConfig(
        output_dir=str(folder / "unsloth"),
        max_steps=WARM_UP + 12,
        per_device_train_batch_size=rows_per_step,
        learning_rate=1e-4,
        bf16=True,
        max_length=LENGTH,
        packing=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataset_num_proc=1,
    )
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    clock = Clock(trainer)
    trainer.train()
    return clock.report(trainer)


def main(arguments: list[str]) -> None:
    what, folder, *rest = arguments
    place = Path(folder)
    if what == "make":
        place.mkdir(parents=True, exist_ok=True)
        return make(place, int(rest[0]) if rest else 32)
    if what == "recompute":
        return recompute(place)
    if what == "ours":
        found = ours(place, float(rest[0]), int(rest[1]) if len(rest) > 1 else None)
    elif what == "curve":
        found = ours(place, 78, 1, steps=CURVE_STEPS, batch=1, seed=42)
    elif what == "trl":
        found = trl(place, rest[0])
    else:
        found = unsloth(place, int(rest[0]), rest[1])
    print(json.dumps({"what": " ".join([what, *rest])} | found), flush=True)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
