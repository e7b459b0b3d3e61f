"""The program that a pod runs, as a process: help, SIGTERM, what is imported, progress lines."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract import pod
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.kept_log import PodEnd
from finetune_trainer.contract.reports import Progress, Termination
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.progress import Reporter, make_reporter, serve_metrics

SOURCE = Path(__file__).parents[3] / "trainer_image"


@pytest.fixture
def environment(make_run: Callable[..., RunConfig], tmp_path: Path) -> dict[str, str]:
    """What a pod has, with 20 000 rows, so that prepare takes a while."""
    row = json.dumps({"prompt": "What is it?", "completion": "It is what it is."}) + "\n"
    (tmp_path / "mounts/claims/data/rows.jsonl").write_text(row * 20_000)
    (tmp_path / "run.json").write_text(make_run().model_dump_json(by_alias=True))
    return os.environ | {
        pod.ENV_RUN_FILE: str(tmp_path / "run.json"),
        pod.ENV_MOUNTS: str(tmp_path / "mounts"),
        pod.ENV_SCRATCH: str(tmp_path / "scratch"),
        pod.ENV_TERMINATION_LOG: str(tmp_path / "termination"),
        "PYTHONPATH": str(SOURCE),
    }


def test_help_lists_the_steps() -> None:
    command = [sys.executable, "-m", "finetune_trainer", "--help"]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=True)
    for step in ("prepare", "train", "merge", "quantize-<artifact>", "evaluate", "publish-<n>"):
        assert f"\n  {step} " in done.stdout


def test_rows_that_are_refused_cost_no_import_of_torch(environment: dict[str, str], tmp_path: Path) -> None:
    """It is there to look at a model that is still to be trained, once all else is right."""
    (tmp_path / "mounts/claims/data/rows.jsonl").write_text('{"q": "a"}\n{"q": "b"}\n')
    code = (
        "import sys; from finetune_trainer.__main__ import main; status = main(['prepare'])\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.BAD_DATA, done.stderr


def test_a_pod_keeps_the_log_of_a_step_that_fails(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mounts/claims/data/rows.jsonl").write_text('{"q": "a"}\n{"q": "b"}\n')
    command = [sys.executable, "-m", "finetune_trainer", "prepare"]
    told = environment | {pod.ENV_KEPT_LOG: "log/team/job/r/prepare/1"}
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.BAD_DATA, done.stderr
    kept = tmp_path / "mounts/claims/store/job/log/team/job/r/prepare/1"
    assert (kept / "0.log").read_text().count("prepare stopped: DatasetColumnsUnknown") == 1
    end = PodEnd.model_validate_json((kept / "0.json").read_text())
    assert end.failure is not None
    assert (end.exit_code, end.failure.reason) == (ExitCode.BAD_DATA, "DatasetColumnsUnknown")
    assert end.progress is not None
    assert end.progress.step_name == "prepare"


def test_sigterm_ends_a_step_with_143_and_a_message(environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune_trainer", "prepare"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout is not None
        for line in step.stdout:  # it blocks until the step says what it does
            if json.loads(line)["activity"] == "rendering":
                break
        step.send_signal(signal.SIGTERM)
        assert step.wait(30) == 143
    told = Termination.model_validate_json((tmp_path / "termination").read_text())
    assert told.failure is not None
    assert told.failure.reason == "Terminated"


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_progress_is_throttled_but_news_and_the_end_are_told() -> None:
    stream, now = io.StringIO(), [100.0]
    seen: list[Progress] = []
    report = Reporter(seconds=2, stream=stream, clock=lambda: now[0], on_reading=seen.append)
    for step in range(11):
        report(Progress(step_name="train", activity="training", step=step, total=10, loss=1.0 / (step + 1)))
        now[0] += 0.5
    report(Progress(step_name="train", activity="saving"))
    assert [(line["activity"], line["step"], line["time"]) for line in lines(stream)] == [
        ("training", 0, 100.0),
        ("training", 4, 102.0),
        ("training", 8, 104.0),
        ("training", 10, 105.0),
        ("saving", 0, 105.5),
    ]
    assert len(seen) == 12
    assert "learningRate" not in lines(stream)[0]
    assert Progress.model_validate(lines(stream)[1]).loss == 0.2


def test_other_ranks_are_silent() -> None:
    stream = io.StringIO()
    Reporter(stream=stream, silent=True)(Progress(step_name="train"))
    assert stream.getvalue() == ""


def test_the_same_figures_are_served_to_prometheus() -> None:
    import socket
    import urllib.request

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    record = serve_metrics(port)
    assert record is not None
    record(Progress(step_name="train", step=7, total=40, loss=0.25, time=time.time()))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'finetune_step{step_name="train"} 7.0' in text
    assert 'finetune_loss{step_name="train"} 0.25' in text
    assert "finetune_learning_rate{" not in text


def test_a_port_that_is_taken_stops_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        make_reporter(taken.getsockname()[1], silent=False)(Progress(step_name="train", step=7, total=40))
    told = capsys.readouterr()
    assert "no metrics are served" in told.err
    assert '"step":7' in told.out


def test_other_ranks_of_a_pod_serve_no_metrics() -> None:
    """They share the port of the first, and the pod's readings are told once."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    make_reporter(port, silent=True)
    with socket.socket() as free:
        free.bind(("0.0.0.0", port))
