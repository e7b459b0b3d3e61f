"""Adapters over a served base model: what a user may write of them, and what the status says of each."""

from __future__ import annotations

from enum import StrEnum
from functools import cache

from pydantic import Field

from finetune_operator.api.rollout import AskedRows, Prompt
from finetune_trainer.contract import places
from finetune_trainer.contract.fields import Report, Strict
from finetune_trainer.contract.places import Use
from finetune_trainer.contract.served_adapters import RANKS
from finetune_trainer.contract.served_rows import ServedRows

MOST_ADAPTERS = 32


class Lora(Strict):
    """Room for adapters: another value is another revision, and the adapters themselves are none."""

    max_rank: int = Field(16, ge=1, le=RANKS[-1])
    """Highest rank of an adapter. The engine keeps room for it in each layer."""
    max_active: int = Field(4, ge=1, le=MOST_ADAPTERS)
    """Adapters that are answered with side by side; requests for others wait their turn. All of spec.adapters are loaded."""
    claims: list[str] = Field(default_factory=list, max_length=16)
    """PersistentVolumeClaims that adapters lie on, besides the model's own: pods mount them from their start."""


class AdapterJobRef(Strict):
    name: str = Field(min_length=1, max_length=253)
    """Name of a FineTuneJob in this namespace. The adapter of its newest run that passed the gates is served."""


class AdapterGate(Strict):
    """What an adapter must answer before who asks for its name is led to it."""

    prompts: list[Prompt] = Field(default_factory=list, max_length=20)
    """Asked of it; each must be answered. Empty: one greeting is asked."""
    test_rows: AskedRows = Field(default_factory=cache(AskedRows))
    """Test rows of the evaluation of the merged model: of evaluation, or of its job's."""
    max_tokens: int = Field(64, ge=1, le=4096)
    """Longest answer, in tokens."""
    timeout_seconds: int = Field(300, ge=1, le=86400)
    """Time until all pods have loaded it, as much again for all answers, and again for the test rows."""


class Adapter(Strict):
    name: str = Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    """Name of the model that requests ask for."""
    job_ref: AdapterJobRef | None = None
    """The adapter of a FineTuneJob that trains by LoRA or QLoRA over the model that is served here."""
    uri: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        pattern=places.pattern(Use.SERVE),
        description=f"A folder with an adapter of PEFT: {places.forms(Use.SERVE)}. It lies on the model's claim, on one of"
        " spec.lora.claims, or in the model's bucket.",
    )
    digest: str | None = Field(None, pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)
    """Digest of the folder's files.json. Goes with uri: another digest is another adapter of that name."""
    evaluation: str | None = Field(None, max_length=1024, pattern=places.pattern(Use.SERVE, ".+/evaluate/[0-9a-f]{20}"))
    """The evaluation of the merged model in an artifact store, as status.artifacts of its FineTuneJob names it. Goes with uri,
    and lies where pods reach it as well: some of its test rows are asked."""
    gate: AdapterGate = Field(default_factory=cache(AdapterGate))
    """What it must answer first. Until then, and where it is refused, the one before of this name goes on."""


class AdapterState(StrEnum):
    WAITING = "Waiting"
    GATING = "Gating"
    PROMOTING = "Promoting"
    LIVE = "Live"
    DEGRADED = "Degraded"
    REFUSED = "Refused"


class LiveAdapter(Report):
    """An adapter that has passed its gate."""

    digest: str
    uri: str
    revision: str
    """Revision of the base model in which it has passed."""
    trial: str
    since: str
    told: bool | None = None
    """Whether every pod has said that the name leads to it."""
    told_since: str | None = None
    """When the last of those pods had become ready: one that becomes ready later is asked as well."""


class AdapterStatus(Report):
    name: str
    state: AdapterState
    """What has become of the adapter that is asked for. Whatever it is, `live` goes on serving. Degraded: it has passed, and
    not every pod leads its name to it now."""
    uri: str | None = None
    digest: str | None = None
    """Digest of the adapter that is asked for."""
    live: LiveAdapter | None = None
    """The adapter that answers to this name. Unset: none does."""
    reason: str | None = None
    """Why it waits, or was refused."""
    message: str | None = None
    trial: str | None = None
    """Hash of what it is tried with: the gate, the revision that serves, and the annotation finetune.dev/retry."""
    gates_lost: int | None = None
    """How often its gate came to no verdict and was asked again."""
    asks_since: str | None = None
    """While pods are asked whether its name leads to it: when the last of them became ready."""
    test_rows: ServedRows | None = None
    """Test rows that it was asked, and how many it answered as in the evaluation."""
