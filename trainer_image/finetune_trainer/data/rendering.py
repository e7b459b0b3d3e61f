"""Examples as tokens with their loss mask: through the model's chat template once, or plainly where it has none.

    <|im_start|>user⏎Who keeps the light?<|im_end|>⏎<|im_start|>assistant⏎Mira.<|im_end|>⏎
    └────────────────────── mask 0: the prompt ─────────────────────────┘└── mask 1 ──┘cut

The text is tokenized as a whole and the mask is read from the tokens' positions in it, so there is no double BOS and no
token that serving would cut otherwise. The end-of-turn token is in the mask: a model that never sees it never stops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.data.control_tokens import ControlTokens
from finetune_trainer.data.conversation import Example
from finetune_trainer.data.ledger import Cause
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.data.templated import Template, common
from finetune_trainer.data.turns import Turn, at
from finetune_trainer.failures import StepFailed, first_line
from finetune_trainer.model.own_template import with_own_template

# What people write at the end of their answers, where it is a special token of the model.
END_TOKENS = frozenset((
    "</s>", "<eos>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<end_of_turn>", "<turn|>",
    "<|end|>", "<|return|>", "<|endofturn|>", "<|end_of_turn|>", "<|eos|>", "[EOS]",
))  # fmt: skip


class Renderer:
    """Renders examples for one tokenizer."""

    def __init__(self, tokenizer: Any, completion_only: bool) -> None:
        self._tokenizer = tokenizer
        self._completion_only = completion_only
        self._control = ControlTokens(tokenizer)
        self._template = Template(tokenizer, self._control, every_answer=not completion_only)
        self._ends = {tokenizer.eos_token, *END_TOKENS.intersection(map(str, tokenizer.all_special_tokens))} - {None}

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def rows(self, example: Example) -> tuple[list[Rendered], tuple[Cause, ...]]:
        """The rows that an example gives, and in which ways they are not what its own row holds.

        Some templates (Qwen3's) write an answer whole only while it is the last one: each of those before has a row of its own
        then. No row comes of an answer that is nothing but an end token. Raises as render does, and DatasetRowInvalid.
        """
        with at(example.place, "rendered"):
            clean = self._without_end_tokens(example)
            answers = [turn for turn in clean.turns if turn.role == "assistant" and turn.learned]
            if clean.rejected == "" or any(not turn.content.strip() for turn in answers):
                return [], (Cause.NO_ANSWER,)
            rows = [*(self.render(part) for part in self._apart(clean)), self.render(clean)]
            said = [*(turn.content for turn in clean.turns), clean.rejected or ""]
            is_quoted = self._chats(clean) and any(map(self._control.are_in, said))
        changed = {Cause.END_TOKEN: clean != example, Cause.CONTROL_TOKEN: is_quoted}
        return rows, (*[Cause.ANSWER_APART] * (len(rows) - 1), *(cause for cause, is_so in changed.items() if is_so))

    def render(self, example: Example) -> Rendered:
        """The row whose last answer is the example's.

        Raises StepFailed ChatTemplateMissing, ChatTemplateRefused or NothingToLearn.
        """
        if example.rejected is None:
            return replace(self._learned(example), desirable=example.desirable)
        chosen = self._learned(replace(example, rejected=None))
        answer = Turn("assistant", example.rejected)
        other = self._learned(replace(example, turns=(*example.turns[:-1], answer), rejected=None))
        # Where the first letters of an answer melt into the prompt's last token, the prompt ends before that token.
        shared = min(common(chosen.input_ids, other.input_ids), chosen.prompt_tokens, other.prompt_tokens)
        return replace(chosen, prompt_tokens=shared, rejected=example.rejected, rejected_ids=other.input_ids[shared:])

    def _apart(self, example: Example) -> Iterator[Example]:
        """An example for each earlier answer that the example's own row does not hold whole."""
        of_preferences = example.rejected is not None or example.desirable is not None
        if not self._chats(example) or not self._completion_only or of_preferences:
            return  # of preferences the last answer is all that is learned
        for number in self._template.write(example).changed:
            before = [replace(turn, learned=False) if turn.role == "assistant" else turn for turn in example.turns[:number]]
            yield replace(example, turns=(*before, example.turns[number]))

    def _without_end_tokens(self, example: Example) -> Example:
        """The example without end tokens that somebody wrote at the end of answers: the template writes them."""
        turns = tuple(
            replace(turn, content=self._without_end(turn.content)) if turn.role == "assistant" else turn
            for turn in example.turns
        )
        rejected = None if example.rejected is None else self._without_end(example.rejected)
        return replace(example, turns=turns, rejected=rejected)

    def _without_end(self, answer: str) -> str:
        while (end := next((end for end in self._ends if answer.rstrip().endswith(end)), None)) is not None:
            answer = answer.rstrip().removesuffix(end)
        return answer

    def _learned(self, example: Example) -> Rendered:
        row = self._rendered(example)
        if not any(row.completion_mask):
            raise StepFailed(
                StepReason.NothingToLearn,
                f"spec.dataset: {example.place}: the model's chat template leaves no token of the answer in the text, so there"
                " is nothing to learn: take another model, or rows of format Text",
            )
        return row

    def _chats(self, example: Example) -> bool:
        return bool(example.turns) and self.has_chat_template

    def _rendered(self, example: Example) -> Rendered:
        if not example.turns:
            return self._plain(example.text, "")
        if self._chats(example):
            return self._chat(example)
        if not example.plain:
            raise StepFailed(
                StepReason.ChatTemplateMissing,
                "spec.model has no chat template, so it can't be given conversations: name one in spec.model.chatTemplate, or"
                " take its instruct version, or rows of format PromptCompletion or Text",
            )
        system = "".join(turn.content + "\n\n" for turn in example.turns if turn.role == "system")
        return self._plain(system + example.text, example.turns[-1].content)

    def _plain(self, prompt: str, completion: str) -> Rendered:
        """Prompt and answer one after the other; text without an answer is learned as a whole."""
        spans = [(len(prompt), len(prompt + completion))] if completion else [(0, len(prompt))]
        # Here, and only here, the tokenizer adds its BOS, unless the rows were rendered before and have it in their text.
        begun = self._tokenizer.bos_token is not None and prompt.startswith(self._tokenizer.bos_token)
        ids, offsets = self._encode(prompt + completion, add_special_tokens=not begun)
        row = self._masked(prompt + completion, ids, offsets, spans)
        return self._row(*row, prompt=prompt if completion else "", completion=completion or prompt)

    def _chat(self, example: Example) -> Rendered:
        made = self._template.write(example)
        is_quoted = made.text != self._control.show(made.text)
        if is_quoted:
            ids, offsets = self._control.encode(example.place, made.text)
        else:
            ids, offsets = self._encode(made.text, add_special_tokens=False)
        row = self._masked(made.text, ids, offsets, made.learned, made.unlearned)
        return self._row(*row, prompt=self._control.show(made.prompt), completion=example.turns[-1].content)

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and each token's range of characters in the text."""
        encoded = self._tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, return_attention_mask=False
        )
        return list(encoded["input_ids"]), encoded["offset_mapping"]

    def _masked(
        self,
        text: str,
        ids: list[int],
        offsets: Sequence[tuple[int, int]],
        spans: Sequence[tuple[int, int]],
        unlearned: Sequence[tuple[int, int]] = (),
    ) -> tuple[list[int], list[int], int]:
        """Tokens, mask and the index of the last answer's first token; what follows its end is cut off."""
        mask = [0 if self._completion_only else 1] * len(ids)
        for start, stop in unlearned:
            for index in _inside(offsets, start, stop):
                mask[index] = 0
        first = end = 0
        for start, stop in spans:
            inside = _inside(offsets, start, stop)
            if not inside:
                continue
            first, end = inside[0], self._end_of_turn(ids, offsets, text, inside, stop)
            for index in inside:
                mask[index] = max(mask[index], int(index < end))
        ids, mask = ids[:end], mask[:end]
        if ids and ids[-1] not in self._control.ids and self._tokenizer.eos_token_id is not None:
            ids.append(self._tokenizer.eos_token_id)  # a template without an end of turn, or plain text
            mask.append(1)
        return ids, mask, first

    def _end_of_turn(self, ids: list[int], offsets: Sequence[tuple[int, int]], text: str, inside: list[int], stop: int) -> int:
        """Index after the special token that ends the turn; after the turn's last token where there is none."""
        last = next((i for i in reversed(inside) if ids[i] in self._control.ids), None)
        if last is None or text[offsets[last][1] : stop].strip():
            return inside[-1] + 1
        return last + 1

    def _row(self, ids: list[int], mask: list[int], first: int, prompt: str, completion: str) -> Rendered:
        return Rendered(tuple(ids), tuple(mask), prompt, completion, first)


def _inside(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> list[int]:
    """Indices of the tokens whose characters all lie in the range."""
    return [index for index, (a, b) in enumerate(offsets) if start <= a < b <= stop]


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer as its tokenizer.json says, which is the file that serving engines read, too.

    Raises StepFailed TokenizerUnsupported where it can't be loaded, and ChatTemplateRefused.
    """
    from transformers import PreTrainedTokenizerFast  # the class for any tokenizer.json; AutoTokenizer imports torch

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing narrower for a broken file
        raise _unsupported(first_line(error)) from error
    return with_own_template(tokenizer, folder)


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


def _unsupported(why: str) -> StepFailed:
    return StepFailed(StepReason.TokenizerUnsupported, f"spec.model: its tokenizer can't be used: {why}")
