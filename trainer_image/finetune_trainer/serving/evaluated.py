"""What an evaluation keeps in the artifact store for a gate: rows to ask again, and every test row with its reference."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer import environment
from finetune_trainer.contract import held_out, served_rows
from finetune_trainer.contract.artifacts import StoreConfig
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.served_rows import AskedRow
from finetune_trainer.failures import StepFailed
from finetune_trainer.store.entries import open_store


@dataclass(frozen=True)
class HeldOutRow:
    """A test row; its prompt is as training rendered it, with the chat template's own tokens."""

    row: int  # its number, from 1
    prompt: str
    special_tokens: bool  # whether the tokenizer adds BOS and the like to the prompt
    reference: str


def asked_rows(entry: StoreConfig) -> list[AskedRow]:
    """The rows that an evaluation keeps to be asked again; entry.uri ends in evaluate/<fingerprint>.

    Raises StepFailed RowsNotFound, RowsDamaged or RowsAccessDenied.
    """
    try:
        return [AskedRow.model_validate_json(line) for line in _lines(entry, served_rows.FILE, served_rows.ROWS) if line]
    except ValidationError:  # whose words are the row's
        raise _damaged(entry, served_rows.FILE) from None


def held_out_rows(entry: StoreConfig, count: int) -> list[HeldOutRow]:
    """The first test rows, and what they were to be answered with. Raises StepFailed as asked_rows does."""
    special = any(row.special_tokens for row in asked_rows(entry)[:1])
    try:
        found = [json.loads(line) for line in _lines(entry, held_out.FILE, count) if line]
        return [HeldOutRow(n, str(row["prompt"]), special, str(row["reference"])) for n, row in enumerate(found, 1)]
    except (ValueError, KeyError, TypeError):
        raise _damaged(entry, held_out.FILE) from None


def _lines(entry: StoreConfig, name: str, count: int) -> list[str]:
    """The first lines of one of the entry's files. Only a line feed ends one: a row may have other separators in it."""
    root, kind, fingerprint = entry.uri.rsplit("/", 2)
    store = open_store(entry.model_copy(update={"uri": root}), environment.read().mounts)
    try:
        manifest = store.read(kind, fingerprint)
        files = [file for file in manifest.files if file.path == name] if manifest else []
        if manifest is None or not files:
            remedy = "run the job again, or set spec.rollout.gate.testRows.count to 0 and leave out heldOut"
            raise StepFailed(StepReason.RowsNotFound, f"{entry.uri} holds no {name}; {remedy}")
        with tempfile.TemporaryDirectory() as scratch:
            path = store.objects.fetch(store.path(kind, manifest), files, Path(scratch)) / name
            with path.open(encoding="utf-8", newline="\n") as lines:
                return [line.rstrip("\n") for line in islice(lines, count)]
    except StepFailed as error:
        if error.reason is not StepReason.StoreAccessDenied:
            raise
        text = f"{entry.uri} was refused: give the keys in the Secret of the model's store the right to read it"
        raise StepFailed(StepReason.RowsAccessDenied, text) from error


def _damaged(entry: StoreConfig, name: str) -> StepFailed:
    return StepFailed(StepReason.RowsDamaged, f"{name} of {entry.uri} is damaged; remove that folder, and run the job again")
