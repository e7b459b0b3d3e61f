"""What an answer to a deletion means, lists, which come in pages, notes on pods, and what is remembered of claims."""

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
    """An API server that answers each deletion so, and nothing else: few kinds may be read by name."""

    def __init__(self, answer: Exception) -> None:
        self.answer = answer

    async def json(self, request: Request) -> Any:
        assert request.method == "DELETE"
        raise self.answer


async def delete(answer: Exception) -> None:
    cluster = Cluster(cast(ApiServer, Answers(answer)), lambda: None, "us")
    await cluster.delete("Deployment", "default", "bot-1", "u1")


async def test_what_is_gone_needs_no_deletion() -> None:
    await delete(NotFound("deployments.apps not found"))


async def test_what_may_be_there_still_is_looked_at_again() -> None:
    with pytest.raises(Conflict):
        await delete(Conflict("Operation cannot be fulfilled on deployments.apps: the object has been modified"))


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
