"""Profiles fill in what a spec leaves open; what is not offered is refused in one sentence that says what is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.builders import make_job
from tests.serving import Stage, make_serve
from tests.story import SETTINGS, Story

from finetune_operator.platforms import Platform
from finetune_operator.settings import Settings, read_settings

A100 = {
    "images": {"trainer": "registry/trainer:a100", "llamacpp": "registry/llama:a100"},
    "nodeSelector": {"gpu": "a100", "zone": "a"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "storageClassName": "fast",
    "queueName": "a100s",
}
ALLOWED = {
    "images": ["registry/team/*"], "serviceAccounts": ["trainer"], "storage": ["s3://team-*"], "storageClasses": ["fast"],
}  # fmt: skip


def having(**platform: Any) -> Settings:
    return replace(SETTINGS, platform=Platform.model_validate(platform))


def created(story: Story, kind: str) -> list[dict[str, Any]]:
    return [body for body in story.created if body["kind"] == kind]


def test_a_jobs_profile_fills_in_what_its_spec_leaves_open() -> None:
    spec: dict[str, Any] = {
        "profile": "a100",
        "podTemplate": {"nodeSelector": {"zone": "b"}},
        "scheduling": {"queuedStages": "All"},
    }
    story = Story(make_job(**spec), settings=having(profiles={"a100": A100}))
    story.passes(2)
    (claim,), (prepare,) = created(story, "PersistentVolumeClaim"), created(story, "Job")
    pod = prepare["spec"]["template"]["spec"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert pod["containers"][0]["image"] == "registry/trainer:a100"
    assert pod["nodeSelector"] == {"gpu": "a100", "zone": "b"}
    assert pod["tolerations"] == A100["tolerations"]
    assert prepare["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "a100s"


def test_a_changed_profile_leaves_a_job_that_has_succeeded_alone() -> None:
    story = Story(make_job(profile="a100"), settings=having(profiles={"a100": A100 | {"queueName": None}}))
    story.to_the_end()
    story.settings = having(profiles={"a100": {"nodeSelector": {"gpu": "other"}}})
    assert story.passes(3) == []
    assert story.conditions()["Succeeded"][0] == "True"


def test_a_serves_profile_places_its_pods_and_names_its_engine() -> None:
    serve = make_serve()
    serve["spec"]["profile"] = "a100"
    stage = Stage(serve)
    stage.settings = having(profiles={"a100": A100})
    stage.roll_out()
    (deployed,) = stage.of("Deployment")
    pod = deployed["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry/llama:a100"
    assert pod["nodeSelector"] == A100["nodeSelector"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"profile": "h100"}, "spec.profile h100 is not one of the operator's profiles; those there are: a100, b200"),
        ({"stages": {"train": {"image": "other/x"}}}, "spec.stages.train.image: the image other/x is not allowed in this"),
        (
            {"stages": {"merge": {"serviceAccountName": "admin"}}},
            "spec.stages.merge.serviceAccountName: the service account admin is not allowed",
        ),
        ({"podTemplate": {"serviceAccountName": "admin"}}, "serviceAccountName: the service account admin is not allowed"),
        (
            {"storage": {"artifacts": {"uri": "s3://mine/x"}}},
            "artifacts.uri: the place s3://mine/x is not allowed",
        ),
        (
            {"storage": {"artifacts": {"storageClassName": "slow"}}},
            "spec.storage.artifacts.storageClassName: the storage class slow is not allowed in this cluster;",
        ),
        ({"publish": [{"uri": "pvc://a/b"}]}, "spec.publish[0].uri: the place pvc://a/b is not allowed"),
        (
            {"serving": {"template": {"engine": {"type": "LlamaCpp", "image": "other/y"}}}},
            "spec.serving.template: spec.engine.image: the image other/y is not allowed",
        ),
        (
            {"serving": {"template": {"engine": {"type": "LlamaCpp"}, "podTemplate": {"serviceAccountName": "admin"}}}},
            "spec.serving.template: spec.podTemplate.serviceAccountName: the service account admin is not allowed",
        ),
    ],
)
def test_what_is_not_offered_is_refused_before_anything_runs(spec: dict[str, Any], sentence: str) -> None:
    settings = having(profiles={"b200": {}, "a100": A100}, allowed=ALLOWED)
    story = Story(make_job(**spec), settings=settings)
    assert story.passes(3) == []
    (stalled,) = (c for c in story.job["status"]["conditions"] if c["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "InvalidSpec")
    assert sentence in stalled["message"]


def test_a_job_that_names_what_is_allowed_runs() -> None:
    stages = {"prepare": {"image": "registry/team/x", "serviceAccountName": "trainer"}}
    story = Story(make_job(stages=stages, storage={"artifacts": {"uri": "s3://team-a/x"}}), settings=having(allowed=ALLOWED))
    assert story.passes(2)[-1] == "job prepare"


def test_a_template_that_no_model_serve_can_have_is_for_admission_to_refuse() -> None:
    story = Story(make_job(serving={"template": {"engine": {"type": "Abacus"}}}), settings=having(allowed=ALLOWED))
    story.passes(2)
    assert story.conditions()["Stalled"] == ("True", "InvalidSpec")


def test_a_serve_that_asks_for_what_is_not_offered_goes_on_as_it_is() -> None:
    stage = Stage(make_serve())
    stage.roll_out()
    live = stage.live()
    stage.serve["spec"]["engine"]["image"] = "other/x"
    stage.settings = having(allowed=ALLOWED)
    stage.settle()
    assert stage.revisions() == {stage.live()} == {live}
    assert stage.conditions()["Stalled"] == ("True", "NotOffered")
    assert "allowed are registry/team/*: take one of these" in stage.message("Stalled")
    assert stage.conditions()["Available"][0] == "True"


def test_the_charts_values_come_as_json_and_a_wrong_one_is_named() -> None:
    settings = read_settings({"FINETUNE_PLATFORM": json.dumps({"profiles": {"a100": A100}, "allowed": ALLOWED})})
    assert settings.under_profile("a100").llamacpp_image == "registry/llama:a100"
    assert settings.under_profile("a100").vllm_image == settings.under_profile(None).vllm_image == settings.vllm_image
    with pytest.raises(ValueError, match=r"FINETUNE_PLATFORM: profiles\.a100\.nodes: Extra inputs are not permitted"):
        read_settings({"FINETUNE_PLATFORM": json.dumps({"profiles": {"a100": {"nodes": {}}}})})
