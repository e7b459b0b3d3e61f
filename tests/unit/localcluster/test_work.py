"""Work side by side: in the order of its needs, stopped as one, and with a line that tells the truth about what is left."""

from __future__ import annotations

import threading

import pytest
from localcluster import work
from localcluster.builder import share_of
from localcluster.work import Progress, Report, Task


def test_each_task_waits_for_those_of_its_needs_that_are_to_be_done() -> None:
    ended: list[str] = []

    def task(name: str, *needs: str) -> Task:
        return Task(name, 1, lambda _: ended.append(name), needs)

    work.do(
        [
            task("trainer", "packages", "llamacpp"),
            task("packages", "base"),
            task("llamacpp", "base"),
            task("base", "done before"),
        ]
    )
    assert (ended[0], ended[-1]) == ("base", "trainer")
    assert sorted(ended) == ["base", "llamacpp", "packages", "trainer"]


def test_two_that_need_nothing_of_each_other_run_at_once() -> None:
    both = threading.Barrier(2, timeout=10)

    def meet(_: Report) -> None:
        both.wait()

    work.do([Task(name, 1, meet) for name in ("programs", "images")])


def test_where_one_fails_the_others_stop_and_its_error_is_told() -> None:
    begun, failed, stopped = threading.Event(), threading.Event(), []

    def fail(_: Report) -> None:
        assert begun.wait(10)
        failed.set()
        raise ValueError("no such package")

    def go_on(report: Report) -> None:
        begun.set()
        assert failed.wait(10)
        try:
            while True:
                report(None, "")
        except work.Stopped:
            stopped.append("images")
            raise

    never: list[str] = []
    tasks = [
        Task("programs", 1, fail),
        Task("images", 1, go_on),
        Task("cluster", 1, lambda _: never.append("cluster"), ("programs",)),
    ]
    with pytest.raises(ValueError, match="no such package"):
        work.do(tasks)
    assert (stopped, never) == (["images"], [])


TASKS = (Task("kubernetes", 600, lambda _: None), Task("trainer", 200, lambda _: None))


@pytest.mark.parametrize(
    ("shares", "seconds", "left"),
    [
        ({}, 0, 400),  # 800 CPU seconds on two cores
        ({"kubernetes": (0.5, "", 0.0)}, 150, 500 / (420 / 210)),  # at the speed that was guessed
        ({"kubernetes": (0.5, "", 0.0)}, 600, 500 / (420 / 660)),  # the machine is busy: slower
        ({"kubernetes": (1.0, "", 0.0), "trainer": (1.0, "", 0.0)}, 600, 0),
    ],
)
def test_what_is_left_is_guessed_by_the_cores_and_corrected_by_the_speed(
    shares: dict[str, tuple[float | None, str, float]], seconds: float, left: float
) -> None:
    assert Progress(TASKS, 2, 0.0, shares=shares).seconds_left(seconds) == pytest.approx(left)


def test_a_task_that_cannot_say_how_far_it_is_is_never_taken_for_done() -> None:
    progress = Progress(TASKS, 2, 0.0, shares={"trainer": (None, "fetching torch", 100.0)})
    assert progress.done(100) == 0
    assert 0 < progress.done(200) < progress.done(300) < 200
    assert progress.done(100_000) == pytest.approx(0.95 * 200)


def test_the_line_names_what_is_at_hand_and_no_more_what_is_done() -> None:
    shares: dict[str, tuple[float | None, str, float]] = {
        "trainer": (1.0, "", 0.0),
        "kubernetes": (0.5, "1420/2841 packages", 0.0),
    }
    line = Progress(TASKS, 2, 0.0, shares=shares).line(250)
    assert line == "███████████████░░░░░░░░░  62%  2m30s left  kubernetes 1420/2841 packages"


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ("[109/218] Building CXX object src/llama.cpp.o\n", 0.5),
        ("[218/218] Linking CXX executable bin/llama-imatrix\n", 1.0),
        ("[1/2] STEP 8/10: RUN cmake\n", None),
        ("Collecting torch\n", None),
    ],
)
def test_a_compilation_is_followed_by_its_own_count(line: str, share: float | None) -> None:
    assert share_of(line) == share


@pytest.mark.parametrize(("seconds", "words"), [(8.4, "8s"), (185, "3m05s"), (3720, "1h02m")])
def test_durations(seconds: float, words: str) -> None:
    assert work.duration(seconds) == words
