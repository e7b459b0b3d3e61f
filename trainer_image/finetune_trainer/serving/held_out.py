"""The same test rows asked of a new revision and of the live one, and which of the two answers better.

    prompt ── each engine's own tokenizer ──► ids ── greedily ──► answer ── the row's reference ──► score

What the live revision does is no fault of the new one: a row that it can't answer is left out, and where it can't be
reached there is no verdict. Reports and logs have numbers of rows, never text.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from finetune_trainer.contract.held_out import AnswerScore, HeldOut, HeldOutScores
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.failures import StepFailed
from finetune_trainer.scoring.scores import exact_match, normalized
from finetune_trainer.serving.endpoint import Endpoint, too_slow
from finetune_trainer.serving.evaluated import HeldOutRow

WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Pair:
    """One test row as both have answered it."""

    row: HeldOutRow
    answer: str
    live_answer: str


def ask_both(revision: Endpoint, live_url: str, rows: Sequence[HeldOutRow], deadline: float) -> list[Pair]:
    """Ask each row of both until `deadline`, on the monotonic clock.

    Rows that are too long for either context, that the live one refuses, or that time does not suffice for, are left out.
    Raises StepFailed: what the new revision does wrong as its own, what keeps the live one from answering as
    EngineUnavailable.
    """
    pairs: list[Pair] = []
    revision = replace(revision, quoted=False)
    live = _live(revision, live_url, deadline)
    longest, live_longest = revision.context(deadline - time.monotonic()), live.context(deadline - time.monotonic())
    for row in rows:
        try:
            answer = _answer(revision, longest, row, deadline)
            live_answer = None if answer is None else _live_answer(live, live_longest, row, deadline)
        except StepFailed as error:
            if error.reason is StepReason.GateTimeout:
                break
            raise StepFailed(error.reason, f"test row {row.row}: {error.message}") from error
        if answer is not None and live_answer is not None:
            pairs.append(Pair(row, answer, live_answer))
    print(f"{len(pairs)} of {len(rows)} test rows were answered by both revisions", flush=True)
    return pairs


def _live(revision: Endpoint, url: str, deadline: float) -> Endpoint:
    """The live one, under the name that it serves: the spec may have another by now."""
    live = replace(revision, url=url)
    try:
        return replace(live, model=live.served(deadline - time.monotonic())[0])
    except (StepFailed, IndexError) as error:
        text = f"the live revision at {url} does not say what it serves: {error}"
        raise StepFailed(StepReason.EngineUnavailable, text) from error


def _live_answer(live: Endpoint, longest: int | None, row: HeldOutRow, deadline: float) -> str | None:
    try:
        return _answer(live, longest, row, deadline)
    except StepFailed as error:
        if error.reason is StepReason.GateFailed:  # an answer such as 400 or 500
            return None
        raise


def _answer(endpoint: Endpoint, longest: int | None, row: HeldOutRow, deadline: float) -> str | None:
    """The greedy answer; None where prompt and answer don't fit."""
    if (left := deadline - time.monotonic()) <= 0:
        raise too_slow()
    ids = endpoint.token_ids(row.prompt, row.special_tokens, left)
    if longest is not None and len(ids) + endpoint.max_tokens > longest:
        return None
    return endpoint.completion(ids, endpoint.max_tokens, deadline - time.monotonic()).text


# ── Scores ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def f1(reference: str, answer: str) -> float:
    """F-measure of the words that two texts share, each counted as often as it is there (SQuAD, Rajpurkar 2016, without its
    English articles). A text without a word equals another such.
    """
    expected, got = (Counter(WORDS.findall(normalized(text))) for text in (reference, answer))
    total = expected.total() + got.total()
    return 2 * (expected & got).total() / total if total else 1.0


SCORES: Mapping[AnswerScore, Callable[[str, str], float]] = {AnswerScore.EXACT_MATCH: exact_match, AnswerScore.F1: f1}


def told(pairs: Sequence[Pair], against: str, wanted: HeldOut) -> HeldOutScores:
    """The numbers of both. Raises StepFailed TooFewRows where they are no verdict."""
    if len(pairs) < wanted.min_rows:
        text = (
            f"{len(pairs)} test rows were answered by this revision and by {against}, and spec.rollout.gate.heldOut.minRows"
            f" asks for {wanted.min_rows}: raise timeoutSeconds or rows, or lower minRows"
        )
        raise StepFailed(StepReason.TooFewRows, text)
    of = SCORES[wanted.metric]
    return HeldOutScores(
        against=against,
        metric=wanted.metric,
        rows=len(pairs),
        score=round(sum(of(p.row.reference, p.answer) for p in pairs) / len(pairs), 4),
        live_score=round(sum(of(p.row.reference, p.live_answer) for p in pairs) / len(pairs), 4),
    )


def mistake(found: HeldOutScores, wanted: HeldOut) -> str | None:
    """What is wrong with the new revision; None where nothing is."""
    if found.live_score - found.score <= wanted.max_drop + 1e-9:  # rounded as they are, they may differ by that
        return None
    return (
        f"{found.metric} is {found.score:g} on {found.rows} test rows that revision {found.against} answers with"
        f" {found.live_score:g}; spec.rollout.gate.heldOut.maxDrop allows {wanted.max_drop:g} less"
    )
