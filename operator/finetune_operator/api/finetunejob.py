"""The FineTuneJob as types: what a user may write, with defaults and bounds, and what its status says.

The CRD under crds/ is generated from this file (crdgen.py); the docstring below a field is what `kubectl explain` shows.
What trains a model is defined once, in finetune_trainer.contract, and used here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from finetune_operator.meta import Condition, ObjectMeta, Quantity
from finetune_trainer.contract.artifacts import Artifact, Publish
from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.devices import Launcher, Strategy
from finetune_trainer.contract.evaluation import AnswerEngine
from finetune_trainer.contract.fields import CaSecretRef, Report, SecretRef, Strict, TrainedModel
from finetune_trainer.contract.metrics import SCORE
from finetune_trainer.contract.reports import DatasetFacts, FitFacts, ModelFacts, Scores
from finetune_trainer.contract.tasks import Task, TaskFiles
from finetune_trainer.contract.training import HANG_AFTER_MEDIAN_STEPS, Recomputing, Training

# ── spec ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Gpu(Strict):
    resource_name: str = Field("nvidia.com/gpu", min_length=1, max_length=253)
    """Extended resource that stands for one GPU."""
    memory: Quantity | None = None
    """Memory of one GPU, such as 24Gi. Lets the operator refuse a job that can't fit before it takes a GPU."""


class Parallelism(Strict):
    num_nodes: int = Field(1, ge=1, le=64)
    """Pods that train together, each on a node with its share of GPUs. More than 1 needs a store that all of them reach:
    s3://, or a claim with ReadWriteMany."""
    gpus_per_node: int = Field(1, ge=0, le=16)
    """GPUs of each train pod, and a rank for each; evaluate takes one. 0 runs everything on CPUs, one rank in each pod."""
    gpu: Gpu = Field(default_factory=lambda: Gpu())
    """Which GPUs."""
    strategy: Strategy = Strategy.AUTO
    """How several ranks train one model. DDP: each holds all of it; FSDP: they share out weights, gradients and optimizer
    state; ZeRO2 and ZeRO3: DeepSpeed shares out gradients and optimizer state, and in ZeRO3 the weights as well. Auto: DDP
    where that fits the memory of one GPU, else FSDP."""
    launcher: Launcher = Launcher.TORCHRUN
    """What starts the ranks. Torchrun; or Ray, for Ray Train in a Ray cluster of the job's own pods, which ends with them."""


class Merge(Strict):
    base: Literal["Dequantized", "Original"] = "Dequantized"
    """What the adapter is merged into. Dequantized: the quantized base it was trained on, expanded, which gives the very
    model that was trained; Original: the base model's own weights."""


class GateAction(StrEnum):
    BLOCK = "Block"
    WARN = "Warn"


class Gate(Strict):
    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Name of the gate, as status shows it."""
    metric: str = Field(min_length=1, max_length=200, pattern=SCORE)
    """Score that is judged, on the held-out test rows: loss, perplexity, exactMatch, rouge1, rouge2, rougeL, entropy; for
    rows of format Classification accuracy and macroF1 as well, of format Preference preferenceAccuracy. Of loss, perplexity
    and entropy less is better. Or <task>/<metric>, for a task of evaluation.tasks; lm-eval knows what is better."""
    artifact: str = Field("merged", min_length=1, max_length=20)
    """Which artifact is judged: merged, or a name from spec.artifacts."""
    min: float | None = None
    """The score must be at least this."""
    max: float | None = None
    """The score must be at most this."""
    min_improvement_over_base: float | None = None
    """The score must be better than the base model's by at least this much."""
    max_regression_from_merged: float | None = Field(None, ge=0)
    """The score may be worse than the merged model's by at most this much: what quantization may cost."""
    action: GateAction = GateAction.BLOCK
    """Block: nothing is published or served when the gate fails. Warn: the verdict is only shown."""


class Evaluation(Strict):
    engine: AnswerEngine = AnswerEngine.AUTO
    """What writes the answers that are scored: VLLM, as it will when it serves them, or Transformers. Auto: VLLM where the
    evaluate pod has a GPU and its image has vLLM (the chart's images.evaluator, or spec.stages.evaluate.image), else
    Transformers. status.scores[].engine tells which it was. GGUF artifacts are answered by llama.cpp in any case."""
    samples: int = Field(200, ge=1, le=100000)
    """At most this many test rows are scored."""
    max_new_tokens: int = Field(128, ge=1, le=32768)
    """Longest generated answer, in tokens. Answers are greedy, so that scores can be repeated."""
    tasks: list[Task] = Field(default_factory=list, max_length=10)
    """Benchmarks of lm-evaluation-harness to score base, merged model and safetensors artifacts on as well. The images of
    stages prepare and evaluate must have lm-eval."""
    task_files: TaskFiles | None = None
    """Where the files of these tasks lie."""
    gates: list[Gate] = Field(default_factory=list, max_length=20)
    """What must hold before anything is published or served. Unset: the merged model's loss must not be above the
    base's."""


class Serving(Strict):
    name: str | None = Field(None, min_length=1, max_length=50, pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$")
    """Name of the ModelServe that the job creates or updates. Unset: the job's name."""
    artifact: str | None = Field(None, min_length=1, max_length=20)
    """Artifact to serve. Unset: the best fit for the engine (VLLM: a CompressedTensors artifact or merged; LlamaCpp:
    the first GGUF artifact)."""
    deletion_policy: Literal["Orphan", "Delete"] = "Orphan"
    """What becomes of the ModelServe when this job is deleted. Orphan: it goes on serving."""
    template: dict[str, Any] = Field(default_factory=dict, json_schema_extra={"x-preserve": True})
    """Spec of the ModelServe, without its model: see `kubectl explain modelserve.spec`."""


class Resources(Strict):
    requests: dict[str, Quantity] = Field(default_factory=dict, max_length=8)
    """What the pod is promised: cpu, memory, ephemeral-storage. GPUs are asked for in spec.parallelism only."""
    limits: dict[str, Quantity] = Field(default_factory=dict, max_length=8)
    """What the pod may use at most."""


class Stage(Strict):
    image: str | None = Field(None, min_length=1, max_length=512)
    """Image of this stage's pods. Unset: the operator's default."""
    resources: Resources = Field(default_factory=lambda: Resources())
    """CPU and memory of this stage's pods."""
    node_selector: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Labels that a node must have."""
    tolerations: list[dict[str, Any]] = Field(default_factory=list, max_length=16, json_schema_extra={"x-preserve": True})
    """Taints that the pods tolerate, as in a pod's spec."""
    service_account_name: str | None = Field(None, min_length=1, max_length=253)
    """Service account of the pods. Unset: default, without a mounted token."""


class Stages(Strict):
    prepare: Stage = Field(default_factory=lambda: Stage())
    """Fetches and checks model and data; CPU only."""
    train: Stage = Field(default_factory=lambda: Stage())
    """Fine-tunes; holds the GPUs."""
    merge: Stage = Field(default_factory=lambda: Stage())
    """Merges the adapter; CPU only."""
    quantize: Stage = Field(default_factory=lambda: Stage())
    """Makes one artifact; CPU only."""
    evaluate: Stage = Field(default_factory=lambda: Stage())
    """Scores base and artifacts; holds a GPU where the train stage does, but for GGUF artifacts."""
    publish: Stage = Field(default_factory=lambda: Stage())
    """Copies artifacts; CPU only."""


class Retry(Strict):
    max_retries: int = Field(3, ge=0, le=100)
    """New attempts of a step after failures that count (a crash, a store or source that did not answer). A preempted or
    deleted pod is replaced without counting."""
    on_out_of_memory: Literal["ShrinkMicroBatch", "Fail"] = "ShrinkMicroBatch"
    """What to do when the GPU's memory does not hold the training after all. ShrinkMicroBatch: go on from the last
    checkpoint with half the rows per forward pass and the same globalBatchSize; it does not count against maxRetries."""
    hang_after_median_steps: int = Field(HANG_AFTER_MEDIAN_STEPS, ge=2, le=100000)
    """Training that makes no step for this many times the median time of its steps, and for five minutes, is ended and goes
    on from its last checkpoint, which counts against maxRetries. The pod's log then shows where each thread stood."""


class ArtifactStore(Strict):
    uri: str | None = Field(None, min_length=1, max_length=1024, pattern=r"^(pvc|s3)://.+")
    """pvc://claim/prefix or s3://bucket/prefix. Unset: a claim made for this job, named <job>-artifacts."""
    secret_ref: SecretRef | None = None
    """Secret with the store's credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
    endpoint: str | None = Field(None, min_length=1, max_length=512, pattern=r"^https?://.+")
    """URL of an S3-compatible server. Unset: AWS."""
    region: str | None = Field(None, min_length=1, max_length=63)
    """Region of the bucket."""
    ca_secret_ref: CaSecretRef | None = None
    """Certificates of that server's authority, where the images don't know it."""
    size: Quantity = "20Gi"
    """Size of the claim that is made when uri is unset."""
    storage_class_name: str | None = Field(None, min_length=1, max_length=253)
    """Storage class of that claim. Unset: the cluster's default."""


class Scratch(Strict):
    size: Quantity | None = None
    """Limit of the pods' scratch space (an emptyDir). Unset: none."""


class Storage(Strict):
    artifacts: ArtifactStore = Field(default_factory=lambda: ArtifactStore())
    """Where adapters, models, scores and checkpoints are kept. It outlives the job."""
    scratch: Scratch = Field(default_factory=lambda: Scratch())
    """Where a pod works before it commits."""


class FineTuneJobSpec(Strict):
    model: TrainedModel
    """The base model."""
    dataset: Dataset
    """The rows to learn from, and how they are split."""
    training: Training = Field(default_factory=lambda: Training())
    """How to train."""
    parallelism: Parallelism = Field(default_factory=lambda: Parallelism())
    """On what to train."""
    merge: Merge = Field(default_factory=lambda: Merge())
    """How the adapter becomes part of the model."""
    artifacts: list[Artifact] = Field(default_factory=list, max_length=10)
    """Quantized models to make. The adapter and the merged model are always there."""
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation())
    """How the result is judged, and what must hold before it is used."""
    publish: list[Publish] = Field(default_factory=list, max_length=10)
    """Places that get copies once the gates have passed."""
    serving: Serving | None = None
    """Roll the result out when the gates have passed. Unset: nothing is served."""
    stages: Stages = Field(default_factory=lambda: Stages())
    """Resources and placement, stage by stage."""
    retry: Retry = Field(default_factory=lambda: Retry())
    """What happens after a failure."""
    storage: Storage = Field(default_factory=lambda: Storage())
    """Where results are kept."""
    suspend: bool = False
    """Stop after saving a checkpoint and start no more pods until this is false again."""


# ── status ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class StepState(StrEnum):
    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    REUSED = "Reused"
    FAILED = "Failed"


class StepStatus(Report):
    name: str
    """Step of the pipeline: prepare, train, merge, quantize-<artifact>, evaluate, evaluate-<artifact>, publish-<n>."""
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
    micro_batch_size: int | None = None
    """Rows per forward pass, where the GPU's memory did not hold as many as were estimated."""
    running_pods: int | None = None
    """Pods of the current attempt that run, where spec.parallelism.numNodes asks for several."""


class ProgressStatus(Report):
    step: str
    """Step of the pipeline that reports."""
    activity: str = ""
    """What it does now."""
    percent: int = 0
    """Of this step, 0 to 100."""
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
    ready: bool = False
    """True while the ModelServe serves that artifact."""
    url: str | None = None
    """OpenAI API inside the cluster."""


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
    resolved: Resolved | None = None
    model: ModelFacts | None = None
    dataset: DatasetFacts | None = None
    fit: FitFacts | None = None
    steps: list[StepStatus] = Field(default_factory=list)
    progress: ProgressStatus | None = None
    scores: list[Scores] = Field(default_factory=list)
    gates: list[GateVerdict] = Field(default_factory=list)
    artifacts: list[ArtifactStatus] = Field(default_factory=list)
    published: list[str] = Field(default_factory=list)
    serving: ServingStatus | None = None
    last_failure: LastFailure | None = None
    gpu_seconds: int = 0
    """GPUs held times seconds, over all attempts that have ended."""
    retry_token: str | None = None
    """The value of the annotation finetune.dev/retry that was acted on."""


class FineTuneJob(Report):
    metadata: ObjectMeta
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = Field(default_factory=lambda: FineTuneJobStatus())
