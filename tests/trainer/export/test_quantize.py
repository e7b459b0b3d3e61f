"""GGUF files answer as the merged model does, within what their type rounds away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.entries import PAIRS, context, prepare, run_of
from tests.trainer.pods import need_llama_cpp

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.formats import Quantization
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.pod import ENV_LLAMA_CPP
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.contract.training import Training
from finetune_trainer.export import gguf, llamacpp, proof
from finetune_trainer.failures import StepFailed
from finetune_trainer.stages import evaluate, merge, quantize, train

pytestmark = pytest.mark.slow

# Mean KL divergence in nats from the merged model, on a width of 256, where every K-quant applies.
LIMITS: dict[Quantization, float] = {"F16": 1e-4, "Q8_0": 1e-3, "Q6_K": 5e-3, "Q5_K_M": 1e-2, "Q4_K_M": 5e-2}
TRAINING = {
    "method": "Full",
    "precision": "FP32",
    "maxSteps": 30,
    "globalBatchSize": 8,
    "maxLength": 128,
    "learningRate": 3e-3,
}
ARTIFACTS = [{"name": t.lower().replace("_", "-"), "format": "GGUF", "quantization": t} for t in LIMITS]


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    need_llama_cpp("convert_hf_to_gguf.py", "bin/llama-quantize")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, tiny_smollm: Path) -> tuple[RunConfig, Path]:
    """A merged model, which learned its rows by heart, with SmolLM2's tokenizer; and the folder of its claims."""
    root = tmp_path_factory.mktemp("learned")
    made = run_of(tiny_smollm, root, training=TRAINING, artifacts=ARTIFACTS)
    prepare(made, root, test=PAIRS)
    train.run(context(made, "train", root))
    merge.run(context(made, "merge", root))
    return made, root / "mounts"


@pytest.fixture
def run(learned: tuple[RunConfig, Path], tmp_path: Path) -> RunConfig:
    """The same in a store of the test's own, to which it may do what it likes."""
    made, mounts = learned
    shutil.copytree(mounts, tmp_path / "mounts", symlinks=True)
    return made


def logits(run: RunConfig, tmp_path: Path, file: Path) -> tuple[Any, Any]:
    """Logits of the merged model by transformers and of a GGUF file by llama.cpp, over one row's tokens."""
    import torch

    from finetune_trainer.contract.training import Method
    from finetune_trainer.model.compute import Compute
    from finetune_trainer.model.loading import load_base, load_tokenizer
    from finetune_trainer.scoring.by_llamacpp import LlamaCppScorer
    from finetune_trainer.stages.evaluate import _rows

    at = context(run, "evaluate", tmp_path)
    _, merged = at.inputs.output("merge")
    rows = _rows(at)[:1]
    network = load_base(merged, Method.LORA, Compute("cpu", torch.float32)).eval()
    with torch.no_grad():
        expected = network(input_ids=torch.tensor([rows[0].input_ids])).logits[0]
    scorer = LlamaCppScorer(file, load_tokenizer(merged), (0,), 1, rows)
    return expected, torch.from_numpy(scorer.logits(rows[0].input_ids))


def test_gguf_answers_as_the_merged_model(run: RunConfig, tmp_path: Path) -> None:
    merged = evaluate.run(context(run, "evaluate", tmp_path)).scores[1].values
    found, sizes = {}, {}
    for artifact in run.artifacts:
        result = quantize.run(context(run, f"quantize-{artifact.name}", tmp_path))
        assert result.artifact is not None
        manifest, folder = context(run, f"evaluate-{artifact.name}", tmp_path).inputs.output(f"quantize-{artifact.name}")
        assert {f.path for f in manifest.files} == {f"{artifact.name}.gguf", "Modelfile", "README.md"}
        assert "fallbackTensors" not in manifest.inputs
        proofs = ["tokenIds", "template", "endToken", "divergence", "topToken", "perplexityRatio"]
        assert [check.name for check in manifest.checks] == proofs
        file = folder / f"{artifact.name}.gguf"
        found[artifact.quantization] = proof.divergence(*logits(run, tmp_path, file))
        sizes[artifact.quantization] = file.stat().st_size
    assert all(0 <= found[t] <= limit for t, limit in LIMITS.items()), found
    assert sorted(sizes, key=lambda t: sizes[t], reverse=True) == list(LIMITS)

    scores = evaluate.run(context(run, "evaluate-q8-0", tmp_path)).scores[0]
    assert scores.subject == "q8-0"
    assert scores.values[Metric.LOSS] == pytest.approx(merged[Metric.LOSS], abs=0.05)
    assert scores.values[Metric.EXACT_MATCH] == pytest.approx(merged[Metric.EXACT_MATCH], abs=0.13)  # one row of eight


def test_pain_13_an_embedding_that_was_trained_is_in_the_file_and_once(run: RunConfig, tmp_path: Path) -> None:
    """The embedding is trained beside a LoRA adapter, on a model that ties its output layer to it."""
    training = TRAINING | {"method": "LoRA", "maxSteps": 8, "lora": {"modulesToSave": ["embed_tokens"]}}
    made = run.model_copy(update={"training": Training.model_validate(training)})
    train.run(context(made, "train", tmp_path))
    merge.run(context(made, "merge", tmp_path))
    quantize.run(context(made, "quantize-f16", tmp_path))
    _, folder = context(made, "evaluate-f16", tmp_path).inputs.output("quantize-f16")
    file = folder / "f16.gguf"
    assert 0 <= proof.divergence(*logits(made, tmp_path, file)) <= LIMITS["F16"]
    embedding = 2 * 49152 * 256
    assert embedding < file.stat().st_size < 1.5 * embedding


def test_training_rows_say_what_matters(run: RunConfig, tmp_path: Path) -> None:
    weighed = run.model_copy(update={"artifacts": (run.artifacts[-1].model_copy(update={"imatrix": True}),)})
    metadata = []
    for made in (run, weighed):
        quantize.run(context(made, "quantize-q4-k-m", tmp_path))
        manifest, folder = context(made, "evaluate-q4-k-m", tmp_path).inputs.output("quantize-q4-k-m")
        metadata.append(llamacpp.open_model(folder / "q4-k-m.gguf", 64).metadata)
    plain, told = ({k: v for k, v in found.items() if "imatrix" in k} for found in metadata)
    assert plain == {}
    assert int(told["quantize.imatrix.entries_count"]) == 14  # the linear modules of two layers
    assert int(told["quantize.imatrix.chunks_count"]) >= 2
    assert manifest.inputs["imatrixRows"] == str(len(PAIRS))
    assert int(manifest.inputs["imatrixTokens"]) > 2 * gguf.CONTEXTS[-1]


def test_pain_02_the_modelfile_stops_where_the_model_does(run: RunConfig, tmp_path: Path) -> None:
    quantize.run(context(run, "quantize-f16", tmp_path))
    _, folder = context(run, "evaluate-f16", tmp_path).inputs.output("quantize-f16")
    text = (folder / "Modelfile").read_text()
    assert text.startswith("FROM ./f16.gguf\nTEMPLATE")
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_a_model_that_the_converter_refuses(run: RunConfig, tmp_path: Path) -> None:
    _, merged = context(run, "quantize-f16", tmp_path).inputs.output("merge")
    config = json.loads((merged / "config.json").read_text())
    (merged / "config.json").write_text(json.dumps(config | {"architectures": ["UnheardOf"]}))
    at = context(run, "quantize-f16", tmp_path)
    with pytest.raises(StepFailed, match=r"convert_hf_to_gguf\.py refused this model") as failed:
        gguf.make(at, run.artifacts[0], merged, at.scratch)
    assert failed.value.exit_code is ExitCode.VERIFICATION_FAILED


def test_missing_tool_is_named(run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_LLAMA_CPP, str(tmp_path))
    at = context(run, "quantize-f16", tmp_path)
    with pytest.raises(StepFailed, match=r"convert_hf_to_gguf\.py and llama-quantize not found: set LLAMA_CPP_DIR"):
        gguf.make(at, run.artifacts[0], at.inputs.output("merge")[1], at.scratch)
