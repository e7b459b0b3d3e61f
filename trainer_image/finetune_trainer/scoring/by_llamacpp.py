"""Scores of a GGUF file by llama.cpp, through its Python binding, on the token ids of the model's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from finetune_trainer.contract.reports import Check
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.export import llamacpp
from finetune_trainer.scoring.scorer import prefers_chosen
from finetune_trainer.scoring.scores import Answer


class LlamaCppScorer:
    """Scores one GGUF file on the CPU, row by row."""

    checks: tuple[Check, ...] = ()
    alone: tuple[str, ...] = ()

    def __init__(
        self, file: Path, tokenizer: Any, end_tokens: tuple[int, ...], new_tokens: int, rows: Sequence[Rendered]
    ) -> None:
        self._tokenizer, self._end_tokens, self._new_tokens = tokenizer, end_tokens, new_tokens
        self._model = llamacpp.open_model(file, max(row.length for row in rows) + new_tokens + 1)

    def score(self, rows: Sequence[Rendered], alone: int = 0) -> Iterator[Answer]:
        """One Answer for each row, in the rows' order, each asked by itself."""
        for number, row in enumerate(rows):
            loss_sum, count, entropy_sum = self._loss(row.input_ids, row.counted)
            preferred = prefers_chosen(row, lambda *answered: self._loss(*answered)[0])
            answer = self._answer(row)
            self.alone += (answer,) if number < alone else ()
            yield Answer(row.completion.strip(), answer, loss_sum, count, entropy_sum, preferred)

    def logits(self, tokens: Sequence[int]) -> Any:
        """Logits at every position, float32 of shape (tokens, vocabulary)."""
        return llamacpp.logits(self._model, tokens)

    def _loss(self, tokens: Sequence[int], counts: Sequence[bool]) -> tuple[float, int, float]:
        """Sum of the negative log-likelihood of the tokens that count in nats, their count, and the sum of their entropy."""
        counted = numpy.flatnonzero(counts[1:])
        logits = self.logits(tokens)[counted].astype(numpy.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= numpy.log(numpy.exp(logits).sum(axis=-1, keepdims=True))  # now they are log-probabilities
        wanted = logits[numpy.arange(len(counted)), numpy.asarray(tokens)[counted + 1]]
        entropy = -(numpy.exp(logits) * logits).sum()
        return float(-wanted.sum()), len(counted), float(entropy)

    def _answer(self, row: Rendered) -> str:
        if not row.prompt:
            return ""
        answer: list[int] = []
        self._model.reset()
        for token in self._model.generate(list(row.asked_ids), top_k=1, temp=0.0, repeat_penalty=1.0):
            if token in self._end_tokens or len(answer) == self._new_tokens:
                break
            answer.append(token)
        return str(self._tokenizer.decode(answer, skip_special_tokens=True)).strip()
