"""A chat template of the job's own: it replaces or makes up for the model's, in the rows and in all that is made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import END, TEXT_END
from tests.trainer.entries import PAIRS, context

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import StepResult
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.stages import merge, prepare, train

MakeRun = Callable[..., RunConfig]
SHORT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\n"
    "{% else %}A: {{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)
OTHER_END = SHORT.replace(END, TEXT_END)
TRAINING = {"method": "LoRA", "precision": "FP32", "maxSteps": 2, "globalBatchSize": 4, "maxLength": 128}


@pytest.fixture
def job(make_run: MakeRun, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    """A run over chat rows: of the model without a template, or of the one that has ChatML; `text` goes into the ConfigMap."""
    monkeypatch.setenv("HF_HOME", "")  # so that what the step sets is taken back
    mounts = tmp_path / "mounts"
    plain = mounts / "claims" / "models" / "plain"
    shutil.copytree(tiny_model, plain)
    (plain / "chat_template.jinja").unlink()
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in PAIRS]
    (mounts / "claims" / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(text: str | None, name: str = "chat", model: str = "plain") -> RunConfig:
        given: dict[str, Any] = {"uri": f"pvc://models/{model}"}
        if text is not None:
            folder = mounts / "configmaps" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "short.jinja").write_text(text)
            given["chatTemplate"] = {"configMapKeyRef": {"name": name, "key": "short.jinja"}}
        return make_run(model=given, training=TRAINING)

    return build


def prepared(run: RunConfig, tmp_path: Path) -> StepResult:
    return prepare.run(context(run, "prepare", tmp_path))


def refused(run: RunConfig, tmp_path: Path) -> tuple[ExitCode, str, str]:
    with pytest.raises(StepFailed) as caught:
        prepared(run, tmp_path)
    return caught.value.exit_code, caught.value.reason, caught.value.message


def first_row(run: RunConfig, tmp_path: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(
        (context(run, "train", tmp_path).inputs.data()[1] / "train.jsonl").read_text().splitlines()[0]
    )
    return row


def test_a_base_model_is_given_conversations(job: Callable[..., RunConfig], tmp_path: Path) -> None:
    code, reason, said = refused(job(None), tmp_path)
    assert (code, reason) == (ExitCode.BAD_DATA, "ChatTemplateMissing")
    assert "name one in spec.model.chatTemplate" in said
    run = job(SHORT)
    prepared(run, tmp_path)
    assert first_row(run, tmp_path)["prompt"].startswith("Q: ")


def test_a_wrong_template_is_replaced(job: Callable[..., RunConfig], tmp_path: Path) -> None:
    plain, own = job(None, model="tiny"), job(SHORT, model="tiny")
    for run, start in ((plain, "<|im_start|>user"), (own, "Q: ")):
        prepared(run, tmp_path)
        assert first_row(run, tmp_path)["prompt"].startswith(start)


def test_what_the_template_says_decides_not_where_it_lies(job: Callable[..., RunConfig], tmp_path: Path) -> None:
    first, renamed, other = job(SHORT), job(SHORT, "renamed"), job(OTHER_END, "other")
    found = [prepared(run, tmp_path) for run in (first, renamed, other)]
    steps = [context(run, "train", tmp_path).inputs.fingerprints() for run in (first, renamed, other)]
    assert found[0].model == found[1].model
    assert steps[0] == steps[1]
    assert not set(steps[0].values()) & set(steps[2].values())
    assert len(list((tmp_path / "mounts/claims/store/job/data").iterdir())) == 2


def test_a_template_that_was_exchanged_under_its_name(job: Callable[..., RunConfig], tmp_path: Path) -> None:
    first = prepared(job(SHORT), tmp_path)
    code, reason, said = refused(job(OTHER_END), tmp_path)
    assert (code, reason) == (ExitCode.BAD_CONFIG, "ChatTemplateChanged")
    assert said.startswith("spec.model.chatTemplate: the template at configmap://chat/short.jinja is not the one that")
    assert prepared(job(SHORT), tmp_path) == first


def test_a_template_may_be_mended_until_rows_are_rendered_with_it(job: Callable[..., RunConfig], tmp_path: Path) -> None:
    stern = "{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
    assert refused(job(stern + SHORT), tmp_path)[1] == "ChatTemplateRefused"
    prepared(job(SHORT), tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% for m in messages %}\n{{ m['content'] }\n{% endfor %}", "line 2 of configmap://chat/short.jinja is not Jinja"),
        ("{{ messages | shout }}", "line 1 of configmap://chat/short.jinja is not Jinja as chat templates are written"),
        ("{{ messages[0] + 1 }}", "configmap://chat/short.jinja can't be rendered: unsupported operand"),
        (" \n", "configmap://chat/short.jinja is empty"),
    ],
)
def test_templates_that_are_none(job: Callable[..., RunConfig], tmp_path: Path, text: str, said: str) -> None:
    code, reason, message = refused(job(text), tmp_path)
    assert (code, reason) == (ExitCode.BAD_CONFIG, "ChatTemplateInvalid")
    assert message.startswith("spec.model.chatTemplate: " + said)


def test_a_config_map_without_the_key(job: Callable[..., RunConfig], tmp_path: Path) -> None:
    run = job(SHORT)
    (tmp_path / "mounts/configmaps/chat/short.jinja").unlink()
    assert refused(run, tmp_path)[1] == "ChatTemplateNotFound"


def test_all_that_is_made_carries_the_template_and_stops_where_it_ends_an_answer(
    job: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """The ConfigMap is gone by then: later steps don't mount it."""
    from transformers import AutoTokenizer, GenerationConfig

    from finetune_trainer.export.modelfile import write_modelfile
    from finetune_trainer.model.loading import end_tokens, load_tokenizer

    run = job(OTHER_END, model="tiny")
    prepared(run, tmp_path)
    shutil.rmtree(tmp_path / "mounts/configmaps")
    train.run(context(run, "train", tmp_path))
    merge.run(context(run, "merge", tmp_path))
    at = context(run, "evaluate", tmp_path)
    adapter, merged, base = at.inputs.output("train")[1], at.inputs.output("merge")[1], at.inputs.model()[1]
    for folder in (adapter, merged, base):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template.strip() == OTHER_END.strip()
        assert tokenizer.eos_token == TEXT_END
    ends = [tokenizer.convert_tokens_to_ids(token) for token in (TEXT_END, END)]
    assert GenerationConfig.from_pretrained(merged).eos_token_id == ends
    assert sorted(end_tokens(load_tokenizer(base), base)) == sorted(ends)
    assert "<|endoftext|>" in (write_modelfile("q4.gguf", tokenizer, [TEXT_END]) or "")
    assert first_row(run, tmp_path)["input_ids"][-1] == ends[0]
    assert {p.name for p in base.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"}
