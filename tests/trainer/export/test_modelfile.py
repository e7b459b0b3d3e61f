"""The Modelfile's template says what the model's chat template says, or nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from tests.trainer.conftest import CHATML, train_tokenizer

from finetune_trainer.export.modelfile import DATE_SAID, chat_parts, write_modelfile

TURNS = {
    "question": ["user"],
    "with a system message": ["system", "user"],
    "conversation": ["user", "assistant", "user"],
    "all": ["system", "user", "assistant", "user", "assistant", "user"],
}
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}" + CHATML
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system messages here') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
DATED = (
    "{{ '<|im_start|>system\nToday: ' + strftime_now('%d %b %Y') + '\n\n' }}{% if messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% for m in messages if m['role'] != 'system' %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COUNTING = "{% for m in messages %}{{ loop.index ~ m['role'] ~ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


def conversation(roles: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} says {i}"} for i, role in enumerate(roles)]


def go(template: str, messages: Sequence[dict[str, str]]) -> str:
    """What Ollama makes of a template of the form that is written here: a loop over messages with one `if` a role."""
    opening, _, loop = template.rpartition("{{ range .Messages }}")
    found = re.fullmatch(r"(.*)\{\{ end \}\}(.*)", loop, re.DOTALL)
    assert found is not None
    opening = opening.removeprefix("{{ if not .System }}").removesuffix("{{ end }}")
    opening = "" if any(m["role"] == "system" for m in messages) else opening
    cases = dict(re.findall(r'\{\{ if eq \.Role "(\w+)" \}\}(.*?)\{\{ end \}\}', found[1], re.DOTALL))
    return opening + "".join(cases[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages) + found[2]


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, DATED], ids=["chatml", "default system message", "always one"])
@pytest.mark.parametrize("roles", TURNS.values(), ids=TURNS.keys())
def test_pain_01_the_modelfile_renders_as_the_chat_template(tokenizer: Any, template: str, roles: list[str]) -> None:
    tokenizer.chat_template = template
    messages = conversation(roles)
    parts = chat_parts(tokenizer)
    assert parts is not None
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert parts.render(messages) == expected
    shown = (
        messages
        if not parts.default_system or roles[0] == "system"  # Ollama adds no empty one
        else [{"role": "system", "content": parts.default_system}, *messages]
    )
    assert go(parts.go_template(), shown) == expected


def test_no_modelfile_rather_than_one_that_asks_in_another_form(tokenizer: Any) -> None:
    tokenizer.chat_template = COUNTING
    assert chat_parts(tokenizer) is None
    assert write_modelfile("q4.gguf", tokenizer, ["</s>"]) is None


def test_a_model_without_a_chat_template_is_asked_as_it_is(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    written = write_modelfile("q4.gguf", tokenizer, ["</s>"])
    assert written is not None
    assert "TEMPLATE" not in written


@pytest.mark.parametrize("template", [GEMMA, LLAMA_2], ids=["gemma", "llama 2"])
@pytest.mark.parametrize("roles", [["user"], ["user", "assistant", "user"]], ids=["question", "conversation"])
def test_a_template_that_takes_no_system_message_is_said_without_one(tokenizer: Any, template: str, roles: list[str]) -> None:
    tokenizer.chat_template = template
    messages = conversation(roles)
    parts = chat_parts(tokenizer)
    assert parts is not None
    assert go(parts.go_template(), messages) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_modelfile(tokenizer: Any) -> None:
    tokenizer.chat_template = DEFAULT_SYSTEM
    assert write_modelfile("q4.gguf", tokenizer, ["<|im_end|>"]) == (
        "FROM ./q4.gguf\n"
        'TEMPLATE """{{ range .Messages }}'
        '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n{{ end }}'
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ end }}'
        '{{ if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}'
        '{{ end }}<|im_start|>assistant\n"""\n'
        'SYSTEM """Be brief."""\n'
        'PARAMETER stop "<|im_end|>"\n'
        "PARAMETER temperature 0\n"
    )


def test_a_template_that_tells_the_date_is_said_with_that_of_the_day(tokenizer: Any) -> None:
    tokenizer.chat_template = DATED
    text = write_modelfile("m.gguf", tokenizer, [])
    assert text is not None
    assert text.splitlines()[1] == DATE_SAID
    tokenizer.chat_template = CHATML
    assert DATE_SAID not in str(write_modelfile("m.gguf", tokenizer, []))
