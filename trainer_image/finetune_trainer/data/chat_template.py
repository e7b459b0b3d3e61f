"""A chat template of the job's own (spec.model.chatTemplate): checked, and laid over the model once for all later stages.

    ConfigMap ─► chat_template.jinja ─┐
    model ─► tokenizer_config.json,   ├─► an entry of the store, whose files stand in for the model's (context.py)
             generation_config.json ──┘

A base model ends a text with another token than a chat template ends an answer with. That token becomes the model's end
token, or servers would not stop at it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from finetune_trainer.context import Context
from finetune_trainer.contract.fields import ChatTemplate
from finetune_trainer.contract.pipeline import templated_fingerprint
from finetune_trainer.contract.places import mounted_path
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import ModelFacts, StepResult
from finetune_trainer.data.conversation import Example
from finetune_trainer.data.rendering import Renderer, load_tokenizer
from finetune_trainer.data.turns import Turn
from finetune_trainer.failures import StepFailed, first_line
from finetune_trainer.inputs import MODEL, lay_over

FILE = "chat_template.jinja"
FIELD = "spec.model.chatTemplate"
SAMPLE = (Turn("user", "Who keeps the light?"), Turn("assistant", "Mira."))


def lay(context: Context, facts: ModelFacts) -> ModelFacts:
    """Facts of the model under the job's template, which from here on is the one in its folder; as they are without one.

    Raises StepFailed ChatTemplateNotFound, ChatTemplateInvalid or ChatTemplateChanged.
    """
    given = context.run.model.chat_template
    if given is None:
        return facts
    text = _read(context, given)
    digest = hashlib.sha256(f"{facts.digest}\n{hashlib.sha256(text.encode()).hexdigest()}".encode()).hexdigest()
    under = facts.model_copy(update={"digest": f"sha256:{digest}"})
    known = context.store.read(MODEL, templated_fingerprint(context.run.model))
    if known is not None:
        assert known.result.model is not None  # keep commits no other
        if known.result.model.digest != under.digest:
            raise StepFailed(
                StepReason.ChatTemplateChanged,
                f"{FIELD}: the template at {given.uri} is not the one that this store's results were made with; put that back,"
                " or give the new one a name of its own",
            )
        return known.result.model
    model = context.inputs.model_without_weights(context.run.model.model_copy(update={"chat_template": None}))
    folder = context.scratch / "template"
    folder.mkdir()
    (folder / FILE).write_text(text, encoding="utf-8")
    for name, content in _with_end(model, _end_token(model, given, text)).items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    lay_over(model, folder, context.inputs.templated_folder())
    return under


def keep(context: Context, facts: ModelFacts) -> None:
    """Commit the template, now that rows are rendered with it: until then it may be mended under its name."""
    folder = context.scratch / "template"
    if not folder.is_dir():  # the job has none, or it is kept already
        return
    given, fingerprint = context.run.model.chat_template, templated_fingerprint(context.run.model)
    result = StepResult(step=context.step.name, fingerprint=fingerprint, model=facts)
    context.keep(MODEL, folder, result, {"uri": context.run.model.uri, "chatTemplate": given.uri if given else ""})


def _read(context: Context, given: ChatTemplate) -> str:
    """The template's text. Raises StepFailed where the ConfigMap lacks it."""
    try:
        text = Path(str(mounted_path(given.uri, context.pod.mounts))).read_text(encoding="utf-8")
    except OSError as error:
        raise StepFailed(
            StepReason.ChatTemplateNotFound, f"{FIELD}: nothing lies at {given.uri}; correct its name and key"
        ) from error
    except UnicodeDecodeError as error:
        raise StepFailed(StepReason.ChatTemplateInvalid, f"{FIELD}: {given.uri} is no text in UTF-8") from error
    if not text.strip():
        raise StepFailed(
            StepReason.ChatTemplateInvalid, f"{FIELD}: {given.uri} is empty; write a Jinja template, or remove the field"
        )
    return text


def _end_token(model: Path, given: ChatTemplate, text: str) -> str | None:
    """The token that ends an answer under the template; None where only the rows can tell whether it does.

    Raises StepFailed ChatTemplateInvalid for a template that can't be rendered.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = text
    try:
        tokenizer.apply_chat_template([{"role": turn.role, "content": turn.content} for turn in SAMPLE], tokenize=False)
        row = Renderer(tokenizer, completion_only=True).render(Example("", SAMPLE))
    except TemplateSyntaxError as error:
        said = f"line {error.lineno} of {given.uri} is not Jinja as chat templates are written: {first_line(error)}"
        raise StepFailed(StepReason.ChatTemplateInvalid, f"{FIELD}: {said}") from error
    except (TemplateError, StepFailed):
        return None  # it wants other turns than these, and says so when it meets the rows
    except Exception as error:  # whatever an expression in it comes to
        raise StepFailed(
            StepReason.ChatTemplateInvalid, f"{FIELD}: {given.uri} can't be rendered: {first_line(error)}"
        ) from error
    last = tokenizer.added_tokens_decoder.get(row.input_ids[-1])
    return str(last.content) if last is not None and last.special else None


def _with_end(model: Path, end: str | None) -> dict[str, dict[str, Any]]:
    """The model's settings without a template, and with `end` as the end token where they name others."""
    tokenizer = load_tokenizer(model)
    config = _settings(model / "tokenizer_config.json")
    config.pop("chat_template", None)
    changed = {"tokenizer_config.json": config}
    generation = _settings(model / "generation_config.json")
    named = generation.get("eos_token_id")
    ends = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    if end is None or (number := tokenizer.convert_tokens_to_ids(end)) in ends:
        return changed
    config["eos_token"] = end
    known = [number, *dict.fromkeys(token for token in ends if token is not None)]
    changed["generation_config.json"] = generation | {"eos_token_id": known}
    if names := _settings(model / "special_tokens_map.json"):
        changed["special_tokens_map.json"] = names | {"eos_token": end}
    return changed


def _settings(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
