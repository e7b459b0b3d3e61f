"""All that is created over a job's life, and the status that it ends with, as files to be read in review.

tests/golden/finetunejob/<case>/job.yaml ─► objects.yaml, status.yaml      (pytest --golden-update writes them)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.builders import Namespace, data_config_map, make_job, reported_failure
from tests.story import Story

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.cli.render import manifests
from finetune_operator.decision import Ref
from finetune_operator.finetunejob import policy
from finetune_operator.settings import Settings
from finetune_trainer.contract.exits import ExitCode

CASES = sorted(p.parent for p in (Path(__file__).parents[2] / "golden" / "finetunejob").glob("*/job.yaml"))
KEYS = ("ca.crt", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def test_cases_were_found() -> None:
    assert len(CASES) >= 3


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.name)
def test_life_of_a_job(case: Path, golden: Callable[[Path, str], None]) -> None:
    given = yaml.safe_load((case / "job.yaml").read_text())
    job = make_job(artifacts=None) | {"spec": given["spec"]}
    story = Story(job, space=namespace(job), settings=Settings(**given.get("settings", {})))
    if failure := given.get("failure"):
        story.passes()
        (code,) = (code for code in ExitCode if code == failure["code"])
        story.space.end(*reported_failure(code, failure["reason"], failure["message"]))
        story.passes()
    else:
        story.to_the_end()
    objects = [*story.created, *(a.body for a in story.decide().actions)]  # type: ignore[union-attr]
    golden(case / "objects.yaml", manifests(objects))
    golden(case / "status.yaml", manifests([story.job["status"]]))


def namespace(job: dict[str, Any]) -> Namespace:
    """Where everything that the job refers to exists, but for what the operator makes itself."""
    space = Namespace()
    for ref in policy.reads(FineTuneJob.model_validate(job)).named:
        if ref.kind == "Secret":
            space.named[ref] = {"metadata": {"name": ref.name}, "data": dict.fromkeys(KEYS, "")}
        elif ref.kind == "ConfigMap":
            space.named[ref] = data_config_map(ref.name)
        elif ref == Ref("PersistentVolumeClaim", "shelf"):
            space.named[ref] = {"metadata": {"name": ref.name}}
    return space
