"""The log of a pod in the artifact store: what is heard of a step, how it goes on, and what becomes of it however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.unit.trainer.contract.test_contract import RUN
from tests.waiting import wait_until

from finetune_trainer import environment
from finetune_trainer.contract import kept_log, pod
from finetune_trainer.contract.kept_log import PodEnd
from finetune_trainer.contract.reports import Failure, Progress, Termination
from finetune_trainer.reporting.log import LONGEST_LINE, STDERR, STDOUT, Heard, _in_time

PLACE = "log/team/job/r1/train/2"
STORE = Path("mounts/claims/store/job")


def heard(*chunks: tuple[int, bytes], limit: int = 100) -> Heard:
    made = Heard(limit)
    for stream, chunk in chunks:
        made.hear(stream, chunk)
    made.end()
    return made


def test_the_folder_of_an_attempt_stays_where_logs_of_before_lie() -> None:
    assert kept_log.folder("team", "job", "r1", "train", 2) == PLACE


def test_both_streams_are_woven_line_by_line() -> None:
    both = heard((STDOUT, b"half a "), (STDERR, b"warning\nan"), (STDOUT, b"line\n"), (STDERR, b" end"))
    assert both.text == b"warning\nhalf a line\nan end\n"
    assert both.left_out == 0


@pytest.mark.parametrize("chunk", [1, 7, 30, 1000])
def test_the_last_lines_are_kept_whole_within_the_limit(chunk: int) -> None:
    said = b"".join(b"line %03d\n" % n for n in range(200))
    kept = heard(*((STDOUT, said[i : i + chunk]) for i in range(0, len(said), chunk)))
    assert kept.text == said[-99:]
    assert kept.left_out == len(said) - 99


def test_a_bar_that_never_ends_its_line_takes_no_memory_for_ever() -> None:
    bar = Heard(1000)
    for _ in range(40):
        bar.hear(STDERR, b"\r 50%" * (LONGEST_LINE // 10))
    assert max(len(line) for line in bar._open.values()) <= 2 * LONGEST_LINE
    bar.end()
    assert 0 < len(bar.text) <= 1000


def test_the_last_progress_is_known_though_its_line_is_not_kept() -> None:
    lines = [Progress(step_name="train", step=step, total=9).model_dump_json(by_alias=True) for step in (3, 4)]
    said = "\n".join([*lines, *("noise" * 5 for _ in range(20)), '{"kind":"progress","step": 5', ""])
    assert heard((STDOUT, said.encode())).progress == Progress(step_name="train", step=4, total=9)
    assert heard((STDOUT, b"nothing of the kind\n")).progress is None


# ── In a pod ──────────────────────────────────────────────────────────────────────────────────────────────────────────


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a pod's first process, whose step is the given program."""
    (tmp_path / "run.json").write_text(json.dumps({**RUN, "store": {"uri": "pvc://store/job"}}))
    secret = tmp_path / "mounts/secrets/store"
    secret.mkdir(parents=True)
    (secret / "AWS_SECRET_ACCESS_KEY").write_text("hush-hush\n")
    variables = {
        pod.ENV_RUN_FILE: str(tmp_path / "run.json"),
        pod.ENV_MOUNTS: str(tmp_path / "mounts"),
        pod.ENV_TERMINATION_LOG: str(tmp_path / "termination"),
        pod.ENV_KEPT_LOG: PLACE,
        "WANDB_API_KEY": "psst-psst",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONUNBUFFERED": "1",
    }
    with ExitStack() as made:

        def started(program: str, **told: str) -> subprocess.Popen[str]:
            command, pipe = [sys.executable, "-c", FOLLOWED + program], subprocess.PIPE
            process = subprocess.Popen(command, env=os.environ | variables | told, stdout=pipe, stderr=pipe, text=True)
            made.enter_context(process)
            made.callback(process.kill)
            return process

        yield started


FOLLOWED = """
import os, signal, subprocess, sys
from finetune_trainer import environment
from finetune_trainer.reporting import log
status = log.follow(environment.read())
if status is not None:
    sys.stdout.flush()
    os._exit(status)
"""


def kept(tmp_path: Path, index: int = 0) -> tuple[str, PodEnd]:
    place = tmp_path / STORE / PLACE
    end = PodEnd.model_validate_json((place / f"{index}.json").read_text())
    return (place / f"{index}.log").read_text(), end


def test_a_step_that_fails_leaves_its_log_and_how_it_ended(start: Start, tmp_path: Path) -> None:
    told = Termination(failure=Failure(reason="Hang", message="no step")).model_dump_json(by_alias=True)
    (tmp_path / "termination").write_text(told)
    line = Progress(step_name="train", step=4, total=9).model_dump_json(by_alias=True)
    process = start(f"print({line!r}); print('key hush-hush of psst-psst', file=sys.stderr); os._exit(23)")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (23, f"{line}\n", "key hush-hush of psst-psst\n"), "kubectl logs shows all of it"
    text, end = kept(tmp_path)
    assert sorted(text.splitlines()) == sorted([line, "key *** of ***"])
    assert end == PodEnd(
        exit_code=23,
        failure=Failure(reason="Hang", message="no step"),
        progress=Progress(step_name="train", step=4, total=9),
    )


def test_each_pod_of_an_attempt_has_a_log_of_its_own(start: Start, tmp_path: Path) -> None:
    assert start("print('first')").wait(60) == 0
    assert start("print('second')", **{pod.ENV_NODE_RANK: "1"}).wait(60) == 0
    assert [kept(tmp_path, index)[0] for index in (0, 1)] == ["first\n", "second\n"]


def test_what_is_killed_leaves_what_it_had_said(start: Start, tmp_path: Path) -> None:
    process = start("print('so far'); os.kill(os.getpid(), signal.SIGKILL)")
    assert process.wait(60) == 137
    assert kept(tmp_path) == ("so far\n", PodEnd(exit_code=137))


def test_sigterm_reaches_the_step_which_ends_as_it_wants(start: Start, tmp_path: Path) -> None:
    program = """
def stop(*_):
    print('saved', flush=True)
    os._exit(30)
signal.signal(signal.SIGTERM, stop)
print('ready', flush=True)
while True:
    signal.pause()
"""
    process = start(program)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 30
    assert kept(tmp_path)[0] == "ready\nsaved\n"


def test_a_pod_with_no_time_left_keeps_nothing_rather_than_its_exit_status_late(start: Start, tmp_path: Path) -> None:
    program = "signal.signal(signal.SIGTERM, lambda *_: os._exit(30)); print('ready', flush=True)\nwhile True: signal.pause()"
    process = start(program, **{pod.ENV_GRACE_SECONDS: "0"})
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 30
    assert not (tmp_path / STORE).exists()


def test_a_process_that_stays_behind_holds_up_nobody(start: Start, tmp_path: Path) -> None:
    program = "behind = subprocess.Popen(['sleep', '600']); print(behind.pid, flush=True); os._exit(0)"
    process = start(program)
    assert process.stdout is not None
    behind = int(process.stdout.readline())
    try:
        assert process.wait(20) == 0
        assert kept(tmp_path)[0] == f"{behind}\n"
    finally:
        os.kill(behind, signal.SIGKILL)


def test_a_step_whose_watcher_is_killed_does_not_go_on_unheard(start: Start) -> None:
    process = start("print(os.getpid(), flush=True)\nwhile True: signal.pause()")
    assert process.stdout is not None
    step = int(process.stdout.readline())
    process.kill()
    process.wait(10)
    wait_until("the step is gone", lambda: is_gone(step))


def is_gone(process: int) -> bool:
    """Whether it has ended; somebody may still have to read its status."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_store_that_does_not_take_it_costs_the_log_alone(start: Start, tmp_path: Path) -> None:
    (tmp_path / "mounts/claims").mkdir(parents=True)
    (tmp_path / "mounts/claims/store").write_text("no folder")
    process = start("print('done')")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "the log is not kept: " in err


def waits(event: threading.Event) -> None:
    event.wait()


def test_a_store_that_does_not_answer_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    never = threading.Event()
    _in_time(lambda: waits(never), 0.01)
    never.set()
    assert capsys.readouterr().out == ""


def test_words_that_are_hidden_are_whole_and_long_enough(tmp_path: Path) -> None:
    folder = tmp_path / "secrets/model"
    folder.mkdir(parents=True)
    (folder / "HF_TOKEN").write_text("hf_abcdef\n")
    (folder / "key.json").write_text('{\n  "id": "hf_abcdef-longer"\n}\n')
    told = {pod.ENV_MOUNTS: str(tmp_path), "MY_PASSWORD": "short", "HTTPS_PROXY": "http://me:word@proxy", "PATH": "/usr/bin"}
    assert environment.hidden(told) == ['"id": "hf_abcdef-longer"', "http://me:word@proxy", "hf_abcdef"]
