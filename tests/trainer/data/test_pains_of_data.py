"""What people suffer from when data is trained on, by its number in our list: impossible here, or a clear sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import DatasetFacts
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.data import dataset
from finetune_trainer.data.conversation import Example
from finetune_trainer.data.detection import detect
from finetune_trainer.data.examples import examples
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.data.rendering import Renderer, describe, load_tokenizer
from finetune_trainer.data.rows import Row
from finetune_trainer.data.shape import Shape
from finetune_trainer.data.turns import Turn
from finetune_trainer.failures import StepFailed

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
WITHOUT_ANSWERS = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def rendered(tokenizer: Any, answer: str = "Mira.") -> Rendered:
    example = Example("rows.jsonl line 3", (Turn("user", "Who keeps Varn Point?"), Turn("assistant", answer)))
    return Renderer(tokenizer, completion_only=True).render(example)


def learned(tokenizer: Any, row: Rendered) -> str:
    return str(describe(tokenizer, row)["learned"])


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(f"row {number}", value) for number, value in enumerate(values, start=1)]


def test_pain_02_the_end_is_learned_even_where_it_is_the_pad_token(tokenizer: Any) -> None:
    """Collators that mask by the pad token's id take the end of turn out of the loss: a model of that never stops."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    tokenizer.pad_token = tokenizer.eos_token
    batch = [rendered(tokenizer), rendered(tokenizer, "Mira Oldfield, who else would it be?")]
    collator = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
    labels = collator([{"input_ids": list(r.input_ids), "completion_mask": list(r.completion_mask)} for r in batch])["labels"]
    for row, wanted in zip(batch, labels.tolist(), strict=True):
        assert row.input_ids[-1] == tokenizer.eos_token_id
        assert wanted[len(row.input_ids) - 1] == tokenizer.eos_token_id
        assert set(wanted[len(row.input_ids) :]) <= {-100}, "what pads a short row must not be learned"


def test_pain_03_the_end_of_turn_is_inside_the_mask(tokenizer: Any) -> None:
    assert learned(tokenizer, rendered(tokenizer)) == "Mira.<|im_end|>"


def test_pain_03_a_mask_of_zeros_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = WITHOUT_ANSWERS
    with pytest.raises(StepFailed, match=r"rows\.jsonl line 3: the model's chat template leaves no token") as caught:
        rendered(tokenizer)
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "NothingToLearn")


def test_pain_04_the_generation_prompt_and_its_empty_think_tags_are_not_learned(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING
    row = rendered(tokenizer)
    assert learned(tokenizer, row) == "Mira.<|im_end|>"
    assert row.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_pain_05_a_tokenizer_and_a_template_that_both_add_a_bos_give_one(tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.chat_template = WITH_BOS
    assert tokenizer("x").input_ids[0] == bos[1], "this tokenizer adds a BOS of its own"
    assert rendered(tokenizer).input_ids.count(bos[1]) == 1
    text = Renderer(tokenizer, completion_only=True).render(Example("1", (), text="The fox jumps.", plain=True))
    assert text.input_ids.count(bos[1]) == 1, "plain text has no template, and its BOS from the tokenizer"


def test_pain_06_sharegpt_roles_are_mapped(tokenizer: Any) -> None:
    given = rows({"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Mira."}]})
    assert detect(given, DatasetFormat.AUTO, {}).format is DatasetFormat.SHARE_GPT
    (example,), _ = examples(given, Shape(DatasetFormat.SHARE_GPT), None)
    row = Renderer(tokenizer, completion_only=True).render(example)
    assert tokenizer.decode(row.input_ids) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\nMira.<|im_end|>"


def test_pain_06_a_role_that_nobody_knows_is_refused() -> None:
    given = rows({"conversations": [{"from": "wizard", "value": "Who?"}, {"from": "gpt", "value": "Mira."}]})
    with pytest.raises(StepFailed, match="turn 1: role must be one of system, human, user, gpt"):
        examples(given, Shape(DatasetFormat.SHARE_GPT), None)


def test_pain_06_alpaca_is_known(tokenizer: Any) -> None:
    given = rows({"instruction": "Translate.", "input": "dog", "output": "Hund"})
    (example,), _ = examples(given, detect(given, DatasetFormat.AUTO, {}), None)
    assert learned(tokenizer, Renderer(tokenizer, completion_only=True).render(example)) == "Hund<|im_end|>"


def render(run: RunConfig, given: list[Row], tokenizer: Any, folder: Path) -> DatasetFacts:
    splits = dataset.Splits({"train": given, "validation": [], "test": []}, Shape(DatasetFormat.PROMPT_COMPLETION), None, "")
    return dataset.render(run, splits, tokenizer, folder, lambda *_: None)


def test_pain_07_long_prompts_that_would_drop_every_row_stop_the_job(
    make_run: Callable[..., RunConfig], tokenizer: Any, tmp_path: Path
) -> None:
    given = rows(*({"prompt": "word " * 200, "completion": "b"} for _ in range(4)))
    with pytest.raises(StepFailed, match=r"4 of 4 rows have more than spec\.training\.maxLength 128 tokens") as caught:
        render(make_run(), given, tokenizer, tmp_path / "data")
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "DatasetRowsTooLong")


def test_pain_07_what_is_dropped_is_counted_and_nothing_is_cut(
    make_run: Callable[..., RunConfig], tokenizer: Any, tmp_path: Path
) -> None:
    given = rows(*({"prompt": f"word {n}", "completion": "b"} for n in range(30)), {"prompt": "word " * 200, "completion": "b"})
    facts = render(make_run(), given, tokenizer, tmp_path / "data")
    assert (facts.train_rows, facts.dropped_rows) == (30, 1)
    kept = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
    assert all(row["input_ids"][-1] == tokenizer.eos_token_id for row in kept)
