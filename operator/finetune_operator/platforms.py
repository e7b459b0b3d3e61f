"""What whoever runs the operator offers those who write jobs, by the chart's values: profiles by name, and what is allowed.

A profile is a kind of machine: images for it, how its nodes are found, its storage class and its queue. It fills in what a spec
leaves open. What is allowed are patterns, with * for anything; an empty list allows all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import Field

from finetune_operator.api.pod_template import PodTemplate, Toleration
from finetune_trainer.contract.fields import Strict


class Images(Strict):
    """Those that differ from the operator's own, by the names of the chart's `images`."""

    trainer: str | None = None
    quantizer: str | None = None
    evaluator: str | None = None
    vllm: str | None = None
    llamacpp: str | None = None
    ollama: str | None = None


class Profile(Strict):
    images: Images = Field(default_factory=lambda: Images())
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    storage_class_name: str | None = None  # of the claim that is made where a job names no store
    queue_name: str | None = None  # LocalQueue of Kueue
    gpu_hour_price: float | None = Field(None, ge=0)  # of one GPU; none: jobs have no status.cost
    currency: str = Field("USD", min_length=1, max_length=16)

    def under(self, template: PodTemplate) -> PodTemplate:
        """The template, with what the profile adds to it: what it says itself goes before."""
        selector = {**self.node_selector, **template.node_selector}
        tolerations = [*self.tolerations, *(t for t in template.tolerations if t not in self.tolerations)]
        return template.model_copy(update={"node_selector": selector, "tolerations": tolerations})


class Allowed(Strict):
    images: tuple[str, ...] = ()  # that a spec may name
    service_accounts: tuple[str, ...] = ()
    storage: tuple[str, ...] = ()  # uris of stores and of places to publish to
    storage_classes: tuple[str, ...] = ()


class Platform(Strict):
    profiles: dict[str, Profile] = Field(default_factory=dict)
    allowed: Allowed = Field(default_factory=lambda: Allowed())


@dataclass(frozen=True)
class Asked:
    """What one field of a spec asks for; `what` is a field of Allowed."""

    what: str
    field: str
    value: str | None


NAMED = {"images": "image", "service_accounts": "service account", "storage": "place", "storage_classes": "storage class"}


def refusals(platform: Platform, profile: str | None, asked: Iterable[Asked]) -> list[str]:
    """A sentence for each thing that is asked for and not offered."""
    return [*_unknown(platform, profile), *_not_allowed(platform.allowed, asked)]


def _unknown(platform: Platform, profile: str | None) -> Iterator[str]:
    if profile is not None and profile not in platform.profiles:
        there = ", ".join(sorted(platform.profiles)) or "none"
        yield f"spec.profile {profile} is not one of the operator's profiles; those there are: {there}"


def _not_allowed(allowed: Allowed, asked: Iterable[Asked]) -> Iterator[str]:
    for each in asked:
        patterns: tuple[str, ...] = getattr(allowed, each.what)
        if each.value is not None and patterns and not any(fnmatchcase(each.value, p) for p in patterns):
            yield (
                f"{each.field}: the {NAMED[each.what]} {each.value} is not allowed in this cluster; allowed are"
                f" {', '.join(patterns)}: take one of these, or ask whoever runs the operator"
            )
