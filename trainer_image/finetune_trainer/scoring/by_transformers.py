"""Scores by transformers: the loss over completions, and greedy answers in left-padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.contract import served_rows
from finetune_trainer.contract.reports import Check
from finetune_trainer.contract.training import Method
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.model.compute import Compute
from finetune_trainer.model.loading import forget_generation, load_base
from finetune_trainer.scoring.scorer import prefers_chosen
from finetune_trainer.scoring.scores import Answer

BATCH_TOKENS = 8192  # padded tokens of one batch, answers included
BATCH_ROWS = 32


class TransformersScorer:
    """Scores one folder of safetensors."""

    checks: tuple[Check, ...] = ()
    alone: tuple[str, ...] = ()

    def __init__(self, folder: Path, tokenizer: Any, end_tokens: tuple[int, ...], new_tokens: int, compute: Compute) -> None:
        self.tokenizer, self._end_tokens, self._new_tokens = tokenizer, end_tokens, new_tokens
        self._device = compute.device
        self.model = load_base(folder, Method.LORA, compute).eval()
        forget_generation(self.model)

    @torch.no_grad()
    def score(self, rows: Sequence[Rendered], alone: int = 0) -> Iterator[Answer]:
        """One Answer for each row; batches hold neighbours, so that results come in the rows' order."""
        # A class that has but attention of its own may not know padding on the left from a prompt (BLOOM's).
        most = BATCH_ROWS if self.model._supports_sdpa or self.model._supports_flash_attn else 1
        for batch in _batches(rows, self._new_tokens, most):
            yield from self.judge(batch, self._answers(batch, self._new_tokens))
        beginning = served_rows.length(self._new_tokens)
        self.alone = tuple(answer for row in rows[:alone] for answer in self._answers([row], beginning))

    @torch.no_grad()
    def judge(self, rows: Sequence[Rendered], answers: Sequence[str]) -> Iterator[Answer]:
        """One Answer for each row and what was said to it, by this model or by another engine's."""
        for row, answer in zip(rows, answers, strict=True):
            loss_sum, count, entropy_sum = self._loss(row.input_ids, row.counted)
            preferred = prefers_chosen(row, lambda *answered: self._loss(*answered)[0])
            yield Answer(row.completion.strip(), answer, loss_sum, count, entropy_sum, preferred)

    def _loss(self, row: Sequence[int], counts: Sequence[bool]) -> tuple[float, int, float]:
        """Sum of the negative log-likelihood of the tokens that count in nats, their count, and the sum of their entropy."""
        tokens = torch.tensor([row], device=self._device)
        counted = torch.tensor(counts[1:], device=self._device)  # the first token is predicted by nothing
        logits = self.model(input_ids=tokens, use_cache=False).logits[0, :-1][counted].float()
        log_probabilities = torch.log_softmax(logits, dim=-1)
        loss = torch.nn.functional.nll_loss(log_probabilities, tokens[0, 1:][counted], reduction="sum")
        entropy = torch.special.entr(log_probabilities.exp()).sum()
        return float(loss), int(counted.sum()), float(entropy)

    def _answers(self, batch: Sequence[Rendered], new_tokens: int) -> list[str]:
        if not all(row.prompt for row in batch):
            return ["" for _ in batch]
        prompts = [list(row.asked_ids) for row in batch]
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        tokens = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=self._device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        out = self.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=list(self._end_tokens),
            pad_token_id=pad,
        )
        return [answer_text(self.tokenizer, o, self._end_tokens) for o in out[:, longest:].tolist()]


def answer_text(tokenizer: Any, tokens: list[int], ends: tuple[int, ...]) -> str:
    """What was said before the first end token, without special tokens and outer white space."""
    return str(tokenizer.decode(_until(tokens, ends), skip_special_tokens=True)).strip()


def _until(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    """The tokens before the first end token."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens))]


def _batches(rows: Sequence[Rendered], new_tokens: int, most: int) -> Iterator[list[Rendered]]:
    """Neighbouring rows, as many as `most` and BATCH_TOKENS allow."""
    batch: list[Rendered] = []
    for row in rows:
        longest = max(len(r.input_ids) for r in (*batch, row)) + new_tokens
        if batch and (len(batch) == most or longest * (len(batch) + 1) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
