"""Retention: what earlier runs made is removed once a run has passed its gates, and what is in use is told beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tests.builders import make_job
from tests.story import Story

from finetune_operator.decision import Observed
from finetune_operator.finetunejob.policy import MOST_IN_USE

KEEP_ONE = {"artifacts": {"keepRuns": 1}}
STORE = "pvc://facts-artifacts/facts"
USED = "0123456789abcdef0123"


@dataclass
class Served(Story):
    """A job beside which other objects name places in its store."""

    named: tuple[str, ...] = ()

    def seen(self) -> Observed:
        seen = super().seen()
        return Observed(seen.children, seen.named, seen.progress, named_below=self.below)

    def below(self, prefix: str) -> frozenset[str]:
        return frozenset(uri for uri in self.named if uri.startswith(f"{prefix}/"))


def in_use(story: Story) -> str:
    (job,) = [body for body in story.created if body["metadata"].get("labels", {}).get("finetune.dev/step") == "clean"]
    env: dict[str, Any] = {v["name"]: v.get("value") for v in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    found: str = env["FINETUNE_IN_USE"]
    return found


def test_it_is_the_last_step_and_what_it_removed_is_told() -> None:
    story = Story(make_job(storage=KEEP_ONE))
    assert story.to_the_end()[-1] == "clean"
    assert story.conditions()["Ready"][0] == "True"
    assert story.job["status"]["cleaned"] == {"runs": 1, "entries": 4, "bytes": 1000, "message": ""}


def test_without_being_asked_nothing_is_removed() -> None:
    story = Story(make_job())
    assert not any("clean" in job for job in story.to_the_end())
    assert "cleaned" not in story.job["status"]


def test_a_run_that_fails_its_gates_removes_nothing() -> None:
    gates = [{"name": "good", "metric": "exactMatch", "min": 0.99}]
    story = Story(make_job(storage=KEEP_ONE, evaluation={"gates": gates}))
    assert not any("clean" in job for job in story.to_the_end())
    assert story.conditions()["Failed"] == ("True", "GateFailed")


def test_its_pod_is_told_what_is_in_use_of_its_own_store() -> None:
    named = (f"{STORE}/merge/{USED}/1-a", f"{STORE}/merge/not-one/1-a", "pvc://other/merge/ffffffffffffffffffff/1-a")
    story = Served(make_job(storage=KEEP_ONE), named=named)
    story.to_the_end()
    assert in_use(story) == USED


@pytest.mark.parametrize(("count", "expected"), [(MOST_IN_USE, MOST_IN_USE), (MOST_IN_USE + 1, 1)])
def test_more_than_a_variable_holds_is_all(count: int, expected: int) -> None:
    story = Served(make_job(storage=KEEP_ONE), named=tuple(f"{STORE}/merge/{n:020x}/1-a" for n in range(count)))
    story.to_the_end()
    assert len(in_use(story).split()) == expected
    assert (in_use(story) == "*") == (count > MOST_IN_USE)


def test_another_number_of_runs_to_keep_begins_a_run_that_only_removes() -> None:
    story = Story(make_job())
    story.to_the_end()
    story.edit(storage=KEEP_ONE)
    assert story.to_the_end() == ["prepare", "clean"]
