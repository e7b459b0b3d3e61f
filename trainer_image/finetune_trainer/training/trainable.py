"""Whether a model can be trained and merged as a job asks, told by its outline and its configuration before a GPU is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import DatasetFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method, Training
from finetune_trainer.failures import StepFailed, bad_config, first_line
from finetune_trainer.memory.shape import positions_of


def check_trainable(run: RunConfig, rows: DatasetFacts, folder: Path) -> None:
    """Raises StepFailed ModelUnsupported or InvalidSpec. `folder` holds the model's configuration and tokenizer."""
    _check_code(folder)
    network = _outline(folder)
    _check_direction(network)
    _check_vocabulary(network, folder)
    _check_positions(network, run, rows, folder)
    training = run.training
    if training.optimizer != "Auto":
        _check_optimizer(training.optimizer)
    if training.packing:
        _check_packing(folder)
    if training.method is Method.QLORA:
        _check_quantizable(network)
    if training.method is not Method.FULL:
        _check_adapters(network, training, folder)


def _check_code(folder: Path) -> None:
    """Code that a repository carries is never run, so what needs it can't be had."""
    from transformers import CONFIG_MAPPING

    config = json.loads((folder / "config.json").read_bytes())
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
        raise _unsupported(
            f"its config.json names code of its own (auto_map), which is never run here, and transformers has no model of type"
            f" {config.get('model_type')}: take another model, or one of its repositories that transformers reads by itself"
        )


def _check_direction(network: Any) -> None:
    """BERT's kind can be loaded as a language model, and then looks at the answer that it is to write."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = network.config
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise _unsupported(f"{type(network).__name__} reads text in both directions: take a decoder-only transformer")


def _outline(folder: Path) -> Any:
    """Raises StepFailed where transformers makes no causal language model of the configuration."""
    from finetune_trainer.model.outline import outline

    try:
        return outline(folder)
    except Exception as error:  # of its configuration classes, which raise what they like
        raise _unsupported(f"transformers can't make a language model of its config.json: {first_line(error)}") from error


def _check_vocabulary(network: Any, folder: Path) -> None:
    """Each token needs its row in the embedding."""
    from finetune_trainer.model.loading import end_tokens, load_tokenizer

    tokenizer = load_tokenizer(folder)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    last = max(vocabulary, key=vocabulary.__getitem__)
    held, largest = network.get_input_embeddings().weight.shape[0], vocabulary[last]
    if largest >= held:
        raise _unsupported(
            f"its tokenizer has tokens up to number {largest} ({last}), its embedding only {held} rows: resize the embedding"
            " with resize_token_embeddings and save the model again, or take the tokenizer that belongs to it"
        )
    if not end_tokens(tokenizer, folder):
        raise StepFailed(
            StepReason.TokenizerUnsupported,
            "spec.model: it has no end token, so nobody could tell where an answer ends: set eos_token in its"
            " tokenizer_config.json, or eos_token_id in its generation_config.json",
        )


def _check_positions(network: Any, run: RunConfig, rows: DatasetFacts, folder: Path) -> None:
    """Learned positions end; beyond them there is nothing to read. (Rotary ones go on, if worse.)"""
    positions = positions_of(json.loads((folder / "config.json").read_bytes()))
    if positions is None or not _learns_positions(network, positions):
        return
    if rows.longest_row_tokens > positions:
        raise bad_config(
            f"spec.training.maxLength: the longest row has {rows.longest_row_tokens} tokens, the model has learned {positions}"
            f" positions: set maxLength to {positions} or less"
        )
    asked = rows.format is not DatasetFormat.TEXT
    if asked and rows.longest_row_tokens + run.generation.max_new_tokens > positions:
        raise bad_config(
            f"spec.evaluation.generation.maxNewTokens: a row of {rows.longest_row_tokens} tokens and an answer of"
            f" {run.generation.max_new_tokens} are more than the {positions} positions that the model has learned: lower"
            " it, or spec.training.maxLength"
        )


def _learns_positions(network: Any, positions: int) -> bool:
    """Whether it has an embedding of positions beside that of tokens; OPT's has two rows more than it says."""
    from torch.nn import Embedding

    tokens = network.get_input_embeddings()
    tables = [m for m in network.modules() if isinstance(m, Embedding) and m is not tokens]
    return any(positions <= table.num_embeddings <= positions + 2 for table in tables)


def _check_optimizer(name: str) -> None:
    """Half of the names that transformers knows need a package, or a device, that the trainer's image is without."""
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    known = sorted(optimizer.value for optimizer in OptimizerNames)
    if name not in known:
        raise bad_config(f"spec.training.optimizer: transformers knows no {name}; use Auto or one of {', '.join(known)}")
    try:
        Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(optim=name, use_cpu=True, report_to=[]))
    except (ImportError, ValueError, RuntimeError) as error:
        raise bad_config(
            f"spec.training.optimizer: {name} can't be had here; use Auto, adamw_torch or adamw_bnb_8bit, or an image that has"
            f" it in spec.stages.train.image and .prepare.image ({first_line(error, 160)})"
        ) from error


def _check_packing(folder: Path) -> None:
    from finetune_trainer.speed.attention import implementation

    if implementation(folder, on_gpu=False) is None:
        raise bad_config("spec.training.packing: this model's layers can't keep rows apart that share a line; set it to false")


def _check_quantizable(network: Any) -> None:
    """GPT-2's layers hold their weights the other way round: what bitsandbytes makes of them can't be merged again."""
    from transformers.pytorch_utils import Conv1D

    if any(isinstance(module, Conv1D) for module in network.modules()):
        raise bad_config("spec.training.method: QLoRA can't quantize this model's layers, which are Conv1D; set LoRA or Full")


def _check_adapters(network: Any, training: Training, folder: Path) -> None:
    """PEFT's word on the targets, on modules that are trained whole, and on what can't go together for this model."""
    from finetune_trainer.model.adapters import add_adapters
    from finetune_trainer.model.outline import modules_of, unreached

    begun = training.lora.model_copy(update={"init": "Default"})  # others begin with numbers, and an outline has none
    try:
        adapted = add_adapters(network, training.model_copy(update={"lora": begun}), modules_of(unreached(folder)))
    except NotImplementedError:
        return  # it asks for numbers, and will be seen in training
    if training.in_fp8:
        _check_fp8(adapted)


def _check_fp8(adapted: Any) -> None:
    """Products in FP8 are the fused path's."""
    from finetune_trainer.speed.fused_lora import fuse

    if not fuse(adapted):
        raise bad_config(
            "spec.training.quantization.products: none of this model's layers can be multiplied in FP8 (attention with q_proj,"
            " k_proj, v_proj and o_proj, gated MLPs with SiLU); set it to Compute"
        )


def _unsupported(why: str) -> StepFailed:
    return StepFailed(StepReason.ModelUnsupported, f"spec.model: {why}")
