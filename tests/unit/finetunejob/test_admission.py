"""What is told of a spec before any pod is started: amounts without their unit, and names that are there twice."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import make_job

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.finetunejob import admission


def said(**spec: Any) -> list[str]:
    return admission.problems(FineTuneJob.model_validate(make_job(**spec)).spec)


def of_train(**resources: Any) -> dict[str, Any]:
    return {"stages": {"train": {"resources": resources}}}


AMOUNTS: list[tuple[str, dict[str, Any]]] = [
    ("spec.parallelism.gpu.memory", {"parallelism": {"gpu": {"memory": "20"}}}),
    ("spec.storage.artifacts.size", {"storage": {"artifacts": {"size": "20"}}}),
    ("spec.storage.scratch.size", {"storage": {"scratch": {"size": "20"}}}),
    ("spec.stages.train.resources.requests.memory", of_train(requests={"memory": "20"})),
    ("spec.stages.train.resources.limits.ephemeral-storage", of_train(limits={"ephemeral-storage": "20"})),
]


@pytest.mark.parametrize(("path", "spec"), AMOUNTS)
def test_an_amount_without_its_unit_is_told_with_its_field(path: str, spec: dict[str, Any]) -> None:
    assert said(**spec) == [f"{path} is 20, which is less than 1Mi; write it with its unit, such as 20Gi"]


@pytest.mark.parametrize(("amount", "is_told"), [("1048575", True), ("1048576", False), ("1Mi", False)])
def test_a_mebibyte_is_the_least_that_somebody_means(amount: str, is_told: bool) -> None:
    assert bool(said(**of_train(limits={"memory": amount}))) is is_told


def test_a_request_may_be_as_large_as_its_limit() -> None:
    assert said(**of_train(requests={"memory": "4Gi"}, limits={"memory": "4Gi"})) == []
    assert said(**of_train(requests={"cpu": "3"}, limits={"cpu": "2"})) == [
        "spec.stages.train.resources.requests.cpu is 3, above its limit 2; raise that limit"
    ]


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("spec.artifacts", {"artifacts": [{"name": "a", "format": "GGUF", "quantization": q} for q in ("F16", "Q4_K_M")]}),
        ("spec.evaluation.gates", {"evaluation": {"gates": [{"name": "a", "metric": "loss", "max": m} for m in (3, 4)]}}),
        (
            "spec.evaluation.tasks",
            {"evaluation": {"tasks": [{"name": "a"}, {"name": "a"}], "taskFiles": {"uri": "pvc://a/b"}, "gates": []}},
        ),
    ],
)
def test_a_name_that_is_there_twice_is_told(path: str, spec: dict[str, Any]) -> None:
    assert f"{path}[].name a is there twice; give each its own" in said(**spec)
