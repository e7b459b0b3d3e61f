"""Quantized safetensors: made as the pods make them, proven against the merged model, read back by the evaluation."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils.integrations import dequantize_bnb_weight
from safetensors.torch import load_file, save_file
from tests.trainer.entries import PAIRS, context, prepare
from tests.trainer.pods import SOURCE, in_a_pod, python_of
from transformers import AutoTokenizer

from finetune_trainer.contract import adapters
from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Method
from finetune_trainer.data import rendered
from finetune_trainer.data.rendered import Rendered
from finetune_trainer.export import calibration, compression
from finetune_trainer.failures import StepFailed
from finetune_trainer.model.compute import Compute
from finetune_trainer.model.loading import load_base
from finetune_trainer.stages import evaluate, merge, quantize, train

MakeRun = Callable[..., RunConfig]
PROOFS = ["tokenIds", "template", "divergence", "topToken", "perplexityRatio"]
FP8 = {"name": "fp8", "format": "CompressedTensors", "quantization": "FP8"}
W4 = {"name": "w4", "format": "CompressedTensors", "quantization": "W4A16"}
AWQ = {"name": "awq", "format": "CompressedTensors", "quantization": "AWQ"}
NF4 = {"name": "nf4", "format": "BitsAndBytes", "quantization": "NF4"}


@pytest.fixture(scope="session")
def quantizer() -> Path:
    """Python with what the quantizer's image holds."""
    return python_of("quantizer", "quantizer")


def merged(make_run: MakeRun, tmp_path: Path, *artifacts: dict[str, str]) -> RunConfig:
    """A run up to a merged model, which learned its rows by heart."""
    training = {"method": "Full", "precision": "FP32", "maxSteps": 30, "globalBatchSize": 8, "maxLength": 128}
    models = tmp_path / "mounts/claims/models"
    shutil.copytree(models / "tiny", models / "licensed")
    (models / "licensed/LICENSE").write_text("Apache License 2.0")
    run = make_run(
        model={"uri": "pvc://models/licensed"},
        training=training | {"learningRate": 3e-3},
        artifacts=artifacts,
        generation={"maxNewTokens": 12},
    )
    prepare(run, tmp_path, test=PAIRS)
    train.run(context(run, "train", tmp_path))
    merge.run(context(run, "merge", tmp_path))
    return run


@pytest.mark.slow
def test_every_format_answers_as_the_merged_model(make_run: MakeRun, tmp_path: Path, quantizer: Path) -> None:
    run = merged(make_run, tmp_path, FP8, W4, AWQ, NF4)
    notes = {}
    log = in_a_pod(quantizer, run, ("quantize-fp8", "quantize-w4", "quantize-awq"), tmp_path)
    assert "Smoothing" not in log  # nor thousands of other bars in the pod's log
    quantize.run(context(run, "quantize-nf4", tmp_path))
    at = context(run, "evaluate", tmp_path)
    for name in ("fp8", "w4", "awq", "nf4"):
        manifest, folder = at.inputs.output(f"quantize-{name}")
        notes[name] = {k: v for k, v in manifest.inputs.items() if k != "merge"}
        assert [check.name for check in manifest.checks] == PROOFS
        whole = {"README.md", "LICENSE", "chat_template.jinja", "config.json", "model.safetensors"}
        assert whole <= {p.name for p in folder.iterdir()}
    assert notes == {
        "fp8": {"scheme": "FP8_DYNAMIC"},
        "w4": {"scheme": "W4A16 by GPTQ", "groupSize": "128", "calibrationRows": "8"},
        "awq": {"scheme": "W4A16_ASYM by AWQ", "groupSize": "128", "calibrationRows": "8"},
        "nf4": {"scheme": "NF4, double quantized"},
    }
    base, dense, *quantized = evaluate.run(at).scores
    assert [scores.subject for scores in quantized] == ["fp8", "w4", "awq", "nf4"]
    for scores in quantized:
        assert scores.values[Metric.LOSS] < base.values[Metric.LOSS] / 2
        assert scores.values[Metric.LOSS] == pytest.approx(dense.values[Metric.LOSS], abs=0.3), scores.subject


def test_an_artifact_that_answers_otherwise_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = merged(make_run, tmp_path, NF4)
    at = context(run, "quantize-nf4", tmp_path)
    _, dense = at.inputs.output("merge")
    assert (dense / "LICENSE").read_text() == "Apache License 2.0"
    assert "| licence | the base model's, in LICENSE |" in (dense / "README.md").read_text()
    folder = at.scratch / "made"
    compression.make(at, run.artifacts[0], dense, folder)
    assert compression.prove(at, run.artifacts[0], dense, folder)
    file = folder / "model.safetensors"
    damaged = {n: t.flip(0) if n.endswith("down_proj.weight") else t for n, t in load_file(file).items()}
    file.unlink()
    save_file({n: t.contiguous() for n, t in damaged.items()}, file, metadata={"format": "pt"})
    with pytest.raises(StepFailed, match="the artifact nf4 answers unlike the merged model") as failed:
        compression.prove(at, run.artifacts[0], dense, folder)
    assert failed.value.exit_code is ExitCode.VERIFICATION_FAILED


def test_what_was_trained_on_nf4_is_not_undone_where_it_is_rounded_to_nf4_again(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes of a fortieth of the weights' size, over weights that lie on NF4's own values, as a merge leaves them."""
    base, merged = tmp_path / "mounts/claims/models/tiny", tmp_path / "merged"
    cpu = Compute("cpu", torch.bfloat16)
    rounded, network = load_base(base, Method.QLORA, cpu), load_base(base, Method.LORA, cpu)
    on_nf4 = {n: dequantize_bnb_weight(p).float() for n, p in rounded.named_parameters() if hasattr(p, "quant_state")}
    torch.manual_seed(0)
    change = {n: w.std() / 40 * torch.randn_like(w) for n, w in on_nf4.items()}
    for name, weight in on_nf4.items():
        network.get_parameter(name).data = (weight + change[name]).to(torch.bfloat16)
    network.save_pretrained(merged)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged)

    def kept(source: Path) -> float:
        """Share of the change that is left where the source is rounded."""
        again = load_base(source, Method.QLORA, cpu)
        left = sum(((dequantize_bnb_weight(again.get_parameter(n)) - w) * change[n]).sum() for n, w in on_nf4.items())
        return float(left / sum((c**2).sum() for c in change.values()))

    assert kept(merged) < 0.2
    compression.between(merged, base, adapters.NF4).save_pretrained(tmp_path / "between")
    assert kept(tmp_path / "between") == pytest.approx(1, abs=0.15)

    training = {"maxSteps": 1, "globalBatchSize": 4, "maxLength": 128}
    asked: list[Path] = []

    def between(_merged: Path, fetched: Path, _quantization: adapters.Quantization) -> Any:
        asked.append(fetched)
        return network

    monkeypatch.setattr(compression, "between", between)
    for merge_base in ("Dequantized", "Original"):
        run = make_run(training=training, artifacts=[NF4], merge_base=merge_base)
        prepare(run, tmp_path, test=PAIRS)
        at = context(run, "quantize-nf4", tmp_path)
        compression.make(at, run.artifacts[0], merged, at.scratch / "made")
    assert asked == [base]  # a merge into the base as it was fetched lies on none of those values


IN_THE_QUANTIZER = """
import torch
from finetune_trainer.export.compression import unpinned
from finetune_trainer.export.quantizable import AWQ_FAILS, AWQ_KNOWS
from llmcompressor.modifiers.transform.awq.dynamic_mappings import AWQ_DYNAMIC_MAPPING_REGISTRY
from llmcompressor.modifiers.transform.awq.mappings import AWQ_MAPPING_REGISTRY
from llmcompressor.pipelines.cache import IntermediatesCache

pinning = IntermediatesCache.pin_memory
with unpinned():
    cache = IntermediatesCache()
    cache.append({"hidden_states": torch.ones(2)})
    cache.pin_memory(0)
    assert torch.equal(cache.fetch(0)["hidden_states"], torch.ones(2))
assert IntermediatesCache.pin_memory is pinning
torch.accelerator.is_available = lambda: True
with unpinned():
    assert IntermediatesCache.pin_memory is pinning

registered = {*AWQ_MAPPING_REGISTRY, *AWQ_DYNAMIC_MAPPING_REGISTRY}
assert registered == AWQ_KNOWS | AWQ_FAILS, registered ^ (AWQ_KNOWS | AWQ_FAILS)
"""


@pytest.mark.slow
def test_awq_pins_memory_only_for_accelerators_and_its_architectures_are_those_of_the_quantizer(quantizer: Path) -> None:
    command = [str(quantizer), "-c", IN_THE_QUANTIZER]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_calibration_looks_at_rows_from_all_over(tmp_path: Path) -> None:
    rendered.write(tmp_path, "train", (row(n) for n in range(1000)))
    rows = calibration.rows(tmp_path)
    assert len(rows) == calibration.ROWS
    assert (rows[0], rows[-1]) == ([0], [7 * 127])
    assert calibration.rows(tmp_path, 3) == [[0], [333], [666]]
    rendered.write(tmp_path, "train", [row(*range(3000))])
    assert calibration.rows(tmp_path) == [list(range(calibration.TOKENS))]


def row(*tokens: int) -> Rendered:
    return Rendered(tokens, (1,) * len(tokens), "", "", 0)
