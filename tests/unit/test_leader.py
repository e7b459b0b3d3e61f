"""The election: one holder, judged by one's own clock; lost means dead; released means taken at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tests.fake_cluster import FakeCluster

from finetune_operator.errors import NotLeader, Unavailable
from finetune_operator.leader import LEASE_SECONDS, RETRY_SECONDS, Clock, Elector
from finetune_operator.meta import Key

START = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = Key("Lease", "system", "finetune-operator")


class Time:
    """Time that passes only while everybody sleeps, and then up to the end of the shortest sleep."""

    def __init__(self, everybody: int = 1) -> None:
        self.seconds = 0.0
        self.everybody = everybody
        self.asleep: dict[asyncio.Future[None], float] = {}  # until when

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asleep[woken] = self.seconds + seconds
        self._pass()
        try:
            await woken
        finally:
            self.asleep.pop(woken, None)

    def leave(self, number: int) -> None:
        """So many will not sleep again."""
        self.everybody -= number
        self._pass()

    def _pass(self) -> None:
        if len(self.asleep) == self.everybody:
            first = min(self.asleep, key=self.asleep.__getitem__)
            self.seconds = self.asleep.pop(first)
            first.set_result(None)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.seconds, self.sleep, lambda: START + timedelta(seconds=self.seconds))


class Candidate:
    def __init__(self, cluster: FakeCluster, identity: str, time: Time | None = None) -> None:
        self.time = time or Time()
        self.lost: list[str] = []
        self.elector = Elector(cluster, LEASE, identity, self.lost.append, self.time.clock)


def holder(cluster: FakeCluster) -> str:
    return str(cluster.objects[LEASE]["spec"]["holderIdentity"])


async def test_the_first_takes_the_lease_and_may_write() -> None:
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    with pytest.raises(NotLeader):
        first.elector.check()
    await first.elector.acquire()
    first.elector.check()
    spec = cluster.objects[LEASE]["spec"]
    assert spec == {
        "holderIdentity": "first",
        "leaseDurationSeconds": LEASE_SECONDS,
        "acquireTime": "2026-01-01T00:00:00.000000Z",
        "renewTime": "2026-01-01T00:00:00.000000Z",
        "leaseTransitions": 0,
    }


async def test_a_second_waits_as_long_as_the_lease_is_renewed() -> None:
    cluster, shared = FakeCluster(), Time(everybody=3)  # this test is the third
    first, second = Candidate(cluster, "first", shared), Candidate(cluster, "second", shared)
    await first.elector.acquire()
    holding = asyncio.create_task(first.elector.hold())
    waiting = asyncio.create_task(second.elector.acquire())
    await shared.sleep(10 * LEASE_SECONDS)
    assert not waiting.done()
    assert holder(cluster) == "first"
    assert first.lost == []
    holding.cancel()
    await asyncio.wait([holding])
    shared.leave(2)
    await waiting
    assert holder(cluster) == "second"
    assert cluster.objects[LEASE]["spec"]["leaseTransitions"] == 1
    with pytest.raises(NotLeader):
        first.elector.check()


async def test_clocks_that_differ_change_nothing() -> None:
    """The second's wall clock is far ahead, yet it waits a whole lease by its own monotonic clock."""
    cluster = FakeCluster()
    first, second = Candidate(cluster, "first"), Candidate(cluster, "second")
    await first.elector.acquire()
    second.time.seconds = 1e6
    begin = second.time.seconds
    await second.elector.acquire()
    assert second.time.seconds - begin > LEASE_SECONDS


async def test_a_released_lease_is_taken_at_once() -> None:
    cluster = FakeCluster()
    first, second = Candidate(cluster, "first"), Candidate(cluster, "second")
    await first.elector.acquire()
    await first.elector.release()
    await second.elector.acquire()
    assert second.time.seconds == 0
    with pytest.raises(NotLeader):
        first.elector.check()


async def test_a_process_that_comes_back_in_the_same_pod_need_not_wait() -> None:
    cluster = FakeCluster()
    await Candidate(cluster, "pod").elector.acquire()
    again = Candidate(cluster, "pod")
    await again.elector.acquire()
    assert again.time.seconds == 0


async def test_a_leader_whose_lease_was_taken_is_lost() -> None:
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await first.elector.acquire()
    lease = cluster.objects[LEASE]
    await cluster.replace({**lease, "spec": lease["spec"] | {"holderIdentity": "second"}})
    await first.elector.hold()
    assert first.lost == ["another replica took the lease"]


async def test_a_lost_answer_to_our_own_renewal_is_not_a_lost_lease() -> None:
    cluster = FakeCluster()
    first = Candidate(cluster, "first", Time(everybody=2))
    await first.elector.acquire()
    await cluster.replace(cluster.objects[LEASE])  # as if we had written and never heard back
    holding = asyncio.create_task(first.elector.hold())
    await first.time.sleep(3 * RETRY_SECONDS)
    assert first.lost == []
    holding.cancel()


async def test_a_leader_without_an_answer_is_lost_before_another_may_start() -> None:
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    await first.elector.acquire()

    def fail(_: str) -> None:
        raise Unavailable("connection refused")

    cluster.fail = fail
    await first.elector.hold()
    assert first.lost == ["the lease could not be renewed: connection refused"]
    assert first.time.seconds < LEASE_SECONDS


async def test_while_the_server_is_away_a_candidate_keeps_asking() -> None:
    cluster = FakeCluster()
    first = Candidate(cluster, "first")
    failures = iter(range(5))

    def fail(_: str) -> None:
        if next(failures, None) is not None:
            raise Unavailable("connection refused")

    cluster.fail = fail
    await first.elector.acquire()
    assert first.time.seconds == 5 * RETRY_SECONDS


async def test_a_process_that_was_frozen_may_not_write() -> None:
    first = Candidate(FakeCluster(), "first")
    await first.elector.acquire()
    first.time.seconds += LEASE_SECONDS + 0.1
    with pytest.raises(NotLeader):
        first.elector.check()
