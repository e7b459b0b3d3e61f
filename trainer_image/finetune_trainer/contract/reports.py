"""What the pods report: progress, facts, scores, manifests, and how they end."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field

from finetune_trainer.contract.dataset import DatasetFormat
from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.fields import Report, Strict
from finetune_trainer.contract.held_out import HeldOutScores
from finetune_trainer.contract.judging import Judged
from finetune_trainer.contract.metrics import MOST_SCORES, Metric
from finetune_trainer.contract.reasons.steps import RETIRED
from finetune_trainer.contract.served_rows import ServedRows
from finetune_trainer.contract.served_speed import ServedSpeed
from finetune_trainer.contract.traffic import Traffic
from finetune_trainer.contract.training import Recomputing


class Progress(Report):
    """One line on stdout. Seconds, bytes, tokens; `total` and `step` count the stage's own units (optimizer steps, rows)."""

    kind: Literal["progress"] = "progress"
    step_name: str  # the step of the pipeline: train, quantize-q4, …
    activity: str = ""  # what goes on now, in a few words: "downloading model", "training"
    step: int = 0
    total: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    gpu: str | None = None  # as its driver names it
    eta_seconds: float | None = None
    time: float = 0.0  # seconds since the epoch


class ModelFacts(Report):
    revision: str
    digest: str  # sha256:…, over the weights' and tokenizer's digests
    parameters: int
    architecture: str
    bytes: int
    teacher_digest: str | None = None  # of a distillation's teacher, as digest
    plain_attention_tokens: int | None = None
    """Tokens of a row that each layer attends to plainly: a sliding window's, 0 where there are soft caps, sinks or layers that
    are no attention. Absent: any number. A distillation's teacher counts as well."""
    cached_numbers: int | None = None
    """Numbers that attention keeps of each token, in all layers. Absent: not known, or not the same of each token."""
    context_tokens: int | None = None
    """Tokens that the model reads at once, by its configuration. Absent: it doesn't say."""


class RowCount(Report):
    """Rows of one cause, and where one of them lies. No content: it ends up in the status."""

    cause: str  # data/ledger.py lists them
    rows: int
    example: str  # "train.jsonl line 17"


class DatasetFacts(Report):
    format: DatasetFormat
    train_digest: str
    test_digest: str
    train_rows: int
    validation_rows: int
    test_rows: int
    dropped_rows: int
    train_tokens: int
    longest_row_tokens: int
    labels: int | None = None  # Classification: how many the training rows have
    rows: int | None = None
    """Rows that were read: those to train on, to validate and to test with, and the dropped ones."""
    dropped: tuple[RowCount, ...] | None = None
    """The dropped rows by cause. Releases that named no cause have dropped_rows alone."""
    changed: tuple[RowCount, ...] | None = None
    """Rows of which something is learned otherwise than it is written, by cause; AnswerApart counts rows made of earlier
    answers, which come on top of `rows`."""
    unused_columns: tuple[str, ...] | None = None
    """Columns that nothing is learned from."""
    unread_files: tuple[str, ...] | None = None
    """Files of the source that were not read."""
    tasks_digest: str | None = None  # sha256:…, over the files of spec.evaluation.tasks


class FitFacts(Report):
    """The memory estimate for one device, and what it chose."""

    predicted_bytes: int
    measured_bytes: int | None = None  # the most that training came to so far
    available_bytes: int | None = None
    micro_batch_size: int
    # Releases before Selective reported whether there was any.
    gradient_checkpointing: Annotated[Recomputing, BeforeValidator(lambda said: {True: "Full", False: "Off"}.get(said, said))]
    kept_layers: int | None = None  # with Selective: layers that keep all the same, as there is room
    strategy: Strategy | None = None  # of many ranks: what Auto chose; None for one
    terms: dict[str, int] = Field(default_factory=dict)


class TrainFacts(Report):
    steps: int
    loss: float  # mean over the last tenth of the steps
    validation_loss: float | None = None
    tokens: int
    seconds: float
    resumed_from_step: int = 0
    peak_memory_bytes: int | None = None
    world_size: int = 1


class Cleaned(Report):
    """What was removed from the store of earlier runs of the job."""

    runs: int = 0
    """Runs of which nothing large is left."""
    entries: int = 0
    """Checkpoints, adapters, models and artifacts."""
    bytes: int = 0
    message: str = ""
    """Why nothing could be removed; the next run tries again."""


class ArtifactFacts(Report):
    name: str  # adapter, merged, or an artifact's name
    format: str  # PEFT, Safetensors, GGUF, CompressedTensors, BitsAndBytes
    quantization: str | None = None
    path: str  # below the store's root
    digest: str  # sha256:… of the folder's files.json, which names every file with its own
    bytes: int

    @classmethod
    def made(cls, name: str, format: str, quantization: str | None = None) -> Self:
        """What a step made, before it is committed: the store fills in where it lies, its digest and its size."""
        return cls(name=name, format=format, quantization=quantization, path="", digest="", bytes=0)


class Scores(Report):
    subject: str  # base, merged, or an artifact's name
    samples: int
    engine: str | None = None  # what wrote the answers: VLLM, Transformers or LlamaCpp; None where nothing was asked
    values: dict[Metric | str, float] = Field(max_length=MOST_SCORES)  # other names than a Metric's are <task>/<metric>
    lower_is_better: tuple[str, ...] | None = None  # of the tasks' scores; of a Metric it is known
    answers: str | None = None
    """Fingerprint of the store's entry with its answers, where a served model can be asked for them again."""


class Remark(Report):
    """What is unusual, and goes on all the same. `reason` is a RemarkReason, or a newer pod's."""

    reason: str
    message: str
    """What it is, and what to change if it is not meant."""


class StepResult(Report):
    """The headline of one finished step; the full record is the manifest in the store."""

    step: str
    fingerprint: str
    model: ModelFacts | None = None
    dataset: DatasetFacts | None = None
    fit: FitFacts | None = None
    train: TrainFacts | None = None
    artifact: ArtifactFacts | None = None
    scores: tuple[Scores, ...] = ()
    published: tuple[str, ...] = ()
    cleaned: Cleaned | None = None
    warnings: tuple[Remark, ...] | None = None  # prepare, and what it keeps of a model
    report: str | None = None  # where the page that tells of the run lies, below the store's root
    done: tuple[StepResult, ...] = ()  # prepare only: the steps whose verified manifests are in the store already


class Failure(Report):
    """Why a step stopped. `reason` is a StepReason, or a newer pod's; `message` says what to change. No rows, no log lines."""

    reason: Annotated[str, BeforeValidator(lambda said: RETIRED.get(said, said))]
    message: str


class Termination(Report):
    result: StepResult | None = None
    failure: Failure | None = None
    served_rows: ServedRows | None = None  # of a serving gate only
    served_speed: ServedSpeed | None = None  # of a serving gate that asks for a speed
    held_out: HeldOutScores | None = None  # of a serving gate that asks the live revision as well
    traffic: Traffic | None = None  # of the watch of a rollback window
    judged: Judged | None = None  # of a serving gate that has a judge compare the two


class File(Strict):
    path: str
    bytes: int
    sha256: str


class Check(Report):
    """One proof that an output is sound, and the limit that its value kept (export/proof.py says what each name means)."""

    name: str
    value: float
    limit: float


class Manifest(Strict):
    """The commit of one step: written last, so what it names is whole. `prefix` is the committed attempt's folder."""

    step: str
    fingerprint: str
    prefix: str
    files: tuple[File, ...]
    inputs: dict[str, str]
    versions: dict[str, str]
    checks: tuple[Check, ...] = ()
    result: StepResult
