"""Proof that what leaves the pipeline is what was trained: each check has a limit, and its result is in the manifest.

adapterTensors   tensors in the adapter's file: exactly those that the model expects, none named as torch.compile names them
largestB         largest value in the adapter's B matrices: above zero, or the adapter would do nothing
reloadedLoss     loss over the first training row, read back by another process, against what the training pod saw
divergence       mean KL divergence in nats of one model's predictions from another's, over the first training rows
topToken         share of positions where the other's favourite has at least half the favourite's probability
perplexityRatio  perplexity of those rows under the other model, divided by that under the first
tokenIds         rows that an engine's tokenizer (llama.cpp, vLLM) or the saved one turned into other ids than the model's own
template         1 where the file carries another chat template than the model
endToken         1 where a GGUF file ends answers with another token than the model
stops            share of training prompts whose greedy answer ends by itself: above zero, if the base model's is
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Check
from finetune_trainer.data import rendered
from finetune_trainer.data.rendered import TRAIN
from finetune_trainer.failures import StepFailed

LOOKED_AT, QUESTIONS, LONGEST_ANSWER = 64, 2, 128  # short answers of few rows: large models write slowly on CPUs
ROWS, TOKENS = 2, 512  # enough to tell a broken model from a rounded one; it must not cost what an evaluation does
EXACT_LOSS, ROUNDED_LOSS = 1e-3, 3e-2  # trained in float32 on CPUs; trained in 16 bits, or saved so
# GPUs round the inputs of 8-bit weights, and this process, on CPUs, does not: 0.03 of 3.03 on SmolLM2-135M.
ROUNDED_INPUTS_LOSS = 1e-1


@dataclass(frozen=True)
class FixedRow:
    """The beginning of a training row; the loss counts what `counted` says."""

    tokens: tuple[int, ...]
    counted: tuple[bool, ...]
    text: str
    whole: bool


@dataclass(frozen=True)
class Question:
    """A training row's prompt, and how many tokens an answer that ends by itself may have."""

    tokens: tuple[int, ...]
    limit: int


@dataclass(frozen=True)
class Likeness:
    """How near one model's predictions come to another's, at worst over the rows."""

    divergence: float
    top_token: float
    perplexity_ratio: float


@dataclass(frozen=True)
class Limits:
    """Worst values that pass."""

    divergence: float
    top_token: float
    perplexity_ratio: float


def fixed_rows(data: Path) -> list[FixedRow]:
    """The first rows to train on, cut at TOKENS tokens."""
    return [
        FixedRow(row.input_ids[:TOKENS], row.counted[:TOKENS], row.prompt, len(row.input_ids) <= TOKENS)
        for row in rendered.read(data, TRAIN, ROWS)
    ]


def logits(network: Any, row: FixedRow) -> torch.Tensor:
    """Logits of a transformers model at every position of a row, float32 of shape (tokens, vocabulary)."""
    with torch.no_grad():
        return torch.as_tensor(network(input_ids=torch.tensor([row.tokens]), use_cache=False).logits[0].float())


def questions(data: Path) -> list[Question]:
    """The rows with the shortest answers among the first to train on: to ask them costs least. None for plain text."""
    asked = [row for row in rendered.read(data, TRAIN, LOOKED_AT) if row.prompt and row.prompt_tokens <= TOKENS]
    found = [Question(row.asked_ids, min(2 * len(row.answer_ids) + 16, LONGEST_ANSWER)) for row in asked]
    return sorted(found, key=lambda question: question.limit)[:QUESTIONS]


def stopping(network: Any, asked: Sequence[Question], ends: Sequence[int]) -> int:
    """How many greedy answers end by themselves, with one of the end tokens."""
    count = 0
    for question in asked:
        tokens = torch.tensor([question.tokens])
        said = network.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=question.limit,
            do_sample=False,
            eos_token_id=list(ends),
            pad_token_id=ends[0],
        )
        count += int(said[0, -1]) in ends
    return count


def expecting(network: Any, rows: Sequence[FixedRow], ends: Sequence[int]) -> int:
    """How many of the rows that were learned to their end token have an end token as the likeliest there."""
    learned = [row for row in rows if row.whole and row.counted[-1] and row.tokens[-1] in ends]
    return sum(int(logits(network, row)[-2].argmax()) in ends for row in learned)


def row_loss(values: torch.Tensor, row: FixedRow) -> float:
    """Mean loss in nats over the row's counted tokens; not a number where it counts none."""
    counted = torch.tensor(row.counted[1:])
    wanted = torch.tensor(row.tokens[1:])[counted]
    return float(torch.nn.functional.cross_entropy(values[:-1][counted].double(), wanted))


def likeness(rows: Sequence[FixedRow], reference: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> Likeness:
    """Compare the logits of two models over the same rows; the worst row counts."""
    pairs = list(zip(reference, other, strict=True))
    ratios = [
        math.exp(row_loss(found, row) - row_loss(expected, row))
        for row, (expected, found) in zip(rows, pairs, strict=True)
        if any(row.counted[1:])
    ]
    return Likeness(
        max(divergence(expected, found) for expected, found in pairs),
        min(_top_token(expected, found) for expected, found in pairs),
        max(ratios, default=1.0),
    )


def _top_token(reference: torch.Tensor, other: torch.Tensor) -> float:
    probabilities = reference.softmax(-1)
    taken = probabilities.gather(-1, other.argmax(-1, keepdim=True)).squeeze(-1)
    return float((taken >= probabilities.amax(-1) / 2).double().mean())


# ── Checks: each returns its results, or raises StepFailed VerificationFailed with a sentence ─────────────────────────


def check_likeness(what: str, found: Likeness, limits: Limits) -> tuple[Check, ...]:
    """Fails where a model answers unlike the one that it was made of."""
    checks = (
        Check(name="divergence", value=found.divergence, limit=limits.divergence),
        Check(name="topToken", value=found.top_token, limit=limits.top_token),
        Check(name="perplexityRatio", value=found.perplexity_ratio, limit=limits.perplexity_ratio),
    )
    passed = (
        found.divergence <= limits.divergence,
        found.top_token >= limits.top_token,
        found.perplexity_ratio <= limits.perplexity_ratio,
    )
    for check, good in zip(checks, passed, strict=True):
        if not good:
            raise _failed(f"{what}: {check.name} {check.value:.3g}, the limit is {check.limit:.3g}")
    return checks


def check_adapter(file: Path, expected: set[str]) -> tuple[Check, ...]:
    """Fails for an adapter's file that holds other tensors than the model takes, or whose B is all zero."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as tensors:
        names = set(tensors.keys())
        compiled = sorted(name for name in names if "_orig_mod" in name)
        if compiled:
            raise _failed(f"the adapter's tensors are named as torch.compile names them, such as {compiled[0]}")
        if names != expected:
            other = sorted(names ^ expected)
            raise _failed(f"the adapter has {len(names)} tensors where the model takes {len(expected)}: {other[0]}")
        largest = max(float(tensors.get_tensor(name).abs().max()) for name in names if "lora_B" in name)
    if not largest > 0:
        raise _failed("the adapter is dead: all of its B matrices are zero, so it would change no answer")
    return (
        Check(name="adapterTensors", value=len(names), limit=len(expected)),
        Check(name="largestB", value=largest, limit=0),
    )


def check_reload(trained: float, reloaded: float, limit: float) -> tuple[Check, ...]:
    """Fails where the weights as they were saved have another loss than the training pod saw."""
    allowed = limit * max(1.0, trained)
    if not abs(reloaded - trained) <= allowed:
        message = f"read back, the trained weights have loss {reloaded:.5g} on the first row, in training it was {trained:.5g}"
        raise _failed(message)
    return (Check(name="reloadedLoss", value=abs(reloaded - trained), limit=allowed),)


def check_tokens(
    rows: Sequence[FixedRow], tokenizer: Any, whose: str, read: Callable[[str], Sequence[int]]
) -> tuple[Check, ...]:
    """Fails where an artifact's tokenizer reads a rendered row as other tokens than the model was trained on."""
    texts = [row.text or tokenizer.decode(row.tokens) for row in rows]
    different = [text for text in texts if list(read(text)) != tokenizer(text, add_special_tokens=False).input_ids]
    if different:
        raise _failed(f"{whose} gives other ids than the model's for {len(different)} of {len(texts)} rows")
    return (Check(name="tokenIds", value=0, limit=0),)


def check_template(tokenizer: Any, carried: str | dict[str, str] | None) -> tuple[Check, ...]:
    """Fails where an artifact carries another chat template than the model was trained with."""
    if _default(tokenizer.chat_template) != _default(carried):
        raise _failed("the artifact carries another chat template than the model was trained with")
    return (Check(name="template", value=0, limit=0),)


def _default(template: str | dict[str, str] | None) -> str:
    """The template that conversations are rendered by; some models have others beside it, for tools or documents."""
    return ((template.get("default") if isinstance(template, dict) else template) or "").strip()


def check_end_token(ends: Sequence[int], carried: str | None) -> tuple[Check, ...]:
    """Fails where a GGUF file names no end token of the model: its answers would run on."""
    if carried is None or int(carried) not in ends:
        raise _failed(f"the file ends answers with token {carried}, the model with {' or '.join(map(str, ends))}")
    return (Check(name="endToken", value=0, limit=0),)


def check_stops(asked: int, stopped: int, expecting: Callable[[], int], base: Callable[[], int]) -> tuple[Check, ...]:
    """Fails where no answer ends any more, though the base model's do, and no training row's end is expected either.

    A small model may go round in circles with what it was asked, and yet end what it says as it was taught. A base model that
    never stops either, trained for a few steps, is no broken one: its scores show it. Both are asked only where they must be.
    """
    if asked == 0:
        return ()
    before = 0 if stopped or expecting() else base()
    if before:
        raise _failed(
            f"the trained model never stops: none of {asked} answers to training prompts ended, of the base model's {before}"
            " did; check that the rows end as the chat template ends an answer"
        )
    return (Check(name="stops", value=stopped / asked, limit=0),)


def _failed(message: str) -> StepFailed:
    return StepFailed(StepReason.VerificationFailed, message)


def divergence(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Mean over positions of KL(reference || other), in nats; logits of shape (positions, vocabulary)."""
    expected = torch.log_softmax(reference.double(), dim=-1)
    found = torch.log_softmax(other.double(), dim=-1)
    return float((expected.exp() * (expected - found)).sum(-1).mean())
