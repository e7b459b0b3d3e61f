"""Ask a served model its prompts and judge the answers: the gate that a new revision passes before it takes traffic.

    python -m finetune_trainer.serving.ask --url http://host:8000/v1 --model NAME --prompts FILE [--rows URI] [--live JSON]

FILE is a JSON list of {"prompt": …, "expect": …}; an answer must have text in it and contain `expect` where it is given.
URI is the entry of an evaluation in an artifact store: a few of its test rows are asked again and compared with what it saw
(contract/served_rows.py says what that proves). The report has numbers of these rows, never text.
Where a speed is asked for, the prompts are asked once more as streams (speed.py).
Where the live revision is named (contract/held_out.py), both are asked the evaluation's test rows, and the new one must not
answer worse, by scores (held_out.py) or to a judge (judge.py).
Where an adapter is asked for, each pod must have loaded it first (contract/served_adapters.py).
A wrong answer ends with ExitCode VERIFICATION_FAILED; an engine that can't be reached with SOURCE_UNAVAILABLE, which may
be tried again. It doesn't wait: what it asks is ready.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_trainer import environment
from finetune_trainer.contract import judging, served_rows
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.fields import Report
from finetune_trainer.contract.held_out import Live
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.reports import Failure, Termination
from finetune_trainer.contract.served_adapters import Awaited
from finetune_trainer.contract.served_rows import AskedRow
from finetune_trainer.contract.served_speed import ServedSpeed
from finetune_trainer.failures import StepFailed
from finetune_trainer.serving import compare, held_out, judge, speed
from finetune_trainer.serving.awaited import await_adapter
from finetune_trainer.serving.compare import Compared
from finetune_trainer.serving.endpoint import Endpoint, too_slow
from finetune_trainer.serving.evaluated import asked_rows, held_out_rows
from finetune_trainer.serving.speed import Floors
from finetune_trainer.termination import finish

SHOWN = 160  # characters of an answer


@dataclass(frozen=True)
class Prompt:
    prompt: str
    expect: str | None = None


@dataclass(frozen=True)
class Gate:
    """The command line, and whom and what it asks."""

    options: Namespace
    endpoint: Endpoint
    prompts: list[Prompt]

    @property
    def deadline(self) -> float:
        """The end of one round that begins now, on the monotonic clock."""
        return time.monotonic() + float(self.options.timeout)

    def entry(self, uri: str) -> StoreConfig:
        """An evaluation's entry in its store."""
        return StoreConfig(uri=uri, endpoint=self.options.endpoint, region=self.options.region)


def main(arguments: list[str] | None = None) -> int:
    """Ask as the command line says and return the exit status."""
    options = parser().parse_args(arguments)
    return finish(lambda: passed(options))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.serving.ask", description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="the OpenAI API, up to and with /v1")
    parser.add_argument("--model", required=True, help="name that it must serve")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON file with the prompts")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer in tokens")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for all answers, and again for all rows")
    parser.add_argument("--min-tokens-per-second", type=float, help="of an answer's tokens after its first")
    parser.add_argument("--max-first-token-milliseconds", type=float, help="from a request to its answer's first piece")
    parser.add_argument("--rows", help="uri of an evaluation's entry in an artifact store")
    parser.add_argument("--count", type=int, default=served_rows.ROWS, help="rows that are asked at most")
    parser.add_argument("--min-equal", type=float, default=0.5, help="share of the rows that must be answered alike")
    parser.add_argument("--endpoint", help="URL of an S3-compatible server")
    parser.add_argument("--region", help="region of the bucket")
    parser.add_argument("--rubric", type=Path, help="file that says what the judge is to prefer")
    parser.add_argument("--awaited", type=Awaited.model_validate_json, help="the adapter that pods must have loaded, as JSON")
    parser.add_argument("--live", type=Live.model_validate_json, help="the live revision, and what it is asked, too, as JSON")
    return parser


def passed(options: Namespace) -> Termination:
    """Everything that is asked for, the cheapest first, until something is wrong. Raises StepFailed."""
    prompts = [Prompt(**p) for p in json.loads(options.prompts.read_text(encoding="utf-8"))]
    key = environment.access().served_api_key
    awaited: Awaited | None = options.awaited
    if awaited is not None and ((refused := await_adapter(awaited)) is not None or awaited.serves):
        return Termination(failure=refused)
    gate = Gate(options, Endpoint(options.url.rstrip("/"), options.model, options.max_tokens, api_key=key), prompts)
    ask_all(gate.endpoint, prompts, gate.deadline)
    told = Termination()
    for one in (_speed, _rows, _compared):
        told = one(gate, told)
        if told.failure is not None:
            break
    return told


def _speed(gate: Gate, told: Termination) -> Termination:
    floors = Floors(gate.options.min_tokens_per_second, gate.options.max_first_token_milliseconds)
    if not floors:
        return told
    found = ask_speed(gate.endpoint, gate.prompts, gate.deadline)
    return _judged(told, "served_speed", found, StepReason.TooSlow, speed.mistake(found, floors))


def _rows(gate: Gate, told: Termination) -> Termination:
    options = gate.options
    if options.rows is None:
        return told
    compared = ask_rows(gate.endpoint, asked_rows(gate.entry(options.rows)), options.count, gate.deadline)
    wrong = compare.mistake(compared, options.min_equal)
    return _judged(told, "served_rows", compare.told(compared), StepReason.VerificationFailed, wrong)


def _compared(gate: Gate, told: Termination) -> Termination:
    """Both revisions' answers, by their scores and by a judge, as far as that is asked for."""
    live: Live | None = gate.options.live
    if live is None:
        return told
    rows = held_out_rows(gate.entry(live.rows), live.count)
    pairs = held_out.ask_both(gate.endpoint, live.url, rows, gate.deadline)
    if (asked := live.held_out) is not None:
        found = held_out.told(pairs[: asked.rows], live.revision, asked)
        print(f"{found.metric} {found.score:g}, of revision {found.against} {found.live_score:g}", flush=True)
        told = _judged(told, "held_out", found, StepReason.WorseThanLive, held_out.mistake(found, asked))
    if told.failure is not None or live.judge is None:
        return told
    rubric = judge.RUBRIC if gate.options.rubric is None else gate.options.rubric.read_text(encoding="utf-8")
    asks = judge.Judge(live.judge, rubric, environment.access().judge_api_key, gate.deadline)
    said = asks.compare(pairs, live.revision)
    print(f"win rate {said.win_rate:g} ({said.low:g} to {said.high:g}) over {said.pairs} pairs", flush=True)
    return _judged(told, "judged", said, StepReason.WorseThanLive, judging.mistake(said, live.judge))


def _judged(told: Termination, name: str, found: Report, reason: StepReason, wrong: str | None) -> Termination:
    """The report with these numbers, and with what is wrong about them."""
    failure = None if wrong is None else Failure(reason=reason, message=wrong)
    return told.model_copy(update={name: found, "failure": failure})


def ask_speed(endpoint: Endpoint, prompts: list[Prompt], deadline: float) -> ServedSpeed:
    """Ask each prompt as a stream; the engine is warm, since it has answered all of them before. Raises StepFailed."""
    answers = []
    for prompt in prompts:
        if (left := deadline - time.monotonic()) <= 0:
            raise too_slow()
        if (answer := endpoint.stream(prompt.prompt, left)) is not None:
            answers.append(answer)
    if not answers:
        raise StepFailed(StepReason.GateFailed, "no prompt was answered with text as a stream, so its speed can't be told")
    found = speed.told(answers)
    print(f"{found.tokens_per_second:g} tokens/s, first token after {found.first_token_milliseconds:g} ms", flush=True)
    return found


def ask_all(endpoint: Endpoint, prompts: list[Prompt], deadline: float) -> None:
    """Ask everything, print every answer, then judge. Raises StepFailed GateFailed with the first wrong answer.

    `deadline` is on the monotonic clock.
    """
    served = endpoint.served(deadline - time.monotonic())
    if endpoint.model not in served:
        text = f"the engine serves {', '.join(served) or 'nothing'}, not {endpoint.model}"
        raise StepFailed(StepReason.ModelNotServed, text)
    wrong = []
    for number, prompt in enumerate(prompts, 1):
        if (left := deadline - time.monotonic()) <= 0:
            raise too_slow()
        begun = time.monotonic()
        answer = endpoint.answer(prompt.prompt, left)
        mistake = wrong_in(prompt, answer)
        verdict = "wrong" if mistake else "right"
        print(f"{number}/{len(prompts)} {verdict} in {time.monotonic() - begun:.1f} s: {answer!r}", flush=True)
        if mistake:
            wrong.append(f"prompt {number} of {len(prompts)} {mistake}")
    if wrong:
        text = f"{len(wrong)} of {len(prompts)} prompts were not answered as spec.rollout.gate.prompts expects: {wrong[0]}"
        raise StepFailed(StepReason.GateFailed, text)


def ask_rows(endpoint: Endpoint, rows: Sequence[AskedRow], count: int, deadline: float) -> list[Compared]:
    """Ask at most `count` test rows until `deadline`, on the monotonic clock.

    Rows that are longer than the engine's context, or that time does not suffice for, are left out. Raises StepFailed
    GateTimeout where it suffices for none.
    """
    compared: list[Compared] = []
    silent = replace(endpoint, quoted=False)
    context = silent.context(deadline - time.monotonic())
    fitting = [row for row in rows if context is None or len(row.asked_ids) + row.max_tokens <= context]
    for row in fitting[:count]:
        begun = time.monotonic()
        try:
            found = _compare(silent, row, deadline)
        except StepFailed as error:
            if error.reason is StepReason.GateTimeout and compared:
                break
            text = f"test row {row.row}: {error.message}; spec.rollout.gate.testRows.count 0 asks none"
            raise StepFailed(error.reason, text) from error
        compared.append(found)
        said = f"{'same' if found.same_token_ids else 'other'} token ids, {'same' if found.same_answer else 'other'} answer"
        print(f"test row {row.row}: {said}, {time.monotonic() - begun:.1f} s", flush=True)
    print(f"{len(compared)} of {len(rows)} test rows were asked", flush=True)
    return compared


def _compare(endpoint: Endpoint, row: AskedRow, deadline: float) -> Compared:
    if (left := deadline - time.monotonic()) <= 0:
        raise too_slow()
    ids = endpoint.token_ids(row.prompt, row.special_tokens, left)
    completion = endpoint.completion(row.asked_ids, row.max_tokens, deadline - time.monotonic())
    return Compared(row.row, tuple(ids) == row.prompt_ids, compare.is_same_answer(row, completion))


def wrong_in(prompt: Prompt, answer: str) -> str | None:
    """What is wrong with an answer; None where nothing is."""
    if not answer.strip():
        return "got an empty answer"
    if prompt.expect is not None and prompt.expect.casefold() not in answer.casefold():
        shown = textwrap.shorten(answer, SHOWN, placeholder="…")
        return f"expects {prompt.expect!r} and got {shown!r}"
    return None


if __name__ == "__main__":
    sys.exit(main())
