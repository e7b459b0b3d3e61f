"""The part of a ModelServe that says how a new revision takes over: what a user may write, with defaults and bounds."""

from __future__ import annotations

from enum import StrEnum
from functools import cache

from pydantic import Field

from finetune_operator.api.access import ApiKey
from finetune_trainer.contract.fields import ConfigMapKeyRef, Strict
from finetune_trainer.contract.held_out import HeldOut
from finetune_trainer.contract.judging import Judging
from finetune_trainer.contract.served_rows import ROWS


class Prompt(Strict):
    prompt: str = Field(min_length=1, max_length=8192)
    """A user's message."""
    expect: str | None = Field(None, min_length=1, max_length=1024)
    """Text that the answer must contain, upper and lower case alike. Unset: any answer with text in it."""


class AskedRows(Strict):
    """Test rows of the model's evaluation (spec.model.evaluation, or that of the jobRef's artifact)."""

    count: int = Field(ROWS, ge=0, le=ROWS)
    """How many are asked at most. Their prompts must have training's token ids in the engine, too. 0: none is asked, and of
    Transformers and Ollama, which take texts alone, none is in any case."""
    min_equal: float = Field(0.5, ge=0, le=1)
    """Share of them whose greedy answer must begin as in the evaluation. Below 1, since rounding differs between engines and
    a near tie may fall otherwise; a model that was read wrongly answers few rows alike."""


class Judge(Judging):
    secret_ref: ApiKey | None = None
    """The judge's API key. Unset: it asks for none."""
    rubric: ConfigMapKeyRef | None = None
    """What the judge is to prefer, in plain words. Unset: the answer that is right, as the reference says, then the clearer and
    shorter one."""


class ServeGate(Strict):
    prompts: list[Prompt] = Field(default_factory=list, max_length=50)
    """Asked of a new revision before it takes traffic; each must be answered. Empty: one greeting is asked."""
    max_tokens: int = Field(64, ge=1, le=4096)
    """Longest answer, in tokens."""
    timeout_seconds: int = Field(300, ge=1, le=86400)
    """Time for all answers together, as much again where a speed is asked for, for the test rows, for heldOut, and for judge;
    rows that it does not suffice for are left out."""
    min_tokens_per_second: float | None = Field(None, gt=0, le=1e6)
    """Tokens per second of one answer after its first, at least: the median over the prompts, which are asked once more as
    streams, one after the other. Unset: no speed is measured."""
    max_first_token_milliseconds: int | None = Field(None, ge=1, le=3600000)
    """Time from a request to its answer's first token, at most: the median over the same streams."""
    test_rows: AskedRows = Field(default_factory=cache(AskedRows))
    """Test rows that a new revision is asked again after the prompts."""
    held_out: HeldOut | None = None
    """Test rows that the new revision and the live one are both asked: the new one is refused where it answers worse. The
    first revision, which replaces none, is compared with none. Unset: nothing is compared."""
    judge: Judge | None = None
    """A language model that compares the new revision's answers to test rows with the live one's: each pair twice, the order
    swapped. Unset: none is asked."""

    @property
    def compares(self) -> bool:
        """Whether the live revision must answer as well."""
        return self.held_out is not None or self.judge is not None


class Strategy(StrEnum):
    AUTO = "Auto"
    SURGE = "Surge"
    RECREATE = "Recreate"


class PromotionPolicy(StrEnum):
    AUTOMATIC = "Automatic"
    MANUAL = "Manual"


class RollbackOn(Strict):
    """What a new revision must not do within the rollback window."""

    max_restarts: int = Field(0, ge=0, le=1000)
    """Restarts of its engines that are borne. A pod that was deleted or evicted is none."""
    not_ready_seconds: int = Field(30, ge=5, le=86400)
    """How long a pod that had started may fail its readiness probe."""
    max_error_rate: float = Field(0.05, ge=0, le=1)
    """Share of its requests that may end with an error of the engine, 5xx, over five minutes. VLLM counts them; where an engine
    does not, restarts and probes decide. 1: errors are not watched."""
    min_requests: int = Field(20, ge=1, le=1000000)
    """Requests below which errors are no verdict."""
    max_slowdown: float | None = Field(None, ge=1, le=1000)
    """How many times as long as in the revision before the time between two tokens of an answer may be, as the engines count
    both. Unset: it is not watched."""
    min_tokens: int = Field(500, ge=1, le=1000000000)
    """Tokens, of either revision, below which their time is no verdict."""


class CanaryStep(Strict):
    weight: int = Field(ge=1, le=100)
    """Percent of the traffic that the new revision takes."""
    pause_seconds: int | None = Field(None, ge=1, le=604800)
    """How long, once its pods for that are up. Unset: until the annotation finetune.dev/promote lets it go on."""


class Canary(Strict):
    steps: list[CanaryStep] = Field(min_length=1, max_length=20)
    """Shares that a new revision takes one after the other, each above the one before. After the last one it takes all."""


class Rollout(Strict):
    gate: ServeGate = Field(default_factory=cache(ServeGate))
    """What a new revision must answer before it takes traffic."""
    strategy: Strategy = Strategy.AUTO
    """Surge: a new revision loads beside the live one, and waits where no node has room for both. Recreate: the live one is
    stopped first, and nothing answers until the new one takes over. Auto: as Surge; where no node has had room for five
    minutes as Recreate, if maxDowntimeSeconds bears that. status.candidate says which and why."""
    max_downtime_seconds: int = Field(0, ge=0, le=86400)
    """How long nothing may answer where Auto finds no room for both, as the live revision's own load time foretells."""
    promotion: PromotionPolicy = PromotionPolicy.AUTOMATIC
    """Manual: a new revision that has passed its gate waits until the annotation finetune.dev/promote names it. The first
    one, which replaces none, does not."""
    canary: Canary | None = None
    """A new revision that has passed its gate takes a share of the traffic first, and gives it back if it does what rollbackOn
    names: of what comes through spec.route, by weights; without a route by the number of its pods beside those of the live
    revision, which keeps its own, so at most half. status.canary has the share. Unset: it takes all at once."""
    pinned_revision: str | None = Field(None, pattern=r"^[0-9a-f]{10}$", max_length=10)
    """Name of a revision in status.history, which serves whatever the rest of the spec says."""
    rollback_window_seconds: int = Field(300, ge=0, le=604800)
    """How long the revision before stays warm once a new one takes traffic: its pods run on, and take traffic again if the
    new one does what rollbackOn names. 0: they go at once."""
    rollback_on: RollbackOn = Field(default_factory=cache(RollbackOn))
    """What makes traffic go back within that time, besides an engine that can't load or runs out of memory."""
    revision_history_limit: int = Field(10, ge=0, le=100)
    """Revisions without pods that are remembered, so that they can be gone back to."""
    startup_timeout_seconds: int | None = Field(None, ge=10, le=86400)
    """Time from pod start until the engine answers. Unset: computed from the artifact's bytes, at least 600."""
