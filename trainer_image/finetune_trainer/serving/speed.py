"""How fast an engine answers: each prompt once more, as a stream, and what must be reached."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from finetune_trainer.contract.served_speed import ServedSpeed


@dataclass(frozen=True)
class Floors:
    """What must be reached; None where nothing is asked."""

    tokens_per_second: float | None = None  # at least
    first_token_milliseconds: float | None = None  # at most

    def __bool__(self) -> bool:
        return self.tokens_per_second is not None or self.first_token_milliseconds is not None


@dataclass(frozen=True)
class Streamed:
    """One answer. Seconds since it was asked for."""

    first: float
    last: float
    tokens: int


def streamed(lines: Iterable[bytes], begun: float) -> Streamed | None:
    """An answer as its server-sent events come in; `begun` is on the monotonic clock. None where it has no text."""
    first = last = None
    pieces, counted = 0, None
    for chunk in _chunks(lines):
        counted = (chunk.get("usage") or {}).get("completion_tokens", counted)
        choice: dict[str, Any] = next(iter(chunk.get("choices") or []), {})
        delta = choice.get("delta") or {}
        if delta.get("content") or delta.get("reasoning_content"):
            last = time.monotonic() - begun
            first = last if first is None else first
            pieces += 1
    if first is None or last is None:
        return None
    return Streamed(first, last, counted or pieces)  # a server that counts no tokens sends one in each piece


def _chunks(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        data = line.strip().removeprefix(b"data:").strip()
        if line.startswith(b"data:") and data != b"[DONE]":
            yield json.loads(data)


def told(answers: Sequence[Streamed]) -> ServedSpeed:
    """The numbers of all answers."""
    rates = [(a.tokens - 1) / (a.last - a.first) for a in answers if a.tokens > 1 and a.last > a.first]
    return ServedSpeed(
        prompts=len(answers),
        tokens_per_second=round(median(rates), 2) if rates else 0.0,
        first_token_milliseconds=round(1000 * median(a.first for a in answers), 1),
    )


def mistake(speed: ServedSpeed, floors: Floors) -> str | None:
    """What is too slow; None where nothing is."""
    least, most = floors.tokens_per_second, floors.first_token_milliseconds
    if least is not None and speed.tokens_per_second < least:
        text = f"the answers come at {speed.tokens_per_second:g} tokens/s, the median of {speed.prompts} prompts"
        return f"{text}, and spec.rollout.gate.minTokensPerSecond asks for {least:g}"
    if most is not None and speed.first_token_milliseconds > most:
        text = f"the first token comes after {speed.first_token_milliseconds:g} ms, the median of {speed.prompts} prompts"
        return f"{text}, and spec.rollout.gate.maxFirstTokenMilliseconds allows {most:g}"
    return None
