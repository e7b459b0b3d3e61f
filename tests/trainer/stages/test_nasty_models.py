"""Models whose files contradict each other, or ask for what can't be had: prepare says so, and no later step ends by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.trainer.conftest import CHATML, save_tiny_llama, train_tokenizer
from tests.trainer.entries import PAIRS, context
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, LlamaForSequenceClassification

from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.model.weights import INDEX, WHOLE
from finetune_trainer.stages import evaluate, merge, prepare, train

MakeRun = Callable[..., RunConfig]
Change = Callable[[Path], object]
GONE = object()


def edit(name: str, **fields: Any) -> Change:
    """Set fields of a file of settings, or take them out (GONE)."""

    def change(folder: Path) -> None:
        known = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps({k: v for k, v in (known | fields).items() if v is not GONE}))

    return change


def config(**fields: Any) -> Change:
    return edit("config.json", **fields)


def generation(**fields: Any) -> Change:
    return edit("generation_config.json", **fields)


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def tensors(change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> Change:
    """Put others in the place of each tensor."""

    def rewrite(folder: Path) -> None:
        found = load_file(folder / WHOLE)
        made = [change(name, tensor) for name, tensor in found.items()]
        save_file({k: v for part in made for k, v in part.items()}, folder / WHOLE, metadata={"format": "pt"})

    return rewrite


def without(part: str) -> Change:
    return tensors(lambda name, tensor: {} if part in name else {name: tensor})


def untied(change: Change) -> Change:
    def apply(folder: Path) -> None:
        shutil.rmtree(folder)
        save_tiny_llama(folder, train_tokenizer(), tied=False)
        change(folder)

    return apply


def classifier(folder: Path) -> None:
    LlamaForSequenceClassification.from_pretrained(folder).save_pretrained(folder)


def shards_without_an_index(folder: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WHOLE).unlink()
    network.save_pretrained(folder, max_shard_size="1MB")
    (folder / INDEX).unlink()


def both_ways(folder: Path) -> None:
    shutil.rmtree(folder)
    size: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=512, **size)).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)


def named_templates(*names: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        edit("tokenizer_config.json", chat_template=[{"name": n, "template": CHATML} for n in names])(folder)

    return change


def adapter(*, config: bool = False, **told: Any) -> Change:
    """Leave what PEFT saves beside a tokenizer; `config` also leaves the base's configuration, as Axolotl does."""

    def change(folder: Path) -> None:
        (folder / WHOLE).unlink()
        if not config:
            (folder / "config.json").unlink()
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | told))
        (folder / "adapter_model.safetensors").write_bytes(b"")

    return change


def weights_of_another_program(name: str, card: str = "", *, config: bool = False) -> Change:
    def change(folder: Path) -> None:
        (folder / WHOLE).rename(folder / name)
        (folder / "README.md").write_text(card)
        if not config:
            (folder / "config.json").unlink()

    return change


def in_a_folder_below(folder: Path) -> None:
    (folder / "checkpoint-9").mkdir()
    for name in ("config.json", WHOLE):
        (folder / name).rename(folder / "checkpoint-9" / name)


def no_template_but(name: str, content: dict[str, Any]) -> Change:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        (folder / name).write_text(json.dumps(content))

    return change


def without_an_end(folder: Path) -> None:
    for name, key in (("tokenizer_config", "eos_token"), ("config", "eos_token_id"), ("generation_config", "eos_token_id")):
        edit(f"{name}.json", **{key: None})(folder)


OWN_CODE = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
DAMAGED, UNSUPPORTED, TOKENIZER, TEMPLATE = "ModelDamaged", "ModelUnsupported", "TokenizerUnsupported", "ChatTemplateRefused"

REFUSED: dict[str, tuple[Change, str, str]] = {
    "a configuration that is a list": (write("config.json", "[]"), UNSUPPORTED, "its config.json is no object"),
    "a configuration with a mark of UTF-8": (write("config.json", "\ufeff{}"), UNSUPPORTED, "its config.json is not JSON"),
    "a size that is a text": (config(hidden_size="x"), UNSUPPORTED, "a size in its config.json is no number that can be"),
    "a part for text that is null": (config(text_config=None, hidden_act="wat"), UNSUPPORTED, "can't make a language model"),
    "architectures that are numbers": (config(architectures=[1], model_type="wat"), UNSUPPORTED, "model type `wat`"),
    "code of its own": (config(model_type="own", auto_map=OWN_CODE), UNSUPPORTED, "code of its own (auto_map), which is never"),
    "a model that reads both ways": (both_ways, UNSUPPORTED, "BertLMHeadModel reads text in both directions"),
    "weights of MLX": (config(quantization={"bits": 4}), UNSUPPORTED, "it is quantized already"),
    "weights of 8 bits": (
        tensors(lambda name, tensor: {name: tensor.to(torch.float8_e4m3fn)}), UNSUPPORTED, "it is quantized already (",
    ),
    "an index that is not JSON": (write(INDEX, "{oops"), UNSUPPORTED, f"its {INDEX} is not JSON"),
    "an index without a map": (write(INDEX, '{"weight_map": null}'), DAMAGED, f"its {INDEX} has no weight_map"),
    "shards without an index": (shards_without_an_index, DAMAGED, f"it has neither {WHOLE} nor {INDEX}"),
    "an adapter alone": (
        adapter(base_model_name_or_path="org/base"), UNSUPPORTED,
        "spec.model: it is an adapter alone (adapter_config.json), trained over org/base: name hf://org/base in its place,"
        " or merge the two and name what comes of that",
    ),
    "an adapter over a revision, beside its base's configuration": (
        adapter(config=True, base_model_name_or_path="org/base", revision="v2"), UNSUPPORTED, "name hf://org/base@v2 in its pl",
    ),
    "an adapter over a path of its author's": (
        adapter(base_model_name_or_path="/content/base"), UNSUPPORTED, "trained over /content/base: name that model in its pla",
    ),
    "an adapter that names no base": (adapter(), UNSUPPORTED, "without its base model: name that in its place, or merge"),
    "an adapter beside the weights of a claim": (
        write("adapter_config.json", "{}"), UNSUPPORTED, "it has an adapter (adapter_config.json) beside its weights, which",
    ),
    "GGUF files alone": (
        weights_of_another_program("tiny-q4.gguf"), UNSUPPORTED,
        "its weights are files of llama.cpp (tiny-q4.gguf), which can't be trained: name the repository of the full model in i",
    ),
    "GGUF files of a base that their card names": (
        weights_of_another_program("tiny.gguf", "---\nlicense: mit\nbase_model:\n- org/base\n---\n"), UNSUPPORTED,
        "name hf://org/base, its base by its README.md, in its place",
    ),
    "ONNX beside a configuration": (
        weights_of_another_program("model.onnx", config=True), UNSUPPORTED, "its weights are files of ONNX (model.onnx)",
    ),
    "weights as their authors wrote them": (
        weights_of_another_program("consolidated.00.pth"), UNSUPPORTED, "files of the model's own authors (consolidated.00.pth",
    ),
    "a checkpoint in a folder below": (
        in_a_folder_below, UNSUPPORTED, "it has no config.json itself, but its folder checkpoint-9 has: name that folder",
    ),
    "fewer layers than the files hold": (
        config(num_hidden_layers=1), DAMAGED,
        "9 of the weights in its files, such as model.layers.1.input_layernorm.weight, have no place in LlamaForCausalLM by it",
    ),
    "a template of processors that is none": (
        no_template_but("chat_template.json", {"template": CHATML}), TEMPLATE,
        "its chat_template.json is not as transformers writes it (KeyError): mend it, or name another template",
    ),
    "more layers than the files hold": (config(num_hidden_layers=3), DAMAGED, "of the weights of LlamaForCausalLM are not in"),
    "a part of a layer that is not there": (without("layers.1.mlp"), DAMAGED, "3 of the weights of LlamaForCausalLM are not"),
    "a norm that is not there": (without("model.norm"), DAMAGED, "1 of the weights of LlamaForCausalLM are not in its files"),
    "a head that is not there": (untied(without("lm_head")), DAMAGED, "such as lm_head.weight, and would begin at random"),
    "a head that is not tied any more": (config(tie_word_embeddings=False), DAMAGED, "such as lm_head.weight, and would begin"),
    "a classifier": (untied(classifier), DAMAGED, "lm_head.weight, and would begin at random (its files hold score.weight"),
    "names that torch.compile gives": (
        tensors(lambda name, tensor: {f"_orig_mod.{name}": tensor}), DAMAGED, "(its files hold _orig_mod.model.",
    ),
    "another width than the weights'": (config(intermediate_size=100), DAMAGED, " by its config.json: take the configuration"),
    "other heads than the weights'": (config(num_key_value_heads=1), DAMAGED, " by its config.json: take the configuration"),
    "generation settings that are not JSON": (write("generation_config.json", ""), UNSUPPORTED, "its generation_config.json"),
    "an end token by its text": (generation(eos_token_id="</s>"), UNSUPPORTED, "eos_token_id in its generation_config.json is"),
    "a list of lists of end tokens": (generation(eos_token_id=[1, [2]]), UNSUPPORTED, "eos_token_id in its generation_config"),
    "no end token": (without_an_end, TOKENIZER, "it has no end token, so nobody could tell where an answer ends"),
    "an end token that is in no vocabulary": (
        edit("tokenizer_config.json", eos_token="<wat>"), UNSUPPORTED, "(<wat>), its embedding only ",
    ),
    "a tokenizer with code of its own": (
        edit("tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]}),
        TOKENIZER, "it asks for code of its own (auto_map in tokenizer_config.json), which is never run",
    ),
    "templates of which none is the default": (named_templates("rag", "tools"), TEMPLATE, "templates named rag, tools, of"),
    "a template that computes nonsense": (
        write("chat_template.jinja", "{{ 1 + 'a' }}" + CHATML), TEMPLATE, "chat template can't be rendered (TypeError)",
    ),
}  # fmt: skip


@pytest.fixture
def nasty(make_run: MakeRun, tmp_path: Path, tiny_model: Path) -> Callable[[Change], RunConfig]:
    """Rows, and a run of a copy of the tiny model that was changed."""

    def change(apply: Change) -> RunConfig:
        claims = tmp_path / "mounts/claims"
        shutil.copytree(tiny_model, claims / "models/own")
        apply(claims / "models/own")
        turns = [[{"role": r, "content": said} for r, said in zip(("user", "assistant"), p, strict=True)] for p in PAIRS]
        (claims / "data/rows.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in turns))
        return make_run(model={"uri": "pvc://models/own"}, generation={"maxNewTokens": 8})

    return change


@pytest.mark.filterwarnings("ignore")  # of transformers, about what was done to it
@pytest.mark.parametrize(("change", "reason", "said"), REFUSED.values(), ids=REFUSED)
def test_what_would_fail_or_begin_at_random_is_refused(
    nasty: Callable[[Change], RunConfig], tmp_path: Path, change: Change, reason: str, said: str
) -> None:
    with pytest.raises(StepFailed) as refused:
        prepare.run(context(nasty(change), "prepare", tmp_path))
    assert (refused.value.reason, said in refused.value.message) == (reason, True), refused.value
    assert str(tmp_path) not in refused.value.message


@pytest.mark.filterwarnings("ignore")
def test_weights_that_have_no_place_are_told(nasty: Callable[[Change], RunConfig], tmp_path: Path) -> None:
    head = tensors(
        lambda name, tensor: {name: tensor} | ({"v_head.weight": torch.zeros(1, 256)} if name == "model.norm.weight" else {})
    )
    warned = prepare.run(context(nasty(head), "prepare", tmp_path)).warnings or ()
    assert [remark.message for remark in warned if remark.reason == "WeightsLeftOut"] == [
        "spec.model: 1 of the weights in its files, such as v_head.weight, have no place in LlamaForCausalLM by its"
        " config.json: they are not trained, and lack in all that is made of it; take another configuration if they are meant"
    ]


BEAMS = generation(
    num_beams=4, num_return_sequences=2, cache_implementation="quantized", force_words_ids=[[1]], dola_layers="low"
)
LEARNED: dict[str, Change] = {
    "generation settings that need beams, packages or a hub": BEAMS,
    "an implementation that its author's machine had": config(attn_implementation="flash_attention_2"),
    "a quantization that is null": config(quantization_config=None),
    "a template that processors keep": no_template_but("chat_template.json", {"chat_template": CHATML}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", LEARNED.values(), ids=LEARNED)
def test_what_says_nothing_of_the_model_itself_is_passed_over(
    nasty: Callable[[Change], RunConfig], tmp_path: Path, change: Change
) -> None:
    run = nasty(change)
    for step, stage in (("prepare", prepare), ("train", train), ("merge", merge), ("evaluate", evaluate)):
        done = stage.run(context(run, step, tmp_path))
    assert [scores.subject for scores in done.scores] == ["base", "merged"]
