"""A chat template in any of the files that models keep it in is one and the same, from the rows to what serves the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.conftest import CHATML
from transformers import AutoTokenizer

from finetune_trainer.data import rendering
from finetune_trainer.export.modelfile import write_modelfile
from finetune_trainer.failures import StepFailed
from finetune_trainer.model import loading

OTHER = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
NAMED = [{"name": "default", "template": CHATML}, {"name": "tools", "template": OTHER}]
KEPT: dict[str, dict[str, Any]] = {
    "chat_template.jinja": {"chat_template.jinja": CHATML},
    "tokenizer_config.json": {"tokenizer_config.json": {"chat_template": CHATML}},
    "tokenizer_config.json, several": {"tokenizer_config.json": {"chat_template": NAMED}},
    "chat_template.json": {"chat_template.json": {"chat_template": CHATML}},
    "chat_template.json, several": {"chat_template.json": {"chat_template": NAMED}},
    "chat_template.json beside the tokenizer's own": {
        "chat_template.json": {"chat_template": OTHER}, "tokenizer_config.json": {"chat_template": CHATML},
    },
    "an older one beside chat_template.jinja": {
        "chat_template.jinja": CHATML, "tokenizer_config.json": {"chat_template": OTHER},
    },
}  # fmt: skip
TURNS = [{"role": "user", "content": "Who?"}]


@pytest.fixture
def bare(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model's tokenizer without a template."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "chat_template.jinja"))
    return folder


@pytest.mark.parametrize("files", KEPT.values(), ids=KEPT)
def test_rows_training_and_what_serves_have_one_template(bare: Path, tmp_path: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        if isinstance(content, dict) and (bare / name).is_file():
            content = json.loads((bare / name).read_text()) | content
        (bare / name).write_text(content if isinstance(content, str) else json.dumps(content))
    of_rows, of_training = rendering.load_tokenizer(bare), loading.load_tokenizer(bare)
    of_training.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tmp_path / "adapter").save_pretrained(tmp_path / "merged")
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    wanted = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    for tokenizer in (of_rows, of_training, merged):
        assert tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True) == wanted
    assert (tmp_path / "merged/chat_template.jinja").read_text() == CHATML, "where converters and servers read it"
    assert "<|im_start|>{{ .Role }}" in (text := write_modelfile("a.gguf", merged, []) or "") or "<|im_start|>user" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"chat_template": ""}', '{"chat_template": 1}', '{"chat_template": [1]}'])
def test_a_file_of_a_template_that_holds_none_is_refused(bare: Path, content: str) -> None:
    (bare / "chat_template.json").write_text(content)
    for load in (rendering.load_tokenizer, loading.load_tokenizer):
        with pytest.raises(StepFailed, match=r"spec\.model: its chat_template\.json .*: mend it, or name another") as caught:
            load(bare)
        assert caught.value.reason == "ChatTemplateRefused"
