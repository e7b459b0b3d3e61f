"""Weights in pickles: refused unless asked for by name, read as nothing but tensors, and kept as safetensors."""

from __future__ import annotations

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.entries import context

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.reports import StepResult
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.stages import merge, prepare, train

MakeRun = Callable[..., RunConfig]
Tensors = dict[str, torch.Tensor]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(run: RunConfig, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model on a claim without its weights, beside rows."""
    assert run.model.uri == "pvc://models/old"
    monkeypatch.setenv("HF_HOME", "")  # so that what the step sets is taken back
    claims = tmp_path / "mounts" / "claims"
    shutil.copytree(tiny_model, claims / "models" / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    rows = [{"prompt": f"What is number {n}?", "completion": f"It is {n}."} for n in range(20)]
    (claims / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return claims / "models" / "old"


@pytest.fixture
def run(make_run: MakeRun) -> RunConfig:
    return make_run(model={"uri": "pvc://models/old", "weights": "Pickle"})


@pytest.fixture
def tensors(tiny_model: Path) -> Tensors:
    """Weights as transformers' state_dict has them: the head is the embedding's memory under another name."""
    found = load_file(tiny_model / "model.safetensors")
    return {**found, HEAD: found[EMBEDDING]}


def prepared(run: RunConfig, tmp_path: Path) -> StepResult:
    return prepare.run(context(run, "prepare", tmp_path))


def refused(run: RunConfig, tmp_path: Path) -> tuple[str, str]:
    with pytest.raises(StepFailed) as caught:
        prepared(run, tmp_path)
    assert caught.value.exit_code is ExitCode.BAD_CONFIG
    return caught.value.reason, caught.value.message


def test_pickles_are_refused_with_what_to_write(make_run: MakeRun, folder: Path, tensors: Tensors, tmp_path: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")
    reason, said = refused(make_run(model={"uri": "pvc://models/old"}), tmp_path)
    assert reason == "ModelWithoutSafetensors"
    assert "set weights: Pickle" in said


@pytest.mark.parametrize("new_format", [True, False])
def test_asked_for_by_name_they_become_the_same_safetensors(
    run: RunConfig, folder: Path, tensors: Tensors, tiny_model: Path, tmp_path: Path, new_format: bool
) -> None:
    torch.save(OrderedDict(tensors), folder / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    torch.save(tensors, folder / "pytorch_model.fp16.bin")  # a variant that nobody asked for
    result = prepared(run, tmp_path)
    shutil.rmtree(folder)  # later steps read the store's copy
    inputs = context(run, "train", tmp_path).inputs
    facts, made = inputs.model()
    assert inputs.with_teacher(facts) == result.model
    assert facts.parameters == sum(t.numel() for name, t in tensors.items() if name != HEAD)
    assert [p.name for p in made.iterdir() if p.suffix in (".bin", ".safetensors")] == ["model.safetensors"]
    found, expected = load_file(made / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (made / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


def shards(folder: Path, tensors: Tensors) -> None:
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, inside in parts.items():
        torch.save({name: tensors[name] for name in inside}, folder / file)
    weight_map = {name: file for file, inside in parts.items() for name in inside}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_and_what_shares_memory_train_and_merge(
    make_run: MakeRun, folder: Path, tensors: Tensors, tmp_path: Path
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    whole = torch.cat([tensors[EMBEDDING], tensors[EMBEDDING] + 1])  # two views of one tensor, and one turned on its side
    rows = len(tensors[EMBEDDING])
    up = "model.layers.0.mlp.up_proj.weight"
    shards(folder, {**tensors, EMBEDDING: whole[:rows], HEAD: whole[rows:], up: tensors[up].T.contiguous().T})
    run = make_run(model={"uri": "pvc://models/old", "weights": "Pickle"})
    prepared(run, tmp_path)
    facts, made = context(run, "train", tmp_path).inputs.model()
    index = json.loads((made / "model.safetensors.index.json").read_text())["weight_map"]
    assert index[HEAD] == "model-00001-of-00002.safetensors"
    assert index.keys() == tensors.keys()
    assert facts.parameters == sum(t.numel() for t in tensors.values())
    first = load_file(made / index[HEAD])
    assert torch.equal(first[HEAD], first[EMBEDDING] + 1)
    assert torch.equal(first[up], tensors[up])
    train.run(context(run, "train", tmp_path))
    merge.run(context(run, "merge", tmp_path))


def test_a_head_that_is_tied_in_memory_alone_is_kept(run: RunConfig, folder: Path, tensors: Tensors, tmp_path: Path) -> None:
    """A model that ties nothing would begin with a random head."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    torch.save(tensors, folder / "pytorch_model.bin")
    prepared(run, tmp_path)
    found = load_file(context(run, "train", tmp_path).inputs.model()[1] / "model.safetensors")
    assert torch.equal(found[HEAD], tensors[EMBEDDING])


class Program:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PROOF"],)


def test_nothing_in_a_pickle_is_run(
    run: RunConfig, folder: Path, tensors: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROOF", str(tmp_path / "it-was-run"))
    torch.save({**tensors, "a": Program()}, folder / "pytorch_model.bin")
    reason, said = refused(run, tmp_path)
    assert reason == "PickleRefused"
    assert said.startswith("spec.model: pytorch_model.bin asks for posix.mkdir, and nothing in a pickle is run: take")
    assert not (tmp_path / "it-was-run").exists()


def put(content: object) -> Callable[[Path, Tensors], None]:
    return lambda folder, _: torch.save(content, folder / "pytorch_model.bin")


def cut(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")
    with (folder / "pytorch_model.bin").open("r+b") as stream:
        stream.truncate(100_000)


def without_a_shard(folder: Path, tensors: Tensors) -> None:
    shards(folder, tensors)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def beside_safetensors(folder: Path, tensors: Tensors) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "reason", "said"),
    [
        (put({"epoch": 3, "state_dict": {}}), "PickleRefused", "pytorch_model.bin holds epoch, a int, beside its tensors"),
        (put([1, 2]), "PickleRefused", "pytorch_model.bin holds a list instead of tensors by name"),
        (cut, "ModelDamaged", "pytorch_model.bin can't be read"),
        (without_a_shard, "ModelDamaged", "its index names pytorch_model-00002-of-00002.bin, which is not there"),
        (beside_safetensors, "PicklesNotNeeded", "it has model*.safetensors as well: remove weights: Pickle"),
        (lambda _, __: None, "ModelUnsupported", "it has no pytorch_model*.bin, which weights: Pickle asks for"),
    ],
)
def test_what_is_no_model(
    run: RunConfig,
    folder: Path,
    tensors: Tensors,
    tmp_path: Path,
    harm: Callable[[Path, Tensors], None],
    reason: str,
    said: str,
) -> None:
    harm(folder, tensors)
    found, message = refused(run, tmp_path)
    assert found == reason, message
    assert message.startswith(f"spec.model: {said}")


def test_pickles_that_were_exchanged_on_their_claim(run: RunConfig, folder: Path, tensors: Tensors, tmp_path: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")
    prepared(run, tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"something else")
    with pytest.raises(StepFailed, match=r"pytorch_model\.bin at pvc://models/old is not the file that this job began with"):
        prepared(run, tmp_path)
