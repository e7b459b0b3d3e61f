"""The field that an unknown one stands for: another tool's name of a setting, a field in another place, or a slip."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

SLIP, FAR_SLIP = 0.75, 0.85  # how alike two names must be: of one mapping, and of two places
MOST_NAMED = 3  # a name that more places have (name, uri) tells nothing
_OF_A_STAGE = re.compile(r"^spec\.stages\.\w+\.")

# What TRL, PEFT, transformers' TrainingArguments, bitsandbytes, Axolotl, LLaMA-Factory, Unsloth and Kubeflow call a setting.
OTHERS_NAMES = {
    "spec.model.uri": "base_model model_name model_name_or_path pretrained_model_name_or_path model_id base_model_name",
    "spec.model.chatTemplate": "chat_template_jinja template",
    "spec.model.secretRef": "hf_token hub_token hf_hub_token",
    "spec.dataset.uri": "datasets dataset_name dataset_path dataset_dir train_file data_files data_path train_dataset",
    "spec.dataset.split": "dataset_split train_split train_on_split",
    "spec.dataset.subset": "dataset_config dataset_config_name",
    "spec.dataset.columns": "dataset_text_field text_column prompt_column response_column field_messages column_mapping",
    "spec.dataset.systemPrompt": "default_system default_system_message system",
    "spec.dataset.validation.fraction": "val_set_size val_size validation_split_percentage",
    "spec.dataset.validation.uri": "eval_dataset validation_file",
    "spec.dataset.maxSamples": "max_train_samples num_samples",
    "spec.training.method": "adapter finetuning_type load_in_4bit use_peft use_lora use_qlora full_finetuning",
    "spec.training.objective": "rl rl_type stage trainer_type loss_type pref_loss",
    "spec.training.preference.beta": "dpo_beta rl_beta pref_beta kto_beta orpo_alpha",
    "spec.training.quantization.bits": "quantization_bit load_in_8bit",
    "spec.training.quantization.type": "bnb_4bit_quant_type",
    "spec.training.quantization.doubleQuantization": "bnb_4bit_use_double_quant use_nested_quant",
    "spec.training.precision": "bf16 fp16 tf32 dtype torch_dtype mixed_precision bnb_4bit_compute_dtype compute_dtype",
    "spec.training.epochs": "num_train_epochs num_epochs n_epochs max_epochs train_epochs",
    "spec.training.maxSteps": "num_steps max_train_steps total_steps",
    "spec.training.globalBatchSize": "gradient_accumulation_steps effective_batch_size train_batch_size batch_size",
    "spec.training.microBatchSize": "per_device_train_batch_size per_device_batch_size train_micro_batch_size_per_gpu",
    "spec.training.learningRate": "lr peak_learning_rate",
    "spec.training.schedule": "lr_scheduler lr_scheduler_type scheduler",
    "spec.training.warmupRatio": "warmup warmup_steps num_warmup_steps",
    "spec.training.optimizer": "optim",
    "spec.training.maxGradNorm": "gradient_clipping clip_grad_norm max_norm",
    "spec.training.maxLength": "max_seq_length max_seq_len sequence_len cutoff_len model_max_length block_size",
    "spec.training.packing": "sample_packing pack_sequences",
    "spec.training.gradientCheckpointing": "use_gradient_checkpointing activation_checkpointing",
    "spec.training.completionOnlyLoss": "train_on_inputs train_on_prompt assistant_only_loss",
    "spec.training.seed": "random_state data_seed",
    "spec.training.evaluateEverySteps": "eval_steps evaluation_strategy eval_strategy evals_per_epoch",
    "spec.training.earlyStopping.patience": "early_stopping_patience",
    "spec.training.keepCheckpoint": "load_best_model_at_end metric_for_best_model",
    "spec.training.neftuneNoiseAlpha": "neftune_alpha noisy_embedding_alpha",
    "spec.training.checkpoint.everySteps": "save_steps save_strategy saves_per_epoch",
    "spec.training.checkpoint.keep": "save_total_limit",
    "spec.training.reportTo": "wandb_project wandb mlflow_experiment_name use_tensorboard",
    "spec.training.lora.rank": "lora_r r lora_rank lora_dim",
    "spec.training.lora.alpha": "lora_alpha",
    "spec.training.lora.dropout": "lora_dropout",
    "spec.training.lora.targets": "target_modules lora_target_modules lora_target lora_target_linear",
    "spec.training.lora.modulesToSave": "lora_modules_to_save additional_target",
    "spec.training.lora.rankStabilized": "use_rslora peft_use_rslora",
    "spec.training.lora.dora": "use_dora peft_use_dora",
    "spec.training.lora.init": "init_lora_weights peft_init_lora_weights pissa_init",
    "spec.training.distillation.teacher": "teacher_model teacher_model_name_or_path",
    "spec.parallelism.strategy": "deepspeed fsdp fsdp_config deepspeed_config ddp",
    "spec.parallelism.numNodes": "nnodes num_machines replicas workers",
    "spec.parallelism.gpusPerNode": "gpus num_gpus n_gpus nproc_per_node num_proc_per_node num_processes gpu_count",
    "spec.evaluation.samples": "max_eval_samples",
    "spec.evaluation.maxNewTokens": "max_tokens max_completion_length generation_max_length",
    "spec.publish": "push_to_hub hub_model_id hub_repo export_hub_model_id",
    "spec.storage.artifacts.uri": "output_dir output_path checkpoint_dir save_dir",
    "spec.retry.maxRetries": "backoff_limit",
    "spec.activeDeadlineSeconds": "timeout timeout_seconds",
}
# Names of one tool whose values mean something else than the field's.
MEANT_OTHERWISE = {
    "gradient_accumulation_steps": "it counts the rows of an optimizer step over all devices and accumulation steps",
    "train_on_inputs": "it says the opposite: true is no loss on the prompt",
    "train_on_prompt": "it says the opposite: true is no loss on the prompt",
    "warmup_steps": "it is a share of all steps",
    "num_warmup_steps": "it is a share of all steps",
    "save_strategy": "or .intervalSeconds",
    "deepspeed": "ZeRO2 and ZeRO3 are DeepSpeed's stages",
    "lora_target_linear": "[all-linear] is the default",
}
CHOSEN_BY_ITSELF = (
    "flash_attention use_flash_attn attn_implementation flash_attn logging_steps ddp_find_unused_parameters output_attentions"
    " trust_remote_code dataloader_num_workers remove_unused_columns overwrite_output_dir task_type bias do_train do_eval"
    " special_tokens pad_token tokenizer_type model_type auto_find_batch_size resume_from_checkpoint use_cache use_liger_kernel"
)


def remedy(model: type[BaseModel], loc: Sequence[str | int], at: str) -> str:
    """What to do about the unknown field at `loc` of a `model` that lies at the path `at` of its object."""
    *parents, unknown = map(str, loc)
    key = _plain(unknown)
    if key in _IGNORED:
        return "remove it: that is chosen or done by itself"
    fields = dict(_fields(model, at.split(".") if at else []))
    if other := next((path for path in _BY_OTHERS_NAME.get(key, ()) if path in fields), None):
        meant = _OTHERWISE.get(key)
        return f"write {other}{f' ({meant})' if meant else ''}"
    around = ".".join([at, *(part for part in parents if not part.isdigit())]).strip(".")
    likely = _likely(key, [path for path in fields if path.rpartition(".")[0] == around], SLIP)
    likely = likely or _likely(key, list(fields), FAR_SLIP)
    named = list(dict.fromkeys(_OF_A_STAGE.sub("spec.stages.<stage>.", path) for path in likely))
    return f"write {' or '.join(named)}" if 0 < len(named) <= MOST_NAMED else "remove it or correct its name"


def _likely(key: str, paths: Sequence[str], alike: float) -> list[str]:
    """Those of the paths whose own name is this one, else is most like it."""
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(_plain(path.rpartition(".")[2]), []).append(path)
    if key in by_name:
        return by_name[key]
    return next((by_name[name] for name in difflib.get_close_matches(key, by_name, n=1, cutoff=alike)), [])


def _fields(model: type[BaseModel], path: list[str]) -> Iterator[tuple[str, Any]]:
    """The dotted path of every field of a spec with its type; a list's items lie below the list's own path."""
    for name, field in model.model_fields.items():
        inner = [*path, field.alias or name]
        if inner[0] != "spec":
            continue  # status and metadata are not written by users
        yield ".".join(inner), field.annotation
        for below in _models(field.annotation):
            yield from _fields(below, inner)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _plain(name: str) -> str:
    """lora_r, loraR and LoRA-R are one name."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


_BY_OTHERS_NAME: dict[str, list[str]] = {}
for _path, _names in OTHERS_NAMES.items():
    for _name in _names.split():
        _BY_OTHERS_NAME.setdefault(_plain(_name), []).append(_path)
_OTHERWISE = {_plain(name): meant for name, meant in MEANT_OTHERWISE.items()}
_IGNORED = frozenset(map(_plain, CHOSEN_BY_ITSELF.split()))
