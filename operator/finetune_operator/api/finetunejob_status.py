"""What the status of a FineTuneJob says; the docstring below a field is what `kubectl explain` shows."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from finetune_operator.api.evaluation import GateAction
from finetune_operator.meta import Condition
from finetune_trainer.contract.devices import Strategy
from finetune_trainer.contract.fields import Report
from finetune_trainer.contract.reports import Cleaned, DatasetFacts, FitFacts, ModelFacts, Remark, Scores, TrainFacts
from finetune_trainer.contract.training import Recomputing


class StepState(StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    REUSED = "Reused"
    FAILED = "Failed"


DONE = frozenset({StepState.SUCCEEDED, StepState.REUSED})


class StepStatus(Report):
    name: str
    """Step of the pipeline: prepare, train, merge, quantize-<artifact>, evaluate, evaluate-<artifact>, publish-<n>, clean."""
    state: StepState = StepState.PENDING
    """Pending, Running, Succeeded, Reused (its output was in the store already) or Failed."""
    fingerprint: str | None = None
    """Hash of the step's inputs; the same inputs are never worked on twice."""
    attempt: int = 0
    """Number of the current or last attempt, from 1."""
    retries: int = 0
    """Attempts that count against spec.retry.maxRetries."""
    started_at: str | None = None
    """When the first attempt started."""
    finished_at: str | None = None
    """When it ended."""
    job: str | None = None
    """Name of the current or last Job."""
    job_uid: str | None = None
    """Its uid: another Job of that name is not ours."""
    resumed_from_step: int | None = None
    """Optimizer step that the last attempt of training went on from."""
    reached: int | None = None
    """Farthest optimizer step that a failed attempt of training was at."""
    failed_nodes: dict[str, int] | None = None
    """Nodes on which attempts failed, and how many; one with two is avoided."""
    gpu: str | None = None
    """GPU that training ran on last; a later attempt, which goes on from its checkpoint, prefers nodes with the same."""
    micro_batch_size: int | None = None
    """Rows per forward pass, where the GPU's memory did not hold as many as were estimated."""
    running_pods: int | None = None
    """Pods of the current attempt that run, where spec.parallelism.numNodes asks for several."""
    suspended: bool | None = None
    """True while spec.suspend keeps its Job suspended. A Job that somebody else suspended is left to them."""


class ProgressStatus(Report):
    step: str
    """Step of the pipeline that reports."""
    activity: str = ""
    """What it does now."""
    percent: int = 0
    """How much of this step is done, 0 to 100."""
    current: int = 0
    """Units done: optimizer steps or rows."""
    total: int = 0
    """Units in all."""
    loss: float | None = None
    """Training loss of the last reported step."""
    learning_rate: float | None = None
    """Learning rate of that step."""
    tokens_per_second: float | None = None
    """Training speed, padding not counted."""
    eta_seconds: int | None = None
    """Seconds to the end of this step, as estimated at updatedAt."""
    updated_at: str | None = None
    """When the pod wrote this."""
    stale: bool = False
    """True when the pod has written nothing for two minutes."""


class GateVerdict(Report):
    name: str
    passed: bool
    action: GateAction
    message: str
    """The numbers that decided."""


class ArtifactStatus(Report):
    name: str
    format: str
    quantization: str | None = None
    uri: str
    """Where the files lie."""
    digest: str
    """sha256 of the folder's files.json, which names every file with its own."""
    bytes: int
    evaluation: str | None = None
    """Where its answers to the test rows lie; a ModelServe asks some of them again. Unset: it was not asked for answers."""


class LastFailure(Report):
    step: str
    attempt: int
    node: str | None = None
    exit_code: int | None = None
    reason: str
    message: str
    """What happened and what to change."""
    time: str


class ServingStatus(Report):
    name: str
    """The ModelServe."""
    digest: str | None = None
    """Digest of the artifact that was handed over."""
    handed_over: str | None = None
    """Hash of the ModelServe as it was handed over: what is changed there afterwards stays."""
    ready: bool = False
    """True while the ModelServe serves that artifact."""
    url: str | None = None
    """OpenAI API inside the cluster."""


class Holding(Report):
    """GPUs that an attempt's pods hold."""

    job: str
    """The Job of the attempt."""
    gpus: int
    """GPUs of all its pods."""
    since: str


class Counted(Report):
    job: str
    """The Job of the attempt."""
    until: str


class Cost(Report):
    amount: float
    currency: str
    gpu_hour_price: float
    """Price of one GPU for an hour, by the chart's `profiles`."""


class Resolved(Report):
    """What Auto chose, and every default that depends on another field."""

    micro_batch_size: int | None = None
    gradient_checkpointing: Recomputing | None = None
    strategy: Strategy | None = None
    learning_rate: float | None = None
    epochs: float | None = None
    store: str | None = None
    serving_artifact: str | None = None


class FineTuneJobStatus(Report):
    observed_generation: int = -1
    conditions: list[Condition] = Field(default_factory=list)
    stage: str | None = None
    """The stage that runs, or how the job ended; for people, not for programs."""
    run: str | None = None
    """Name of the ConfigMap with the frozen configuration of the current run."""
    run_number: int = 0
    """Number of the current run, from 1. An edit that changes what pods get begins a new one, which reuses what it can."""
    run_digest: str | None = None
    """Hash of that configuration."""
    run_generation: int | None = None
    """Newest generation of the spec that this run serves."""
    run_spec: str | None = None
    """Hash of what the spec asks of the pods, defaults left out: another one begins another run."""
    succeeded_spec: str | None = None
    """Hash of the spec that the job succeeded with, but for suspend: it stays Succeeded while the spec says the same."""
    resolved: Resolved | None = None
    model: ModelFacts | None = None
    dataset: DatasetFacts | None = None
    fit: FitFacts | None = None
    steps: list[StepStatus] = Field(default_factory=list)
    warnings: list[Remark] = Field(default_factory=list)
    """What goes on all the same, and may not be what was meant: each is posted as a Warning event, too."""
    progress: ProgressStatus | None = None
    training: TrainFacts | None = None
    """What training came to, once it has ended; its seconds and its peak memory are those of the last attempt."""
    scores: list[Scores] = Field(default_factory=list)
    gates: list[GateVerdict] = Field(default_factory=list)
    artifacts: list[ArtifactStatus] = Field(default_factory=list)
    published: list[str] = Field(default_factory=list)
    cleaned: Cleaned | None = None
    """What the step clean removed of earlier runs."""
    report: str | None = None
    """Where the page lies that tells of the run: one HTML file that needs no network, written anew as steps end."""
    serving: ServingStatus | None = None
    last_failure: LastFailure | None = None
    active_since: str | None = None
    """When the run was started, or resumed from suspend: spec.activeDeadlineSeconds counts from here."""
    gpu_seconds: int = 0
    """GPUs held times seconds, over all attempts: counted once an attempt's pods are gone, be it for a suspend."""
    counted: Counted | None = None
    """Up to when gpuSeconds counts an attempt: what it holds after that is counted on top."""
    holding: Holding | None = None
    """The GPUs that are held now, which gpuSeconds does not count yet. Unset: none."""
    cost: Cost | None = None
    """What gpuSeconds costs, where the job's profile has a price."""
    retry_token: str | None = None
    """The value of the annotation finetune.dev/retry that was acted on."""
