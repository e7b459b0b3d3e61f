"""The runs that a store knows of: what each keeps there, and what may go once a later run of its job has passed.

    <root>/run/<namespace>/<job>/<digest>/run.json      written by prepare before it looks what is done

Entries are shared: two runs, or two jobs, with the same inputs have the same. So an entry goes only where no run that stays
needs it, and nothing that serves or begins from it. What is small (scores, losses, reports, logs) and what comes from outside
(base models, rows) stays. Runs of releases that wrote no such file are not known, and what they made stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_trainer.contract.fields import Report
from finetune_trainer.contract.pipeline import MERGE, TRAIN, digest, steps
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.run import RunConfig
from finetune_trainer.failures import StepFailed
from finetune_trainer.store.entries import Objects
from finetune_trainer.store.files import CHECKPOINT, MANIFEST

RUNS, FILE = "run", "run.json"
ARTIFACTS = (TRAIN, MERGE, "quantize")  # stages whose entries are large, and of one run
EMPTY = b""  # in a manifest's place: whoever reads it finds that there is no such entry


class KnownRun(Report):
    """A run as its file tells of it."""

    namespace: str
    name: str
    begun: float  # seconds since the epoch: of the last prepare
    entries: tuple[str, ...]  # <kind>/<fingerprint>
    passed: bool = False  # it came to the end, so its gates were passed


Runs = Mapping[str, KnownRun]


@dataclass(frozen=True)
class Surplus:
    """What may go: folders of runs, and entries."""

    runs: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()


# ── Decided ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def place(run: RunConfig, fingerprints: Mapping[str, str]) -> str:
    """The folder of a run."""
    return f"{RUNS}/{run.namespace}/{run.name}/{digest(run.name, fingerprints)}"


def known(run: RunConfig, fingerprints: Mapping[str, str], begun: float) -> KnownRun:
    """What there is to note of a run that begins."""
    made = [f"{step.stage}/{fingerprints[step.name]}" for step in steps(run) if step.stage in ARTIFACTS]
    entries = (f"{CHECKPOINT}/{fingerprints[TRAIN]}", *made)
    return KnownRun(namespace=run.namespace, name=run.name, begun=begun, entries=entries)


def surplus(runs: Runs, this: str, keep: int, in_use: Collection[str]) -> Surplus:
    """What may go now that this run has passed: what older runs of its job alone have, but for the newest `keep` - 1 that
    passed, too. `in_use` are fingerprints that stay, whoever made them.

    The file of a run goes with its last entry: as long as something of it is in use, a later run looks for it again.
    """
    own = runs[this]
    older = [p for p, run in runs.items() if (run.namespace, run.name) == (own.namespace, own.name) and run.begun < own.begun]
    good = sorted((path for path in older if runs[path].passed), key=lambda path: -runs[path].begun)[: keep - 1]
    over = [path for path in older if path not in good]
    needed = {entry for path, run in runs.items() if path not in over for entry in run.entries}
    going = {e for path in over for e in runs[path].entries if e not in needed and _fingerprint(e) not in in_use}
    left = {entry for path in over for entry in runs[path].entries} - needed - going
    done = tuple(path for path in over if not left.intersection(runs[path].entries))
    return Surplus(done, tuple(sorted(going)))


def _fingerprint(entry: str) -> str:
    return entry.rpartition("/")[2]


# ── Read and written ──────────────────────────────────────────────────────────────────────────────────────────────────


def note(objects: Objects, place: str, run: KnownRun) -> None:
    """Tell whoever removes entries from now on that this run needs its own; that it passed before stays known."""
    before = _parsed(objects.read(f"{place}/{FILE}"))
    _write(objects, place, run.model_copy(update={"passed": before is not None and before.passed}))


def passed(objects: Objects, place: str) -> None:
    """Note that a run has come to its end."""
    _write(objects, place, read(objects)[place].model_copy(update={"passed": True}))


def read(objects: Objects) -> dict[str, KnownRun]:
    """All runs by folder. Raises StepFailed where one can't be read: what it needs is not known then."""
    found: dict[str, KnownRun] = {}
    for name in objects.sizes(RUNS):
        place, _, file = f"{RUNS}/{name}".rpartition("/")
        if file != FILE or (content := objects.read(f"{place}/{file}")) is None:
            continue
        if (run := _parsed(content)) is None:
            text = f"{place}/{file} in the artifact store can't be read: remove it, and what it needs may go"
            raise StepFailed(StepReason.EntryIncomplete, text)
        found[place] = run
    return found


def remove(objects: Objects, this: str, keep: int, in_use: Collection[str]) -> tuple[Surplus, int]:
    """Remove what may go; returns that, and its bytes.

    First an entry's manifest is emptied, then it is asked again who needs it, and last its files go. A prepare notes its run
    before it looks at manifests: either it is seen here and gets its manifests back, or it finds that they are gone.
    """
    first = surplus(read(objects), this, keep, in_use).entries
    manifests = {entry: content for entry in first if (content := objects.read(f"{entry}/{MANIFEST}"))}
    for entry in manifests:
        objects.overwrite(f"{entry}/{MANIFEST}", EMPTY)
    last = surplus(read(objects), this, keep, in_use)
    for entry in manifests.keys() - set(last.entries):
        objects.overwrite(f"{entry}/{MANIFEST}", manifests[entry])
    there = {entry: sizes for entry in first if entry in last.entries and (sizes := objects.sizes(entry))}
    for path in (*there, *last.runs):
        objects.delete(path)
    return Surplus(last.runs, tuple(there)), sum(sum(sizes.values()) for sizes in there.values())


def _parsed(content: bytes | None) -> KnownRun | None:
    try:
        return KnownRun.model_validate_json(content or b"")
    except ValidationError:
        return None


def _write(objects: Objects, place: str, run: KnownRun) -> None:
    objects.overwrite(f"{place}/{FILE}", run.model_dump_json(by_alias=True, indent=1).encode())
