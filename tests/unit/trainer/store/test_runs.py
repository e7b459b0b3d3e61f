"""What may go of earlier runs: never what a later one, another job or a served model needs, and never half."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.trainer.contract.test_contract import RUN

from finetune_trainer.contract.pipeline import steps
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.store import runs
from finetune_trainer.store.directory import DirectoryObjects
from finetune_trainer.store.entries import Store
from finetune_trainer.store.runs import KnownRun, Surplus, known, note, passed, place, read, remove, surplus


def a_run(begun: float, *entries: str, good: bool = True, job: str = "facts") -> KnownRun:
    return KnownRun(namespace="team", name=job, begun=begun, entries=entries, passed=good)


RUNS = {
    "r1": a_run(1, "train/a", "merge/a"),
    "r2": a_run(2, "train/b", "merge/b"),
    "r3": a_run(3, "train/c", good=False),
    "r4": a_run(4, "train/b", "merge/d"),
}


@pytest.mark.parametrize(
    ("keep", "in_use", "goes"),
    [
        (1, "", Surplus(("r1", "r2", "r3"), ("merge/a", "merge/b", "train/a", "train/c"))),
        (2, "", Surplus(("r1", "r3"), ("merge/a", "train/a", "train/c"))),
        (3, "", Surplus(("r3",), ("train/c",))),
        (9, "", Surplus(("r3",), ("train/c",))),
        (1, "a", Surplus(("r2", "r3"), ("merge/b", "train/c"))),
        (1, "bc", Surplus(("r1",), ("merge/a", "train/a"))),
    ],
)
def test_what_only_older_runs_have_goes_but_for_what_is_kept_and_used(keep: int, in_use: str, goes: Surplus) -> None:
    assert surplus(RUNS, "r4", keep, in_use) == goes


def test_what_another_job_has_as_well_stays() -> None:
    shared = RUNS | {"other": a_run(0, "merge/a", job="other"), "later": a_run(9, "train/c")}
    assert surplus(shared, "r4", 1, "") == Surplus(("r1", "r2", "r3"), ("merge/b", "train/a"))


def test_a_run_needs_its_checkpoints_and_all_that_is_large_of_what_it_makes() -> None:
    artifacts = [{"name": "q4", "format": "GGUF", "quantization": "Q4_K_M"}]
    run = RunConfig.model_validate(RUN | {"artifacts": artifacts, "keepRuns": 2})
    wanted = {step.name: f"of-{step.name}" for step in steps(run)}
    assert known(run, wanted, 5.0).entries == (
        "checkpoint/of-train",
        "train/of-train",
        "merge/of-merge",
        "quantize/of-quantize-q4",
    )
    assert place(run, wanted) != place(run, wanted | {"train": "another"})
    assert place(run, wanted).startswith("run/team/job/")


# ── In a store ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def objects(tmp_path: Path) -> DirectoryObjects:
    """A store with all entries of RUNS and what belongs to them."""
    made = DirectoryObjects(tmp_path)
    for name, run in RUNS.items():
        note(made, f"run/{name}", run)
        if run.passed:
            passed(made, f"run/{name}")
        for entry in run.entries:
            made.overwrite(f"{entry}/manifest.json", b"a manifest")
            made.overwrite(f"{entry}/1-a/model", b"0123456789")
    return made


def entries(objects: DirectoryObjects) -> list[str]:
    return sorted(f"{kind}/{name}" for kind in ("train", "merge") for name in objects.children(kind))


def test_entries_and_runs_are_removed_and_counted(objects: DirectoryObjects) -> None:
    gone, size = remove(objects, "run/r4", 2, ["a"])
    assert gone == Surplus(("run/r3",), ("train/c",))
    assert size == 10
    assert entries(objects) == ["merge/a", "merge/b", "merge/d", "train/a", "train/b"]
    assert sorted(read(objects)) == ["run/r1", "run/r2", "run/r4"], "who used a is asked again by the next run"
    assert remove(objects, "run/r4", 2, []) == (Surplus(("run/r1",), ("merge/a", "train/a")), 2 * size)
    assert remove(objects, "run/r4", 2, []) == (Surplus(), 0)


def test_a_run_that_begins_in_between_gets_its_entries_back(objects: DirectoryObjects) -> None:
    class Overtaken(DirectoryObjects):
        def overwrite(self, path: str, content: bytes) -> None:
            super().overwrite(path, content)
            if path == "merge/a/manifest.json" and not content:
                assert Store(self, "").read("merge", "a") is None
                note(self, "run/new", a_run(5, "train/a", "merge/a", good=False, job="other"))

    gone, _ = remove(Overtaken(objects.root), "run/r4", 1, [])
    assert gone.entries == ("merge/b", "train/c")
    for entry in ("train/a", "merge/a"):
        assert objects.read(f"{entry}/manifest.json") == b"a manifest"


def test_what_was_cut_off_is_finished_by_the_next_run(objects: DirectoryObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(DirectoryObjects, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(objects, "run/r4", 1, [])
    assert objects.read("merge/a/manifest.json") == b"", "nobody takes it for whole"
    gone, _ = remove(objects, "run/r4", 1, [])
    assert gone == Surplus(("run/r1", "run/r2", "run/r3"), ("merge/a", "merge/b", "train/a", "train/c"))
    assert entries(objects) == ["merge/d", "train/b"]


def test_nothing_goes_while_a_run_can_not_be_read(objects: DirectoryObjects) -> None:
    objects.overwrite("run/r2/run.json", b"{")
    with pytest.raises(StepFailed, match=r"run/r2/run\.json in the artifact store can't be read: remove it"):
        remove(objects, "run/r4", 1, [])
    assert len(entries(objects)) == 6


def test_a_run_that_is_prepared_again_has_passed_all_the_same(objects: DirectoryObjects) -> None:
    note(objects, "run/r1", a_run(7, "train/a", good=False))
    assert read(objects)["run/r1"] == a_run(7, "train/a")
    note(objects, "run/r3", a_run(8, "train/c", good=False))
    assert not read(objects)["run/r3"].passed
    objects.overwrite("run/r3/run.json", b"{")
    note(objects, "run/r3", a_run(9, "train/c", good=False))
    assert runs.read(objects)["run/r3"].begun == 9
