"""The commands that look at a cluster or change something in it, over objects as the operator's own policies leave them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from tests.builders import make_job, make_pod, reported_failure, stamp
from tests.fake_reach import FakeReach, call
from tests.serving import Stage, make_serve
from tests.story import Story
from tests.unit.modelserve.test_contract import awaiting_promotion, sharing_until_somebody_comes
from typer.testing import CliRunner

from finetune_operator.cli.commands import app
from finetune_operator.cli.kept_logs import MOUNTED
from finetune_operator.decision import Ref
from finetune_operator.meta import Object
from finetune_trainer.contract import kept_log
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.places import S3
from finetune_trainer.contract.pod import ENV_KEPT_LOG
from finetune_trainer.environment import Access
from finetune_trainer.store.directory import DirectoryObjects


def trained() -> Story:
    story = Story(make_job())
    story.to_the_end()
    return story


def training(progress: dict[str, Any] | None = None, **spec: Any) -> Story:
    """A job whose second attempt at training runs."""
    story = Story(make_job(**spec))
    story.space.named[Ref("Secret", "keys")] = {"metadata": {"name": "keys"}, "data": dict.fromkeys(S3.keys, "")}
    story.passes()
    story.succeed()
    story.passes()
    story.space.end(*reported_failure(ExitCode.SOURCE_UNAVAILABLE, "SourceUnavailable", "the hub did not answer"))
    story.passes()
    pod = story.space.running()["metadata"]["name"] + "-x1y2z"
    story.space.progress[pod] = progress or {"step_name": "train", "activity": "training", "step": 4, "total": 40, "loss": 1.25}
    story.passes(1)
    return story


REPORT = "report: pvc://facts-artifacts/facts/report/r1/report.html"


def state(story: Story) -> Object:
    return dict(story.job)


# ── status and watch ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_status_of_a_job_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, FakeReach(trained().job), "status", "facts")
    assert result.exit_code == 0
    assert "FineTuneJob default/facts: Succeeded: 1 of 1 gates passed" in result.output
    for told in ("evaluate-q4", "exactMatch", "0.95", "q4: pvc://facts-artifacts/facts/q4/", REPORT):
        assert told in result.output


def test_status_of_a_job_at_work_names_attempt_progress_and_last_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, FakeReach(training().job), "status", "ftj/facts")
    assert result.exit_code == 0
    assert "train: training  4/40  loss 1.250" in result.output
    assert "last failure: train, attempt 1, SourceUnavailable: the hub did not answer" in result.output


def test_status_without_a_name_lists_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, FakeReach(training().job, make_job("other")), "status")
    rows = [line for line in result.output.splitlines() if "facts" in line or "other" in line]
    assert ["Training" in row and "10 %" in row and "1.25" in row for row in rows] == [True, False]
    assert "Unknown" in rows[1]


def test_status_of_a_job_that_no_operator_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, FakeReach(make_job()), "status", "facts")
    assert "the operator has not seen it as it is now; `kubectl finetune doctor` tells whether one runs" in result.output


def test_status_of_an_edited_job_says_nothing_of_the_spec_before(monkeypatch: pytest.MonkeyPatch) -> None:
    story = trained()
    story.edit(suspend=True)
    assert "the operator has not seen it as it is now" in call(monkeypatch, FakeReach(story.job), "status", "facts").output


def test_status_of_a_served_model(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    old, new = stage.promote_another()
    result = call(monkeypatch, FakeReach(stage.serve), "status", "mserve/facts")
    assert result.exit_code == 0
    assert f"rollback window: {old} stays warm until" in result.output
    (live,) = [line for line in result.output.splitlines() if "live, Live" in line]
    assert new in live
    assert "pvc://models/other" in live


def test_watch_tells_each_change_once_and_ends_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(make_job())
    cluster = FakeReach(story.job)
    story.passes()
    cluster.story += [state(story), state(story)]
    story.to_the_end()
    cluster.story.append(state(story))
    result = call(monkeypatch, cluster, "watch", "facts")
    assert result.exit_code == 0
    assert result.output.count("Preparing") == 1
    assert "1 of 1 gates passed" in result.output


def test_watch_ends_with_1_where_the_job_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(make_job())
    story.passes()
    story.space.end(*reported_failure(ExitCode.BAD_CONFIG, "InvalidSpec", "no such column"))
    story.passes()
    cluster = FakeReach(story.job)
    cluster.story.append(state(story))
    result = call(monkeypatch, cluster, "watch", "facts")
    assert result.exit_code == 1
    assert "prepare: no such column" in result.output


def test_watch_of_an_object_that_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(monkeypatch, FakeReach(make_job()), "watch", "facts")
    assert (result.exit_code, result.output) == (1, "FineTuneJob facts was deleted\n")


# ── logs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_pods(story: Story) -> FakeReach:
    """The cluster around a story: its pods, of which one that runs has a container that has started."""
    running = [{"name": "step", "state": {"running": {"startedAt": stamp()}}}]
    pods = []
    for name, pod in story.space.pods.items():
        if name == story.space.running()["metadata"]["name"]:
            pod = make_pod(story.space.jobs[name], containerStatuses=running)
        pods.append({**pod, "kind": "Pod"})
    cluster = FakeReach(story.job, *pods)
    for pod in pods:
        labels = pod["metadata"]["labels"]
        words = f"{labels['finetune.dev/step']} {labels['finetune.dev/attempt']}"
        cluster.logs[pod["metadata"]["name"]] = [f"hello from {words}"]
    return cluster


def told(output: str) -> list[str]:
    return [line.partition(", pod")[0] for line in output.splitlines()]


def test_logs_go_through_steps_and_attempts_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = with_pods(training())
    result = call(monkeypatch, cluster, "logs", "facts")
    assert told(result.output) == [
        "── prepare, attempt 1",
        "hello from prepare 1",
        "── train, attempt 1",
        "hello from train 1",
        "── train, attempt 2",
        "hello from train 2",
    ]
    assert (
        told(call(monkeypatch, cluster, "logs", "facts", "--step", "train", "--attempt", "1").output)
        == told(result.output)[2:4]
    )


def test_logs_say_which_pods_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = with_pods(training())
    first = next(key for key in cluster.objects if key[0] == "Pod")
    del cluster.objects[first]
    second = next(key for key in cluster.objects if key[0] == "Pod")
    del cluster.logs[second[1]]  # it goes between the list and the read
    lines = told(call(monkeypatch, cluster, "logs", "facts").output)
    assert lines[0] == f"── prepare, attempt 1: its pod is gone; its log lies in {place(cluster, 'prepare', 1)} ({MOUNTED})"
    assert lines[2] == "   (the pod is gone)"


def place(cluster: FakeReach, step: str, attempt: int, store: str = "pvc://facts-artifacts/facts") -> str:
    """Where the operator told the pods of an attempt to keep their logs."""
    run = cluster.objects["FineTuneJob", "facts"]["status"]["run"].rpartition("-")[2]
    return f"{store}/{kept_log.folder('default', 'facts', run, step, attempt)}"


def keep(cluster: FakeReach, store: Path, step: str, attempt: int, *texts: str, **end: Any) -> None:
    folder = Path(place(cluster, step, attempt, str(store)))
    folder.mkdir(parents=True)
    for index, text in enumerate(texts):
        (folder / f"{index}.log").write_text(text)
        (folder / f"{index}.json").write_text(kept_log.PodEnd(exit_code=1, **end).model_dump_json(by_alias=True))


def without_pods(story: Story) -> FakeReach:
    return FakeReach(story.job)


def test_logs_of_pods_that_are_gone_come_from_a_folder_with_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = without_pods(training())
    report = '{"kind": "progress", "step_name": "train", "activity": "training", "step": 4, "total": 40, "loss": 1.5}'
    keep(cluster, tmp_path, "train", 1, f"it begins\n{report}\n", "and here\n", left_out=7)
    result = call(monkeypatch, cluster, "logs", "facts", "--store", str(tmp_path), "--step", "train")
    assert result.output.splitlines() == [
        f"── train, attempt 1, pod 0, ended with 1, kept in {place(cluster, 'train', 1, str(tmp_path))}",
        "   (the 7 bytes before this are not kept)",
        "it begins",
        "train: training  4/40  loss 1.500",
        f"── train, attempt 1, pod 1, ended with 1, kept in {place(cluster, 'train', 1, str(tmp_path))}",
        "   (the 7 bytes before this are not kept)",
        "and here",
        f"── train, attempt 2: its pod is gone, and left no log in {place(cluster, 'train', 2, str(tmp_path))}",
    ]


def test_logs_are_read_from_a_bucket_by_the_secret_of_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def bucket(uri: str, access: Access, endpoint: str | None, region: str | None, _: object) -> DirectoryObjects:
        asked.update(uri=uri, secret=access.secret, endpoint=endpoint, region=region)
        return DirectoryObjects(tmp_path)

    monkeypatch.setattr("finetune_trainer.store.bucket.BucketObjects", bucket)
    store = {"uri": "s3://bucket/jobs", "secretRef": {"name": "keys"}, "region": "eu-1"}
    job = training(storage={"artifacts": store}).job
    held = {"AWS_ACCESS_KEY_ID": "me", "AWS_ENDPOINT_URL": "http://minio", "HF_TOKEN": "other"}
    secret = {
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "data": {k: base64.b64encode(v.encode()) for k, v in held.items()},
    }
    cluster = FakeReach(job, secret)
    keep(cluster, tmp_path, "train", 1, "from the bucket\n")
    assert "from the bucket" in call(monkeypatch, cluster, "logs", "facts", "--step", "train").output
    assert asked == {
        "uri": "s3://bucket/jobs",
        "secret": {"AWS_ACCESS_KEY_ID": "me", "AWS_ENDPOINT_URL": "http://minio"},
        "endpoint": "http://minio",
        "region": "eu-1",
    }


def test_logs_say_where_they_lie_in_a_bucket_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in S3.keys:
        monkeypatch.setenv(key, "mine")
    store = {"uri": "s3://bucket/jobs", "secretRef": {"name": "keys"}, "endpoint": "http://127.0.0.1:1"}
    cluster = FakeReach(training(storage={"artifacts": store}).job)
    lines = call(monkeypatch, cluster, "logs", "facts", "--step", "train").output.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        f"── train, attempt {n}: its pod is gone; its log lies in {place(cluster, 'train', n, 's3://bucket/jobs')}"
        for n in (1, 2)
    ]
    assert "the artifact store failed at s3://bucket/jobs" in lines[0]


def test_the_pods_are_told_the_place_where_logs_are_looked_for() -> None:
    story = training()
    (told,) = (
        variable["value"]
        for variable in story.space.running()["spec"]["template"]["spec"]["containers"][0]["env"]
        if variable["name"] == ENV_KEPT_LOG
    )
    assert place(FakeReach(story.job), "train", 2, "") == f"/{told}"


def test_logs_have_progress_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = with_pods(training())
    report = '{"kind": "progress", "step_name": "train", "activity": "training", "step": 4, "total": 40, "loss": 1.5}'
    pod = list(cluster.logs)[-1]
    cluster.logs[pod] = [report]
    assert call(monkeypatch, cluster, "logs", "facts").output.splitlines()[-1] == "train: training  4/40  loss 1.500"
    assert call(monkeypatch, cluster, "logs", "facts", "--raw").output.splitlines()[-1] == report


def test_logs_follow_one_pod_after_the_other_until_the_job_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    story = training()
    cluster = with_pods(story)
    at_work = state(story)
    story.to_the_end()
    cluster.story = [at_work, at_work, state(story)]
    result = call(monkeypatch, cluster, "logs", "facts", "--follow", "--step", "train")
    assert result.exit_code == 0
    assert told(result.output)[1::2] == ["hello from train 1", "hello from train 2"]


def test_logs_before_the_first_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, FakeReach(make_job()), "logs", "facts").output == "no pod has started yet\n"


# ── promote, rollback, cancel ─────────────────────────────────────────────────────────────────────────────────────────


def changed(stage: Stage, cluster: FakeReach) -> None:
    """The operator sees what the command wrote."""
    stage.serve = cluster.objects["ModelServe", "facts"]
    stage.settle()


def test_promote_lets_the_revision_that_waits_through(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = awaiting_promotion()
    new, cluster = stage.candidate(), FakeReach(stage.serve)
    result = call(monkeypatch, cluster, "promote", "facts")
    assert (result.exit_code, result.output) == (0, f"ModelServe facts: revision {new} takes the traffic\n")
    changed(stage, cluster)
    assert stage.live() == new


def test_promote_lets_a_share_go_on_step_by_step_or_all_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = sharing_until_somebody_comes()
    new, cluster = stage.candidate(), FakeReach(stage.serve)
    assert "canary: 50 % by Replicas, step 1\n" in call(monkeypatch, cluster, "status", "mserve/facts").output
    result = call(monkeypatch, cluster, "promote", "facts", "--step")
    assert result.output == f"ModelServe facts: revision {new} goes on with step 2; after the last one it takes the traffic\n"
    changed(stage, cluster)
    assert stage.live() == new

    stage = awaiting_promotion()
    cluster = FakeReach(stage.serve)
    assert "goes on with step 1" in call(monkeypatch, cluster, "promote", "facts", "--step").output
    stage = sharing_until_somebody_comes()
    cluster = FakeReach(stage.serve)
    call(monkeypatch, cluster, "promote", "facts")
    changed(stage, cluster)
    assert stage.live() == stage.serve["status"]["live"]["name"] == new


def test_rollback_goes_back_to_the_revision_before(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    old, new = stage.promote_another()
    cluster = FakeReach(stage.serve)
    result = call(monkeypatch, cluster, "rollback", "mserve/facts")
    assert result.output == f"ModelServe facts: revision {new} is left for {old}, until the spec asks for another\n"
    changed(stage, cluster)
    assert stage.live() == old


def test_cancel_suspends_a_job_and_delete_removes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    story = training()
    cluster = FakeReach(story.job)
    result = call(monkeypatch, cluster, "cancel", "facts")
    assert "it saves a checkpoint and stops; to go on: kubectl patch ftj facts" in result.output
    story.edit(**cluster.objects["FineTuneJob", "facts"]["spec"])
    story.passes()
    assert story.conditions()["Ready"] == ("False", "Suspended")
    assert cluster.deleted == []
    assert call(monkeypatch, cluster, "cancel", "facts", "--delete").exit_code == 0
    assert cluster.deleted == ["FineTuneJob facts"]


def refusal(monkeypatch: pytest.MonkeyPatch, body: Object, *arguments: str) -> str:
    """What is said where it can't be done; nothing is written."""
    cluster = FakeReach(body)
    before = dict(cluster.objects)
    result = call(monkeypatch, cluster, *arguments)
    assert result.exit_code == 2
    assert cluster.objects == before
    return " ".join(result.output.split())


def test_what_can_not_be_done_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    loading = Stage()
    loading.step()
    live = Stage()
    revision = live.roll_out()
    held = make_serve()
    held["metadata"]["annotations"] = {"finetune.dev/hold": "true"}
    said = {
        "loading": refusal(monkeypatch, loading.serve, "promote", "facts"),
        "none waits": refusal(monkeypatch, live.serve, "promote", "facts"),
        "none before": refusal(monkeypatch, live.serve, "rollback", "facts"),
        "none live": refusal(monkeypatch, make_serve(), "rollback", "facts"),
        "held": refusal(monkeypatch, held, "promote", "facts"),
        "ended": refusal(monkeypatch, trained().job, "cancel", "facts"),
        "suspended": refusal(monkeypatch, make_job(suspend=True), "cancel", "facts"),
        "no such": refusal(monkeypatch, make_job(), "status", "fcats", "-n", "team"),
        "other kind": refusal(monkeypatch, make_job(), "logs", "mserve/facts"),
    }
    assert said == {
        "loading": f"revision {loading.candidate()} is Loading; only one that has passed is promoted",
        "none waits": "ModelServe facts has no revision that waits; what the spec asks for serves",
        "none before": f"no revision before {revision} can be gone back to; status.history names those there are",
        "none live": "ModelServe facts serves no revision yet",
        "held": "ModelServe facts is held, and nothing is done for it: remove its annotation finetune.dev/hold",
        "ended": "FineTuneJob facts has ended: Succeeded; --delete removes it",
        "suspended": "FineTuneJob facts is suspended already; --delete removes it",
        "no such": "no FineTuneJob or ModelServe fcats is in the namespace team; -n names another",
        "other kind": "mserve/facts: this command takes ftj/NAME",
    }


def test_without_a_cluster_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", f"{tmp_path}/none")
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == 2
    assert "no cluster can be reached" in result.output
    assert "set KUBECONFIG or --context" in result.output
