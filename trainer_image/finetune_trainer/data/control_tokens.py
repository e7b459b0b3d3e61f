"""A tokenizer's special tokens, told apart from the same letters in what people wrote.

A question that quotes <|im_end|> must not end its turn. So such letters are hidden from the chat template and the tokenizer
behind one character each, of a plane that no script uses, and become the tokens that the letters have as plain text.
"""

from __future__ import annotations

import re
from typing import Any

from finetune_trainer.data.turns import invalid

FIRST = 0xF0000  # the first character of Unicode's plane for private use


class ControlTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        special = {i: str(token.content) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ids = frozenset(special)
        self._names = sorted(special.values(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, self._names)) or r"(?!)")
        self._hidden = re.compile(f"[{chr(FIRST)}-{chr(FIRST + len(self._names))}]")

    def are_in(self, text: str) -> bool:
        return self._special.search(text) is not None

    def hide(self, place: str, text: str) -> str:
        """The text with each special token's letters as one character. Raises StepFailed where those characters are in use."""
        if self._hidden.search(text):
            raise invalid(place, "it has both a control token of the model and characters of Unicode's plane 15: remove one")
        return self._special.sub(lambda found: chr(FIRST + self._names.index(found[0])), text)

    def show(self, text: str) -> str:
        """What was hidden, as it was written."""
        return self._hidden.sub(lambda found: self._names[ord(found[0]) - FIRST], text)

    def encode(self, place: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text in which letters are hidden, and each token's range of characters in it.

        Raises StepFailed DatasetRowInvalid where the tokenizer has no other way to read the letters than as the token.
        """
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        start = 0
        for found in (*self._special.finditer(text), None):
            stop = len(text) if found is None else found.start()
            inside, ranges = self._as_text(text[start:stop])
            if self.ids.intersection(inside):
                raise invalid(place, "it has a control token of the model, which its tokenizer can't read as text: remove it")
            ids += inside
            offsets += [(start + a, start + b) for a, b in ranges]
            if found is not None:
                ids.append(self._tokenizer.convert_tokens_to_ids(found[0]))
                offsets.append(found.span())
                start = found.end()
        return ids, offsets

    def _as_text(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of a stretch without special tokens, and their ranges in it while it is hidden."""
        shown = [self.show(character) for character in text]
        origin = [number for number, letters in enumerate(shown) for _ in letters]
        encoded = self._tokenizer(
            "".join(shown),
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        ranges = [(origin[a], origin[b - 1] + 1) if a < b else (0, 0) for a, b in encoded["offset_mapping"]]
        return list(encoded["input_ids"]), ranges
