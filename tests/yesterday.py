"""What this release leaves in a cluster, recorded for those that come after it: `python -m tests.yesterday NAME`.

Each moment of a life is one file of tests/golden/upgrade/NAME: the object with its status, and all its children. They are
written once, by the release that they are of, and never anew: tests/unit/test_upgrade.py reads them with later code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from tests.builders import make_job, reported_failure
from tests.serving import Stage
from tests.story import Story

from finetune_operator.decision import Ref
from finetune_trainer.contract.exits import ExitCode

FOLDER = Path(__file__).parent / "golden/upgrade"
ON_GPUS = {"gpusPerNode": 1, "gpu": {"memory": "80Gi"}}
CHILDREN = ("jobs", "pods", "config_maps", "services")


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    """A FineTuneJob's moments: what the pod of its step has said, and how it may stand still."""
    story = Story(make_job())
    story.passes(2)
    while running := [job for job in story.space.jobs.values() if not job["status"].get("conditions")]:
        step, pod = running[0]["metadata"]["labels"]["finetune.dev/step"], running[0]["metadata"]["name"] + "-x1y2z"
        story.space.progress[pod] = {"kind": "progress", "stepName": step, "step": 3, "total": 9, "loss": 1.5}
        story.passes(2)
        yield f"at-{step}", _of(story)
        story.succeed()
        story.space.progress.clear()
        story.passes(3)
    yield "succeeded", _of(story)
    failed = Story(make_job())
    failed.passes(2)
    failed.space.end(*reported_failure(ExitCode.BAD_DATA, "InvalidDataset", "row 3 is empty"))
    failed.passes(2)
    yield "failed", _of(failed)
    queued = Story(make_job(parallelism=ON_GPUS, scheduling={"queueName": "gpus"}))
    queued.space.named[Ref("LocalQueue", "gpus")] = {"kind": "LocalQueue"}
    queued.passes(2)
    queued.succeed()
    queued.passes(2)
    queued.space.pods.clear()
    queued.passes(1)
    yield "queued", _of(queued)


def _of(story: Story) -> dict[str, Any]:
    children = {name: list(getattr(story.space, name).values()) for name in CHILDREN}
    named = [{"kind": ref.kind, "name": ref.name, "body": body} for ref, body in story.space.named.items()]
    return {"job": story.job, "minute": story.minute, "named": named, "progress": story.space.progress, **children}


def serves() -> Iterator[tuple[str, dict[str, Any]]]:
    """A ModelServe's moments, with either engine: live, and with another revision that loads or is asked."""
    for engine in ("LlamaCpp", "VLLM"):
        stage = Stage()
        stage.serve["spec"]["engine"] = {"type": engine}
        stage.roll_out()
        stage.later(3600)
        stage.settle()
        yield f"live-{engine.lower()}", _on(stage)
        stage.edit(model={"uri": "pvc://models/other"})
        stage.settle()
        yield f"loading-{engine.lower()}", _on(stage)
        stage.available(stage.candidate())
        stage.settle()
        yield f"asked-{engine.lower()}", _on(stage)


def _on(stage: Stage) -> dict[str, Any]:
    return {"serve": stage.serve, "objects": list(stage.objects.values()), "now": stage.now.isoformat()}


def main(folder: Path) -> None:
    """Write all moments. A release that is recorded already stays as it was."""
    folder.mkdir(parents=True)
    for kind, moments in (("finetunejob", jobs()), ("modelserve", serves())):
        for name, found in moments:
            text = yaml.safe_dump(json.loads(json.dumps(found)), sort_keys=False, width=1000)
            (folder / f"{kind}-{name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(FOLDER / sys.argv[1])
