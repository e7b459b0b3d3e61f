"""What podTemplate says is in the pods of each step, under what a stage says, and never in the place of what is ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.builders import FIT, make_job
from tests.story import SETTINGS, Story

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.pod_template import PodTemplate
from finetune_operator.api.rules import pods
from finetune_operator.finetunejob.runs import written_spec
from finetune_operator.settings import Settings

ZONES = {"topologyKey": "topology.kubernetes.io/zone"}
TEMPLATE = {
    "labels": {"team": "nlp"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "nodeSelector": {"pool": "shared", "zone": "a"},
    "tolerations": [{"key": "pool", "value": "shared"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [ZONES],
    "serviceAccountName": "reader",
    "priorityClassName": "low",
    "runtimeClassName": "nvidia",
    "imagePullSecrets": [{"name": "registry"}],
}


def pod_of(job: dict[str, Any], step: str = "prepare", settings: Settings = SETTINGS) -> dict[str, Any]:
    """The template of a step's pod."""
    story = Story(job, settings=settings)
    story.to_the_end()
    jobs = {b["metadata"]["labels"]["finetune.dev/step"]: b for b in story.created if b["kind"] == "Job"}
    template: dict[str, Any] = jobs[step]["spec"]["template"]
    return template


def test_the_charts_pull_secrets_are_in_every_pod_behind_its_own() -> None:
    settings = replace(SETTINGS, image_pull_secrets="platform,registry")
    assert pod_of(make_job(), settings=settings)["spec"]["imagePullSecrets"] == [{"name": "platform"}, {"name": "registry"}]
    named = pod_of(make_job(podTemplate=TEMPLATE), settings=settings)["spec"]["imagePullSecrets"]
    assert named == [{"name": "registry"}, {"name": "platform"}]
    assert "imagePullSecrets" not in pod_of(make_job())["spec"]


def test_every_field_of_the_allow_list_reaches_the_pod() -> None:
    template = pod_of(make_job(podTemplate=TEMPLATE | {"schedulerName": "volcano"}))
    spec, meta = template["spec"], template["metadata"]
    given = {str(field.alias) for field in PodTemplate.model_fields.values()}
    assert given - set(spec) - set(meta) == set()
    assert meta["labels"]["team"] == "nlp"
    assert meta["labels"]["finetune.dev/step"] == "prepare"
    assert meta["annotations"] == {"sidecar.istio.io/inject": "false"}
    assert spec["tolerations"] == [{"key": "pool", "operator": "Equal", "value": "shared"}]
    (spread,) = spec["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= meta["labels"].items(), "it counts pods of the same job"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]


def test_a_stage_adds_to_it_and_goes_before_it() -> None:
    own = {"nodeSelector": {"zone": "b"}, "tolerations": [{"operator": "Exists"}], "serviceAccountName": "trainer"}
    job = make_job(podTemplate=TEMPLATE, stages={"train": own})
    train, merge = (pod_of(job, step)["spec"] for step in ("train", "merge"))
    assert train["nodeSelector"] == {"pool": "shared", "zone": "b"}
    assert [t.get("key") for t in train["tolerations"]] == ["pool", None]
    assert (train["serviceAccountName"], merge["serviceAccountName"]) == ("trainer", "reader")
    assert merge["nodeSelector"] == TEMPLATE["nodeSelector"]


def test_a_job_that_says_nothing_is_what_it_was_before_there_was_one() -> None:
    assert "annotations" not in pod_of(make_job())["metadata"]
    written = FineTuneJob.model_validate(make_job())
    defaulted = FineTuneJob.model_validate(make_job(podTemplate={}))
    assert written_spec(written) == written_spec(defaulted), "the API server writes defaults into stored jobs"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ({"labels": {"finetune.dev/job": "other"}}, "spec.podTemplate.labels can't begin with finetune.dev/"),
        (
            {"tolerations": [{"operator": "Exists", "value": "x"}]},
            "spec.podTemplate.tolerations[].value goes with operator Equal",
        ),
        ({"topologySpreadConstraints": [ZONES | {"minDomains": 2}]}, "minDomains goes with whenUnsatisfiable DoNotSchedule"),
    ],
)
def test_what_a_pod_could_not_be_is_refused_in_a_template_that_is_handed_over(template: dict[str, Any], sentence: str) -> None:
    (said,) = pods.broken_by(PodTemplate.model_validate(template))
    assert sentence in said


def test_a_step_has_a_memory_limit_that_only_a_fault_reaches() -> None:
    def limit(**spec: Any) -> Any:
        return pod_of(make_job(**spec))["spec"]["containers"][0]["resources"]["limits"]["memory"]

    def stage(**resources: Any) -> Any:
        return {"prepare": {"resources": resources}}

    assert limit() == "8192Mi"
    assert limit(stages=stage(requests={"memory": "4Gi"})) == "16384Mi"
    assert limit(stages=stage(limits={"memory": "3Gi"})) == "3Gi"


@pytest.mark.parametrize(("gpus", "mebibytes"), [(0, 80 * 1024), (1, 8 * 1024)])
def test_training_on_cpus_may_use_twice_what_it_was_estimated_to(gpus: int, mebibytes: int) -> None:
    story = Story(make_job(parallelism={"gpusPerNode": gpus}))
    story.passes()
    fit = FIT.model_copy(update={"predicted_bytes": 40 * 2**30})
    story.succeed_with(story.result("prepare").model_copy(update={"fit": fit}))
    story.passes()
    (train,) = [job for job in story.created if job["metadata"]["labels"].get("finetune.dev/step") == "train"]
    assert train["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] == f"{mebibytes}Mi"
