"""The FineTuneJob as types: what a user may write, with defaults and bounds.

The CRD under crds/ is generated from this file, evaluation.py and finetunejob_status.py (crdgen.py); the docstring below a
field is what `kubectl explain` shows. What trains a model is defined once, in finetune_trainer.contract, and used here.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import Field

from finetune_operator.api.evaluation import Evaluation
from finetune_operator.api.finetunejob_status import FineTuneJobStatus
from finetune_operator.api.pod_template import PodTemplate
from finetune_operator.api.scheduling import Scheduling
from finetune_operator.meta import CONTROLLER_NAME, ObjectMeta, Quantity
from finetune_trainer.contract import places
from finetune_trainer.contract.artifacts import Artifact, Publish
from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.devices import Launcher, Strategy
from finetune_trainer.contract.fields import CaSecretRef, Report, SecretRef, Strict, TrainedModel
from finetune_trainer.contract.places import Use
from finetune_trainer.contract.training import HANG_AFTER_MEDIAN_STEPS, Training


class Gpu(Strict):
    resource_name: str = Field("nvidia.com/gpu", min_length=1, max_length=253)
    """Extended resource that stands for one GPU."""
    memory: Quantity | None = None
    """Memory of one GPU, such as 24Gi. Lets the operator refuse a job that can't fit before it takes a GPU."""


class Parallelism(Strict):
    num_nodes: int = Field(1, ge=1, le=64)
    """Pods that train together, each on a node with its share of GPUs. More than 1 needs a store that all of them reach:
    a bucket, or a claim with ReadWriteMany."""
    gpus_per_node: int = Field(1, ge=0, le=16)
    """GPUs of each train pod, and a rank for each; evaluate takes one. 0 runs everything on CPUs, one rank in each pod."""
    gpu: Gpu = Field(default_factory=cache(Gpu))
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


class Serving(Strict):
    name: str | None = Field(None, min_length=1, max_length=50, pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$")
    """Name of the ModelServe that the job creates or updates; with adapterOf that of the adapter. Unset: the job's name."""
    adapter_of: str | None = Field(None, min_length=1, max_length=253)
    """Name of a ModelServe that serves the base model, with room for adapters (spec.lora): the adapter that the job trains
    becomes one of its spec.adapters, and the merged model is not served. Instead of template and artifact."""
    artifact: str | None = Field(None, min_length=1, max_length=20)
    """Artifact to serve. Unset: the best fit for the engine (VLLM: a CompressedTensors artifact or merged; LlamaCpp and
    Ollama: the first GGUF artifact; Transformers: merged)."""
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
    resources: Resources = Field(default_factory=cache(Resources))
    """CPU and memory of this stage's pods."""
    node_selector: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Labels that a node must have."""
    tolerations: list[dict[str, Any]] = Field(default_factory=list, max_length=16, json_schema_extra={"x-preserve": True})
    """Taints that the pods tolerate, as in a pod's spec."""
    service_account_name: str | None = Field(None, min_length=1, max_length=253)
    """Service account of the pods. Unset: default, without a mounted token."""


class Stages(Strict):
    prepare: Stage = Field(default_factory=cache(Stage))
    """Fetches and checks model and data; CPU only."""
    train: Stage = Field(default_factory=cache(Stage))
    """Fine-tunes; holds the GPUs."""
    merge: Stage = Field(default_factory=cache(Stage))
    """Merges the adapter; CPU only."""
    quantize: Stage = Field(default_factory=cache(Stage))
    """Makes one artifact; CPU only."""
    evaluate: Stage = Field(default_factory=cache(Stage))
    """Scores base and artifacts; holds a GPU where the train stage does, but for GGUF artifacts."""
    publish: Stage = Field(default_factory=cache(Stage))
    """Copies artifacts; CPU only."""
    clean: Stage = Field(default_factory=cache(Stage))
    """Removes what earlier runs have made; CPU only."""


class Retry(Strict):
    max_retries: int = Field(3, ge=0, le=100)
    """New attempts of a step after failures that count (a crash, a store or source that did not answer). A preempted or
    deleted pod is replaced without counting; a failure of training that came no farther than the attempts before it counts
    twice."""
    on_out_of_memory: Literal["ShrinkMicroBatch", "Fail"] = "ShrinkMicroBatch"
    """What to do when the memory of the GPU, or of the pod on CPUs, does not hold the training after all. ShrinkMicroBatch:
    go on from the last checkpoint with half the rows per forward pass and the same globalBatchSize; it does not count against
    maxRetries."""
    hang_after_median_steps: int = Field(HANG_AFTER_MEDIAN_STEPS, ge=2, le=100000)
    """Training that makes no step for this many times the median time of its steps, and for five minutes, is ended and goes
    on from its last checkpoint, which counts against maxRetries. The pod's log then shows where each thread stood."""


class Budget(Strict):
    gpu_hours: float = Field(gt=0, le=1e7)
    """GPU-hours that the job may take at most, over all its attempts and runs. What would pass it is stopped before, with time
    for a checkpoint, and the job fails; raised, it goes on from there."""


class ArtifactStore(Strict):
    uri: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        pattern=places.pattern(Use.STORE),
        description=f"{places.forms(Use.STORE)}. Unset: a claim made for this job, named <job>-artifacts.",
    )
    secret_ref: SecretRef | None = Field(
        None, description=f"Secret with the store's credentials: {places.credentials(places.usable(Use.STORE))}."
    )
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
    keep_runs: int | None = Field(None, ge=1, le=1000)
    """Runs of this job that keep their checkpoints, adapters, models and artifacts: the one that has just passed its gates,
    and those that passed before it. Those of older runs, and of runs that did not pass, are removed then, by the step clean;
    what a ModelServe uses, and what other jobs of this store have as well, stays. Unset: all is kept."""


class Scratch(Strict):
    size: Quantity | None = None
    """Limit of the pods' scratch space (an emptyDir). Unset: none."""


class Storage(Strict):
    artifacts: ArtifactStore = Field(default_factory=cache(ArtifactStore))
    """Where adapters, models, scores and checkpoints are kept. It outlives the job."""
    scratch: Scratch = Field(default_factory=cache(Scratch))
    """Where a pod works before it commits."""


class FineTuneJobSpec(Strict):
    model: TrainedModel
    """The base model."""
    dataset: Dataset
    """The rows to learn from, and how they are split."""
    training: Training = Field(default_factory=cache(Training))
    """How to train."""
    parallelism: Parallelism = Field(default_factory=cache(Parallelism))
    """The nodes and GPUs to train on."""
    merge: Merge = Field(default_factory=cache(Merge))
    """How the adapter becomes part of the model."""
    artifacts: list[Artifact] = Field(default_factory=list, max_length=10)
    """Quantized models to make. The adapter and the merged model are always there."""
    evaluation: Evaluation = Field(default_factory=cache(Evaluation))
    """How the result is judged, and what must hold before it is used."""
    publish: list[Publish] = Field(default_factory=list, max_length=10)
    """Places that get copies once the gates have passed."""
    serving: Serving | None = None
    """Roll the result out when the gates have passed. Unset: nothing is served."""
    profile: str | None = Field(None, min_length=1, max_length=63)
    """Name of a kind of machine that whoever runs the operator has described (the chart's `profiles`): it fills in images,
    nodeSelector, tolerations, storage class and queue. Unset: none."""
    pod_template: PodTemplate = Field(default_factory=cache(PodTemplate))
    """What all pods of the job have in common. A stage's own nodeSelector and tolerations are added, its serviceAccountName
    goes before."""
    stages: Stages = Field(default_factory=cache(Stages))
    """Resources and placement, stage by stage."""
    retry: Retry = Field(default_factory=cache(Retry))
    """What happens after a failure."""
    budget: Budget | None = None
    """What the job may take. Unset: no limit."""
    storage: Storage = Field(default_factory=cache(Storage))
    """Where results are kept."""
    scheduling: Scheduling = Field(default_factory=cache(Scheduling))
    """How the pods come to their nodes."""
    pending_deadline_seconds: int | None = Field(None, ge=1, le=31536000)
    """The job fails where an attempt's pods have not started this long after its queue admitted it. Unset: they are waited
    for."""
    active_deadline_seconds: int | None = Field(None, ge=1, le=31536000)
    """The job fails where it has taken this long since it was started, or resumed from suspend. Unset: no limit."""
    ttl_seconds_after_finished: int | None = Field(None, ge=0, le=315360000)
    """The job is deleted this long after it has ended; claims, artifacts and a ModelServe that it handed over to stay.
    Unset: it is kept."""
    managed_by: str | None = Field(None, max_length=63, pattern=CONTROLLER_NAME)
    """Controller that runs this job, as in a Job of Kubernetes: one that is not this operator's has the job, and its status, to
    itself, and no pod is started here. It can't be changed. Unset, or finetune.dev/operator: this operator."""
    suspend: bool = False
    """Stop after saving a checkpoint and start no more pods until this is false again."""


class FineTuneJob(Report):
    metadata: ObjectMeta
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = Field(default_factory=lambda: FineTuneJobStatus())
