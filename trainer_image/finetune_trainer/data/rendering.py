"""Examples as tokens with their loss mask: through the model's chat template once, or plainly where it has none.

    <|im_start|>user⏎Who keeps the light?<|im_end|>⏎<|im_start|>assistant⏎Mira.<|im_end|>⏎
    └────────────────────── mask 0: the prompt ─────────────────────────┘└── mask 1 ──┘cut

The text is tokenized as a whole and the mask is read from the tokens' positions in it, so there is no double BOS and no
token that serving would cut otherwise. The end-of-turn token is in the mask: a model that never sees it never stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_trainer.contract.reports import ExitCode
from finetune_trainer.data.examples import Example, Turn
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.failures import StepFailed, first_line


class Renderer:
    """Renders examples for one tokenizer."""

    def __init__(self, tokenizer: Any, completion_only: bool) -> None:
        self._tokenizer = tokenizer
        self._completion_only = completion_only
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def render(self, example: Example) -> Rendered:
        """Raises StepFailed ChatTemplateMissing, ChatTemplateRefused or NothingToLearn."""
        if example.rejected is None:
            return replace(self._learned(example), desirable=example.desirable)
        chosen = self._learned(replace(example, rejected=None))
        answer = Turn("assistant", example.rejected)
        other = self._learned(replace(example, turns=(*example.turns[:-1], answer), rejected=None))
        # Where the first letters of an answer melt into the prompt's last token, the prompt ends before that token.
        shared = min(_common(chosen.input_ids, other.input_ids), chosen.prompt_tokens, other.prompt_tokens)
        return replace(chosen, prompt_tokens=shared, rejected=example.rejected, rejected_ids=other.input_ids[shared:])

    def _learned(self, example: Example) -> Rendered:
        row = self._rendered(example)
        if not any(row.completion_mask):
            raise StepFailed(
                ExitCode.BAD_DATA,
                "NothingToLearn",
                f"spec.dataset: {example.place}: the model's chat template leaves no token of the answer in the text, so there"
                " is nothing to learn: take another model, or rows of format Text",
            )
        return row

    def _rendered(self, example: Example) -> Rendered:
        if not example.turns:
            return self._plain(example.text, "")
        if self.has_chat_template:
            return self._chat(example)
        if not example.plain:
            raise StepFailed(
                ExitCode.BAD_DATA,
                "ChatTemplateMissing",
                "spec.model has no chat template, so it can't be given conversations: name one in spec.model.chatTemplate, or"
                " take its instruct version, or rows of format PromptCompletion or Text",
            )
        system = "".join(turn.content + "\n\n" for turn in example.turns if turn.role == "system")
        return self._plain(system + example.text, example.turns[-1].content)

    def _plain(self, prompt: str, completion: str) -> Rendered:
        """Prompt and answer one after the other; text without an answer is learned as a whole."""
        spans = [(len(prompt), len(prompt + completion))] if completion else [(0, len(prompt))]
        # Here, and only here, the tokenizer adds its BOS: no template has put one into the text.
        row = self._tokenize(prompt + completion, spans, add_special_tokens=True)
        return self._row(*row, prompt=prompt if completion else "", completion=completion or prompt)

    def _chat(self, example: Example) -> Rendered:
        turns = example.turns
        text = self._template(example, turns)
        spans, prompt = [], ""
        for number, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._template(example, turns[:number])
            asked = self._template(example, turns[:number], add_generation_prompt=True)
            answered = text if number + 1 == len(turns) else self._template(example, turns[: number + 1])
            start = _common(text, asked)
            if start >= len(before) and text.startswith(answered):
                spans.append((start, len(answered)))
                prompt = asked
            elif number + 1 == len(turns):  # an earlier answer that the template changes later is not learned
                raise StepFailed(
                    ExitCode.BAD_DATA,
                    "ChatTemplateRefused",
                    "the chat template of spec.model doesn't put an answer after its generation prompt, so what to learn"
                    " can't be told from the prompt: name another in spec.model.chatTemplate, or take rows of format Text",
                )
        row = self._tokenize(text, spans, add_special_tokens=False)
        return self._row(*row, prompt=prompt, completion=turns[-1].content)

    def _template(self, example: Example, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
        if not turns and not add_generation_prompt:
            return ""
        from jinja2 import TemplateError

        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
            )
        except TemplateError as error:
            raise StepFailed(
                ExitCode.BAD_DATA,
                "ChatTemplateRefused",
                f"spec.dataset: {example.place}: the model's chat template refuses the roles"
                f" {', '.join(turn.role for turn in turns)}: {first_line(error)}",
            ) from error

    def _tokenize(
        self, text: str, spans: Sequence[tuple[int, int]], add_special_tokens: bool
    ) -> tuple[list[int], list[int], int]:
        """Tokens, mask and the index of the last answer's first token; what follows its end is cut off."""
        encoded = self._tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, return_attention_mask=False
        )
        ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        mask = [0] * len(ids)
        first = end = 0
        for start, stop in spans:
            inside = [i for i, (a, b) in enumerate(offsets) if start <= a < b <= stop]
            if not inside:
                continue
            first, end = inside[0], self._end_of_turn(ids, offsets, text, inside, stop)
            for index in inside:
                mask[index] = int(index < end)
        ids, mask = ids[:end], mask[:end]
        if ids and ids[-1] not in self._special and self._tokenizer.eos_token_id is not None:
            ids.append(self._tokenizer.eos_token_id)  # a template without an end of turn, or plain text
            mask.append(1)
        return ids, mask, first

    def _end_of_turn(self, ids: list[int], offsets: Sequence[tuple[int, int]], text: str, inside: list[int], stop: int) -> int:
        """Index after the special token that ends the turn; after the turn's last token where there is none."""
        last = next((i for i in reversed(inside) if ids[i] in self._special), None)
        if last is None or text[offsets[last][1] : stop].strip():
            return inside[-1] + 1
        return last + 1

    def _row(self, ids: list[int], mask: list[int], first: int, prompt: str, completion: str) -> Rendered:
        learned = mask if self._completion_only else [1] * len(ids)
        return Rendered(tuple(ids), tuple(learned), prompt, completion, first)


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer as its tokenizer.json says, which is the file that serving engines read, too.

    Raises StepFailed TokenizerUnsupported where it can't be loaded.
    """
    from transformers import PreTrainedTokenizerFast  # the class for any tokenizer.json; AutoTokenizer imports torch

    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing narrower for a broken file
        raise _unsupported(first_line(error)) from error


def describe(tokenizer: Any, row: Rendered) -> dict[str, Any]:
    """A row as people check it: the text, what of it is learned, and each token with its mask."""
    learned = [token for token, kept in zip(row.input_ids, row.completion_mask, strict=True) if kept]
    shown: dict[str, Any] = {
        "text": tokenizer.decode(row.input_ids),
        "learned": tokenizer.decode(learned),
        "tokens": tokenizer.convert_ids_to_tokens(row.input_ids),
        "completion_mask": row.completion_mask,
    }
    if row.desirable is not None:
        shown["desirable"] = row.desirable
    return shown if row.rejected_ids is None else {**shown, "rejected": tokenizer.decode(row.rejected_ids)}


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _unsupported(why: str) -> StepFailed:
    return StepFailed(ExitCode.BAD_CONFIG, "TokenizerUnsupported", f"spec.model: its tokenizer can't be used: {why}")
