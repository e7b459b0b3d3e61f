"""What an engine that checks nothing would answer wrongly, or not at all: told from the request and the model's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.contract.manners import Lacks
from finetune_trainer.serving.one_model import read

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Facts:
    """What the model can do, as its folder says."""

    context: int | None = None
    has_pictures: bool = False
    has_tools: bool = False


def facts(folder: Path | None, asked: int | None) -> Facts:
    """Those of a model's folder; `asked` is the context that is promised, and never more than the model's own."""
    if folder is None:
        return Facts(asked)
    config = _json(folder / "config.json")
    text = config.get("text_config", config)
    lengths = [n for n in (asked, text.get("max_position_embeddings"), text.get("n_positions")) if n]
    template, told = folder / "chat_template.jinja", _json(folder / "tokenizer_config.json").get("chat_template", "")
    words = template.read_text(encoding="utf-8") if template.exists() else json.dumps(told)
    pictures = any((folder / f"{kind}_config.json").exists() for kind in ("preprocessor", "processor"))
    return Facts(min(lengths, default=None), pictures, "tools" in words)


def _json(path: Path) -> dict[str, Any]:
    return read(path.read_bytes()) if path.exists() else {}


def wrongs(path: str, asked: dict[str, Any], lacks: Lacks, model: Facts) -> Iterator[tuple[str, str]]:
    """Fields, and what is wrong with them."""
    if path != CHAT and not isinstance(asked.get("prompt"), str):
        yield "prompt", "prompt is to be a text"
    if path == CHAT and not _are_messages(asked.get("messages")):
        yield "messages", "messages is to be a list of objects with role and content"
    elif path == CHAT and not model.has_pictures and not all(_is_text(m.get("content")) for m in asked["messages"]):
        yield "messages", "the model reads text alone: leave images, sound and files out"
    if asked.get("tools") and not model.has_tools:
        yield "tools", "the model's chat template knows no tools; leave them out"
    for field, nothing in lacks.ignored.items():
        if asked.get(field) not in (None, nothing):
            yield field, f"this engine passes over {field}; leave it out, or serve the model by another engine"
    for field in ("max_tokens", *(old for old, new in lacks.renamed.items() if new == "max_tokens")):
        if (tokens := asked.get(field)) is not None and (type(tokens) is not int or tokens < 1):
            yield field, f"{field} is to be a whole number above 0"


def _are_messages(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(m, dict) and "role" in m for m in found)


def _is_text(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content)
    return content is None or isinstance(content, str)


def fitted(asked: dict[str, Any], lacks: Lacks, model: str) -> dict[str, Any]:
    """The request in the engine's words, with a number of tokens."""
    body = {lacks.renamed.get(name, name): value for name, value in asked.items() if name not in lacks.ignored}
    return body | {"model": model, "max_tokens": body.get("max_tokens") or lacks.tokens}
