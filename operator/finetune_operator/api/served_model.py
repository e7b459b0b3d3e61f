"""The model of a ModelServe: which is asked for, and which folder that stands for."""

from __future__ import annotations

from pydantic import Field

from finetune_trainer.contract import places
from finetune_trainer.contract.fields import CaSecretRef, Report, SecretRef, Strict
from finetune_trainer.contract.places import Use


class JobRef(Strict):
    name: str = Field(min_length=1, max_length=253)
    """Name of a FineTuneJob in this namespace. Its newest artifact that passed the gates is served."""
    artifact: str = Field("merged", min_length=1, max_length=20)
    """Which of its artifacts: merged, a name from its spec.artifacts, or base, the model that it trained over."""


class ServedModel(Strict):
    job_ref: JobRef | None = None
    """An artifact of a FineTuneJob."""
    uri: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        pattern=places.pattern(Use.SERVE),
        description=f"A model folder: {places.forms(Use.SERVE)}. A claim is mounted read-only, a bucket copied once per pod.",
    )
    digest: str | None = Field(None, pattern=r"^sha256:[0-9a-f]{64}$", max_length=71)
    """Digest of the folder's files.json, which names every file with its own. Set, the pod refuses to serve anything else."""
    evaluation: str | None = Field(None, max_length=1024, pattern=places.pattern(Use.SERVE, ".+/evaluate/[0-9a-f]{20}"))
    """The evaluation of this model in an artifact store, as status.artifacts of its FineTuneJob names it. Set, a new revision
    is asked some of its test rows again. Read with the credentials of uri."""
    secret_ref: SecretRef | None = None
    """Secret with the credentials of that place."""
    endpoint: str | None = Field(None, min_length=1, max_length=512, pattern=r"^https?://.+")
    """URL of an S3-compatible server. Unset: AWS."""
    region: str | None = Field(None, min_length=1, max_length=63)
    """Region of the bucket."""
    ca_secret_ref: CaSecretRef | None = None
    """Certificates of that server's authority, where the image that copies the model doesn't know it."""


class ResolvedModel(Report):
    """The model folder that spec.model stands for."""

    source: str
    """Where it was found: the uri itself, or job/<name>/<artifact>."""
    uri: str
    digest: str | None = None
    bytes: int | None = None
    parameters: int | None = None
    """Parameters of the base model."""
    cached_numbers: int | None = None
    """Numbers that attention keeps of each token, in all layers. Unset: not known, or fewer of some tokens than of others."""
    context_tokens: int | None = None
    """Longest context in tokens, by the model's own configuration."""
    evaluation: str | None = None
    endpoint: str | None = None
    region: str | None = None
    secret: str | None = None
    """Secret with the credentials of that place."""
    ca_secret_ref: CaSecretRef | None = None
