"""A LocalQueue by name: what a read of it comes to, and for how long that holds."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from finetune_operator.apiserver import Request
from finetune_operator.errors import Forbidden, NotFound
from finetune_operator.kueue import NOT_SERVED
from finetune_operator.queues import local_queue
from finetune_operator.remembered import ABSENT_SECONDS, MOST, THERE_SECONDS, Remembered

GROUP = {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}}
PATH = "/apis/kueue.x-k8s.io/v1beta2/namespaces/team/localqueues/gpus"


class FakeApi:
    """Answers by path; what is not there is NotFound, and what is `closed` Forbidden."""

    def __init__(self, answers: dict[str, Any], closed: str | None = None) -> None:
        self.answers, self.closed = answers, closed
        self.asked: list[str] = []

    async def json(self, request: Request) -> Any:
        self.asked.append(request.path)
        if request.path == self.closed:
            raise Forbidden(request.path)
        if request.path not in self.answers:
            raise NotFound(request.path)
        return self.answers[request.path]


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def queues(api: FakeApi, clock: Clock | None = None) -> Remembered:
    return Remembered(partial(local_queue, api), clock or Clock())  # type: ignore[arg-type]


async def test_it_is_read_in_the_version_that_kueue_prefers() -> None:
    there = {"kind": "LocalQueue", "metadata": {"name": "gpus"}}
    found = queues(FakeApi({"/apis/kueue.x-k8s.io": GROUP, PATH: there}))
    assert await found.find("team", "gpus") == there
    assert await found.find("team", "others") is None


async def test_a_cluster_without_kueue_is_told_from_a_queue_that_is_missing() -> None:
    assert await queues(FakeApi({})).find("team", "gpus") == NOT_SERVED


@pytest.mark.parametrize("closed", ["/apis/kueue.x-k8s.io", PATH])
async def test_what_may_not_be_read_is_taken_as_there(closed: str) -> None:
    found = await queues(FakeApi({"/apis/kueue.x-k8s.io": GROUP}, closed)).find("team", "gpus")
    assert found is not None
    assert found != NOT_SERVED


async def test_a_thousand_jobs_in_one_queue_ask_once_and_a_queue_that_was_made_is_seen_soon() -> None:
    api, clock = FakeApi({"/apis/kueue.x-k8s.io": GROUP}), Clock()
    found = queues(api, clock)
    for _ in range(1000):
        assert await found.find("team", "gpus") is None
    assert len(api.asked) == 2
    api.answers[PATH] = {"kind": "LocalQueue"}
    clock.seconds += ABSENT_SECONDS
    for _ in range(1000):
        assert await found.find("team", "gpus") == {"kind": "LocalQueue"}
    clock.seconds += THERE_SECONDS - 1
    await found.find("team", "gpus")
    assert len(api.asked) == 4


async def test_so_many_queues_are_remembered_and_no_more() -> None:
    api = FakeApi({"/apis/kueue.x-k8s.io": GROUP})
    found = queues(api)
    for number in range(MOST + 1):
        await found.find("team", str(number))
    api.asked.clear()
    await found.find("team", str(MOST))
    assert api.asked == []
    await found.find("team", "0")
    assert api.asked != []
