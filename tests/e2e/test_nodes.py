"""Training spread over several pods, which meet over the cluster's own network and DNS."""

from __future__ import annotations

from typing import Any

from demo.kubectl import Object
from localcluster.storage import STORAGE_CLASS
from tests.e2e import jobs
from tests.e2e.space import JOB, Space, optimizer_steps, step, steps

TRAINING = {"method": "LoRA", "learningRate": 0.001, "globalBatchSize": 8, "maxLength": 128}
SHARED = {"artifacts": {"storageClassName": STORAGE_CLASS, "size": "1Gi"}}


def on_two_nodes(name: str, training: dict[str, Any], **parallelism: Any) -> Object:
    return jobs.job(
        name,
        training=TRAINING | training,
        parallelism={"gpusPerNode": 0, "numNodes": 2, "strategy": "DDP", **parallelism},
        storage=SHARED,
    )


def train_pods(space: Space, name: str) -> list[Object]:
    return space.items("pod", f"finetune.dev/job={name},finetune.dev/step=train")


def test_two_nodes_ddp(space: Space) -> None:
    """Two pods train one model; the pod with index 0 reports, and what follows is as after a single one."""
    space.apply(on_two_nodes("pair", {"maxSteps": 20}))
    space.until(JOB, "pair", "trains in two pods", lambda job: step(job, "train").get("runningPods") == 2)
    job = space.succeeded("pair")
    assert set(steps(job).values()) == {"Succeeded"}
    assert step(job, "train")["attempt"] == 1
    assert job["status"]["resolved"]["strategy"] == "DDP"
    ended = [pod["status"]["containerStatuses"][0]["state"]["terminated"] for pod in train_pods(space, "pair")]
    assert [e["exitCode"] for e in ended] == [0, 0]
    (report,) = [e["message"] for e in ended if '"worldSize":2' in e["message"]]
    assert '"train"' in report


def test_two_nodes_ray(space: Space) -> None:
    """The same two pods as one Ray cluster, in which Ray Train starts the ranks; it ends with the attempt."""
    space.apply(on_two_nodes("rays", {"maxSteps": 20}, launcher="Ray"))
    space.until(JOB, "rays", "trains in two pods", lambda job: step(job, "train").get("runningPods") == 2)
    job = space.succeeded("rays")
    assert set(steps(job).values()) == {"Succeeded"}
    assert step(job, "train")["attempt"] == 1
    ended = [pod["status"]["containerStatuses"][0]["state"]["terminated"] for pod in train_pods(space, "rays")]
    assert [e["exitCode"] for e in ended] == [0, 0]
    assert sum('"worldSize":2' in e["message"] for e in ended) == 1


def test_rank_killed(space: Space) -> None:
    """One pod is gone from one moment to the next: the other ends too, and both go on from the last checkpoint."""
    space.apply(on_two_nodes("widow", {"maxSteps": 200, "checkpoint": {"everySteps": 5}}))
    space.until(JOB, "widow", "has trained some steps", lambda job: optimizer_steps(job) >= 8)
    (second,) = [p for p in train_pods(space, "widow") if p["metadata"]["labels"][INDEX] == "1"]
    space.delete("pod", second["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")
    job = space.succeeded("widow")
    train = step(job, "train")
    assert train["attempt"] == 2
    assert train["resumedFromStep"] >= 5
    assert space.jobs_by_step(job) == {"prepare": 1, "train": 2, "merge": 1, "evaluate": 1}


INDEX = "batch.kubernetes.io/job-completion-index"
