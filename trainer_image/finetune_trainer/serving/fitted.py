"""What an engine that checks nothing would answer wrongly, or not at all: told from the request and the model's folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.contract.manners import Lacks
from finetune_trainer.serving import modelfile
from finetune_trainer.serving.besides import SHOWN
from finetune_trainer.serving.one_model import read

CHAT = "/v1/chat/completions"
PASSED_OVER = "this engine passes over {}; leave it out, or serve the model by another engine"


@dataclass(frozen=True)
class Facts:
    """What the model can do, as its folder says."""

    context: int | None = None
    has_pictures: bool = False
    has_tools: bool = False
    roles: frozenset[str] | None = None  # of messages; None: any
    system: str | None = None  # what the engine puts before a conversation that begins without


def facts(folder: Path | None, asked: int | None) -> Facts:
    """Those of a model's folder; `asked` is the context that is promised, and never more than the model's own."""
    if folder is None:
        return Facts(asked)
    config = _json(folder / "config.json")
    text = config.get("text_config", config)
    lengths = [n for n in (asked, text.get("max_position_embeddings"), text.get("n_positions")) if n]
    context = min(lengths, default=None)
    if any(folder.glob("*.gguf")):
        told = modelfile.read(_text(folder / modelfile.NAME))
        return Facts(context, has_tools=told.has_tools, roles=told.roles, system=told.system)
    template, said = folder / "chat_template.jinja", _json(folder / "tokenizer_config.json").get("chat_template", "")
    words = _text(template) if template.exists() else json.dumps(said)
    pictures = any((folder / f"{kind}_config.json").exists() for kind in ("preprocessor", "processor"))
    return Facts(context, pictures, "tools" in words)


def _json(path: Path) -> dict[str, Any]:
    return read(path.read_bytes()) if path.exists() else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def wrongs(path: str, asked: dict[str, Any], lacks: Lacks, model: Facts) -> Iterator[tuple[str, str]]:
    """Fields, and what is wrong with them."""
    if path != CHAT and not isinstance(asked.get("prompt"), str):
        yield "prompt", "prompt is to be a text"
    if path == CHAT and (text := _wrong_with(asked.get("messages"), model)) is not None:
        yield "messages", text
    if asked.get("tools") and not model.has_tools:
        yield "tools", "the model's chat template knows no tools; leave them out"
    for field, nothing in lacks.ignored.items():
        if asked.get(field) not in (None, nothing):
            yield field, PASSED_OVER.format(field)
    for field in [name for name, value in asked.items() if lacks.known and value is not None]:
        if field not in (*lacks.known, *lacks.ignored, *lacks.renamed, "model"):
            yield field[:SHOWN], PASSED_OVER.format(field[:SHOWN])
    for field in ("max_tokens", *(old for old, new in lacks.renamed.items() if new == "max_tokens")):
        if (tokens := asked.get(field)) is not None and (type(tokens) is not int or tokens < 1):
            yield field, f"{field} is to be a whole number above 0"


def shortened(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """A conversation without the message that an engine leaves out first, if it leaves out any; None where that can't be: the
    last one is always kept, and one that is empty is no loss. System messages are kept while others can go; one that goes
    leaves an empty one, as an engine puts a model's own before a conversation that begins without any.
    """
    if len(messages) < 2:
        return None
    if others := [n for n, message in enumerate(messages[:-1]) if message.get("role") != "system"]:
        return messages[: others[0]] + messages[others[0] + 1 :]
    *kept, gone, last = messages
    return [*kept, {**gone, "content": ""}, last] if gone.get("content") else None


def said(messages: list[dict[str, Any]], model: Facts) -> list[dict[str, Any]]:
    """A conversation as an engine reads it that puts a system message before it, and takes a message's parts for messages."""
    found = [
        {**m, "content": "\n".join(p["text"] for p in c)} if isinstance(c := m.get("content"), list) else m for m in messages
    ]
    hidden = model.system if found[0]["role"] != "system" else None
    return found if hidden is None else [{"role": "system", "content": hidden}, *found]


def _wrong_with(messages: Any, model: Facts) -> str | None:
    if not _are_messages(messages):
        return "messages is to be a list of objects with role and content"
    if not model.has_pictures and not all(_is_text(m.get("content")) for m in messages):
        return "the model reads text alone: leave images, sound and files out"
    strange = [str(m["role"])[:SHOWN] for m in messages if model.roles is not None and m["role"] not in model.roles]
    return f"the model's template has no place for messages of the role {strange[0]}; leave them out" if strange else None


def _are_messages(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(m, dict) and "role" in m for m in found)


def _is_text(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content)
    return content is None or isinstance(content, str)


def fitted(path: str, asked: dict[str, Any], lacks: Lacks, name: str, model: Facts) -> dict[str, Any]:
    """The request in the engine's words, with a number of tokens."""
    body = {lacks.renamed.get(field, field): value for field, value in asked.items() if field not in lacks.ignored}
    if path == CHAT and lacks.leaves_out:
        body["messages"] = said(body["messages"], model)
    called = name + lacks.called.get(path, "")
    return body | {"model": called, "max_tokens": body.get("max_tokens") or lacks.tokens}
