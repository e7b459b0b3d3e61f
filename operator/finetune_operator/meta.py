"""The pieces of Kubernetes' own API that both our kinds use: metadata, conditions, times, quantities."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from finetune_trainer.contract.fields import Report

GROUP = "finetune.dev"
VERSION = "v1alpha1"
ENDED = ("Succeeded", "Failed")  # phases of a pod that is at no work any more
ENDS = ("Complete", "Failed")  # conditions of a Job that has ended; it says first that it will, and then that it has
API_VERSION = f"{GROUP}/{VERSION}"

# YAML gives 4 as well as "4Gi"; the API server keeps both as they are written.
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([EPTGMk]i?|m)?")
CONTROLLER_NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9/._~%!$&'()*+,;=:@-]+$"  # as batch/v1 has it
QUANTITY = f"^{_QUANTITY.pattern}$"
Quantity = Annotated[
    str,
    Field(
        pattern=QUANTITY,
        max_length=32,
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
    # After the Field, so that the schema keeps its bounds.
    BeforeValidator(lambda v: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v),
]

_SUFFIX = (
    {"m": Decimal("0.001"), "": Decimal(1)}
    | {
        unit + i: Decimal((1024 if i else 1000) ** power)
        for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), start=1)
        for i in ("", "i")
    }
    | {"Ki": Decimal(1024)}
)


def goes_on(pod: Object) -> bool:
    """Whether a pod is neither at its end nor on its way there."""
    return "deletionTimestamp" not in pod["metadata"] and (pod.get("status") or {}).get("phase") not in ENDED


def has_ended(job: Object) -> bool:
    """Whether a batch Job is over, well or not."""
    return any(c["type"] in ENDS and c["status"] == "True" for c in (job.get("status") or {}).get("conditions") or ())


def quantity_value(quantity: str) -> Decimal:
    """Number that a quantity such as 500m, 2 or 24Gi stands for (bytes, cores)."""
    digits = quantity.rstrip("EPTGMKkim")
    return Decimal(digits) * _SUFFIX[quantity[len(digits) :]]


def quantity_of(value: object) -> Decimal | None:
    """The number that a value stands for as a quantity; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value)
    return quantity_value(text) if _QUANTITY.fullmatch(text) else None


def seconds_since(start: str, now: datetime) -> float:
    """Seconds from a time as the API writes it."""
    return (now - datetime.fromisoformat(start)).total_seconds()


def stamp(at: datetime) -> str:
    """A time as the API writes it, in UTC."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


class Condition(Report):
    """A metav1.Condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    observed_generation: int = 0
    last_transition_time: str = ""


class ObjectMeta(Report):
    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    deletion_timestamp: str | None = None
    creation_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


Object = dict[str, Any]  # a Kubernetes object as the API server sends it


class Key(NamedTuple):
    """What is reconciled: one of our objects by name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Rule:
    """What must hold between fields, in CEL: the API server refuses an object that breaks it, with this message."""

    at: str  # path of the value that is `self`, [] for each item of a list
    must: str
    message: str  # names the field and says what to write instead

    @property
    def of_an_edit(self) -> bool:
        """Whether it compares an object with what it was: a new one can't break it."""
        return "oldSelf" in self.must
