"""What stands as wanted: defaults and other spellings of an amount are no difference, and a webhook may have the last word."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.applied import Applied, contains
from finetune_operator.meta import Object


def deployment(**container: Any) -> Object:
    spec = {"template": {"spec": {"containers": [{"name": "engine", "image": "vllm", **container}]}}}
    return {"kind": "Deployment", "metadata": {"name": "d", "namespace": "n", "labels": {"a": "b"}}, "spec": spec}


@pytest.mark.parametrize(
    "found",
    [
        deployment(),
        deployment(terminationMessagePath="/dev/termination-log"),
        {**deployment(), "status": {"replicas": 1}},
    ],
)
def test_what_contains_all_that_is_wanted_stands(found: Object) -> None:
    assert Applied().stands(deployment(), found)


@pytest.mark.parametrize("found", [deployment(image="other"), {**deployment(), "metadata": {"name": "d", "namespace": "n"}}])
def test_what_differs_does_not(found: Object) -> None:
    assert not Applied().stands(deployment(), found)


def test_what_the_server_makes_of_an_apply_stands_until_it_changes() -> None:
    applied, wanted = Applied(), deployment()
    injected = deployment()
    injected["spec"]["template"]["spec"]["containers"].append({"name": "sidecar"})
    assert not applied.stands(wanted, injected)
    applied.keep(wanted, injected)
    assert applied.stands(wanted, injected)
    assert not applied.stands(deployment(image="next"), injected)
    injected["spec"]["template"]["spec"]["containers"].append({"name": "another"})
    assert not applied.stands(wanted, injected)


@pytest.mark.parametrize(("found", "wanted", "same"), [("1", "1000m", True), ("4Gi", 4 * 2**30, True), ("2", "1", False)])
def test_an_amount_may_be_spelt_otherwise(found: Any, wanted: Any, same: bool) -> None:
    assert contains({"limits": {"cpu": found}}, {"limits": {"cpu": wanted}}) is same
    assert not contains({"args": [found]}, {"args": [wanted]}), "only where it is an amount"
