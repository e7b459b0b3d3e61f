"""Merge: add the adapter to the base's weights, check that the result answers alike, save it in BF16.

    mergeBase      weights that the adapter is added to
    Dequantized    what it was trained on: the NF4 base expanded, so that the merged model is the trained one
    Original       the base as it was fetched; for LoRA the two are the same

Never merged in 4 bits: the sum, rounded to NF4 again, would be another model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from finetune_trainer.context import Context
from finetune_trainer.contract import ArtifactFacts, Method, StepResult
from finetune_trainer.libraries import quieten
from finetune_trainer.pipeline import MERGED, TRAIN

# Mean KL divergence in nats. What remains is rounding to BF16; measured: 6e-6 on tiny models, 5e-4 on SmolLM2-135M.
LIMIT = 5e-3
# Another base plus the same difference: the 4-bit rounding of every weight. It guards against a broken merge only.
ORIGINAL_BASE_LIMIT = 0.5
ROWS = 2


def run(context: Context) -> StepResult:
    """Merge, verify and commit. Raises StepFailed VerificationFailed when the merged model answers differently."""
    done = context.committed()
    if done is not None:
        return done
    quieten()
    from finetune_trainer import card, model, verify

    trained, trained_folder = context.output(TRAIN)
    assert trained.result.train is not None
    _, base_folder = context.model()
    folder = context.scratch / "output"
    if context.run.training.method is Method.FULL:
        shutil.copytree(trained_folder, folder)
    else:
        context.progress("merging")
        adapted = _load_adapted(context, base_folder, trained_folder)
        rows = _rows(context)
        expected = [_logits(adapted, tokens) for tokens in rows]
        _merge(context, adapted, base_folder).save_pretrained(folder)
        del adapted
        context.progress("verifying")
        merged = model.load_base(folder, Method.LORA, _cpu())
        value = max(verify.divergence(e, _logits(merged, tokens)) for e, tokens in zip(expected, rows, strict=True))
        verify.check_divergence("the merged model", value, _limit(context))
        print(f"merged model against adapter: mean KL divergence {value:.2g}", flush=True)
    _complete(folder, trained_folder, base_folder)
    card.write(folder, context, trained.result.train)
    made = ArtifactFacts(name=MERGED, format="Safetensors", path="", digest="", bytes=0)  # the store fills the rest in
    result = StepResult(step=context.step.name, fingerprint=context.fingerprint(context.step.name), artifact=made)
    return context.commit(folder, result, {TRAIN: trained.fingerprint})


def _cpu() -> Any:
    """Merging needs no GPU, and float32 adds no rounding of its own."""
    import torch

    from finetune_trainer.model import Compute

    return Compute("cpu", torch.float32)


def _limit(context: Context) -> float:
    other_base = context.run.training.method is Method.QLORA and context.run.merge_base == "Original"
    return ORIGINAL_BASE_LIMIT if other_base else LIMIT


def _load_adapted(context: Context, base: Path, adapter: Path) -> Any:
    """The model as it was trained: the base in the training's format, with the adapter beside it."""
    from peft import PeftModel

    from finetune_trainer.model import load_base

    network = load_base(base, context.run.training.method, _cpu())
    return PeftModel.from_pretrained(network, str(adapter)).eval()


def _merge(context: Context, adapted: Any, base_folder: Path) -> Any:
    """A dense BF16 model: each weight summed in float32 and rounded once."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from peft.tuners.lora import LoraLayer

    from finetune_trainer.model import Compute, load_base

    merged = load_base(base_folder, Method.LORA, Compute("cpu", torch.bfloat16))
    dequantized = context.run.merge_base == "Dequantized"
    for path, module in adapted.get_base_model().named_modules():
        adapts = isinstance(module, LoraLayer)
        layer = module.get_base_layer() if adapts else module
        is_nf4 = isinstance(layer, Linear4bit)
        if not adapts and not (is_nf4 and dequantized and not path.endswith("base_layer")):
            continue
        target = merged.get_submodule(path).weight
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state) if is_nf4 and dequantized else target.data
        total = weight.float()
        target.data = (_with_adapter(module, total) if adapts else total).to(torch.bfloat16)
    return merged


def _with_adapter(layer: Any, weight: Any) -> Any:
    """The frozen weight (out, in) and its adapter in one, float32; DoRA gives each row the length that it trained."""
    total = weight + layer.get_delta_weight("default").float()
    if layer.use_dora.get("default"):
        lengths = layer.lora_magnitude_vector["default"].weight.float()
        total *= (lengths / total.norm(dim=1)).unsqueeze(1)
    return total


def _rows(context: Context) -> list[Any]:
    """Token ids of the first rows to train on, each (1, tokens)."""
    import torch

    _, folder = context.data()
    with (folder / "train.jsonl").open() as lines:
        read = [json.loads(line) for line, _ in zip(lines, range(ROWS), strict=False)]
    return [torch.tensor([row["input_ids"]]) for row in read]


def _logits(network: Any, tokens: Any) -> Any:
    """Logits at every position of one row, (tokens, vocabulary)."""
    import torch

    with torch.no_grad():
        return network(input_ids=tokens, use_cache=False).logits[0].float()


def _complete(folder: Path, trained: Path, base: Path) -> None:
    """Add what servers and converters expect beside the weights: tokenizer, chat template, generation settings."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(trained).save_pretrained(folder)
    settings = base / "generation_config.json"
    if settings.is_file() and not (folder / settings.name).is_file():
        shutil.copyfile(settings, folder / settings.name)
