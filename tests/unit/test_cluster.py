"""What an answer to a deletion means: gone, another of the same name, or there still."""

from __future__ import annotations

from typing import Any, cast

import pytest

from finetune_operator.apiserver import ApiServer, Request
from finetune_operator.cluster import Cluster
from finetune_operator.errors import Conflict, NotFound


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
