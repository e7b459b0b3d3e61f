"""Adapters over a loaded model, by PEFT."""

from __future__ import annotations

from typing import Any

import torch

from finetune_trainer.contract.training import Training
from finetune_trainer.failures import bad_config
from finetune_trainer.model import saved_modules

# In PEFT's words. A whole decomposition takes far longer for large weights; 16 iterations come within 1 % of its values even on
# random weights, all of whose directions are alike.
INITS = {"Gaussian": "gaussian", "PiSSA": "pissa_niter_16", "OLoRA": "olora"}


def add_adapters(model: Any, training: Training) -> Any:
    """PEFT model with fresh adapters; the seed decides their weights.

    Raises StepFailed InvalidSpec when `training.lora` names no module of this model.
    """
    from peft import LoraConfig, get_peft_model

    lora = training.lora
    saved = saved_modules.paths(model, lora)
    targets: str | list[str] = "all-linear" if lora.targets == ["all-linear"] else lora.targets
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rank_stabilized,
        use_dora=lora.dora,
        init_lora_weights=INITS.get(lora.init, True),
        target_modules=targets,
        modules_to_save=saved or None,
        ensure_weight_tying=saved_modules.are_tied(model, saved),
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(training.seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        known = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        message = f"training.lora.targets: {', '.join(lora.targets)} not in this model; its linear modules: {known}"
        raise bad_config(message) from error
    if lora.init == "Orthogonal":
        _begin_orthogonal(adapted)
    if lora.dora:
        _keep_type(adapted)
    saved_modules.answer_in_compute_type(adapted)
    return adapted


def _begin_orthogonal(adapted: Any) -> None:
    """A and B of random values over alternate rows of one orthogonal matrix: B A is zero, and neither of them is.

    PEFT's own `orthogonal`, with its scale, makes adapters of the base's number type, which can't be trained over 4- or
    8-bit weights.
    """
    from peft.tuners.lora import LoraLayer

    for layer in adapted.modules():
        if isinstance(layer, LoraLayer):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            rank = len(a)
            rows, _ = torch.linalg.qr(torch.randn(rank, rank))
            a.data.copy_(torch.randn(a.shape[1], rank // 2).mm(rows[0::2]).t() / 10)
            b.data.copy_(torch.randn(len(b), rank // 2).mm(rows[1::2]) / 10)


def _keep_type(adapted: Any) -> None:
    """Let DoRA's 4-bit layers answer in the type they are asked in. PEFT's answer in that of DoRA's lengths, float32, and so
    would every layer behind them: twice the memory, and nothing that flash attention takes.
    """
    from peft.tuners.lora import LoraLayer

    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.register_forward_hook(lambda _, asked, answer: answer.to(asked[0].dtype))
