"""The command line, as far as it goes without running a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.unit.test_sentences import DATA, GOOD, write
from typer.testing import CliRunner

from finetune_operator.cli.commands import app
from finetune_operator.cli.words import describe, duration
from finetune_trainer.contract.reports import Progress

MODEL = GOOD.replace("hf://org/model", "pvc://models/tiny")
PRIVATE = GOOD.replace('"hf://org/model"', '"hf://org/model", secretRef: {name: hub}')
FP8 = GOOD.replace(
    "{name: q4, format: GGUF, quantization: Q4_K_M}", "{name: fp8, format: CompressedTensors, quantization: FP8}"
)
VLLM = GOOD + "  evaluation: {engine: VLLM}\n"
BINARY = DATA.replace("\ndata:", "\nbinaryData:").replace('"{}"', "H4sIAAAAAAAC/w==")
SPREAD = "  parallelism: {gpusPerNode: 0, numNodes: 2}\n  storage: {artifacts: {storageClassName: shared}}\n"


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, " ".join(result.output.split())


def test_render_prints_what_the_operator_would_create(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["render", str(write(tmp_path, GOOD + DATA))])
    kinds = [(o["kind"], o["metadata"].get("labels", {}).get("finetune.dev/step")) for o in yaml.safe_load_all(result.output)]
    steps = ("prepare", "train", "merge", "quantize-q4", "evaluate", "evaluate-q4")
    assert kinds == [("PersistentVolumeClaim", None), ("ConfigMap", None), *(("Job", s) for s in steps)]


def test_render_tells_apart_what_does_nothing(tmp_path: Path) -> None:
    text = GOOD.replace("method: LoRA", "method: Full, lora: {rank: 4}") + DATA
    result = CliRunner().invoke(app, ["render", str(write(tmp_path, text))])
    assert result.stderr.startswith("warning: FieldUnused: spec.training.lora.rank does nothing: method Full trains every")
    assert "warning:" not in result.stdout


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        (
            GOOD + BINARY.replace("H4sI", "H4s!"),
            ["--local"],
            "binaryData.train.jsonl of the ConfigMap facts is not base64; write",
        ),
        (GOOD, ["--local"], "no ConfigMap facts is in the file, but the job reads it; add it, or correct the uri"),
        (GOOD + DATA, [], "add --local; in a cluster: kubectl apply -f"),
        (
            GOOD + DATA.replace("train.jsonl", "rows.jsonl"),
            ["--local"],
            "the ConfigMap facts has no key train.jsonl; it has rows.jsonl",
        ),
        (GOOD + SPREAD + DATA, ["--local"], "spec.parallelism.numNodes above 1 needs a cluster; set it to 1"),
        (MODEL + DATA, ["--local"], "the claim models has no folder on this machine; add --claim models=DIRECTORY"),
        (MODEL + DATA, ["--local", "--claim", "models"], "--claim models has no directory; write NAME=DIRECTORY"),
        (MODEL + DATA, ["--local", "--claim", "models=/none"], "/none is not a directory"),
        (PRIVATE + DATA, ["--local", "--secret", "hub"], "--secret hub has no directory; write NAME=DIRECTORY"),
        (PRIVATE + DATA, ["--local", "--secret", "hub=/none"], "/none is not a directory; --secret takes NAME=DIRECTORY, with"),
        (
            PRIVATE + DATA,
            ["--local", "--secret", "hob=/"],
            "--secret hob: no secretRef of the file names it; those that are named: hub",
        ),
        (GOOD + DATA, ["--local", "--python", "quantise=python3"], "--python quantise=python3: write IMAGE=PROGRAM, and of"),
        (FP8 + DATA, ["--local"], "spec.artifacts fp8: CompressedTensors needs llm-compressor, which"),
        (FP8 + DATA, ["--local", "--python", "quantizer=/none"], "--python: /none can't be started: No such file"),
        (FP8 + DATA, ["--local", "--python", "quantizer=/bin/false"], "--python: /bin/false is no Python"),
        (VLLM + DATA, ["--local"], "spec.evaluation.engine VLLM needs vLLM, which"),
    ],
)
def test_a_file_that_can_not_run_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, options: list[str], sentence: str
) -> None:
    (tmp_path / "convert_hf_to_gguf.py").touch()
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    code, output = call("run", write(tmp_path, text), "--workdir", tmp_path / "w", *options)
    assert code == 2
    assert sentence in output


def test_a_machine_without_llama_cpp_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    code, output = call("run", "--local", write(tmp_path, GOOD + DATA), "--workdir", tmp_path / "w")
    assert code == 2
    assert "spec.artifacts q4: GGUF needs llama.cpp, which is not in" in output


def test_progress_in_words() -> None:
    progress = Progress(
        step_name="train", activity="training", step=12, total=40, loss=1.2345, tokens_per_second=812.3, eta_seconds=130
    )
    assert describe(progress) == "training  12/40  loss 1.234  812 tok/s  2m10s left"
    assert describe(Progress(step_name="merge", activity="merging")) == "merging"


@pytest.mark.parametrize(("seconds", "words"), [(8.4, "8s"), (185, "3m05s"), (3720, "1h02m")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
