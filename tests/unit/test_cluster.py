"""What an answer to a deletion means, gone, another of the same name, or there still; and lists, which come in pages."""

from __future__ import annotations

from typing import Any, cast

import pytest

from finetune_operator.apiserver import ApiServer, Request
from finetune_operator.claims import CLAIM
from finetune_operator.cluster import PAGE, Cluster
from finetune_operator.decision import Ref
from finetune_operator.errors import Conflict, NotFound
from finetune_operator.meta import Key


class Answers:
    """An API server that answers each deletion with a conflict, and has an object of this uid under the name, or none."""

    def __init__(self, uid: str | None) -> None:
        self.uid = uid

    async def json(self, request: Request) -> Any:
        if request.method == "DELETE":
            raise Conflict("Operation cannot be fulfilled on jobs.batch: the object has been modified")
        if self.uid is None:
            raise NotFound("jobs.batch not found")
        return {"metadata": {"name": "facts-train-1", "uid": self.uid}}


async def delete(uid: str | None) -> None:
    cluster = Cluster(cast(ApiServer, Answers(uid)), lambda: None, "us")
    await cluster.delete("Job", "default", "facts-train-1", "u1")


@pytest.mark.parametrize("there", [None, "u2"])
async def test_what_is_gone_or_another_by_now_needs_no_deletion(there: str | None) -> None:
    await delete(there)


async def test_what_is_there_still_is_to_be_deleted_again() -> None:
    with pytest.raises(Conflict):
        await delete("u1")


class Pages:
    """An API server with three pages of FineTuneJobs, of which it gives no more at once."""

    def __init__(self) -> None:
        self.names = [f"job-{n}" for n in range(2 * PAGE + 1)]

    async def json(self, request: Request) -> Any:
        begin, limit = int(request.query.get("continue", 0)), int(request.query["limit"])
        assert limit == PAGE
        metas = [{"namespace": "default", "name": name, "resourceVersion": "7"} for name in self.names[begin : begin + limit]]
        going_on = {"continue": str(begin + limit)} if begin + limit < len(self.names) else {}
        return {"items": [{"metadata": m} for m in metas], "metadata": {"resourceVersion": "9", **going_on}}


async def test_a_list_comes_page_by_page_so_that_no_answer_is_large() -> None:
    server = Pages()
    cluster = Cluster(cast(ApiServer, server), lambda: None, "us")
    versions, of_list = await cluster.versions("FineTuneJob", "")
    assert versions == {Key("FineTuneJob", "default", name): 7 for name in server.names}
    assert of_list == 9
    pages = [(len(page), version) async for page, version in cluster.pages("FineTuneJob", "", {})]
    assert pages == [(PAGE, "9"), (PAGE, "9"), (1, "9")]


class Asked:
    """An API server that takes whatever is asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def json(self, request: Request) -> Any:
        self.requests.append(request)
        return {"metadata": {}}


async def test_a_note_is_of_one_pod_whoever_wrote_to_it_since() -> None:
    server = Asked()
    await Cluster(cast(ApiServer, server), lambda: None, "us").annotate("Pod", "default", "p", "u1", {"a": "b"})
    (request,) = server.requests
    assert (request.method, request.path) == ("PATCH", "/api/v1/namespaces/default/pods/p")
    assert request.body == {"metadata": {"uid": "u1", "annotations": {"a": "b"}}}


class Claims:
    """An API server that has a claim of any name, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def json(self, request: Request) -> Any:
        self.asked += 1
        metadata = {"name": request.path.rpartition("/")[2], "managedFields": [{"manager": "finetune-operator"}]}
        spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast"}
        return {"kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


async def test_of_a_claim_its_modes_alone_are_remembered_and_equal_ones_once() -> None:
    """Each job has one: whole claims of 1,000 jobs took 7 MB."""
    server = Claims()
    cluster = Cluster(cast(ApiServer, server), lambda: None, "us")
    found = [await cluster.read("default", Ref(CLAIM, name)) for name in ("facts", "facts", "poems")]
    assert server.asked == 2
    assert found[0] == {"kind": "PersistentVolumeClaim", "spec": {"accessModes": ("ReadWriteOnce",)}}
    assert found[2] is found[0]
