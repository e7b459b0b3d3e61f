"""spec.dataset: where the rows lie, what shape they have, and which of them are held out."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from finetune_trainer.contract import places
from finetune_trainer.contract.fields import MOST, Filled, SecretRef, Strict
from finetune_trainer.contract.places import Use


class DatasetFormat(StrEnum):
    AUTO = "Auto"
    MESSAGES = "Messages"
    PROMPT_COMPLETION = "PromptCompletion"
    ALPACA = "Alpaca"
    SHARE_GPT = "ShareGPT"
    TEXT = "Text"
    CLASSIFICATION = "Classification"
    PREFERENCE = "Preference"
    UNPAIRED_PREFERENCE = "UnpairedPreference"


def as_written(labels: Any) -> Any:
    """Labels and words as people write them in YAML: numbers and true stand for themselves, as they do in rows.

    Raises ValueError for a word that YAML has read as a boolean, as whether it was no, off or false is lost, for one that is
    empty, and for a label that comes twice.
    """
    if not isinstance(labels, dict):
        return labels
    for stored, word in labels.items():
        if isinstance(word, bool):
            raise ValueError(
                f"the word of {stored!r} is a boolean to YAML, as are no, yes, off and on without quotes; write it in quotes:"
                ' {"0": "no", "1": "yes"}'
            )
        if stored is None or word is None or not (str(stored).strip() and str(word).strip()):
            raise ValueError(f'{stored!r}: {word!r} is empty, or null to YAML; write both as text: {{"0": "no", "1": "yes"}}')
    made = {_spelled(stored): _spelled(word) for stored, word in labels.items()}
    if len(made) < len(labels):
        raise ValueError(f"of the labels {', '.join(map(repr, labels))} two are the same; name each once")
    return made


def _spelled(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value


class Split(Strict):
    uri: str | None = Field(None, min_length=1, max_length=1024, pattern=places.pattern(Use.ROWS))
    """Rows of their own instead of a share of the training rows. Same schemes and format as dataset.uri."""
    split: str | None = Field(None, min_length=1, max_length=253)
    """Rows of dataset.uri's own split of this name, such as test or validation."""
    fraction: float | None = Field(None, ge=0, le=0.9)
    """Share of dataset.uri's rows that is held out, chosen by the seed. 0 holds out none."""
    seed: int = Field(42, ge=0, le=2**31 - 1)
    """Seed of the choice; the same seed and rows give the same split on any machine."""
    stratify_by: str | None = Field(None, min_length=1, max_length=253)
    """Column of the rows whose values are held out in proportion. Unset: the label in format Classification, else none."""


class Dataset(Strict):
    uri: str = Field(
        min_length=1,
        max_length=1024,
        pattern=places.pattern(Use.ROWS),
        description=f"Where the rows lie: {places.forms(Use.ROWS)}. A file (jsonl, json, csv, tsv, parquet, arrow, txt,"
        " compressed or not), or, but for https, a folder of such files, laid out as datasets on the hub are or as"
        " datasets.save_to_disk leaves them.",
    )
    secret_ref: SecretRef | None = None
    """Secret with the credentials of that source."""
    subset: str | None = Field(None, min_length=1, max_length=253)
    """Subset (configuration) of a dataset that has several: as its README.md names it, or a folder. Unset: the default one."""
    split: str | None = Field(None, min_length=1, max_length=253)
    """Split to train on, told by README.md or the names of files and folders (train-00000-of-00002.parquet, dev.jsonl,
    test/rows.csv). Unset: train where there are several, else the only one."""
    files: list[Filled] = Field(default_factory=list, max_length=100)
    """Only these files of a folder or repository (glob patterns), whatever their names say of splits. Empty: every data file
    of the split."""
    format: DatasetFormat = DatasetFormat.AUTO
    """Shape of a row. Messages: {messages: [{role, content}]}; PromptCompletion: {prompt, completion}; Alpaca:
    {instruction, input?, output}; ShareGPT: {conversations: [{from, value}]}; Text: {text}; Classification: {text, label};
    Preference: {prompt, chosen, rejected}, or two conversations that differ in their last answer alone (chosen is learned);
    UnpairedPreference: {prompt, completion, label}, where label says whether the answer is desirable (objective KTO).
    Auto looks at the columns; status.dataset.format says what it took them for."""
    columns: dict[str, Filled] = Field(default_factory=dict, max_length=16)
    """Names of the columns where they differ from the format's: {prompt: question, completion: answer}."""
    labels: Annotated[dict[str, str], BeforeValidator(as_written)] = Field(default_factory=dict, max_length=1000)
    """Classification: the word that the model answers for each stored label: {"0": negative, "1": positive}. Every label
    must then have one. Empty: labels are the words."""
    system_prompt: str | None = Field(None, max_length=8192)
    """System message put before each conversation that has none."""
    max_samples: int | None = Field(None, ge=1, le=MOST)
    """Use only this many rows, chosen by the test split's seed: try on little data first."""
    test: Split = Field(default_factory=cache(lambda: Split(fraction=0.1)))
    """Held-out rows that the scores and gates are computed on, never trained on. Default: a fraction of 0.1."""
    validation: Split | None = None
    """Rows for the loss measured during training. They never score a gate. Unset: none."""
    max_dropped_fraction: float = Field(0.05, ge=0, le=1)
    """The job stops before training when more than this share of the rows can't be used: too long, without an answer, copies
    of test rows, ... status.dataset.dropped counts them by cause."""
