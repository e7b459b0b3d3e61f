"""What our trainer is held against on the rows of h100.py: plain TRL, and Unsloth."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from h100 import CURVE_STEPS, LENGTH, STEPS, WARM_UP

OTHERS_STEPS = min(12, STEPS // 2)  # after the first ones


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

        self.tokens: list[int] = []  # of each step
        self.times: list[float] = []
        self._counted = 0  # of the micro-batches since the last step
        step, clock = trainer.training_step, self

        def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            clock._counted += int((inputs["labels"] != -100).sum())
            return step(model, inputs, *args, **kwargs)

        class OnStep(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                import torch

                torch.cuda.synchronize()
                clock.times.append(time.time())
                clock.tokens.append(clock._counted)
                clock._counted = 0

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
        max_steps=CURVE_STEPS if kind == "curve" else WARM_UP + OTHERS_STEPS,
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
        max_steps=WARM_UP + OTHERS_STEPS,
        per_device_train_batch_size=rows_per_step,
        gradient_accumulation_steps=1,  # its own default is 2
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
