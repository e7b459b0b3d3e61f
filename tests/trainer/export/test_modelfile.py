"""The Modelfile's template says what the model's chat template says, or nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from tests.trainer.conftest import CHATML, train_tokenizer

from finetune_trainer.export.modelfile import chat_parts, write_modelfile

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
COUNTING = "{% for m in messages %}{{ loop.index ~ m['role'] ~ m['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


def conversation(roles: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} says {i}"} for i, role in enumerate(roles)]


def go(template: str, messages: Sequence[dict[str, str]]) -> str:
    """What Ollama makes of a template of the form that is written here: a loop over messages with one `if` a role."""
    found = re.fullmatch(r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template, re.DOTALL)
    assert found is not None
    cases = dict(re.findall(r'\{\{ if eq \.Role "(\w+)" \}\}(.*?)\{\{ end \}\}', found[1], re.DOTALL))
    return "".join(cases[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages) + found[2]


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM], ids=["chatml", "default system message"])
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
        if parts.default_system is None or roles[0] == "system"
        else [{"role": "system", "content": parts.default_system}, *messages]
    )
    assert go(parts.go_template(), shown) == expected


@pytest.mark.parametrize("template", [LLAMA_2, COUNTING, None], ids=["refuses system", "counts turns", "none"])
def test_no_template_rather_than_a_wrong_one(tokenizer: Any, template: str | None) -> None:
    tokenizer.chat_template = template
    assert chat_parts(tokenizer) is None
    assert "TEMPLATE" not in write_modelfile("q4.gguf", tokenizer, ["</s>"])


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
