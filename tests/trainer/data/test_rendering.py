"""Tokens and loss masks: what is learned, where a row ends, and what templates can't do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.data.conversation import Example
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.data.rendering import Renderer, describe, load_tokenizer
from finetune_trainer.data.turns import Turn
from finetune_trainer.failures import StepFailed

LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def chat(*turns: str) -> Example:
    roles = ("user", "assistant")
    return Example("rows.jsonl line 1", tuple(Turn(roles[i % 2], text) for i, text in enumerate(turns)))


def asked(prompt: str, answer: str, text: str = "") -> Example:
    return Example("line 1", (Turn("user", prompt), Turn("assistant", answer)), text=text or prompt, plain=True)


def learned(tokenizer: Any, row: Rendered) -> str:
    return str(describe(tokenizer, row)["learned"])


def test_a_conversation_is_learned_from_the_answer_to_its_end_of_turn(tokenizer: Any) -> None:
    row = Renderer(tokenizer, completion_only=True).render(chat("Who keeps Varn Point?", "Mira Oldfield."))
    assert tokenizer.decode(row.input_ids) == (
        "<|im_start|>user\nWho keeps Varn Point?<|im_end|>\n<|im_start|>assistant\nMira Oldfield.<|im_end|>"
    )
    assert learned(tokenizer, row) == "Mira Oldfield.<|im_end|>"
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert row.completion_mask[-1] == 1
    assert row.prompt == "<|im_start|>user\nWho keeps Varn Point?<|im_end|>\n<|im_start|>assistant\n"
    assert row.completion == "Mira Oldfield."
    assert tokenizer.decode(row.input_ids[: row.prompt_tokens]) == row.prompt


def test_the_prompt_tokens_are_those_that_serving_gives_the_model(tokenizer: Any) -> None:
    row = Renderer(tokenizer, completion_only=True).render(chat("12 red fish?", "No.", "Why?", "They are blue."))
    assert list(row.input_ids[: row.prompt_tokens]) == tokenizer.encode(row.prompt, add_special_tokens=False)


def test_every_answer_of_a_conversation_is_learned(tokenizer: Any) -> None:
    row = Renderer(tokenizer, completion_only=True).render(chat("One?", "First.", "Two?", "Second."))
    assert learned(tokenizer, row) == "First.<|im_end|>Second.<|im_end|>"
    assert row.prompt.endswith("Two?<|im_end|>\n<|im_start|>assistant\n")
    assert row.completion == "Second."


def test_the_mask_equals_that_of_the_templates_own_generation_markers(tokenizer: Any) -> None:
    example = chat("One?", "First.", "Two?", "Second.")
    row = Renderer(tokenizer, completion_only=True).render(example)
    told = tokenizer.apply_chat_template(
        [{"role": t.role, "content": t.content} for t in example.turns], return_assistant_tokens_mask=True, return_dict=True
    )
    length = len(row.input_ids)
    assert list(row.input_ids) == told["input_ids"][:length]
    assert list(row.completion_mask) == told["assistant_masks"][:length]
    assert not any(told["assistant_masks"][length:])


def test_loss_on_the_whole_row_where_asked_for(tokenizer: Any) -> None:
    row = Renderer(tokenizer, completion_only=False).render(chat("One?", "First."))
    assert set(row.completion_mask) == {1}
    assert tokenizer.decode(row.input_ids[row.prompt_tokens :]) == "First.<|im_end|>"


def test_a_template_with_a_bos_gives_one_bos(tokenizer: Any) -> None:
    tokenizer.chat_template = LLAMA_2
    row = Renderer(tokenizer, completion_only=True).render(chat("Hi?", "Yes."))
    assert row.input_ids.count(tokenizer.bos_token_id) == 1
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert learned(tokenizer, row) == " Yes. <|im_end|>"


def test_a_template_without_an_end_of_turn_gets_the_eos(tokenizer: Any) -> None:
    tokenizer.chat_template = NO_END
    row = Renderer(tokenizer, completion_only=True).render(chat("Hi?", "Yes."))
    assert learned(tokenizer, row) == "Yes.\n<|im_end|>"


def test_a_template_that_refuses_a_role_is_quoted(tokenizer: Any) -> None:
    tokenizer.chat_template = NO_SYSTEM
    example = Example("rows.jsonl line 7", (Turn("system", "a"), Turn("user", "b"), Turn("assistant", "c")))
    with pytest.raises(StepFailed, match=r"rows.jsonl line 7.*refuses the roles system.*no system role") as caught:
        Renderer(tokenizer, completion_only=True).render(example)
    assert (caught.value.exit_code, caught.value.reason) == (ExitCode.BAD_DATA, "ChatTemplateRefused")


def test_a_model_without_a_template_takes_plain_rows_only(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    renderer = Renderer(tokenizer, completion_only=True)
    row = renderer.render(asked("2 + 2 =", " 4"))
    assert tokenizer.decode(row.input_ids) == "2 + 2 = 4<|im_end|>"
    assert learned(tokenizer, row) == " 4<|im_end|>"
    assert (row.prompt, row.completion) == ("2 + 2 =", " 4")
    with pytest.raises(StepFailed, match="has no chat template") as caught:
        renderer.render(chat("Hi?", "Yes."))
    assert caught.value.reason == "ChatTemplateMissing"


def test_a_system_prompt_goes_before_plain_rows(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    example = Example("1", (Turn("system", "Be short."), Turn("user", "Hi?"), Turn("assistant", "Yes")), "Hi? ", plain=True)
    row = Renderer(tokenizer, completion_only=True).render(example)
    assert row.prompt == "Be short.\n\nHi? "


def test_text_is_learned_as_a_whole_even_with_a_template(tokenizer: Any) -> None:
    row = Renderer(tokenizer, completion_only=True).render(Example("1", (), text="The fox jumps.", plain=True))
    assert tokenizer.decode(row.input_ids) == "The fox jumps.<|im_end|>"
    assert set(row.completion_mask) == {1}
    assert (row.prompt, row.completion, row.prompt_tokens) == ("", "The fox jumps.", 0)


def test_answers_in_other_scripts_keep_every_byte(tokenizer: Any) -> None:
    row = Renderer(tokenizer, completion_only=True).render(chat("Où?", "Zürich, 東京 🗼"))
    assert learned(tokenizer, row) == "Zürich, 東京 🗼<|im_end|>"


def test_smollm2_is_rendered_as_its_own_template_says(smollm: Path) -> None:
    tokenizer = load_tokenizer(smollm)
    row = Renderer(tokenizer, completion_only=True).render(chat("Who keeps Varn Point?", "Mira."))
    assert learned(tokenizer, row) == "Mira.<|im_end|>"
    assert row.prompt.startswith("<|im_start|>system\n")
    assert list(row.input_ids[: row.prompt_tokens]) == tokenizer.encode(row.prompt, add_special_tokens=False)


def test_a_preference_has_one_prompt_and_two_answers(tokenizer: Any) -> None:
    example = Example("1", (Turn("user", "Who?"), Turn("assistant", "Mira Oldfield.")), rejected="Mira, the red fox.")
    row = Renderer(tokenizer, completion_only=True).render(example)
    prompt, chosen = row.input_ids[: row.prompt_tokens], row.input_ids[row.prompt_tokens :]
    assert row.rejected_ids is not None
    assert tokenizer.decode(prompt) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(chosen) == "Mira Oldfield.<|im_end|>"
    assert tokenizer.decode(row.rejected_ids) == "Mira, the red fox.<|im_end|>"
    assert row.length == len(prompt) + max(len(chosen), len(row.rejected_ids))
    assert row.columns.keys() - RENDERED.keys() == {"rejected", "rejected_ids"}
    assert describe(tokenizer, row)["rejected"] == "Mira, the red fox.<|im_end|>"


RENDERED = {"input_ids": (), "completion_mask": (), "prompt": "", "completion": "", "prompt_tokens": 0}


def test_other_rows_have_no_rejected_answer(tokenizer: Any) -> None:
    assert Renderer(tokenizer, completion_only=True).render(chat("Hi?", "Yes.")).columns.keys() == RENDERED.keys()
