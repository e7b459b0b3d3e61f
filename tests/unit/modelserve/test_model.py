"""Which model a ModelServe serves: by uri, by jobRef, and what is said when there is none."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import SERVING, make_job
from tests.serving import Stage, make_finished_job, make_serve

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import ArtifactStatus, FineTuneJobStatus
from finetune_operator.finetunejob import handover
from finetune_operator.meta import Object

JOB_REF = {"jobRef": {"name": "facts", "artifact": "q4"}}


def by_job(**spec: Any) -> Stage:
    stage = Stage(make_serve(**{"model": JOB_REF, **spec}))
    stage.put({"kind": "PersistentVolumeClaim", "metadata": {"name": "facts-artifacts"}})
    return stage


def running(body: Object, **condition: str) -> Object:
    conditions = [{"type": "Reconciling", "status": "True", "reason": "Train", **condition}]
    return {**body, "status": {**body["status"], "conditions": conditions, "artifacts": [], "stage": "Train"}}


def test_artifact_of_a_job_that_succeeded() -> None:
    stage = by_job()
    stage.put(make_finished_job())
    stage.roll_out()
    status = stage.serve["status"]
    assert status["live"]["modelUri"] == "pvc://facts-artifacts/q4"
    assert status["live"]["modelDigest"] == "sha256:" + "b" * 64
    assert status["model"]["source"] == "job/facts/q4"


def test_s3_artifact_takes_the_jobs_certificates() -> None:
    stage = by_job()
    job = make_finished_job()
    job["spec"] = {"storage": {"artifacts": {"uri": "s3://b/p", "caSecretRef": {"name": "authority", "key": "bundle.pem"}}}}
    for artifact in job["status"]["artifacts"]:
        artifact["uri"] = f"s3://b/p/{artifact['name']}"
    stage.put(job)
    stage.step()
    pod = stage.deployment(stage.candidate())["spec"]["template"]["spec"]
    (loader,), containers = pod["initContainers"], pod["containers"]
    file = {"secretName": "authority", "items": [{"key": "bundle.pem", "path": "ca.crt"}]}
    assert {"name": "ca", "secret": file} in pod["volumes"]
    assert {"name": "ca", "mountPath": "/etc/finetune-ca", "readOnly": True} in loader["volumeMounts"]
    assert {"name": "AWS_CA_BUNDLE", "value": "/etc/finetune-ca/ca.crt"} in loader["env"]
    assert "ca" not in {m["name"] for c in containers for m in c["volumeMounts"]}, "only the loader asks the store"


def test_what_a_job_hands_over_is_trusted_as_its_store_was() -> None:
    artifacts = {"uri": "s3://b/p", "caSecretRef": {"name": "authority"}}
    job = FineTuneJob.model_validate(make_job(serving=SERVING, storage={"artifacts": artifacts}))
    for uri, expected in (("s3://b/p/q4", {"name": "authority", "key": "ca.crt"}), ("pvc://c/q4", None)):
        made = ArtifactStatus(name="q4", format="GGUF", uri=uri, digest="sha256:" + "b" * 64, bytes=1)
        wanted = handover.wanted_serve(job, FineTuneJobStatus(artifacts=[made]))
        assert wanted is not None
        assert wanted["spec"]["model"].get("caSecretRef") == expected


def test_artifact_of_a_job_comes_with_its_evaluation() -> None:
    stage = by_job()
    job = make_finished_job()
    (artifact,) = [a for a in job["status"]["artifacts"] if a["name"] == "q4"]
    artifact["evaluation"] = "pvc://facts-artifacts/evaluate/" + "e" * 20
    stage.put(job)
    stage.roll_out()
    assert stage.serve["status"]["model"]["evaluation"] == artifact["evaluation"]
    command = stage.of("Job")[0]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[command.index("--rows") + 1] == artifact["evaluation"]


def test_s3_artifact_takes_the_jobs_credentials() -> None:
    stage = by_job()
    job = make_finished_job()
    store = {"uri": "s3://b/p", "secretRef": {"name": "keys"}, "endpoint": "http://s3:7070", "region": "eu-1"}
    job["spec"] = {"storage": {"artifacts": store}}
    for artifact in job["status"]["artifacts"]:
        artifact["uri"] = f"s3://b/p/{artifact['name']}"
    stage.put(job)
    stage.step()
    pod = stage.deployment(stage.candidate())["spec"]["template"]["spec"]
    (loader,) = pod["initContainers"]
    (volume,) = (v for v in pod["volumes"] if "secret" in v)
    mount = {"name": volume["name"], "mountPath": "/mnt/finetune/secrets/model", "readOnly": True}
    assert volume["secret"]["secretName"] == "keys"
    assert mount in loader["volumeMounts"]
    assert loader["command"][-4:] == ["--endpoint", "http://s3:7070", "--region", "eu-1"]
    assert not any("persistentVolumeClaim" in v for v in pod["volumes"])
    assert mount not in pod["containers"][0]["volumeMounts"], "the engine needs no credentials"
    assert not any("envFrom" in c for c in (*pod["initContainers"], *pod["containers"]))


@pytest.mark.parametrize(
    ("job", "engine", "reason", "said"),
    [
        (None, "LlamaCpp", "JobNotFound", "create it, or correct spec.model.jobRef.name"),
        (
            running(make_finished_job(), type="Stalled", reason="BadData", message="no rows"),
            "LlamaCpp",
            "JobFailed",
            "BadData: no rows",
        ),
        (make_finished_job(artifacts=[]), "LlamaCpp", "ArtifactNotFound", "spec.artifacts"),
        (make_finished_job(), "VLLM", "EngineMismatch", "change spec.engine.type"),
    ],
    ids=["no job", "failed job", "no artifact", "wrong engine"],
)
def test_nothing_to_serve_stalls(job: Object | None, engine: str, reason: str, said: str) -> None:
    stage = by_job(engine={"type": engine})
    if job is not None:
        stage.put(job)
    decision = stage.step()
    assert stage.conditions()["Stalled"] == ("True", reason)
    assert said in stage.message()
    assert decision.actions == ()
    assert [e.reason for e in decision.events] == [reason]


def test_job_that_runs_is_waited_for() -> None:
    stage = by_job()
    stage.put(running(make_finished_job()))
    stage.step()
    assert stage.conditions()["Reconciling"] == ("True", "WaitingForJob")
    assert "its stage is Train" in stage.message()
    stage.put(make_finished_job())
    stage.roll_out()


def test_the_base_model_of_a_job_is_there_before_it_has_succeeded() -> None:
    stage = by_job(model={"jobRef": {"name": "facts", "artifact": "base"}}, engine={"type": "VLLM"})
    job = running(make_finished_job())
    stage.put(job)
    assert "candidate" not in stage.step().status
    assert stage.conditions()["Reconciling"] == ("True", "WaitingForJob")
    base = {"name": "base", "format": "Safetensors", "uri": "pvc://facts-artifacts/model/f/1", "bytes": 1}
    job["status"]["artifacts"] = [{**base, "digest": "sha256:" + "9" * 64}]
    stage.roll_out()
    assert stage.serve["status"]["live"]["modelUri"] == "pvc://facts-artifacts/model/f/1"


def test_another_artifact_than_the_base_model_is_waited_for_though_that_is_there() -> None:
    stage = by_job()
    job = running(make_finished_job())
    base = {"name": "base", "format": "Safetensors", "uri": "pvc://facts-artifacts/model/f/1", "bytes": 1}
    job["status"]["artifacts"] = [{**base, "digest": "sha256:" + "9" * 64}]
    stage.put(job)
    stage.step()
    assert stage.conditions()["Reconciling"] == ("True", "WaitingForJob")


def test_job_that_runs_again_changes_nothing_until_it_has_succeeded() -> None:
    stage = by_job()
    stage.put(make_finished_job())
    old = stage.roll_out()
    stage.put(running(make_finished_job()))
    stage.settle()
    assert stage.conditions()["Ready"] == ("True", "Serving")
    stage.put(make_finished_job(digest="d"))
    new = stage.roll_out()
    assert new != old
    assert stage.serve["status"]["live"]["modelDigest"] == "sha256:" + "d" * 64


def test_job_that_was_deleted_leaves_its_model_serving() -> None:
    stage = by_job()
    stage.put(make_finished_job())
    live = stage.roll_out()
    del stage.objects["FineTuneJob", "facts"]
    stage.settle()
    assert stage.conditions()["Stalled"] == ("True", "JobNotFound")
    assert stage.conditions()["Available"][0] == "True"
    stage.edit(replicas=2)
    stage.step()
    assert stage.deployment(live)["spec"]["replicas"] == 2, "what it serves is still looked after"


def test_a_job_that_was_deleted_while_its_model_loads_keeps_that_from_nothing() -> None:
    stage = by_job()
    stage.put(make_finished_job())
    stage.step()
    revision = stage.candidate()
    del stage.objects["FineTuneJob", "facts"]
    stage.available(revision)
    stage.step()
    assert stage.conditions()["Stalled"] == ("True", "JobNotFound")
    stage.finish_gate()
    stage.settle()
    assert stage.live() == revision


def test_another_job_is_not_served_with_the_first_ones_model() -> None:
    stage = by_job()
    stage.put(make_finished_job())
    live = stage.roll_out()
    stage.edit(model={"jobRef": {"name": "other", "artifact": "q4"}})
    stage.put(running(make_finished_job("other")))
    stage.settle()
    assert stage.conditions()["Reconciling"] == ("True", "WaitingForJob")
    assert (stage.live(), stage.revisions()) == (live, {live})


@pytest.mark.parametrize(
    ("model", "kind", "reason"),
    [
        ({"uri": "pvc://missing/q4"}, "PersistentVolumeClaim", "ClaimNotFound"),
        ({"uri": "s3://b/q4", "secretRef": {"name": "missing"}}, "Secret", "SecretNotFound"),
        ({"uri": "s3://b/q4", "caSecretRef": {"name": "missing"}}, "Secret", "SecretNotFound"),
    ],
)
def test_what_the_model_needs_must_exist_before_pods_do(model: dict[str, Any], kind: str, reason: str) -> None:
    stage = Stage(make_serve(model=model))
    decision = stage.settle()
    assert stage.conditions()["Stalled"] == ("True", reason)
    assert stage.revisions() == set()
    assert decision.requeue_after, "nothing tells when it comes"
    stage.put({"kind": kind, "metadata": {"name": "missing"}})
    stage.roll_out()
