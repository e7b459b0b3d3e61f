"""A job that hands its adapter to a ModelServe which serves its base model: one entry, and nothing else of that ModelServe."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import SERVING, make_job
from tests.story import Story

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejob_status import ServingStatus
from finetune_operator.cache import Own
from finetune_operator.decision import Apply, Ref
from finetune_operator.finetunejob import adapter_handover, handover
from finetune_operator.finetunejob.handed import Stand, fingerprint
from finetune_operator.meta import Key, Object

SHARED, TO_SHARED = Ref("ModelServe", "shared"), {"adapterOf": "shared"}
OTHER = {"name": "other", "jobRef": {"name": "other"}}


def trained(**serving: Any) -> Story:
    """A job that has trained an adapter and is about to hand it over."""
    story = Story(make_job(training={"method": "LoRA"}, serving=TO_SHARED | serving))
    story.space.named[SHARED] = shared()
    story.to_the_end()
    return story


def shared(*adapters: Object, **spec: Any) -> Object:
    fields = {"model": {"uri": "pvc://models/base"}, "lora": {"maxRank": 16}, "adapters": [OTHER, *adapters], **spec}
    return {"kind": "ModelServe", "metadata": {"name": "shared", "generation": 1}, "spec": fields}


def wanted(story: Story) -> Apply:
    (action,) = story.decide().actions
    assert isinstance(action, Apply)
    return action


def tell(story: Story, state: str, **fields: Any) -> None:
    """The ModelServe has the entry, and its operator tells of it."""
    (entry,) = wanted(story).body["spec"]["adapters"]
    told = {"name": entry["name"], "digest": entry["digest"], "state": state, **fields}
    story.space.named[SHARED] = shared(entry) | {"status": {"adapters": [told], "url": "http://shared/v1"}}


def test_one_entry_is_handed_over_as_its_own_managers() -> None:
    story = trained(name="tickets")
    action = wanted(story)
    assert story.job["status"]["resolved"]["servingArtifact"] == "adapter"
    assert action.body["metadata"] == {"name": "shared", "namespace": story.job["metadata"]["namespace"]}
    assert (action.body["apiVersion"], action.body["kind"]) == ("finetune.dev/v1alpha1", "ModelServe")
    assert set(action.body["spec"]) == {"adapters"}
    (entry,) = action.body["spec"]["adapters"]
    assert entry["name"] == "tickets"
    assert set(entry) <= {"name", "uri", "digest", "evaluation"}
    assert entry["digest"].startswith("sha256:")
    assert action.manager == "finetune-operator.facts"


def test_a_model_is_handed_over_as_the_operators() -> None:
    story = Story(make_job(serving=SERVING))
    story.to_the_end()
    assert wanted(story).manager == "finetune-operator"


def test_the_job_has_succeeded_once_its_adapter_answers() -> None:
    story = trained()
    assert story.conditions()["Reconciling"] == ("True", "Serving")
    tell(story, "Gating")
    story.passes()
    waits = "the ModelServe shared tries the adapter facts"
    assert [c["message"] for c in story.job["status"]["conditions"] if c["type"] == "Reconciling"] == [waits]
    served = story.space.named[SHARED]
    assert served is not None
    served["status"]["adapters"][0]["message"] = "pods load it"
    story.passes()
    assert [c["message"] for c in story.job["status"]["conditions"] if c["type"] == "Reconciling"] == [f"{waits}; pods load it"]
    assert "Succeeded" not in story.conditions()
    assert story.job["status"]["serving"]["ready"] is False
    served["status"]["adapters"][0]["state"] = "Live"
    assert story.passes() == []
    assert story.conditions()["Succeeded"] == ("True", "Succeeded")
    given = story.job["status"]["serving"]
    assert (given["name"], given["ready"], given["url"]) == ("shared", True, "http://shared/v1")


def test_what_the_model_serve_says_of_a_refused_one_is_told() -> None:
    story = trained()
    tell(story, "Refused", message="its rank is 64, and there is room for 16")
    story.passes()
    assert story.conditions()["Stalled"] == ("True", "ServingRefused")
    (message,) = [c["message"] for c in story.job["status"]["conditions"] if c["type"] == "Stalled"]
    assert "its rank is 64" in message


def test_what_another_digest_of_that_name_came_to_is_no_verdict() -> None:
    story = trained()
    tell(story, "Refused", digest="sha256:" + "0" * 64)
    story.passes()
    assert "Stalled" not in story.conditions()


@pytest.mark.parametrize(("found", "said"), [(None, "does not exist"), (shared(lora=None), "has no room for adapters")])
def test_where_there_is_no_room_nothing_is_written(found: Object | None, said: str) -> None:
    story = trained()
    if found is not None:
        del found["spec"]["lora"]
    story.space.named[SHARED] = found
    assert story.passes() == []
    (message,) = [c["message"] for c in story.job["status"]["conditions"] if c["type"] == "Stalled"]
    assert said in message


def test_an_entry_that_somebody_took_out_since_is_not_put_back() -> None:
    story = trained()
    tell(story, "Live")
    story.passes()
    story.space.named[SHARED] = shared()
    assert story.passes() == []
    assert story.conditions()["Succeeded"] == ("True", "Succeeded")
    assert story.job["status"]["serving"]["ready"] is False


def test_an_adapter_of_another_training_is_handed_over_anew() -> None:
    story = trained()
    tell(story, "Live")
    story.passes()
    story.edit(training={"method": "LoRA", "learningRate": 0.5})
    story.to_the_end()
    (entry,) = wanted(story).body["spec"]["adapters"]
    served = story.space.named[SHARED]
    assert served is not None
    assert entry["uri"] != served["spec"]["adapters"][1]["uri"]


ENTRY = {"name": "tickets", "uri": "pvc://a/b", "digest": "sha256:" + "a" * 64}
WANTED = {"metadata": {"name": "shared"}, "spec": {"adapters": [ENTRY]}}


def test_an_entry_that_nobody_tells_of_yet_is_tried_and_one_that_was_there_was_taken_out() -> None:
    assert adapter_handover.judge(WANTED, None, shared(ENTRY)).message == "the ModelServe shared tries the adapter tickets"
    assert adapter_handover.judge(WANTED, None, shared()).stand is Stand.WAITING
    handed = ServingStatus(name="shared", handed_over=fingerprint(WANTED))
    found = adapter_handover.judge(WANTED, handed, shared())
    assert (found.stand, found.apply) == (Stand.SUPERSEDED, None)
    assert found.message == "the ModelServe shared was then given another tickets, or none"


def test_what_another_model_serve_was_given_says_nothing_of_this_one() -> None:
    other, same = (ServingStatus(name=name, digest="sha256:b", handed_over="h") for name in ("other", "shared"))
    told = [adapter_handover.stands("shared", last, None, None) for last in (other, same, None)]
    assert [(one.digest, one.handed_over) for one in told] == [(None, None), ("sha256:b", "h"), (None, None)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"training": {"method": "Full"}}, "spec.training.method Full trains none"),
        ({"serving": TO_SHARED | {"template": {"engine": {"type": "VLLM"}}}}, "goes without template"),
        ({"serving": TO_SHARED | {"artifact": "merged"}}, "goes without artifact"),
        ({"serving": TO_SHARED | {"deletionPolicy": "Delete"}}, "goes without deletionPolicy Delete"),
    ],
)
def test_what_does_not_go_with_it_is_refused_before_anything_is_trained(fields: Object, said: str) -> None:
    spec = {"training": {"method": "LoRA"}, "serving": TO_SHARED, **fields}
    (problem,) = handover.problems(FineTuneJob.model_validate(make_job(**spec)).spec)
    assert said in problem


def test_a_model_serve_wakes_the_jobs_that_hand_it_their_adapters() -> None:
    own, job = Own(), make_job(serving=TO_SHARED)
    job["metadata"]["resourceVersion"] = "1"
    own.keep(job)
    space = job["metadata"]["namespace"]
    body = shared()
    body["metadata"]["namespace"] = space
    assert own.related(Key("ModelServe", space, "shared"), body) == [
        Key("FineTuneJob", space, "other"),
        Key("FineTuneJob", space, "facts"),
    ]
