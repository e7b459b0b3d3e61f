"""Keeps the adapters of one pod as they are wanted: fetched, checked, loaded into its engine and taken out of it again.

    python -m finetune_trainer.serving.adapters --wanted FILE --folder DIR --engine http://127.0.0.1:8081 --base DIR …

The engine's API for adapters answers on the loopback alone. What is wanted may change at any time
(contract/served_adapters.py), and the engine may have been started anew, with no adapter in it: once a second both are
looked at, and the difference is made up. A name leads to an adapter (names.json) only while the engine has it; what serves no
more is taken out once its answers have had their time. An adapter that is refused is refused alone: the engine and the other
adapters go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from finetune_trainer import environment
from finetune_trainer.contract.exits import Retry
from finetune_trainer.contract.reasons.steps import StepReason
from finetune_trainer.contract.served_adapters import (
    NAMES,
    STATE,
    LoadedAdapter,
    PodAdapters,
    WantedAdapter,
    WantedAdapters,
)
from finetune_trainer.failures import StepFailed
from finetune_trainer.serving.adapter_files import Base, Place, check_adapter, fetch_adapter
from finetune_trainer.serving.lora_api import LoraApi
from finetune_trainer.termination import as_failure, exit_on_sigterm

PERIOD_SECONDS = 1.0
SETTLE_SECONDS = 120.0  # that adapters may hold up a pod whose engine has started: then it answers without those it can't have
AGAIN_SECONDS = 10.0  # until what may be had later is tried again
AGAIN_REFUSED_SECONDS = 300.0  # the same for what serves and was refused: another pod has it
# An engine reads an adapter again for an answer that outlasts its unloading, and ends where the files are gone.
KEPT_SECONDS = 3600.0


@dataclass
class Tried:
    """One adapter that is wanted, or was: what came of it so far."""

    wanted: WantedAdapter
    failed: StepFailed | None = None
    again_at: float = 0.0
    unwanted_since: float | None = None

    @property
    def is_refused(self) -> bool:
        """Whether another try would find the same."""
        return self.failed is not None and self.failed.exit_code.retry is Retry.NEVER

    def is_due(self, now: float) -> bool:
        """Whether it is to be loaded now."""
        return self.unwanted_since is None and now >= self.again_at and (self.wanted.serves or not self.is_refused)


@dataclass
class Keeper:
    """The adapters of one pod. Times are on the monotonic clock."""

    wanted: Path
    folder: Path
    engine: LoraApi
    base: Base
    place: Place
    drain: float  # seconds that answers may take after their adapter was left
    version: str = ""
    answers_since: float | None = None  # the engine
    settled: bool = False
    tried: dict[str, Tried] = field(default_factory=dict)  # by engine's name
    strangers: dict[str, float] = field(default_factory=dict)  # what an earlier process of this program had loaded

    def step(self, now: float) -> None:
        """Look at what is wanted and at what the engine has, make up the difference, and tell."""
        self._read(now)
        loaded = self.engine.loaded()
        if loaded is None:  # it still loads, or ended: when it is there again, it has no adapters
            self.answers_since, self.settled = None, False
            self._tell(frozenset(), now)
            return
        self.answers_since = now if self.answers_since is None else self.answers_since
        due = [name for name, one in self.tried.items() if name not in loaded and one.is_due(now)]
        loaded |= {name for name in due if self._load(self.tried[name], now)}
        self._tell(loaded, now)
        for name in self._left(loaded, now):
            self.engine.unload(name)
        self._clear(now)

    def _read(self, now: float) -> None:
        """A file that is away, or cut, changes nothing."""
        try:
            found = WantedAdapters.model_validate_json(self.wanted.read_bytes())
        except (OSError, ValueError):
            return
        if found.version != self.version:
            print(f"wanted: {', '.join(a.engine_name for a in found.adapters) or 'no adapter'}", flush=True)
        self.version = found.version
        asked = {adapter.engine_name: adapter for adapter in found.adapters}
        for name, adapter in asked.items():
            known = self.tried.get(name)
            if known is None or known.unwanted_since is not None or known.wanted.trial != adapter.trial:
                self.tried[name] = Tried(adapter)
            else:
                known.wanted = adapter
        for name, one in self.tried.items():
            if name not in asked and one.unwanted_since is None:
                one.unwanted_since = now

    def _load(self, one: Tried, now: float) -> bool:
        """Have the engine load it. Whether it has."""
        begun, name = time.monotonic(), one.wanted.engine_name
        try:
            folder = fetch_adapter(one.wanted.uri, one.wanted.digest, self._place_of(one.wanted), self.place)
            check_adapter(folder, one.wanted.uri, self.base, self.place)
            self.engine.load(name, folder)
        except Exception as error:  # whatever it is, the others go on
            one.failed = as_failure(error)
            one.again_at = now + (AGAIN_REFUSED_SECONDS if one.is_refused else AGAIN_SECONDS)
            print(f"{name} is {'refused' if one.is_refused else 'delayed'}: {one.failed}", flush=True)
            return False
        one.failed = None
        print(f"{name} is loaded after {time.monotonic() - begun:.1f} s", flush=True)
        return True

    def _left(self, loaded: frozenset[str], now: float) -> list[str]:
        """What the engine has and is no more to have: answers that were begun have had their time."""
        for name in loaded - set(self.tried):
            self.strangers.setdefault(name, now)
        since = {name: one.unwanted_since for name, one in self.tried.items() if one.unwanted_since is not None}
        since |= {name: at for name, at in self.strangers.items() if name not in self.tried}
        return [name for name in sorted(loaded) if name in since and now - since[name] >= self.drain]

    def _clear(self, now: float) -> None:
        """Take away the files that no answer can need any more."""
        for name, one in list(self.tried.items()):
            if one.unwanted_since is not None and now - one.unwanted_since >= max(KEPT_SECONDS, self.drain):
                del self.tried[name]
                if all(other.wanted.digest != one.wanted.digest for other in self.tried.values()):
                    shutil.rmtree(self._place_of(one.wanted), ignore_errors=True)

    def _place_of(self, adapter: WantedAdapter) -> Path:
        return self.folder / adapter.digest.replace(":", "-")

    def _tell(self, loaded: frozenset[str], now: float) -> None:
        """Names first: who is told that an adapter is loaded may ask for it at once."""
        here = [one for one in self.tried.values() if one.unwanted_since is None]
        serving = [one.wanted for one in here if one.wanted.serves]
        names = {w.name: w.engine_name for w in serving if w.engine_name in loaded}
        if self.answers_since is not None and self.version:
            is_late = now - self.answers_since >= SETTLE_SECONDS
            self.settled |= is_late or all(w.engine_name in loaded or self.tried[w.engine_name].is_refused for w in serving)
        told = tuple(_state(one, loaded) for one in here)
        state = PodAdapters(version=self.version, settled=self.settled, adapters=told)
        _write(self.folder / NAMES, json.dumps(names, sort_keys=True))
        _write(self.folder / STATE, state.model_dump_json(by_alias=True, exclude_none=True))


def _state(one: Tried, loaded: frozenset[str]) -> LoadedAdapter:
    name, failed = one.wanted.engine_name, one.failed
    told = LoadedAdapter(engine_name=name, trial=one.wanted.trial, loaded=name in loaded)
    told = told.model_copy(update={"serves": told.loaded and one.wanted.serves})
    if told.loaded or failed is None:
        return told
    return told.model_copy(update={"reason": failed.reason if one.is_refused else None, "message": failed.message})


def _write(path: Path, text: str) -> None:
    """In one piece, and only where it changed: the front looks at its time."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    made = path.with_name(f".{path.name}")
    made.write_text(text, encoding="utf-8")
    made.rename(path)


def main(arguments: list[str] | None = None) -> int:
    """Keep adapters as the command line says, until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.serving.adapters", description=__doc__.splitlines()[0])
    parser.add_argument("--wanted", type=Path, required=True, help="file that says which adapters are wanted")
    parser.add_argument("--folder", type=Path, required=True, help="folder that the engine reads adapters from")
    parser.add_argument("--engine", required=True, help="URL of the engine")
    parser.add_argument("--base", type=Path, required=True, help="folder of the model that it serves")
    parser.add_argument("--max-rank", type=int, required=True, help="highest rank that the engine has room for")
    parser.add_argument("--drain", type=float, required=True, help="seconds that answers may take after their adapter was left")
    parser.add_argument("--endpoint", help="URL of an S3-compatible server")
    parser.add_argument("--region", help="region of the bucket")
    options = parser.parse_args(arguments)
    exit_on_sigterm()
    keeper = Keeper(
        options.wanted,
        options.folder,
        LoraApi(options.engine, environment.access().served_api_key),
        Base(options.base, options.max_rank),
        Place(options.endpoint, options.region),
        options.drain,
    )
    while True:
        try:
            keeper.step(time.monotonic())
        except Exception as error:  # a full disk, or an engine that ended just now: the next look may find it mended
            print(f"{StepReason.UnexpectedError}: {error}", flush=True)
        time.sleep(PERIOD_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
