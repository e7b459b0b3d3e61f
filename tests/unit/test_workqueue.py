"""The queue: each key once, never twice at a time, later where asked, slower after failures."""

from __future__ import annotations

import asyncio

import pytest

from finetune_operator import metrics
from finetune_operator.workqueue import LONGEST_DELAY, TURN, Rank, ShutDown, WorkQueue


class Time:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def queue(time: Time) -> WorkQueue[str]:
    return WorkQueue(clock=time, jitter=lambda: 0.0)


async def waiting(queue: WorkQueue[str], workers: int) -> set[asyncio.Task[str]]:
    """Workers that have asked for a key; one that had to wait for it is not done."""
    tasks = {asyncio.create_task(queue.get()) for _ in range(workers)}
    await asyncio.wait(tasks, timeout=0)
    return tasks


async def empty(queue: WorkQueue[str]) -> bool:
    """Whether nothing is handed out now."""
    (task,) = await waiting(queue, 1)
    handed_out = task.done()
    task.cancel()
    return not handed_out


async def test_keys_come_in_order_and_each_once(queue: WorkQueue[str]) -> None:
    for key in ("a", "b", "a"):
        queue.add(key)
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert await empty(queue)


async def test_a_key_in_work_is_handed_out_again_only_after_it_is_done(queue: WorkQueue[str]) -> None:
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    assert await empty(queue)
    queue.done("a")
    assert await queue.get() == "a"
    queue.done("a")
    assert await empty(queue)


async def test_other_keys_pass_a_key_in_work(queue: WorkQueue[str]) -> None:
    queue.add("a")
    await queue.get()
    queue.add("a")
    queue.add("b")
    assert await queue.get() == "b"


async def test_a_delayed_key_comes_when_its_time_has_come(queue: WorkQueue[str], time: Time) -> None:
    queue.add_after("a", 5)
    assert await empty(queue)
    time.now += 5
    assert await queue.get() == "a"


async def test_the_earliest_of_two_delays_wins_and_an_event_beats_both(queue: WorkQueue[str], time: Time) -> None:
    queue.add_after("a", 50)
    queue.add_after("a", 5)
    queue.add_after("a", 70)
    time.now += 5
    assert await queue.get() == "a"
    queue.done("a")
    time.now += 100
    assert await empty(queue), "the later delays were of the same wish"
    queue.add_after("a", 50)
    queue.add("a")
    assert await queue.get() == "a"
    queue.done("a")
    time.now += 100
    assert await empty(queue), "a pass decides anew when to come back"


async def test_failures_double_the_delay_up_to_a_limit_until_one_pass_goes_well(queue: WorkQueue[str]) -> None:
    assert [queue.add_failed("a") for _ in range(4)] == [0.5, 1.0, 2.0, 4.0]
    assert [queue.add_failed("a") for _ in range(40)][-1] == LONGEST_DELAY
    queue.forget("a")
    assert queue.add_failed("a") == 0.5
    assert queue.add_failed("b", at_least=7) == 7


async def test_jitter_adds_up_to_a_half(time: Time) -> None:
    queue: WorkQueue[str] = WorkQueue(clock=time, jitter=lambda: 1.0)
    assert queue.add_failed("a") == 0.75


async def test_after_shut_down_nothing_is_handed_out(queue: WorkQueue[str]) -> None:
    (worker,) = await waiting(queue, 1)
    queue.add("a")
    assert await worker == "a"
    queue.add("b")
    queue.shut_down()
    with pytest.raises(ShutDown):
        await queue.get()


async def test_many_workers_share_the_keys(queue: WorkQueue[str]) -> None:
    workers = await waiting(queue, 3)
    for key in ("a", "b", "c"):
        queue.add(key)
    assert {await w for w in workers} == {"a", "b", "c"}


async def test_it_tells_how_long_keys_wait_and_are_worked_on(queue: WorkQueue[str], time: Time) -> None:
    def sums() -> tuple[float, float]:
        return metrics.QUEUE_WAITS._sum.get(), metrics.QUEUE_WORKS._sum.get()

    waited, worked = sums()
    queue.add("a")
    time.now += 2
    assert await queue.get() == "a"
    time.now += 3
    assert queue.longest_pass() == 3
    queue.done("a")
    assert queue.longest_pass() == 0
    assert (sums()[0] - waited, sums()[1] - worked) == (2, 3)


async def hand_out(queue: WorkQueue[str], count: int) -> list[str]:
    """So many keys, each given back at once."""
    keys = []
    for _ in range(count):
        keys.append(await queue.get())
        queue.done(keys[-1])
    return keys


async def test_a_key_waits_behind_those_of_the_ranks_before_its_own(queue: WorkQueue[str], time: Time) -> None:
    queue.add("finished", Rank.ROUTINE)
    queue.add("runs", Rank.PROGRESS)
    queue.add("new", Rank.NEW)
    queue.add_after("waits", 5)
    queue.add("has-ended")
    time.now += 5
    assert await hand_out(queue, 5) == ["has-ended", "waits", "new", "runs", "finished"]


async def test_a_key_goes_by_the_first_of_its_ranks_and_comes_once(queue: WorkQueue[str], time: Time) -> None:
    queue.add("a", Rank.NEW)
    queue.add("b", Rank.NEW)
    queue.add("b", Rank.ROUTINE)
    queue.add("b")
    queue.add("b", Rank.NEW)
    assert await hand_out(queue, 2) == ["b", "a"]
    queue.add("a", Rank.ROUTINE)
    queue.add("c", Rank.ROUTINE)
    queue.add_after("c", 0.2)
    time.now += 0.2
    assert await hand_out(queue, 2) == ["c", "a"], "an event of a child comes a moment later"
    assert await empty(queue)


async def test_what_is_due_by_two_ranks_comes_at_the_time_of_each_unless_a_pass_has_begun(
    queue: WorkQueue[str], time: Time
) -> None:
    queue.add_after("a", 30)
    queue.add_after("a", 0.2, Rank.PROGRESS)
    queue.add("b", Rank.NEW)
    time.now += 0.2
    assert await hand_out(queue, 2) == ["b", "a"], "that a look is due later makes it no more urgent now"
    time.now += 100
    assert await empty(queue), "the pass decided anew when to come back"
    queue.add_after("a", 0.2, Rank.PROGRESS)
    queue.add_after("a", 0.3)
    queue.add("b", Rank.NEW)
    time.now += 0.3
    assert await hand_out(queue, 2) == ["a", "b"], "what came while it waited to tell of progress is work"


async def test_a_resync_does_not_take_the_place_of_a_pass_that_is_due(queue: WorkQueue[str], time: Time) -> None:
    queue.add("a", Rank.ROUTINE)
    queue.add_after("b", 0.2)
    queue.add("b", Rank.ROUTINE)
    time.now += 0.2
    assert await hand_out(queue, 2) == ["b", "a"]
    time.now += 100
    assert await empty(queue)


async def test_however_much_is_at_work_the_others_have_their_turns(queue: WorkQueue[str]) -> None:
    for number in range(TURN):
        queue.add(f"work-{number}")
        for rank in (Rank.NEW, Rank.PROGRESS, Rank.ROUTINE):
            queue.add(f"{rank.name}-{number}", rank)
    found = await hand_out(queue, TURN)
    assert [name for name in found if not name.startswith("work")] == ["NEW-0", "PROGRESS-0", "ROUTINE-0"]
