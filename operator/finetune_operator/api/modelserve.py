"""The ModelServe as types: what a user may write, with defaults and bounds, and what its status says."""

from __future__ import annotations

from enum import StrEnum
from functools import cache

from pydantic import Field

from finetune_operator.api.access import ApiKey, Autoscaling, Network, ResponseCache, Route
from finetune_operator.api.adapters import MOST_ADAPTERS, Adapter, AdapterStatus, Lora
from finetune_operator.api.finetunejob import Gpu, Resources
from finetune_operator.api.pod_template import PodTemplate
from finetune_operator.api.rollout import Rollout, Strategy
from finetune_operator.api.served_model import ResolvedModel, ServedModel
from finetune_operator.meta import Condition, ObjectMeta
from finetune_operator.modelserve.engines import ENGINES, EngineType
from finetune_trainer.contract.fields import Report, Strict
from finetune_trainer.contract.held_out import HeldOutScores
from finetune_trainer.contract.judging import Judged
from finetune_trainer.contract.served_rows import ServedRows
from finetune_trainer.contract.served_speed import ServedSpeed
from finetune_trainer.contract.traffic import Traffic

# ── spec ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


class EnvVar(Strict):
    name: str = Field(min_length=1, max_length=256)
    """Name of the variable."""
    value: str = Field("", max_length=4096)
    """Its value."""


class Engine(Strict):
    type: EngineType = Field(description=", ".join(f"{name} serves {engine.serves}" for name, engine in ENGINES.items()) + ".")
    image: str | None = Field(None, min_length=1, max_length=512)
    """Image of the engine. Unset: the operator's default for this type."""
    args: list[str] = Field(default_factory=list, max_length=64)
    """Arguments added to the engine's command line, after the operator's own."""
    env: list[EnvVar] = Field(default_factory=list, max_length=64)
    """Environment variables added to the engine's container."""
    max_model_length: int | None = Field(None, ge=16, le=10485760)
    """Longest context in tokens of each request, prompt and answer together. LlamaCpp and Ollama keep room for four of them,
    which are answered side by side. Unset: the engine takes it from the model; LlamaCpp then answers one request after the
    other, and Ollama can't be without. Transformers always does, and with engine.args --continuous-batching many at once."""


class ServeParallelism(Strict):
    tensor: int = Field(1, ge=1, le=64)
    """GPUs that one replica spreads the model over."""
    gpus: bool = True
    """False serves on CPUs."""
    gpu: Gpu = Field(default_factory=cache(Gpu))
    """Which GPUs."""


class Auth(Strict):
    secret_ref: ApiKey
    """The key that requests must bring, as `Authorization: Bearer <key>`. A key that was changed counts for pods that start
    after that."""


class Drain(Strict):
    seconds: int = Field(30, ge=0, le=3600)
    """Time that a pod has to finish its answers after it was taken out of the Service."""


class ModelServeSpec(Strict):
    model: ServedModel
    """What to serve: exactly one of jobRef and uri."""
    served_name: str | None = Field(None, min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    """Name of the model in the OpenAI API. Unset: the ModelServe's name."""
    engine: Engine
    """What serves it."""
    lora: Lora | None = None
    """Room for adapters in the engine. Unset: it has none."""
    adapters: list[Adapter] = Field(default_factory=list, max_length=MOST_ADAPTERS)
    """Adapters over the model, each a model of its own to those who ask. They come and go in pods that run."""
    parallelism: ServeParallelism = Field(default_factory=cache(ServeParallelism))
    """The GPUs to serve it on."""
    replicas: int = Field(1, ge=0, le=1000)
    """Pods of the live revision. 0 serves nothing and keeps everything. With spec.autoscaling it is the autoscaler's: leave
    it out."""
    autoscaling: Autoscaling | None = None
    """A HorizontalPodAutoscaler sets the replicas. Unset: nobody but you does."""
    profile: str | None = Field(None, min_length=1, max_length=63)
    """Name of a kind of machine of the chart's `profiles`: it fills in images, nodeSelector and tolerations. Unset: none."""
    pod_template: PodTemplate = Field(default_factory=cache(PodTemplate))
    """What all pods have in common. A gate's pod takes all of it but affinity and topologySpreadConstraints."""
    resources: Resources = Field(default_factory=cache(Resources))
    """CPU and memory of one replica."""
    rollout: Rollout = Field(default_factory=cache(Rollout))
    """How a new revision takes over."""
    auth: Auth | None = None
    """Who may ask. Unset: whoever reaches the Service."""
    response_cache: ResponseCache | None = None
    """Answers to requests with temperature 0 are kept, for each revision and API key, and given again. Unset: none are."""
    network: Network = Field(default_factory=cache(Network))
    """Who reaches the pods, where the cluster's network plugin enforces NetworkPolicies."""
    route: Route | None = None
    """An HTTPRoute that leads requests for /v1 here. Unset: the Service alone is called."""
    drain: Drain = Field(default_factory=cache(Drain))
    """How an old pod stops."""
    suspend: bool = False
    """True removes the pods and keeps Service and revision."""


# ── status ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class RevisionState(StrEnum):
    LOADING = "Loading"
    GATING = "Gating"
    PASSED = "Passed"
    CANARY = "Canary"
    LIVE = "Live"
    REFUSED = "Refused"


class Revision(Report):
    name: str
    """Hash of the rendered pod template and of the model's digest."""
    state: RevisionState
    model_uri: str
    model_digest: str | None = None
    reason: str | None = None
    """Why it was refused."""
    message: str | None = None
    created_at: str | None = None
    paced: bool | None = None
    """Whether nothing but a changed default of the operator asks for it: one ModelServe loads such a one at a time."""
    trial: str | None = None
    """Hash of what it was tried with: the gate and the annotation finetune.dev/retry. Another value tries it again."""
    gates_lost: int | None = None
    """How often its gate came to no verdict, as its pod or the engine was taken away, and was asked again."""
    test_rows: ServedRows | None = None
    """Test rows that it was asked, and how many it answered as in the evaluation."""
    speed: ServedSpeed | None = None
    """How fast it answered, where the gate asks for a speed."""
    held_out: HeldOutScores | None = None
    """What it and the revision that was live scored on the same test rows, where the gate asks for that."""
    judged: Judged | None = None
    """What a judge said of its answers beside those of the revision that was live, where the gate asks one."""
    traffic: Traffic | None = None
    """What its engines counted when its rollback window ended."""
    strategy: Strategy | None = None
    """Whether it loads beside the live revision or in its place."""
    strategy_message: str | None = None
    """Why, and what that means for those who ask."""
    promoted_at: str | None = None
    """When it took traffic."""
    rolled_back_at: str | None = None
    """When traffic was taken from it again."""


class Signal(StrEnum):
    """What says that a revision which takes traffic is bad."""

    RESTARTS = "Restarts"
    PROBES = "Probes"
    ERRORS = "Errors"
    LATENCY = "Latency"


class FormerRevision(Report):
    """A revision that takes traffic, or took it."""

    name: str
    model_uri: str
    promoted_at: str
    rolled_back: str | None = None
    """Reason why traffic was taken from it again."""


class RollbackWindow(Report):
    revision: str
    """The revision that stays warm and takes traffic again if the live one proves bad."""
    until: str
    signals: list[Signal]
    """What is watched: where an engine has no metrics of errors and latency, or they can't be read, its restarts and probes
    decide."""


class ShareBy(StrEnum):
    """What gives a candidate its share of the traffic."""

    ROUTE = "Route"
    REPLICAS = "Replicas"


class CanaryShare(Report):
    """What the candidate takes of the traffic."""

    step: int
    """Which of spec.rollout.canary.steps, from 1."""
    weight: int
    """Percent that the step asks for; until its pods are up that of the step before."""
    share: float
    """Percent that it has: by Replicas that of its pods that are available among those of both revisions."""
    by: ShareBy
    """Route: of what comes through the HTTPRoute. Replicas: of connections to the Service."""
    since: str | None = None
    """When the step's pods were up."""
    until: str | None = None
    """When the step ends. Unset: once its pods are up, or once somebody lets it go on."""
    signals: list[Signal] = Field(default_factory=list)
    """What is watched, as in rollbackWindow."""


class RouteStatus(Report):
    accepted: bool
    """Whether a gateway has taken the HTTPRoute."""
    message: str | None = None
    """Why not."""


class ModelServeStatus(Report):
    observed_generation: int = -1
    conditions: list[Condition] = Field(default_factory=list)
    model: ResolvedModel | None = None
    """What spec.model stood for when it was last resolved. A jobRef keeps it while its job makes a new one."""
    live: Revision | None = None
    """The revision that the Service points at."""
    candidate: Revision | None = None
    """The revision that is loading, is asked its prompts, or was refused."""
    rollback_window: RollbackWindow | None = None
    """The way back, while it is open."""
    canary: CanaryShare | None = None
    """What the candidate takes of the traffic, while it takes a share."""
    route: RouteStatus | None = None
    """How the HTTPRoute stands, where spec.route asks for one."""
    adapters: list[AdapterStatus] = Field(default_factory=list, max_length=MOST_ADAPTERS)
    history: list[FormerRevision] = Field(default_factory=list, max_length=101)
    """Revisions that can be pinned, the live one first."""
    url: str | None = None
    """OpenAI API: of spec.route where it has a hostname and a gateway has taken it, else inside the cluster."""
    served_name: str | None = None
    replicas: int = 0
    """Pods of the live revision that are ready."""
    selector: str = ""
    """Label selector of the live revision's pods, for autoscalers."""


class ModelServe(Report):
    metadata: ObjectMeta
    spec: ModelServeSpec
    status: ModelServeStatus = Field(default_factory=lambda: ModelServeStatus())
