"""What the operator and the trainer's pods say to each other: the whole of it, and nothing that needs torch.

    operator ── RunConfig (immutable ConfigMap, /etc/finetune/run.json) ──────────► pod `python -m finetune_trainer <step>`
    operator ◄── Progress (one JSON line on stdout, read from the log's tail) ───── pod
    operator ◄── Termination (termination message) + ExitCode (exit status) ─────── pod

Strict where we write (`Strict` forbids unknown keys), tolerant where an older pod reports (`Report` ignores them): fields.py.
What spec.dataset takes is in dataset_fields.py, objectives in objective_fields.py, adapters and the base below them in
adapter_fields.py, how answers are made in evaluation_fields.py, benchmarks in task_fields.py, the names of the scores in
metrics.py, what a serving gate reports of test rows in served_rows.py.
The models that users meet in a FineTuneJob's spec are defined here once; their descriptions are what `kubectl explain` prints.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finetune_trainer.adapter_fields import Lora, Quantization
from finetune_trainer.dataset_fields import Dataset, DatasetFormat
from finetune_trainer.evaluation_fields import Generation
from finetune_trainer.fields import Report, SecretRef, Strict, TrainedModel
from finetune_trainer.metrics import MOST_SCORES, Metric
from finetune_trainer.objective_fields import Distillation, Objective, Preference
from finetune_trainer.served_rows import ServedRows
from finetune_trainer.task_fields import Tasks

RUN_FILE = "/etc/finetune/run.json"
MOUNTS = "/mnt/finetune"  # claims/<claim>/… and configmaps/<name>/<key> lie below it
SCRATCH = "/scratch"
HANG_AFTER_MEDIAN_STEPS = 30
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LIMIT = 4096  # bytes; the kubelet cuts the rest

ENV_RUN_FILE = "FINETUNE_RUN_FILE"
ENV_MOUNTS = "FINETUNE_MOUNTS"
ENV_SCRATCH = "FINETUNE_SCRATCH"
ENV_TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"
ENV_ATTEMPT = "FINETUNE_ATTEMPT"  # counts from 1; with the pod's uid it names what this attempt writes
ENV_POD_UID = "FINETUNE_POD_UID"
ENV_GRACE_SECONDS = "FINETUNE_GRACE_SECONDS"
ENV_MICRO_BATCH_SIZE = "FINETUNE_MICRO_BATCH_SIZE"  # set where the memory did not hold what was estimated
ENV_HANG_AFTER = "FINETUNE_HANG_AFTER"  # medians of a step's time; unset: HANG_AFTER_MEDIAN_STEPS
ENV_NODE_RANK = "JOB_COMPLETION_INDEX"  # set by Kubernetes in the pods of an Indexed Job
ENV_MASTER = "FINETUNE_MASTER"  # host:port of the pod with index 0, where all ranks meet


# ── What to train: the part of a FineTuneJob's spec that reaches the pods ─────────────────────────────────────────────


class Method(StrEnum):
    QLORA = "QLoRA"
    LORA = "LoRA"
    FULL = "Full"


class Precision(StrEnum):
    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


Recomputing = Literal["Full", "Selective", "Off"]  # of each layer, in the backward pass


class Checkpoint(Strict):
    every_steps: int | None = Field(None, ge=1)
    """Save after this many optimizer steps. Unset: intervalSeconds decides."""
    interval_seconds: int = Field(600, ge=1)
    """Save when this many seconds have passed since the last save."""
    keep: int = Field(2, ge=1, le=100)
    """How many checkpoints stay in the artifact store while training runs."""


class EarlyStopping(Strict):
    patience: int = Field(3, ge=1, le=1000)
    """Training ends after this many validations in a row that were no better than the best one."""


# What each tracker must find in its environment; MLflow would write to the pod's own disk, W&B would ask for a key.
TRACKERS: dict[str, tuple[str, ...]] = {"tensorboard": (), "mlflow": ("MLFLOW_TRACKING_URI",), "wandb": ("WANDB_API_KEY",)}


class Training(Strict):
    method: Method = Method.QLORA
    """QLoRA: adapters over a quantized base; LoRA: adapters over the base as it is; Full: every weight."""
    objective: Objective = Objective.SFT
    """What is learned from a row. SFT: its answer. DPO, ORPO and KTO: to prefer the chosen answer to the rejected one, from
    rows of format Preference; KTO also from UnpairedPreference. Distillation: to predict the answer as a teacher does."""
    preference: Preference = Field(default_factory=lambda: Preference())
    """Settings of DPO, ORPO and KTO; SFT ignores them."""
    distillation: Distillation | None = None
    """The teacher of objective Distillation, and how much it counts."""
    precision: Precision = Precision.AUTO
    """Compute type. Auto: BF16 on GPUs that have it, FP16 on older ones, FP32 on CPUs."""
    lora: Lora = Field(default_factory=lambda: Lora())
    """Adapter settings of QLoRA and LoRA; Full ignores them."""
    quantization: Quantization = Field(default_factory=lambda: Quantization())
    """How QLoRA stores the base model's weights while it trains adapters over them."""
    epochs: float | None = Field(None, gt=0, le=1000)
    """Passes over the training rows. Unset and no maxSteps: 3."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps in all; takes the place of epochs."""
    global_batch_size: int = Field(16, ge=1, le=65536)
    """Rows per optimizer step, over all devices and accumulation steps."""
    micro_batch_size: int | None = Field(None, ge=1, le=4096)
    """Rows per forward pass on one device. Unset: the memory estimate decides; status.resolved shows it."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """Peak learning rate. Unset: 2e-4 for QLoRA and LoRA, 2e-5 for Full; a twentieth of that for DPO, ORPO and KTO."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"] = "cosine"
    """Learning-rate schedule, by the name that transformers gives it. inverse_sqrt needs a warm-up: the longer that was, the
    slower the rate falls."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises to its peak."""
    weight_decay: float = Field(0, ge=0, le=1)
    """AdamW's weight decay."""
    optimizer: str = Field("Auto", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_]+$")
    """Optimizer by the name that transformers gives it: adamw_torch, adamw_torch_fused, adamw_bnb_8bit, paged_adamw_8bit, …
    Auto: adamw_torch_fused for adapters, adamw_bnb_8bit for Full on GPUs, adamw_torch on CPUs."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_length: int = Field(2048, ge=8, le=1048576)
    """Longest row in tokens, prompt and completion together."""
    packing: bool = False
    """Fill rows of maxLength tokens with several short ones, without attention between them. globalBatchSize then counts
    packed rows. On CPUs choose maxLength no longer than the rows need: a packed row costs attention over all of it."""
    gradient_checkpointing: Literal["Auto", "Full", "Selective", "Off"] = "Auto"
    """Recompute activations in the backward pass to save memory. Full: each layer's; Selective: all but matrix products and
    attention, which take the time; Auto: only where the memory estimate asks for it."""
    completion_only_loss: bool = True
    """Loss on the completion's tokens only, not on the prompt's."""
    seed: int = Field(42, ge=0, le=2**31 - 1)
    """Seed of weights, order and dropout."""
    evaluate_every_steps: int | None = Field(None, ge=1)
    """Measure the validation loss after this many steps. Needs dataset.validation. Unset: at the end only."""
    early_stopping: EarlyStopping | None = None
    """End training once the validation loss falls no more. Needs evaluateEverySteps. Unset: train all steps."""
    keep_checkpoint: Literal["Best", "Last"] = "Last"
    """Which weights the job goes on with. Last: those after the last step. Best: those of the validation with the lowest
    loss, which needs evaluateEverySteps."""
    neftune_noise_alpha: float | None = Field(None, gt=0, le=100)
    """Strength of the noise on the embeddings in training (NEFTune); 5 is usual. Unset: none."""
    checkpoint: Checkpoint = Field(default_factory=lambda: Checkpoint())
    """When training state is saved, so that a lost pod costs little."""
    report_to: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(default_factory=list, max_length=3)
    """Where loss, learning rate and gradient norm of each step go beside the pod's log. tensorboard: files in a folder of that
    name beside the adapter. mlflow, wandb: the server that reportSecretRef says; the image must have the package."""
    report_secret_ref: SecretRef | None = None
    """Secret whose keys become the training pod's environment: MLFLOW_TRACKING_URI and MLflow's other variables, WANDB_API_KEY
    and W&B's."""


class ArtifactFormat(StrEnum):
    GGUF = "GGUF"
    COMPRESSED_TENSORS = "CompressedTensors"
    BITS_AND_BYTES = "BitsAndBytes"


QUANTIZATIONS: dict[ArtifactFormat, tuple[str, ...]] = {
    ArtifactFormat.GGUF: ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"),
    ArtifactFormat.COMPRESSED_TENSORS: ("FP8", "W4A16", "AWQ"),
    ArtifactFormat.BITS_AND_BYTES: ("NF4",),
}


class Artifact(Strict):
    name: str = Field(min_length=1, max_length=20, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Name of the artifact; gates, publish and serving refer to it. adapter, merged and base are taken."""
    format: ArtifactFormat
    """GGUF for llama.cpp and Ollama; CompressedTensors for vLLM; BitsAndBytes for vLLM on GPUs."""
    quantization: Literal["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "FP8", "W4A16", "AWQ", "NF4"]
    """GGUF: Q4_K_M, Q5_K_M, Q6_K, Q8_0 or F16. CompressedTensors: FP8, or 4-bit weights chosen by training rows: W4A16 (by
    GPTQ) or AWQ. BitsAndBytes: NF4."""
    imatrix: bool = False
    """Of GGUF's K types: find out by training rows which weights matter most, and round those least (llama.cpp's importance
    matrix). It takes a pass over the rows."""


class Publish(Strict):
    uri: str = Field(min_length=1, max_length=1024, pattern=r"^((pvc|s3)://.+|hf://[^/@]+/[^/@]+(@[^@]+)?)$")
    """Where copies go: pvc://claim/path, s3://bucket/path, or a model repository, hf://org/name[@branch]. Each artifact gets
    a folder of its name below it; in a repository, a single one lies at the root."""
    secret_ref: SecretRef | None = None
    """Secret with the credentials of that place; hf:// needs one, with the key HF_TOKEN."""
    private: bool = True
    """Of hf:// only: a repository that does not exist yet is made private, and one that is public is refused. false: it is
    made public."""
    artifacts: list[str] = Field(default_factory=lambda: ["merged"], min_length=1, max_length=20)
    """Names of the artifacts to copy: adapter, merged, or names from spec.artifacts."""


class StoreConfig(Strict):
    """The artifact store: pvc://claim/prefix or s3://bucket/prefix (credentials by environment)."""

    uri: str
    endpoint: str | None = None
    region: str | None = None


class Strategy(StrEnum):
    AUTO = "Auto"
    DDP = "DDP"
    FSDP = "FSDP"
    ZERO2 = "ZeRO2"
    ZERO3 = "ZeRO3"


SHARES_WEIGHTS = frozenset({Strategy.FSDP, Strategy.ZERO3})  # no rank has the model as a whole


class Launcher(StrEnum):
    TORCHRUN = "Torchrun"
    RAY = "Ray"


class Devices(Strict):
    """What the train pods hold. No GPU means that all runs on CPUs, as one rank in each pod."""

    gpus: int = Field(0, ge=0)  # of one pod
    memory_bytes: int | None = None  # of one GPU, or the train pod's limit where it has none; unset: not known
    nodes: int = Field(1, ge=1)
    strategy: Strategy = Strategy.AUTO
    launcher: Launcher = Launcher.TORCHRUN

    @property
    def ranks_per_node(self) -> int:
        return max(1, self.gpus)

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


class RunConfig(Strict):
    """All that the stages of one run need, resolved: frozen in a ConfigMap, so a later edit can't change a running pod."""

    namespace: str
    name: str
    model: TrainedModel
    dataset: Dataset
    training: Training
    devices: Devices
    merge_base: Literal["Dequantized", "Original"] = "Dequantized"
    artifacts: tuple[Artifact, ...] = ()
    generation: Generation = Field(default_factory=lambda: Generation())
    tasks: Tasks | None = None
    publish: tuple[Publish, ...] = ()
    store: StoreConfig


# ── What the pods report ──────────────────────────────────────────────────────────────────────────────────────────────


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
    eta_seconds: float | None = None
    time: float = 0.0  # seconds since the epoch


class ModelFacts(Report):
    revision: str
    digest: str  # sha256:…, over the weights' and tokenizer's digests
    parameters: int
    architecture: str
    bytes: int
    teacher_digest: str | None = None  # of a distillation's teacher, as digest


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
    tasks_digest: str | None = None  # sha256:…, over the files of spec.evaluation.tasks


class FitFacts(Report):
    """The memory estimate for one device, and what it chose."""

    predicted_bytes: int
    measured_bytes: int | None = None  # the most that training came to so far
    available_bytes: int | None = None
    micro_batch_size: int
    # Releases before Selective reported whether there was any.
    gradient_checkpointing: Annotated[Recomputing, BeforeValidator(lambda said: {True: "Full", False: "Off"}.get(said, said))]
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


class ArtifactFacts(Report):
    name: str  # adapter, merged, or an artifact's name
    format: str  # PEFT, Safetensors, GGUF, CompressedTensors, BitsAndBytes
    quantization: str | None = None
    path: str  # below the store's root
    digest: str  # sha256:… of the folder's files.json, which names every file with its own
    bytes: int


class Scores(Report):
    subject: str  # base, merged, or an artifact's name
    samples: int
    engine: str | None = None  # what wrote the answers: VLLM, Transformers or LlamaCpp; None where nothing was asked
    values: dict[Metric | str, float] = Field(max_length=MOST_SCORES)  # other names than a Metric's are <task>/<metric>
    lower_is_better: tuple[str, ...] | None = None  # of the tasks' scores; of a Metric it is known
    answers: str | None = None
    """Fingerprint of the store's entry with its answers, where a served model can be asked for them again."""


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
    done: tuple[StepResult, ...] = ()  # prepare only: the steps whose verified manifests are in the store already


class Failure(Report):
    """Why a step stopped. `reason` is part of the API (CamelCase); `message` says what to change. No rows, no log lines."""

    reason: str
    message: str


class Termination(Report):
    result: StepResult | None = None
    failure: Failure | None = None
    served_rows: ServedRows | None = None  # of a serving gate only


class File(Strict):
    path: str
    bytes: int
    sha256: str


class Check(Report):
    """One proof that an output is sound, and the limit that its value kept (proof.py says what each name means)."""

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


class ExitCode(IntEnum):
    """How a pod ended. The operator maps each to: retry free, retry counted, change something and retry, or stop."""

    OK = 0
    UNEXPECTED = 1
    BAD_CONFIG = 10
    BAD_DATA = 11
    SOURCE_NOT_FOUND = 12
    SOURCE_DENIED = 13
    SOURCE_UNAVAILABLE = 14
    STORE_UNAVAILABLE = 15
    OUT_OF_GPU_MEMORY = 20
    DOES_NOT_FIT = 21
    NON_FINITE_LOSS = 22
    HANG = 23
    VERIFICATION_FAILED = 24
    LOST_RANK = 25
    WORLD_INCOMPLETE = 26
    PREEMPTED = 30  # SIGTERM: a checkpoint was saved
    OUT_OF_MEMORY = 137  # SIGKILL, as the kernel's OOM killer sends it


# How ranks end because another one failed, the most telling first; any other code is a cause.
CONSEQUENCES = (ExitCode.OUT_OF_MEMORY, ExitCode.LOST_RANK, ExitCode.WORLD_INCOMPLETE, ExitCode.PREEMPTED, 143)
