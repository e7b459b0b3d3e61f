"""The cache: what is newer wins, what is gone stays gone, and children are found by whom they belong to."""

from __future__ import annotations

from typing import Any

from finetune_operator.cache import Children, Own, key_of
from finetune_operator.meta import Object

LABELS = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": "facts"}


def job(version: int, uid: str = "u", name: str = "facts-1", **fields: Any) -> Object:
    metadata = {"name": name, "namespace": "default", "uid": uid, "resourceVersion": str(version), "labels": LABELS}
    return {"kind": "Job", "metadata": metadata, **fields}


def test_only_a_change_of_what_we_read_is_news() -> None:
    children = Children()
    assert children.keep(job(1, status={"active": 1}))
    assert not children.keep(job(2, status={"active": 0, "uncountedTerminatedPods": {}}))
    assert children.version(key_of(job(1))) == 2
    assert children.keep(job(3, status={"startTime": "now"}))
    assert not children.keep(job(2, status={"failed": 1})), "that is old"
    (found,) = children.list("Job", "default", LABELS)
    assert found["status"] == {"startTime": "now"}


def test_that_a_job_will_be_complete_is_no_news_before_it_is() -> None:
    children, announced = Children(), {"type": "SuccessCriteriaMet", "status": "True"}
    assert children.keep(job(1, status={"active": 1}))
    assert children.keep(job(2, status={"active": 0, "conditions": []}))
    assert not children.keep(job(3, status={"succeeded": 1, "conditions": [announced]}))
    assert children.keep(job(4, status={"succeeded": 1, "conditions": [announced, {"type": "Complete", "status": "True"}]}))


def test_what_was_deleted_does_not_come_back_by_a_late_answer() -> None:
    children = Children()
    children.keep(job(1))
    children.drop(key_of(job(1)), "u", 5)
    assert not children.keep(job(4))
    assert children.list("Job", "default", LABELS) == ()
    assert children.keep(job(6, uid="another"))
    children.drop(key_of(job(1)), "u", 7)
    assert len(children.list("Job", "default", LABELS)) == 1, "the new one of that name stays"


def test_what_lost_our_label_is_known_again_once_it_has_it_back() -> None:
    """To a watch by label it was deleted; while it stayed unknown, each pass applied it again, without an end."""
    children = Children()
    children.keep(job(1))
    children.drop(key_of(job(1)), "u", 2)
    assert children.keep(job(3))
    assert len(children.list("Job", "default", LABELS)) == 1


def test_what_is_hidden_comes_back_where_a_watch_still_tells_of_it() -> None:
    children = Children()
    children.keep(job(1))
    children.hide(key_of(job(1)), "u")
    assert children.list("Job", "default", LABELS) == ()
    assert children.keep(job(2))


def test_children_are_found_by_owner_and_namespace_and_all_their_labels() -> None:
    children = Children()
    children.keep(job(1))
    children.keep(job(2, uid="v", name="facts-2"))
    elsewhere = job(3, uid="w")
    elsewhere["metadata"]["namespace"] = "other"
    children.keep(elsewhere)
    assert [j["metadata"]["name"] for j in children.list("Job", "default", LABELS)] == ["facts-1", "facts-2"]
    assert children.list("Pod", "default", LABELS) == ()
    assert children.list("Job", "default", LABELS | {"more": "x"}) == ()
    children.drop(key_of(job(1)), "u", 9)
    assert [j["metadata"]["name"] for j in children.list("Job", "default", LABELS)] == ["facts-2"]


def test_uris_that_serve_or_are_begun_from_are_found_by_their_store() -> None:
    own = Own()

    def ours(kind: str, name: str, **fields: Any) -> None:
        metadata = {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"}
        own.keep({"apiVersion": "finetune.dev/v1alpha1", "kind": kind, "metadata": metadata, **fields})

    live, former = {"modelUri": "s3://b/store/merge/live"}, {"modelUri": "s3://b/store/merge/former"}
    ours("ModelServe", "bot", spec={"model": {"uri": "s3://b/store/merge/wanted"}}, status={"live": live, "history": [former]})
    ours("FineTuneJob", "next", spec={"model": {"uri": "s3://b/store/merge/base"}}, status={"report": "s3://b/store/report/r"})
    ours("FineTuneJob", "apart", spec={"model": {"uri": "s3://b/store-of-others/merge/base"}})
    assert sorted(own.named_below("s3://b/store")) == [f"s3://b/store/merge/{x}" for x in ("base", "former", "live", "wanted")]
