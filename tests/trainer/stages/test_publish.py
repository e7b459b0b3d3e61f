"""The publish stage copies whole artifacts, once, and says when a copy reads back wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData
from tests.builders import DATASET
from tests.trainer.entries import context, prepare

from finetune_trainer.contract.exits import ExitCode
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.reports import ArtifactFacts, RowCount, Scores, StepResult
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.export import card
from finetune_trainer.failures import StepFailed
from finetune_trainer.stages import publish
from finetune_trainer.store.directory import DirectoryObjects
from finetune_trainer.store.files import describe, files_json

MakeRun = Callable[..., RunConfig]
PLACE = "mounts/claims/models/published"


def made(make_run: MakeRun, tmp_path: Path, weights: str = "weights", seed: int = 1) -> RunConfig:
    """A run whose merged model is two small files."""
    targets = [{"uri": "pvc://models/published", "artifacts": ["merged"]}]
    training = {"method": "LoRA", "precision": "FP32", "maxSteps": 1, "maxLength": 128, "seed": seed}
    run = make_run(publish=targets, training=training)
    prepare(run, tmp_path)
    at = context(run, "merge", tmp_path)
    folder = at.scratch / "model"
    (folder / "nested").mkdir(parents=True)
    (folder / "model.safetensors").write_text(weights)
    (folder / "README.md").write_text("---\ntags: [lora]\n---\n# A model\n")
    (folder / "nested" / f"{weights}.json").write_text("{}")
    artifact = ArtifactFacts(name="merged", format="Safetensors", path="", digest="", bytes=0)
    at.commit(folder, StepResult(step="merge", fingerprint=at.inputs.fingerprint("merge"), artifact=artifact), {})
    return run


def test_copies_everything_and_says_where(make_run: MakeRun, tmp_path: Path) -> None:
    run = made(make_run, tmp_path)
    result = publish.run(context(run, "publish-0", tmp_path))
    assert result.published == ("pvc://models/published/merged",)
    folder = tmp_path / PLACE / "merged"
    assert (folder / "model.safetensors").read_text() == "weights"
    assert (folder / "nested/weights.json").is_file()
    assert (folder / "files.json").read_bytes() == files_json(describe(folder))


def test_the_card_gets_the_scores_and_all_else_stays_as_it_was_made(make_run: MakeRun, tmp_path: Path) -> None:
    run = made(make_run, tmp_path)
    at = context(run, "evaluate", tmp_path)
    (at.scratch / "output").mkdir()
    (at.scratch / "output/scores.json").write_text("{}\n")
    scores = tuple(
        Scores(subject=subject, samples=1200, values={Metric.LOSS: loss, Metric.ROUGE_L: 1 / 3})
        for subject, loss in (("base", 3.25), ("merged", 0.5))
    )
    at.commit(
        at.scratch / "output", StepResult(step="evaluate", fingerprint=at.inputs.fingerprint("evaluate"), scores=scores), {}
    )
    publish.run(context(run, "publish-0", tmp_path))
    copied, (_, own) = tmp_path / PLACE / "merged", at.inputs.output("merge")
    told, before = (copied / "README.md").read_text(), ModelCard.load(own / "README.md")
    assert ModelCard(told).text.startswith(before.text)
    assert "On 1,200 held-out rows" in told
    assert "| loss | 3.25 | 0.5 |\n| rougeL | 0.3333 | 0.3333 |" in told
    for name in ("model.safetensors", "nested/weights.json"):
        assert not (copied / name).is_symlink()
        assert (copied / name).read_bytes() == (own / name).read_bytes()
    assert (copied / "files.json").read_bytes() == files_json(describe(copied))


def test_a_hub_reads_the_scores_from_the_card(make_run: MakeRun, tmp_path: Path) -> None:
    run = made(make_run, tmp_path)
    run = run.model_copy(update={"dataset": run.dataset.model_copy(update={"uri": "hf://org/rows@v2"})})
    values = {Metric.EXACT_MATCH: 0.75, Metric.ROUGE_L: 0.5, "arc/acc_norm": 0.25}
    told = card.scored("---\ntags: [lora]\n---\n# A model\n", run, Scores(subject="merged", samples=20, values=values), None)
    read = ModelCard(told).data
    assert isinstance(read, ModelCardData)
    assert read.tags == ["lora"]
    assert read.model_name == run.name
    assert read.eval_results is not None
    assert [(r.metric_name, r.metric_type, r.metric_value, r.dataset_name) for r in read.eval_results] == [
        ("exactMatch", "exact_match", 0.75, "org/rows"),
        ("rougeL", "rouge", 0.5, "org/rows"),
        ("arc/acc_norm", "acc_norm", 0.25, "arc"),
    ]
    (first, *_) = read.eval_results
    assert (first.dataset_revision, first.dataset_split, first.dataset_args) == ("v2", "test", {"rows": 20})


def test_rows_of_ones_own_are_not_named_by_where_they_lie(make_run: MakeRun, tmp_path: Path) -> None:
    run = made(make_run, tmp_path)
    assert run.dataset.uri.startswith("pvc://")
    (told,) = card.results(run, Scores(subject="merged", samples=1, values={Metric.LOSS: 1.0}))
    assert (told.dataset_name, told.dataset_type) == ("held-out rows", "held-out-rows")


def test_the_card_counts_dropped_rows_by_their_causes() -> None:
    """No cause but TooLong was known to it once, and all that was lost was told as too long."""
    lost = tuple(RowCount(cause=cause, rows=n, example="a.jsonl line 1") for n, cause in ((1200, "NoAnswer"), (3, "TooLong")))
    facts = DATASET.model_copy(update={"dropped_rows": 1203, "dropped": lost})
    assert card._dropped(facts) == "1,203 dropped: 1,200 NoAnswer, 3 TooLong"
    assert card._dropped(DATASET) == "0 dropped"


def test_nothing_is_copied_twice(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(make_run, tmp_path)
    first = publish.run(context(run, "publish-0", tmp_path))
    monkeypatch.setattr(DirectoryObjects, "write_file", lambda *_: pytest.fail("copied again"))
    assert publish.run(context(run, "publish-0", tmp_path)) == first
    at = context(run, "publish-0", tmp_path)
    manifest, folder = at.inputs.output("merge")
    publish.copy(publish.open_place(at, run.publish[0]), "merged", manifest, folder, at.scratch)  # not by its own entry


def test_a_newer_model_takes_the_place_of_the_older(make_run: MakeRun, tmp_path: Path) -> None:
    for number, weights in enumerate(("older", "newer")):
        run = made(make_run, tmp_path, weights, seed=number)
        publish.run(context(run, "publish-0", tmp_path))
    names = {p.relative_to(tmp_path / PLACE).as_posix() for p in (tmp_path / PLACE).rglob("*") if p.is_file()}
    assert names == {f"merged/{n}" for n in ("files.json", "README.md", "model.safetensors", "nested/newer.json")}


def test_a_damaged_copy_is_no_publication(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(make_run, tmp_path)
    write = DirectoryObjects.write_file

    def damage(place: DirectoryObjects, path: str, source: Path) -> None:
        write(place, path, source)
        if path.endswith(".safetensors"):
            (place.root / path).write_text("weighty")

    monkeypatch.setattr(DirectoryObjects, "write_file", damage)
    with pytest.raises(StepFailed, match=r"merged/model\.safetensors reads back") as failed:
        publish.run(context(run, "publish-0", tmp_path))
    assert failed.value.exit_code is ExitCode.STORE_UNAVAILABLE
    assert not (tmp_path / PLACE / "merged/files.json").exists()
