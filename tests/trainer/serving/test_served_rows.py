"""Test rows asked of a real llama.cpp server: it answers as evaluation did, and another model does not."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.trainer.entries import PAIRS, context, prepare, run_of
from tests.trainer.pods import need_llama_cpp
from tests.waiting import wait_for_server

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.pod import ENV_MOUNTS, ENV_TERMINATION_LOG
from finetune_trainer.contract.reports import StepResult, Termination
from finetune_trainer.contract.served_rows import ServedRows
from finetune_trainer.export import llamacpp
from finetune_trainer.serving import ask
from finetune_trainer.serving.endpoint import Endpoint
from finetune_trainer.stages import evaluate

pytestmark = pytest.mark.slow

CONVERTER, SERVER = "convert_hf_to_gguf.py", "bin/llama-server"


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    need_llama_cpp(CONVERTER, SERVER)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, smollm: Path) -> tuple[str, Path]:
    """uri of an evaluation of SmolLM2, which takes the merged model's place, and the folder with the store's claim."""
    root = tmp_path_factory.mktemp("evaluated")
    run = run_of(smollm, root, training={"method": "LoRA", "precision": "FP32", "maxLength": 128})
    prepare(run, root, test=PAIRS)
    at = context(run, "evaluate", root)
    at.keep("merge", smollm, StepResult(step="merge", fingerprint=at.inputs.fingerprint("merge")), {})
    scores = {s.subject: s for s in evaluate.run(at).scores}
    return f"pvc://store/job/evaluate/{scores['merged'].answers}", root / "mounts"


@contextmanager
def llama_server(model: Path, folder: Path) -> Iterator[str]:
    """URL of a llama-server that serves a folder of safetensors, converted, as `facts`."""
    tools, file = llamacpp.folder(), folder / "model.gguf"
    command = [sys.executable, str(tools / CONVERTER), str(model), "--outfile", str(file), "--outtype", "f32"]
    subprocess.run(command, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(tools / SERVER), "--model", str(file), "--alias", "facts", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([*command, "--ctx-size", "512", "--threads", "1"], stdout=log, stderr=log)
    try:
        wait_for_server(server, f"127.0.0.1:{port}", "/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


def asked(url: str, rows: str, mounts: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Termination]:
    """The gate's exit status and report."""
    monkeypatch.setenv(ENV_TERMINATION_LOG, str(folder / "termination"))
    monkeypatch.setenv(ENV_MOUNTS, str(mounts))
    (folder / "prompts.json").write_text(json.dumps([]))
    status = ask.main(["--url", url, "--model", "facts", "--prompts", str(folder / "prompts.json"), "--rows", rows])
    return status, Termination.model_validate_json((folder / "termination").read_text())


def test_the_same_model_reads_the_same_tokens_and_answers_alike(
    evaluated: tuple[str, Path], smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, mounts = evaluated
    with llama_server(smollm, tmp_path) as url:
        status, report = asked(url, rows, mounts, tmp_path, monkeypatch)
    assert (status, report.failure) == (0, None)
    assert report.served_rows is not None
    assert (report.served_rows.asked, report.served_rows.same_token_ids) == (8, 8)
    assert report.served_rows.same_answers >= 7


def test_its_speed_is_told_by_the_tokens_that_the_engine_counts(smollm: Path, tmp_path: Path) -> None:
    with llama_server(smollm, tmp_path) as url:
        streamed = Endpoint(url, "facts", max_tokens=8).stream("Name three colours.", 60)
    assert streamed is not None
    assert streamed.tokens == 8
    assert 0 < streamed.first < streamed.last


def test_another_model_is_refused(
    evaluated: tuple[str, Path], tiny_smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, mounts = evaluated
    with llama_server(tiny_smollm, tmp_path) as url:
        status, report = asked(url, rows, mounts, tmp_path, monkeypatch)
    assert status == ExitCode.VERIFICATION_FAILED
    assert report.failure is not None
    assert report.failure.message.startswith("0 of 8 test rows were answered as in the evaluation")
    assert report.served_rows == ServedRows(asked=8, same_token_ids=8, same_answers=0)
