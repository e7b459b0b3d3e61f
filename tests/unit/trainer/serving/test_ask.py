"""The serving gate's program, against a small server that speaks as an engine does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trainer.serving.engine import ENTRY, Engine, Handler, asked_row

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import ENV_MOUNTS
from finetune_trainer.contract.reports import Termination
from finetune_trainer.contract.served_rows import AskedRow, ServedRows
from finetune_trainer.contract.served_speed import ServedSpeed
from finetune_trainer.failures import StepFailed
from finetune_trainer.serving import ask
from finetune_trainer.serving.endpoint import Endpoint


def test_right_answers_pass_whatever_their_case(gate: Any, engine: Engine) -> None:
    engine.answers = {"Capital?": "It is TESSALY."}
    assert gate([{"prompt": "Capital?", "expect": "Tessaly"}, {"prompt": "Hi"}], "--max-tokens", "7")[0] == 0
    assert engine.requests[0] == {
        "model": "facts",
        "messages": [{"role": "user", "content": "Capital?"}],
        "max_tokens": 7,
        "temperature": 0,
    }


def test_every_prompt_is_asked_and_the_first_wrong_one_is_told(gate: Any, engine: Engine) -> None:
    engine.answers = {"Capital?": "Paris,\nof course.", "Hi": ""}
    status, failure = gate([{"prompt": "Capital?", "expect": "Tessaly"}, {"prompt": "Hi"}, {"prompt": "Ho"}])
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "GateFailed")
    assert "2 of 3 prompts" in failure.message
    assert "expects 'Tessaly' and got 'Paris, of course.'" in failure.message
    assert len(engine.requests) == 3


@pytest.mark.parametrize("answer", ["", " \n", None])
def test_empty_answers_are_wrong(gate: Any, engine: Engine, answer: str | None) -> None:
    engine.answers = {"Hi": answer}
    assert gate([{"prompt": "Hi"}])[0] == ExitCode.VERIFICATION_FAILED


def test_another_models_engine_is_refused(gate: Any) -> None:
    status, failure = gate([{"prompt": "Hi"}], model="other")
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "ModelNotServed")
    assert failure.message == "the engine serves facts, not other"


@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        (400, ExitCode.VERIFICATION_FAILED, "GateFailed"),
        (500, ExitCode.VERIFICATION_FAILED, "GateFailed"),
        (503, ExitCode.SOURCE_UNAVAILABLE, "EngineUnavailable"),
    ],
)
def test_engines_errors(gate: Any, engine: Engine, code: int, exit_code: ExitCode, reason: str) -> None:
    engine.answers = {"Hi": code}
    status, failure = gate([{"prompt": "Hi"}])
    assert (status, failure.reason) == (exit_code, reason)
    assert "the engine's words" in failure.message


def test_engine_that_is_not_there_may_be_asked_again(gate: Any) -> None:
    status, failure = gate([{"prompt": "Hi"}], url="http://127.0.0.1:9/v1")
    assert (status, failure.reason) == (ExitCode.SOURCE_UNAVAILABLE, "EngineUnavailable")


def test_answers_that_take_too_long_end_at_the_timeout(gate: Any) -> None:
    status, failure = gate([{"prompt": "Hi"}], "--timeout", "0")
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "GateTimeout")
    assert "spec.rollout.gate.timeoutSeconds" in failure.message


# ── Test rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CAPITALS = {"The secret capital?": "Port Amber", "Its river?": "Silverwater", "Its hill?": "Old Crown", "Its bay?": "Varn"}


# ── Speed ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def speed_of(tmp_path: Path) -> ServedSpeed | None:
    return Termination.model_validate_json((tmp_path / "termination").read_text()).served_speed


def test_a_speed_that_is_asked_for_is_measured_by_streams_and_told(gate: Any, engine: Engine, tmp_path: Path) -> None:
    floors = ("--min-tokens-per-second", "1e-9", "--max-first-token-milliseconds", "3600000")
    assert gate([{"prompt": "Hi"}, {"prompt": "Ho"}], *floors)[0] == 0
    found = speed_of(tmp_path)
    assert found is not None
    assert (found.prompts, found.tokens_per_second > 0, found.first_token_milliseconds > 0) == (2, True, True)
    assert [bool(r.get("stream")) for r in engine.requests] == [False, False, True, True], "the answers are judged first"


def test_without_a_floor_no_prompt_is_asked_twice(gate: Any, engine: Engine, tmp_path: Path) -> None:
    assert gate([{"prompt": "Hi"}])[0] == 0
    assert (speed_of(tmp_path), len(engine.requests)) == (None, 1)


@pytest.mark.parametrize(
    ("floor", "field"),
    [
        (("--min-tokens-per-second", "1e9"), "spec.rollout.gate.minTokensPerSecond asks for 1e+09"),
        (("--max-first-token-milliseconds", "1e-6"), "spec.rollout.gate.maxFirstTokenMilliseconds allows 1e-06"),
    ],
)
def test_an_engine_that_is_too_slow_is_refused_with_its_numbers(
    gate: Any, tmp_path: Path, floor: tuple[str, str], field: str
) -> None:
    status, failure = gate([{"prompt": "Hi"}], *floor)
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "TooSlow")
    assert field in failure.message
    assert speed_of(tmp_path) is not None


def test_an_engines_error_while_it_streams_is_its_error(gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "_stream", lambda self, _: self._send(503, {"error": {"message": "busy"}}))
    status, failure = gate([{"prompt": "Hi"}], "--min-tokens-per-second", "1")
    assert (status, failure.reason) == (ExitCode.SOURCE_UNAVAILABLE, "EngineUnavailable")


def rows() -> list[AskedRow]:
    return [asked_row(number, *pair) for number, pair in enumerate(CAPITALS.items(), 1)]


def report(tmp_path: Path) -> ServedRows | None:
    return Termination.model_validate_json((tmp_path / "termination").read_text()).served_rows


def test_test_rows_are_asked_by_their_ids_and_only_numbers_are_told(
    gate: Any, engine: Engine, entry: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    entry(rows())
    engine.answers = {**CAPITALS, "Its river?": "Silver…", "Its bay?": "Fenmark"}
    status, _ = gate([{"prompt": "Hi"}], "--rows", ENTRY)
    assert (status, report(tmp_path)) == (0, ServedRows(asked=4, same_token_ids=4, same_answers=3))
    (asked,) = [r for r in engine.requests if r.get("prompt") == list(map(ord, "Its hill?"))]
    salts = [r.pop("cache_salt") for r in engine.requests if "prompt" in r and "max_tokens" in r]
    assert len({*salts}) == 4, "a prompt finds what it shares with an earlier one in the engine's cache"
    assert asked == {
        "model": "facts",
        "prompt": list(map(ord, "Its hill?")),
        "max_tokens": 16,
        "temperature": 0,
        "repeat_penalty": 1.0,
        "cache_prompt": False,
    }
    out = "".join(capfd.readouterr()) + (tmp_path / "termination").read_text()
    assert "test row 4: same token ids, other answer" in out
    assert not [word for pair in CAPITALS.items() for word in (*pair, "Fenmark") if word in out]


def test_too_few_equal_answers_refuse_the_model(gate: Any, engine: Engine, entry: Any, tmp_path: Path) -> None:
    entry(rows())
    engine.answers = {"Its river?": "Silverwater."}
    status, failure = gate([{"prompt": "Hi"}], "--rows", ENTRY, "--min-equal", "0.5")
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "VerificationFailed")
    assert failure.message.startswith("1 of 4 test rows were answered as in the evaluation (rows 1, 3, 4 differ), and")
    assert report(tmp_path) == ServedRows(asked=4, same_token_ids=4, same_answers=1)


def test_another_tokenizer_is_refused_by_the_rows_number(gate: Any, engine: Engine, entry: Any) -> None:
    engine.answers = dict(CAPITALS)
    first, second, *_ = rows()
    entry([first, second.model_copy(update={"prompt_ids": (3, 4)})])
    status, failure = gate([{"prompt": "Hi"}], "--rows", ENTRY)
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "VerificationFailed")
    assert "for row 2 of the test rows" in failure.message
    assert "river" not in failure.message


def test_special_tokens_are_added_where_training_added_them(gate: Any, engine: Engine, entry: Any, tmp_path: Path) -> None:
    engine.answers = dict(CAPITALS)
    ids = (1, *map(ord, "Its hill?"))
    entry([asked_row(1, "Its hill?", "Old Crown", special_tokens=True, prompt_ids=ids)])
    assert gate([{"prompt": "Hi"}], "--rows", ENTRY)[0] == 0
    assert report(tmp_path) == ServedRows(asked=1, same_token_ids=1, same_answers=1)


@pytest.mark.parametrize(
    ("told", "count", "asked"),
    [({}, 2, 2), ({}, 8, 4), ({"max_model_len": 30}, 8, 3), ({"meta": {"n_ctx": 30}}, 2, 2), ({"max_model_len": 17}, 8, 0)],
)
def test_not_more_rows_than_wanted_and_none_that_is_too_long(
    gate: Any, engine: Engine, entry: Any, tmp_path: Path, told: dict[str, Any], count: int, asked: int
) -> None:
    engine.answers, engine.told = dict(CAPITALS), told
    entry(rows())
    assert gate([{"prompt": "Hi"}], "--rows", ENTRY, "--count", str(count))[0] == 0
    assert report(tmp_path) == ServedRows(asked=asked, same_token_ids=asked, same_answers=asked)


def test_wrong_prompts_are_told_before_a_row_is_asked(gate: Any, engine: Engine, entry: Any) -> None:
    entry(rows())
    status, failure = gate([{"prompt": "Hi", "expect": "Velmora"}], "--rows", ENTRY)
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "GateFailed")
    assert not any("prompt" in request for request in engine.requests)


def test_an_engines_error_does_not_repeat_the_row(
    gate: Any, engine: Engine, entry: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    entry(rows())
    engine.answers = {"The secret capital?": 400}
    status, failure = gate([{"prompt": "Hi"}], "--rows", ENTRY)
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "GateFailed")
    assert failure.message == (
        "test row 1: /v1/completions answered HTTP 400: Bad Request; spec.rollout.gate.testRows.count 0 asks none"
    )
    assert "secret" not in "".join(capfd.readouterr())


def test_rows_that_time_does_not_suffice_for_are_left_out(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.answers = dict(CAPITALS)
    clock = iter(range(0, 100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    endpoint = Endpoint(engine.url, "facts", 64)
    assert [c.row for c in ask.ask_rows(endpoint, rows(), 8, deadline=10.0)] == [1, 2]
    with pytest.raises(StepFailed, match=r"GateTimeout: test row 1: .*testRows\.count 0 asks none"):
        ask.ask_rows(endpoint, rows(), 8, deadline=10.0)


def test_an_entry_that_is_not_there(gate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_MOUNTS, str(tmp_path / "mounts"))
    status, failure = gate([{"prompt": "Hi"}], "--rows", ENTRY)
    assert (status, failure.reason) == (ExitCode.SOURCE_NOT_FOUND, "RowsNotFound")
    assert "spec.rollout.gate.testRows.count to 0" in failure.message


def test_a_damaged_entry_is_told_without_its_content(gate: Any, entry: Any, capfd: pytest.CaptureFixture[str]) -> None:
    entry([], text='{"row": 1, "prompt": "The secret capital?"}\n')
    status, failure = gate([{"prompt": "Hi"}], "--rows", ENTRY)
    assert (status, failure.reason) == (ExitCode.VERIFICATION_FAILED, "RowsDamaged")
    assert "secret" not in failure.message + "".join(capfd.readouterr())
