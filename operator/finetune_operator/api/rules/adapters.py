"""CEL rules of spec.training.lora: what its fields ask of each other, of the method and of the strategy."""

from __future__ import annotations

from finetune_operator.meta import Rule

_SPLIT = "self.training.lora.init in ['PiSSA', 'OLoRA']"
_NONE_SAVED = "!has(self.training.lora.modulesToSave) || self.training.lora.modulesToSave.size() == 0"

ADAPTER_RULES = (
    Rule(
        "spec",
        f"!({_SPLIT}) || self.training.method != 'QLoRA'",
        "spec.training.lora.init PiSSA and OLoRA split the weights as they are; set method to LoRA, or choose another init",
    ),
    Rule(
        "spec",
        f"!({_SPLIT}) || !self.training.lora.dora && ({_NONE_SAVED})"
        " && self.parallelism.strategy in ['Auto', 'DDP'] && !(self.training.objective in ['DPO', 'KTO'])",
        "spec.training.lora.init PiSSA and OLoRA go with neither dora, modulesToSave, strategy FSDP nor objectives DPO and KTO;"
        " choose another init",
    ),
    Rule(
        "spec",
        f"self.training.method != 'Full' || {_NONE_SAVED}",
        "spec.training.lora.modulesToSave is for methods QLoRA and LoRA, as Full trains every weight; remove it",
    ),
    Rule(
        "spec",
        f"{_NONE_SAVED} || !self.training.lora.modulesToSave.exists(name, name in self.training.lora.targets)",
        "spec.training.lora.targets and modulesToSave name the same module; name it in one of the two",
    ),
    Rule(
        "spec",
        f"{_NONE_SAVED} || self.parallelism.strategy in ['Auto', 'DDP']",
        "spec.parallelism.strategy can't share out spec.training.lora.modulesToSave; use DDP or Auto, or remove those",
    ),
)
