"""One release after another: what an earlier one left in a cluster is gone on with, no pod is restarted and no spec written;
and what a later one left is read as far as it is known.

tests/golden/upgrade/<release>/<moment>.yaml, written by tests/yesterday.py of that release
"""

from __future__ import annotations

import copy
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import Namespace
from tests.serving import Stage
from tests.story import Story

from finetune_operator.decision import Ref
from finetune_operator.meta import Object

RELEASES = Path(__file__).parents[1] / "golden/upgrade"
JOBS = sorted(RELEASES.glob("*/finetunejob-*.yaml"))
SERVES = sorted(RELEASES.glob("*/modelserve-*.yaml"))
WITH_PODS = ("Deployment", "Job", "Pod")


def moment(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def story_of(found: dict[str, Any]) -> Story:
    space = Namespace()
    for name in ("jobs", "pods", "config_maps", "services"):
        setattr(space, name, {_key(body, name): body for body in found[name]})
    space.named = {Ref(n["kind"], n["name"]): n["body"] for n in found["named"]}
    space.progress = found["progress"]
    return Story(found["job"], space, minute=found["minute"])


def _key(body: Object, kind: str) -> str:
    """Pods are kept by their Job's name."""
    return str(body["metadata"]["ownerReferences"][0]["name"] if kind == "pods" else body["metadata"]["name"])


def stage_of(found: dict[str, Any]) -> Stage:
    stage = Stage(found["serve"])
    stage.objects.clear()
    for body in found["objects"]:
        stage.put(body)
    stage.now = datetime.fromisoformat(found["now"])
    return stage


def steps(job: Object) -> list[dict[str, Any]]:
    """What counts of each step's record."""
    return [{k: s.get(k) for k in ("name", "state", "attempt", "job", "jobUid", "fingerprint")} for s in job["status"]["steps"]]


def test_releases_were_recorded() -> None:
    assert len(JOBS) >= 9
    assert len(SERVES) >= 6


@pytest.mark.parametrize("path", JOBS, ids=moment)
def test_a_job_of_an_earlier_release_goes_on_as_if_nothing_had_happened(path: Path) -> None:
    story = story_of(yaml.safe_load(path.read_text()))
    before, recorded = steps(story.job), copy.deepcopy(story.space.jobs)
    told = {c["type"]: (c["status"], c["reason"]) for c in story.job["status"]["conditions"]}
    assert story.passes(3) == []
    assert story.space.jobs == recorded
    assert steps(story.job) == before
    assert story.conditions() == told


@pytest.mark.parametrize("path", [p for p in JOBS if "-at-" in p.stem], ids=moment)
def test_a_job_of_an_earlier_release_comes_to_its_end(path: Path) -> None:
    story = story_of(yaml.safe_load(path.read_text()))
    at, names = path.stem.partition("-at-")[2], [step["name"] for step in story.job["status"]["steps"]]
    assert names == ["prepare", "train", "merge", "quantize-q4", "evaluate", "evaluate-q4"]
    story.done = names[1 : names.index(at)]
    assert story.to_the_end() == names[names.index(at) + 1 :]
    assert story.conditions()["Ready"] == ("True", "Succeeded")


@pytest.mark.parametrize("path", SERVES, ids=moment)
def test_a_model_that_an_earlier_release_serves_keeps_its_pods(path: Path) -> None:
    stage = stage_of(yaml.safe_load(path.read_text()))
    before = {key: copy.deepcopy(body) for key, body in stage.objects.items() if key[0] in WITH_PODS}
    live = stage.serve["status"]["live"]
    stage.settle()
    assert stage.deleted == []
    assert {key: body for key, body in stage.objects.items() if key[0] in WITH_PODS} == before
    assert stage.serve["status"]["live"]["name"] == live["name"] == stage.live()


@pytest.mark.parametrize("path", [p for p in JOBS if "-at-" in p.stem], ids=moment)
def test_a_pod_of_a_later_release_goes_on_under_a_state_that_nobody_here_knows(path: Path) -> None:
    found = yaml.safe_load(path.read_text())
    (at_work,) = [s for s in found["job"]["status"]["steps"] if s["state"] == "Running"]
    del at_work["state"]  # what reading makes of an unknown one: tests/unit/test_bounds.py
    story = story_of(found)
    assert story.passes(3) == []
    assert story.step(at_work["name"])["state"] == "Running", "its Job is there, and has not ended"
