"""Merge: add the adapter to the base's weights, check that the result answers alike, save it in BF16.

    mergeBase      weights that the adapter is added to
    Dequantized    what it was trained on: the 4- or 8-bit base expanded, so that the merged model is the trained one
    Original       the base as it was fetched; for LoRA the two are the same

Never merged in 4 or 8 bits: the sum, rounded again, would be another model.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.context import Context
from finetune_trainer.contract.pipeline import FIRST_ROW_LOSS, MERGED, TRAIN
from finetune_trainer.contract.reports import ArtifactFacts, Check, Manifest, StepResult
from finetune_trainer.contract.training import Method, Precision
from finetune_trainer.export.server_files import add_sentencepiece, make_readable
from finetune_trainer.libraries import quieten

if TYPE_CHECKING:
    from finetune_trainer.export.proof import FixedRow, Likeness, Limits

# Mean KL divergence in nats. What remains is rounding to BF16; measured: 6e-6 on tiny models, 5e-4 on SmolLM2-135M.
LIMIT = 5e-3
# Changes of the weights that are no larger than BF16's steps lose some of what they do: after eight steps of DPO at rate 2e-4
# SmolLM2-135M had moved by 0.12 nats, of which the sum lost 0.013, and a third of the gain in perplexity. A merge that went
# wrong loses all of it.
LOST_DIVERGENCE, LOST_PERPLEXITY = 0.25, 0.5
UNLIKE = (
    "the merged model answers unlike the trained one (BF16 loses changes that are too small for it: train for more steps, or"
    " raise training.learningRate)"
)
_EXACT = (Precision.AUTO, Precision.FP32)  # of CPUs


def run(context: Context) -> StepResult:
    """Merge, verify and commit. Raises StepFailed VerificationFailed when the merged model answers differently."""
    done = context.committed()
    if done is not None:
        return done
    quieten()
    from finetune_trainer.export import card

    trained, trained_folder = context.inputs.output(TRAIN)
    assert trained.result.train is not None
    _, base_folder = context.inputs.model()
    folder = context.scratch / "output"
    if context.run.training.method is Method.FULL:
        shutil.copytree(trained_folder, folder)
        make_readable(folder)
        checks = _prove_full(context, trained, folder)
    else:
        checks = _merge_and_prove(context, trained, trained_folder, folder)
    for check in checks:
        print(f"{check.name} {check.value:.3g}, limit {check.limit:.3g}", flush=True)
    _complete(folder, trained_folder, base_folder)
    card.copy_licences(base_folder, folder)
    card.write(folder, context, trained.result.train)
    made = ArtifactFacts.made(MERGED, "Safetensors")
    result = StepResult(step=context.step.name, fingerprint=context.inputs.fingerprint(context.step.name), artifact=made)
    return context.commit(folder, result, {TRAIN: trained.fingerprint}, checks)


def _merge_and_prove(context: Context, trained: Manifest, adapter: Path, folder: Path) -> tuple[Check, ...]:
    """Write the merged weights; the adapter must be whole and as it was trained, the sum must answer like the two."""
    from peft import get_peft_model_state_dict

    from finetune_trainer.export import proof
    from finetune_trainer.model import loading

    context.progress("merging")
    _, base_folder = context.inputs.model()
    adapted = _load_adapted(context, base_folder, adapter)
    rows = proof.fixed_rows(context.inputs.data()[1])
    expected = [proof.logits(adapted, row) for row in rows]
    with adapted.disable_adapter():
        learned = proof.likeness(rows, expected, [proof.logits(adapted, row) for row in rows])
    checks = proof.check_adapter(adapter / "adapter_model.safetensors", set(get_peft_model_state_dict(adapted)))
    checks += _check_reload(context, trained, rows[0], expected[0])
    _merge(context, adapted, base_folder).save_pretrained(folder)
    make_readable(folder)  # before it is read back and proven
    del adapted
    context.progress("verifying")
    merged = loading.load_base(folder, Method.LORA, _cpu())
    found = proof.likeness(rows, expected, [proof.logits(merged, row) for row in rows])
    checks += proof.check_likeness(UNLIKE, found, _limits(context, learned))
    return checks + _check_stops(context, merged, base_folder)


def _prove_full(context: Context, trained: Manifest, folder: Path) -> tuple[Check, ...]:
    """The weights as they were saved, in BF16, must have the loss that they had while they were trained."""
    from finetune_trainer.export import proof
    from finetune_trainer.model import loading

    context.progress("verifying")
    row = proof.fixed_rows(context.inputs.data()[1])[0]
    saved = loading.load_base(folder, Method.LORA, _cpu())
    return _check_reload(context, trained, row, proof.logits(saved, row)) + _check_stops(
        context, saved, context.inputs.model()[1]
    )


def _check_reload(context: Context, trained: Manifest, row: FixedRow, logits: Any) -> tuple[Check, ...]:
    """Nothing to compare where the row was cut, has no counted token, or was trained by an earlier version."""
    from finetune_trainer.export import proof

    before, loss = float(trained.inputs.get(FIRST_ROW_LOSS, "nan")), proof.row_loss(logits, row)
    if not (row.whole and math.isfinite(before) and math.isfinite(loss)):
        return ()
    training, devices = context.run.training, context.run.devices
    exact = training.method is not Method.FULL and training.precision in _EXACT and not devices.gpus
    rounded = proof.ROUNDED_INPUTS_LOSS if devices.gpus and training.quantization.bits == 8 else proof.ROUNDED_LOSS
    return proof.check_reload(before, loss, proof.EXACT_LOSS if exact else rounded)


def _check_stops(context: Context, network: Any, base: Path) -> tuple[Check, ...]:
    """Answers must end by themselves: a model that has lost its end token looks well by its loss and can't be served."""
    from finetune_trainer.export import proof
    from finetune_trainer.model import loading

    rows = context.inputs.data()[1]
    asked = proof.questions(rows)
    ends = loading.end_tokens(loading.load_tokenizer(base), base)
    loading.forget_generation(network)

    def of_base() -> int:
        before = loading.load_base(base, Method.LORA, _cpu())
        loading.forget_generation(before)
        return proof.stopping(before, asked, ends)

    def expecting() -> int:
        return proof.expecting(network, proof.fixed_rows(rows), ends)

    return proof.check_stops(len(asked), proof.stopping(network, asked, ends) if ends else 0, expecting, of_base)


def _cpu() -> Any:
    """Merging needs no GPU, and float32 adds no rounding of its own."""
    import torch

    from finetune_trainer.model.compute import Compute

    return Compute("cpu", torch.float32)


def _limits(context: Context, learned: Likeness) -> Limits:
    """`learned` is how far the adapter moved the model from its base."""
    from finetune_trainer.export.compression import LIMITS
    from finetune_trainer.export.proof import Limits

    other_base = context.run.training.method is Method.QLORA and context.run.merge_base == "Original"
    if other_base:  # and the same difference: what rounding the base costs. It guards against a broken merge only.
        return LIMITS["NF4"]
    return Limits(max(LIMIT, LOST_DIVERGENCE * learned.divergence), 0.95, max(1.05, learned.perplexity_ratio**LOST_PERPLEXITY))


def _load_adapted(context: Context, base: Path, adapter: Path) -> Any:
    """The model as it was trained: the base in the training's format, with the adapter beside it."""
    from peft import PeftModel

    from finetune_trainer.model.loading import load_base

    training = context.run.training
    network = load_base(base, training.method, _cpu(), quantization=training.quantization)
    return PeftModel.from_pretrained(network, str(adapter)).eval()


def _merge(context: Context, adapted: Any, base_folder: Path) -> Any:
    """A dense BF16 model: each weight summed in float32 and rounded once, as are modules that were trained whole.

    An adapter over a parameter (the experts of a layer in one tensor) wraps the module that holds it, one around the other.
    """
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_bnb_weight

    from finetune_trainer.model import saved_modules
    from finetune_trainer.model.compute import Compute
    from finetune_trainer.model.loading import load_base

    merged = load_base(base_folder, Method.LORA, Compute("cpu", torch.bfloat16))
    dequantized = context.run.merge_base == "Dequantized"
    for path, module in adapted.get_base_model().named_modules():
        adapts = isinstance(module, LoraLayer)
        layer = module.get_base_layer() if adapts else module
        expanded = dequantized and isinstance(layer, Linear4bit | Linear8bitLt)
        if not adapts and not (expanded and not path.endswith("base_layer")):
            continue
        target = merged.get_submodule(path.replace(".base_layer", "")).get_parameter(
            getattr(module, "parameter_name", "weight")
        )
        weight = dequantize_bnb_weight(layer.weight, getattr(layer, "state", None)) if expanded else target.data
        total = weight.float()
        target.data = (_with_adapter(module, total) if adapts else total).to(torch.bfloat16)
    for path, copy, _ in saved_modules.copies(adapted):
        merged.get_submodule(path).load_state_dict(copy.state_dict())  # rounded to the type of what is there
    return merged


def _with_adapter(layer: Any, weight: Any) -> Any:
    """The frozen weight (out, in) and its adapter in one, float32; DoRA gives each row the length that it trained."""
    total = weight + layer.get_delta_weight("default").float()
    if layer.use_dora.get("default"):
        lengths = layer.lora_magnitude_vector["default"].weight.float()
        total *= (lengths / total.norm(dim=1)).unsqueeze(1)
    return total


def _complete(folder: Path, trained: Path, base: Path) -> None:
    """Add what servers and converters expect beside the weights: tokenizer, chat template, generation settings."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(trained).save_pretrained(folder)
    make_readable(folder)
    add_sentencepiece(base, folder)
    settings = base / "generation_config.json"
    if settings.is_file() and not (folder / settings.name).is_file():
        shutil.copyfile(settings, folder / settings.name)
