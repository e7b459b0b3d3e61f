"""How fast an engine answers, from what it streams."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from finetune_trainer.contract.served_speed import ServedSpeed
from finetune_trainer.serving import speed
from finetune_trainer.serving.speed import Floors, Streamed


def events(*events: tuple[float, object], clock: list[float]) -> Iterator[bytes]:
    """Server-sent events, each at its second."""
    for at, event in events:
        clock[0] = at
        yield f"data: {event if isinstance(event, str) else json.dumps(event)}\n".encode()
        yield b"\n"


def piece(text: str, field: str = "content") -> object:
    return {"choices": [{"delta": {field: text}}]}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_stream_with_its_count_of_tokens(clock: list[float]) -> None:
    role, usage = {"choices": [{"delta": {"role": "assistant"}}]}, {"choices": [], "usage": {"completion_tokens": 9}}
    stream = events((11, role), (12, piece("a")), (14, piece(" b")), (15, usage), (16, "[DONE]"), clock=clock)
    assert speed.streamed(stream, 10.0) == Streamed(first=2.0, last=4.0, tokens=9)


def test_without_a_count_each_piece_is_a_token_and_thoughts_are_tokens_too(clock: list[float]) -> None:
    stream = events((1, piece("hm", "reasoning_content")), (2, piece("a")), (3, piece("b")), clock=clock)
    assert speed.streamed(stream, 0.0) == Streamed(first=1.0, last=3.0, tokens=3)


def test_an_answer_without_text_has_no_speed(clock: list[float]) -> None:
    assert speed.streamed(events((1, {"choices": []}), (2, "[DONE]"), clock=clock), 0.0) is None


def test_medians_over_the_answers() -> None:
    answers = [Streamed(0.1, 1.1, 11), Streamed(0.3, 1.3, 31), Streamed(0.2, 1.2, 21), Streamed(0.4, 0.4, 1)]
    assert speed.told(answers) == ServedSpeed(prompts=4, tokens_per_second=20.0, first_token_milliseconds=250.0)
    assert speed.told([Streamed(0.4, 0.4, 1)]).tokens_per_second == 0


MEASURED = ServedSpeed(prompts=3, tokens_per_second=20.0, first_token_milliseconds=250.0)


@pytest.mark.parametrize(
    ("floors", "words"),
    [
        (Floors(), None),
        (Floors(20.0, 250.0), None),
        (
            Floors(tokens_per_second=20.5),
            "at 20 tokens/s, the median of 3 prompts, and spec.rollout.gate.minTokens",
        ),
        (Floors(first_token_milliseconds=249), "after 250 ms, the median of 3 prompts, and spec.rollout.gate.maxFirst"),
    ],
)
def test_what_is_too_slow(floors: Floors, words: str | None) -> None:
    found = speed.mistake(MEASURED, floors)
    assert (found is None) == (words is None)
    assert (words or "") in (found or "")
