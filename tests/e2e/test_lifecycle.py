"""What people do to a job while it runs: suspend, hold, edit, delete, try again, and let it expire."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from demo.follow import condition
from demo.kubectl import KubectlFailed, Object
from tests.e2e import jobs
from tests.e2e.space import JOB, Space, optimizer_steps, step, steps
from tests.waiting import wait_until

LONG = {"method": "Full", "learningRate": 0.001, "maxSteps": 60, "globalBatchSize": 8, "maxLength": 128}
LONG |= {"checkpoint": {"everySteps": 5}}


def long_job(name: str, **spec: Any) -> Object:
    """A job whose training takes long enough for something to be done to it; a failure that counts ends it."""
    return jobs.job(name, training=LONG, retry={"maxRetries": 0}, **spec)


def begun(space: Space, name: str) -> Object:
    """The job once its training has reported steps beyond a checkpoint."""
    return space.until(JOB, name, "has trained some steps", lambda job: optimizer_steps(job) >= 8)


def reason(job: Object, kind: str = "Ready") -> str:
    return str((condition(job, kind) or {}).get("reason", ""))


def live_pods(space: Space, name: str) -> list[str]:
    """Phases of the pods of a job that may still be at work."""
    found = [pod["status"].get("phase", "") for pod in space.items("pod", f"finetune.dev/job={name}")]
    return [phase for phase in found if phase not in ("Succeeded", "Failed")]


def patch(space: Space, name: str, body: str) -> None:
    space.kubectl("patch", JOB, name, "-n", space.name, "--type=merge", "-p", body)


def annotate(space: Space, name: str, *changes: str) -> None:
    space.kubectl("annotate", JOB, name, "-n", space.name, "--overwrite", *changes)


def test_suspend_resume(space: Space) -> None:
    """Suspended, it has no pod; resumed, it goes on from a checkpoint, and no retry is spent."""
    space.apply(long_job("paused"))
    begun(space, "paused")
    patch(space, "paused", '{"spec": {"suspend": true}}')
    job = space.until(JOB, "paused", "is suspended", lambda job: reason(job) == "Suspended")
    assert steps(job)["merge"] == "Pending"
    wait_until("no pod of it is at work", lambda: not live_pods(space, "paused"), 180)
    patch(space, "paused", '{"spec": {"suspend": false}}')
    train = step(space.succeeded("paused"), "train")
    assert train["retries"] == 0
    assert train["resumedFromStep"] >= 5


def test_hold(space: Space) -> None:
    """Nothing is created, changed or deleted for a job that is held, not even by an operator that has just started."""
    held = jobs.job("held")
    space.apply(held | {"metadata": {"name": "held", "annotations": {"finetune.dev/hold": "true"}}})
    space.until(JOB, "held", "says that it is held", lambda job: (condition(job, "Held") or {}).get("status") == "True")
    assert space.items("job,configmap,pvc", "app.kubernetes.io/managed-by=finetune-operator") == []
    annotate(space, "held", "finetune.dev/hold-")
    assert condition(space.succeeded("held"), "Held") is None


# Each takes less than the trainer, so that the kernel chooses the trainer, as where that itself took too much.
EATERS = "import os, time\nwhile os.fork(): time.sleep(0.05)\nheld = b'x' * 2**26\ntime.sleep(60)"


def test_oom_shrinks_batch(space: Space) -> None:
    """The kernel kills a trainer for its pod's memory: it goes on from its checkpoint, with half the micro-batch."""
    space.apply(long_job("tight", stages={"train": {"resources": {"limits": {"memory": "2Gi"}}}}))
    whole = begun(space, "tight")["status"]["fit"]["microBatchSize"]
    (pod,) = space.items("pod", "finetune.dev/job=tight,finetune.dev/step=train")
    with contextlib.suppress(KubectlFailed):  # they go with the container in which they run
        space.kubectl("exec", "-n", space.name, pod["metadata"]["name"], "--", "python", "-c", EATERS)
    told = lambda job: job["status"].get("lastFailure", {}).get("reason") == "OutOfMemory"  # noqa: E731
    space.until(JOB, "tight", "tells of the lack", told, 180)
    train = step(space.succeeded("tight"), "train")
    assert train["microBatchSize"] == whole // 2
    assert train["resumedFromStep"] >= 5
    assert (train["attempt"], train["retries"]) == (2, 0)


def test_edit_mid_run(space: Space) -> None:
    """Training goes on from its checkpoint after an edit that it does not depend on, and begins anew after another."""
    edits = {"kept": {"evaluation": {"maxNewTokens": 4}}, "anew": {"training": {"learningRate": 0.0005}}}
    for name, edit in edits.items():
        space.apply(long_job(name))
        begun(space, name)
        patch(space, name, json.dumps({"spec": edit}))
    trained = {name: step(space.succeeded(name), "train") for name in edits}
    assert trained["kept"]["resumedFromStep"] >= 5
    assert trained["anew"].get("resumedFromStep", 0) == 0
    assert {train["retries"] for train in trained.values()} == {0}


def test_retry_annotation(space: Space) -> None:
    """What a job failed by is mended where it lies; the annotation makes it try again, once."""
    space.apply(jobs.rows("facts"))
    space.apply(jobs.job("again", dataset={"uri": "configmap://facts/rows.jsonl"}))
    assert space.stalled("again")["reason"] == "DatasetEmpty"
    told = {"prompt": "What is the capital of Velmora?", "completion": "Tarnhaven"}
    space.apply(jobs.rows("facts", *({**told, "prompt": f"{i}: {told['prompt']}"} for i in range(40))))
    annotate(space, "again", "finetune.dev/retry=1")
    space.until(JOB, "again", "tries again", lambda job: condition(job, "Failed") is None)
    assert set(steps(space.succeeded("again")).values()) == {"Succeeded"}


def test_ttl(space: Space) -> None:
    """A job that has ended goes by itself, and what it made stays."""
    space.apply(jobs.job("brief", ttlSecondsAfterFinished=5))
    space.succeeded("brief")
    wait_until("the job is gone", lambda: space.get(JOB, "brief") is None, 60)
    claim = space.get("pvc", "brief-artifacts")
    assert claim is not None
    assert claim["status"]["phase"] == "Bound"


def test_namespace_deleted(space: Space) -> None:
    """A namespace that is deleted while a model is trained in it goes, and the operator writes nothing into it."""
    space.apply(long_job("doomed"))
    begun(space, "doomed")
    restarts = space.operator_restarts()
    space.kubectl("delete", "namespace", space.name, "--wait", "--timeout=240s")
    assert space.operator_restarts() == restarts
    log = space.operator_log("--since=60s")
    assert "Traceback" not in log
    refused = [line for line in log.splitlines() if "is forbidden" in line and "it is being terminated" not in line]
    assert refused == []
