"""The two kinds of value that the contract is made of, and what several parts of a spec share."""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from finetune_trainer.contract import places
from finetune_trainer.contract.places import Use

_NUMBERS = frozenset({int, float})
Filled = Annotated[str, Field(min_length=1)]
MOST = 2**31 - 1  # of what is counted; programs below ours have no larger numbers


class Strict(BaseModel):
    """A value that we write: an unknown key is an error, not a surprise, and so is a value of another type than the field's.

    The API server takes neither true nor "2" for a number: who checks a file, or what it keeps unread, takes them neither.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,  # JSON, which the API server speaks, has neither
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_its_type(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls, str(info.field_name))
        if kinds & _NUMBERS and type(value) in (bool, str) and type(value) not in kinds:
            raise PydanticCustomError("number_type", "input should be a number")
        if bool in kinds and type(value) in (int, float, str) and type(value) not in kinds:
            raise PydanticCustomError("truth_type", "input should be true or false")
        return value


@cache
def _kinds(model: type[BaseModel], name: str) -> frozenset[Any]:
    """The types that a field's value may have, those of its items apart."""
    return frozenset(_alternatives(model.model_fields[name].annotation))


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    return [kind for inner in get_args(annotation) for kind in _alternatives(inner)]


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
