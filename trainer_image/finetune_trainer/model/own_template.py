"""The chat template of a model that keeps it in chat_template.json, as processors of models that also see have it.

transformers' tokenizers read chat_template.jinja and tokenizer_config.json alone. Where those have a template, that one
counts: it is what servers read, too. A tokenizer that has a template is saved with it as chat_template.jinja, so that
adapters, merged models and GGUF files carry the one that was trained with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed

FILE = "chat_template.json"


def with_own_template(tokenizer: Any, folder: Path) -> Any:
    """The tokenizer, with the template of the folder's chat_template.json where it has none.

    Raises StepFailed ChatTemplateRefused where that file holds none.
    """
    if not tokenizer.chat_template and (folder / FILE).is_file():
        tokenizer.chat_template = _read(folder / FILE)
    return tokenizer


def _read(file: Path) -> str | dict[str, str]:
    """The template, or several by their names, written as an object or as a list of objects."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["chat_template"]
        if isinstance(found, list):
            found = {entry["name"]: entry["template"] for entry in found}
    except (ValueError, LookupError, TypeError) as error:
        raise _refused(f"is not as transformers writes it ({type(error).__name__})") from error
    if not isinstance(found, str | dict) or not found:
        raise _refused("holds no text")
    return found


def _refused(why: str) -> StepFailed:
    return StepFailed(
        StepReason.ChatTemplateRefused,
        f"spec.model: its {FILE} {why}: mend it, or name another template in spec.model.chatTemplate",
    )
