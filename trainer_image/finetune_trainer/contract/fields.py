"""The two kinds of value that the contract is made of, and what several parts of a spec share."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_trainer.contract import places
from finetune_trainer.contract.places import Use


class Strict(BaseModel):
    """A value that we write: an unknown key is an error, not a surprise."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,  # JSON, which the API server speaks, has neither
    )


class Report(BaseModel):
    """A value that a pod of any version reports: what this version doesn't know is passed over."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, use_attribute_docstrings=True
    )


class SecretRef(Strict):
    name: str = Field(
        min_length=1,
        max_length=253,
        description=f"Name of a Secret in the job's namespace, with the keys {places.credentials(places.PLACES)} (sent as the"
        " header Authorization). It is mounted by the pods that need it, and counts for this place alone.",
    )


class CaSecretRef(Strict):
    name: str = Field(min_length=1, max_length=253)
    """Name of a Secret in the same namespace."""
    key: str = Field("ca.crt", min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")
    """Its key with certificates in PEM."""


class Model(Strict):
    uri: str = Field(
        min_length=1,
        max_length=1024,
        pattern=places.pattern(Use.MODEL),
        description=f"Where the base model lies: {places.forms(Use.MODEL)}. Code that lies beside the weights is never run.",
    )
    secret_ref: SecretRef | None = None
    """Secret with the credentials of that source."""
    weights: Literal["Safetensors", "Pickle"] = "Safetensors"
    """Pickle: pytorch_model*.bin, of a model without model*.safetensors; read as plain tensors, never as code."""


class ConfigMapKeyRef(Strict):
    name: str = Field(min_length=1, max_length=253)
    """Name of a ConfigMap in the job's namespace."""
    key: str = Field(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")
    """Key of its data."""


class ChatTemplate(Strict):
    config_map_key_ref: ConfigMapKeyRef
    """Where the text of the template lies."""

    @property
    def uri(self) -> str:
        """The place as sources are named."""
        return f"{places.CONFIG_MAP.prefix}{self.config_map_key_ref.name}/{self.config_map_key_ref.key}"


class TrainedModel(Model):
    chat_template: ChatTemplate | None = None
    """Jinja template that turns conversations into text: for base models, which have none, or in place of a model's own."""
