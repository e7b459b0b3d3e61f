"""The trainer on CPUs, in ratios: packed against padded rows, our trainer against plain TRL, each later step against `cp`.

    python benchmarks/trainer_cpu.py [DIR]

The first part trains a small Llama on rows of Dolly-like lengths; what runs are the programs that the pods run, and beside them
a plain TRL script, each in a process of its own, one after the other. The second part takes SmolLM2-135M (CONTRIBUTING.md says
how the local hub is made) through merge, GGUF and evaluation, and holds the seconds of each against `cp` of the same bytes.
Absolute figures are this machine's; the ratios are what to look at. Takes five minutes at most on two cores.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
ROWS, LENGTH, WORDS, BATCH = 96, 1024, 2048, 8
FACTS = [(f"What grows on hill {n}?", f"On hill {n} grows the tree number {7 * n % 13}.") for n in range(24)]


# ── What is trained on what ───────────────────────────────────────────────────────────────────────────────────────────


def lengths() -> list[int]:
    """Log-normal with median 150 and sigma 0.9, from 16 tokens on, cut at LENGTH: Dolly-15k's shape."""
    draw = random.Random(1)
    return [int(min(LENGTH, max(16, math.exp(draw.gauss(math.log(150), 0.9))))) for _ in range(ROWS)]


def make(folder: Path) -> None:
    """A random Llama of 4 million parameters, a tokenizer of whole words, and the rows."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}
    config = LlamaConfig(vocab_size=WORDS, num_key_value_heads=4, tie_word_embeddings=True, **shape)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    words = special + [f"w{i}" for i in range(4, WORDS)]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder / "model")
    draw = random.Random(2)
    rows = [{"text": " ".join(draw.choices(words[4:], k=length - 1))} for length in lengths()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text(json.dumps({"text": " ".join(words[4:36])}) + "\n")


# ── The programs that the pods run ────────────────────────────────────────────────────────────────────────────────────


def steps(folder: Path, run: dict[str, Any], names: list[str]) -> dict[str, tuple[float, dict[str, Any], str]]:
    """Seconds, result and output of each step of a run."""
    (folder / "mounts/claims").mkdir(parents=True, exist_ok=True)
    if not (folder / "mounts/claims/bench").exists():
        (folder / "mounts/claims/bench").symlink_to(folder.resolve())
    (folder / "run.json").write_text(json.dumps({"namespace": "bench", "name": "cpu", "devices": {"gpus": 0}} | run))
    environment = os.environ | {
        "FINETUNE_RUN_FILE": str(folder / "run.json"),
        "FINETUNE_MOUNTS": str(folder / "mounts"),
        "FINETUNE_SCRATCH": str(folder / "scratch"),
        "FINETUNE_TERMINATION_LOG": str(folder / "termination"),
        "PYTHONPATH": str(ROOT / "trainer_image"),
    }
    environment.setdefault("LLAMA_CPP_DIR", str(CACHE / "llama.cpp"))
    done = {}
    for name in names:
        began = time.monotonic()
        command = [sys.executable, "-m", "finetune_trainer", name]
        ended = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=False)
        said = json.loads((folder / "termination").read_text())
        if ended.returncode:
            raise SystemExit(f"{name} ended with {ended.returncode}: {said.get('failure')}")
        done[name] = (time.monotonic() - began, said["result"], ended.stdout)
    return done


def ours(folder: Path, **training: Any) -> float:
    """Tokens per second, padding not counted, over all steps of one pass over the rows."""
    run = {
        "model": {"uri": "pvc://bench/model"},
        "dataset": {"uri": "pvc://bench/rows.jsonl", "format": "Text", "test": {"uri": "pvc://bench/test.jsonl"}},
        "training": {"method": "LoRA", "maxLength": LENGTH, "epochs": 1, "learningRate": 1e-4, "seed": 1} | training,
        "store": {"uri": f"pvc://bench/store-{training['packing']}"},
    }
    _, result, output = steps(folder, run, ["prepare", "train"])["train"]
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"kind":"progress"')]
    trained = [line for line in lines if line["activity"] == "training"]
    return float(result["train"]["tokens"] / (trained[-1]["time"] - trained[0]["time"]))


def trl(folder: Path) -> None:
    """A plain TRL script over the same rows; prints its tokens per second. Run in a process of its own."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    texts = [json.loads(line)["text"] for line in (folder / "rows.jsonl").open()]
    rows = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
    times = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            times.append(time.monotonic())

    arguments = SFTConfig(
        output_dir=str(folder / "trl"),
        model_init_kwargs={"dtype": torch.float32},
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-4,
        max_length=LENGTH,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        seed=1,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    data = Dataset.from_dict({"input_ids": rows})
    trainer = SFTTrainer(
        model=str(folder / "model"), args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=lora
    )
    trainer.add_callback(Clock())
    trainer.train()
    print(json.dumps({"tokens_per_second": sum(map(len, rows)) / (times[1] - times[0])}))


# ── The steps after training ──────────────────────────────────────────────────────────────────────────────────────────


def later_steps(folder: Path) -> list[tuple[str, float, float]]:
    """Name, seconds and bytes of merge, GGUF and evaluation of SmolLM2-135M."""
    (folder / "facts.jsonl").write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in FACTS))
    shutil.copytree(CACHE / "hub" / SMOLLM, folder / "smollm")
    run = {
        "model": {"uri": "pvc://bench/smollm"},
        "dataset": {"uri": "pvc://bench/facts.jsonl", "test": {"fraction": 0.25, "seed": 1}},
        "training": {"method": "LoRA", "maxSteps": 8, "globalBatchSize": 4, "maxLength": 64, "learningRate": 5e-4},
        "artifacts": [{"name": "q8", "format": "GGUF", "quantization": "Q8_0"}],
        "generation": {"samples": 6, "maxNewTokens": 16},
        "store": {"uri": "pvc://bench/store-smollm"},
    }
    done = steps(folder, run, ["prepare", "train", "merge", "quantize-q8", "evaluate", "evaluate-q8"])
    merged = done["merge"][1]["artifact"]["bytes"]
    gguf = done["quantize-q8"][1]["artifact"]["bytes"]
    return [
        ("merge, proof included", done["merge"][0], merged),
        ("GGUF Q8_0, proof included", done["quantize-q8"][0], merged),
        ("evaluate base and merged, 6 rows", done["evaluate"][0], 2 * merged),
        ("evaluate GGUF, 6 rows", done["evaluate-q8"][0], gguf),
    ]


def copying(folder: Path) -> float:
    """Seconds per byte of `cp` of the model's weights, the best of three."""
    weights = folder / "smollm/model.safetensors"
    taken = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run(["cp", str(weights), str(folder / "copy")], check=True)
        taken.append(time.monotonic() - began)
    return min(taken) / weights.stat().st_size


def starting() -> float:
    """Seconds that Python takes to import what a step imports."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, transformers, peft, trl, datasets, bitsandbytes"], check=True)
    return time.monotonic() - began


def main(folder: Path) -> None:
    """Run everything and print the two tables."""
    make(folder)
    padded = ours(folder, packing=False, globalBatchSize=BATCH, microBatchSize=BATCH)
    packed = ours(folder, packing=True, globalBatchSize=2, microBatchSize=1)
    command = [sys.executable, __file__, str(folder), "trl"]
    plain = json.loads(subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
    print("| training, tokens a second | against |\n| --- | --- |")
    print(f"| ours, padded | {padded / plain['tokens_per_second']:.2f} x plain TRL, padded |")
    print(f"| ours, packed to {LENGTH} | {packed / padded:.2f} x ours, padded |")
    print(f"| ours, packed to {LENGTH} | {packed / plain['tokens_per_second']:.2f} x plain TRL, padded |", flush=True)
    if not (CACHE / "hub" / SMOLLM).is_dir() or not (CACHE / "llama.cpp/bin").is_dir():
        print("SmolLM2 or llama.cpp is missing: `make demo` or `make test` leaves both; the steps after training were not run")
        return
    found, start = later_steps(folder), starting()
    copy = copying(folder)
    print("\n| step | s per GB | x `cp` | x `cp`, imports apart |\n| --- | --- | --- | --- |")
    for name, seconds, size in found:
        each, apart = seconds / size, max(seconds - start, 0) / size
        print(f"| {name} | {each * 1e9:.0f} | {each / copy:.0f} | {apart / copy:.0f} |")
    print(f"\n`cp`: {copy * 1e9:.2f} s per GB; imports: {start:.1f} s of each step")


if __name__ == "__main__":
    if sys.argv[2:] == ["trl"]:
        trl(Path(sys.argv[1]))
    elif len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
