"""A judge, a real HTTP server that speaks OpenAI's API, asked about pairs of answers in both orders."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trainer.serving.engine import ENTRY, Engine, asked_row, started

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.held_out import Live
from finetune_trainer.contract.judging import Judging, interval
from finetune_trainer.contract.pod import ENV_JUDGE_KEY
from finetune_trainer.contract.reports import Termination
from finetune_trainer.failures import StepFailed
from finetune_trainer.serving.evaluated import HeldOutRow
from finetune_trainer.serving.held_out import Pair
from finetune_trainer.serving.judge import Judge

Answer = str | tuple[int, dict[str, Any]]


class Court(ThreadingHTTPServer):
    """`say` answers the two texts A and B with words, or with a status code and an error."""

    def __init__(self, say: Callable[[str, str], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Bench)
        self.say, self.requests, self.keys = say, list[dict[str, Any]](), set[str | None]()
        self.url = f"http://127.0.0.1:{self.server_port}/proxy/v1"


def completion(said: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
    return {"choices": [{"message": {"role": "assistant", "content": said}}], "usage": usage}


class Bench(BaseHTTPRequestHandler):
    server: Court

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.keys.add(self.headers["Authorization"])
        assert self.path == "/proxy/v1/chat/completions"
        texts = re.findall(r"<answer_.>\n(.*?)\n</answer_.>", request["messages"][0]["content"], re.DOTALL)
        said = self.server.say(texts[0], texts[1])
        code, body = said if isinstance(said, tuple) else (200, completion(said))
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def court(say: Callable[[str, str], Answer]) -> Iterator[Court]:
    server = Court(say)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def longer(a: str, b: str) -> str:
    return "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"


def always(said: Answer) -> Callable[[str, str], Answer]:
    return lambda *_: said


def pairs(*answers: tuple[str, str]) -> list[Pair]:
    return [Pair(HeldOutRow(n, "?", False, "ref"), *answer) for n, answer in enumerate(answers, 1)]


def judge(server: Court, pause: Callable[[float], None] = lambda _: None, **fields: Any) -> Judge:
    wanted = Judging(base_url=server.url, model="judge-1", min_pairs=1, **fields)
    return Judge(wanted, "Longer is better.", None, time.monotonic() + 600, pause)


BETTER, WORSE, EVEN = ("a long answer", "short"), ("short", "a long answer"), ("same", "same")


def test_each_pair_is_judged_in_both_orders_and_ties_are_halves() -> None:
    with court(longer) as server:
        found = judge(server).compare(pairs(BETTER, BETTER, WORSE, EVEN), "a1")
    assert (found.pairs, found.wins, found.losses, found.win_rate) == (4, 2, 1, 0.625)
    assert (found.calls, found.tokens, found.model, found.against) == (8, 800, "judge-1", "a1")
    assert server.requests[0] == {
        "model": "judge-1",
        "messages": server.requests[0]["messages"],
        "max_tokens": 512,
        "temperature": 0,
    }
    assert "Longer is better." in server.requests[0]["messages"][0]["content"]


def test_a_judge_that_always_prefers_the_first_says_nothing() -> None:
    with court(always("A")) as server:
        found = judge(server).compare(pairs(BETTER, WORSE, EVEN), "a1")
    assert (found.win_rate, found.wins, found.losses) == (0.5, 0, 0)


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("**A**", 0.5),
        ("First I think.\n\nVerdict: B", 0.5),
        ("[[tie]]", 0.5),
        ("Both are good.", None),
        ("", None),
        ("AB", None),
    ],
)
def test_words_of_a_judge(words: str, rate: float | None) -> None:
    with court(always(words)) as server:
        if rate is None:
            with pytest.raises(StepFailed, match="TooFewVerdicts: the judge gave 0 verdicts in 2 calls"):
                judge(server).compare(pairs(BETTER), "a1")
        else:
            assert judge(server).compare(pairs(BETTER), "a1").win_rate == rate


def test_no_more_calls_are_made_than_allowed() -> None:
    with court(longer) as server:
        assert judge(server, max_calls=5).compare(pairs(*[BETTER] * 9), "a1").calls == 4
        assert len(server.requests) == 4
    with court(always((503, {}))) as server, pytest.raises(StepFailed, match="TooFewVerdicts"):
        judge(server, max_calls=2).compare(pairs(*[BETTER] * 9), "a1")
    assert len(server.requests) == 2, "failed calls count"


def test_a_busy_judge_is_asked_again_and_then_is_no_verdict() -> None:
    busy = iter([429, 503])
    paused: list[float] = []

    def say(a: str, b: str) -> Answer:
        code = next(busy, None)
        return longer(a, b) if code is None else (code, {"error": {"message": "busy"}})

    with court(say) as server:
        assert judge(server, paused.append).compare(pairs(BETTER), "a1").calls == 4
    assert paused == [1, 2]
    with court(always((500, {}))) as server, pytest.raises(StepFailed) as failed:
        judge(server).compare(pairs(BETTER), "a1")
    assert (failed.value.reason, failed.value.exit_code) == ("JudgeUnavailable", ExitCode.SOURCE_UNAVAILABLE)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_judge_that_refuses_the_key_or_the_model_is_told_at_once(code: int) -> None:
    with court(always((code, {}))) as server, pytest.raises(StepFailed) as failed:
        judge(server).compare(pairs(BETTER), "a1")
    assert (failed.value.reason, len(server.requests)) == ("JudgeRefused", 1)
    assert "spec.rollout.gate.judge: baseUrl, model" in failed.value.message


def test_a_judge_that_thinks_first_is_asked_in_its_own_words() -> None:
    def say(a: str, b: str) -> Answer:
        request = server.requests[-1]
        if "max_tokens" in request:
            return 400, {
                "error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead.", "param": "max_tokens"}
            }
        if "temperature" in request:
            return 400, {"error": {"message": "'temperature' does not support 0 with this model."}}
        return longer(a, b)

    with court(say) as server:
        assert judge(server).compare(pairs(BETTER), "a1").win_rate == 1
    assert (server.requests[-1]["max_completion_tokens"], len(server.requests)) == (512, 4)


def test_a_question_that_is_refused_is_left_out() -> None:
    with court(lambda a, b: (400, {"error": {"message": "filtered"}}) if "bomb" in a + b else longer(a, b)) as server:
        assert judge(server).compare(pairs(("bomb", "x"), BETTER), "a1").pairs == 1


@pytest.mark.parametrize(
    ("share", "count", "ends"), [(0.5, 100, [0.404, 0.596]), (0.0, 10, [0.0, 0.278]), (1.0, 10, [0.722, 1.0])]
)
def test_interval(share: float, count: int, ends: list[float]) -> None:
    assert list(interval(share, count)) == pytest.approx(ends, abs=1e-3)


# ── In the gate ───────────────────────────────────────────────────────────────────────────────────────────────────────

FACTS = {f"Town {n}?": "Port Amber" for n in range(12)}


@pytest.mark.parametrize(("new", "status"), [("A much longer answer", 0), ("No", ExitCode.VERIFICATION_FAILED)])
def test_a_gate_asks_the_judge_with_its_key_and_tells_numbers_alone(
    gate: Any,
    entry: Any,
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    new: str,
    status: int,
) -> None:
    monkeypatch.setenv(ENV_JUDGE_KEY, "secret-key")
    entry([asked_row(1, "Town 0?", "Port Amber")], references=FACTS)
    engine.answers = dict.fromkeys(FACTS, new)
    (tmp_path / "rubric").write_text("Longer wins.")
    with started() as live, court(longer) as server:
        live.answers = dict.fromkeys(FACTS, "Port Amber")
        told = Live(revision="a1", url=live.url, rows=ENTRY, judge=Judging(base_url=server.url, model="judge-1"))
        options = ("--live", told.model_dump_json(by_alias=True), "--rubric", str(tmp_path / "rubric"))
        ended, failure = gate([{"prompt": "Hi"}], *options)
    found = Termination.model_validate_json((tmp_path / "termination").read_text())
    assert found.judged is not None
    assert (ended, found.judged.pairs, found.judged.win_rate) == (status, 12, 0.0 if status else 1.0)
    assert server.keys == {"Bearer secret-key"}
    assert "Longer wins." in server.requests[0]["messages"][0]["content"]
    if status:
        assert failure.reason == "WorseThanLive"
        assert "win rate 0 (0 to 0.243) over 12 pairs" in failure.message
    out = "".join(capfd.readouterr()) + (tmp_path / "termination").read_text()
    assert not [word for word in ("Town", "Amber", new, "secret-key") if word in out]
