"""The CRDs' rules, evaluated without an API server: a file is refused here with the sentence that it would get there.

The language is CEL (https://cel.dev); its interpreter comes with the extra `cli`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from typing import Any

from finetune_operator.api.finetunejob import FineTuneJobSpec
from finetune_operator.api.rules import finetunejob
from finetune_operator.meta import Rule


def broken(spec: FineTuneJobSpec) -> list[str]:
    """Messages of the rules that a FineTuneJob breaks. None are found where no interpreter is installed."""
    if find_spec("celpy") is None:
        return []
    body = {"spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True)}
    return list(_broken(body, finetunejob.RULES))


def _broken(body: dict[str, Any], rules: Iterable[Rule]) -> Iterator[str]:
    from celpy.adapter import json_to_cel

    for rule in (rule for rule in rules if not rule.of_an_edit):
        for value in values_at(body, rule.at.split(".")):
            if not _program(rule.must).evaluate({"self": json_to_cel(value)}):
                yield rule.message


@cache
def _program(rule: str) -> Any:
    environment = _environment()
    return environment.program(environment.compile(rule))


@cache
def _environment() -> Any:
    import celpy

    return celpy.Environment()


def values_at(node: Any, path: list[str]) -> Iterator[Any]:
    """The values at a rule's place: each item where the path has []; none where a part is absent."""
    if not path:
        yield node
        return
    inner = node.get(path[0].removesuffix("[]"))
    if inner is not None:
        for value in inner if path[0].endswith("[]") else [inner]:
            yield from values_at(value, path[1:])
