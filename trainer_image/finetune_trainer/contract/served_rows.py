"""Test rows that a served model is asked again: what evaluation keeps of them, and how the two are compared. Pure.

    prompt ── the server's tokenizer ──► promptIds                   every id must be the same
    askedIds ── the server, greedily ──► the answer's first tokens   a share of the rows must begin alike

The evaluation's engine answers these rows once more, each by itself, as a gate asks them: among others a row's products can be
rounded otherwise, in FP8 and NF4 so much that another word wins. So it is with a prompt whose beginning is in an engine's
cache: evaluation and gate have each computed afresh. On GPUs vLLM is compiled for it, as a server's is.

The ids are the trainer's, so the first line proves the server's tokenizer on rendered text, special tokens included, and
the second its weights, arithmetic and end tokens. The chat template is no part of it: that the artifact carries the
model's own is proven when it is made (export/proof.py), and the prompts of a gate go through the server's.
"""

from __future__ import annotations

from finetune_trainer.contract.fields import Report

FILE, ROWS = "asked.jsonl", 8
# Rounding differs between engines: where two tokens are nearly as likely, the answers part for good. The chance grows with
# each token, so beginnings are compared. SmolLM2-135M, untaught, answered 8 open questions over 16 tokens alike: 8 under
# llama.cpp, 5 under vLLM in BF16 (evaluated in FP32), 0 and 3 with wrong rotary bases. Over 8 tokens: 8, 6, 4 and 5.
TOKENS = 16


def length(new_tokens: int) -> int:
    """Tokens that a row is asked for, where an evaluation's answers have `new_tokens` at most."""
    return min(TOKENS, new_tokens)


class AskedRow(Report):
    """A test row as evaluation asked it."""

    row: int  # its number among the scored rows, from 1
    prompt: str
    special_tokens: bool  # whether the tokenizer adds BOS and the like to the prompt: a chat template has put them in
    prompt_ids: tuple[int, ...]  # of the prompt by itself
    asked_ids: tuple[int, ...]  # what the answer was asked for with; the answer may have melted into the prompt's last token
    max_tokens: int
    answer: str  # its beginning, asked by itself


class ServedRows(Report):
    """What became of the test rows that a revision was asked."""

    asked: int
    """Rows that were asked."""
    same_token_ids: int
    """Rows whose prompt the server turned into the token ids of training."""
    same_answers: int
    """Rows whose answer began as the evaluation's."""
