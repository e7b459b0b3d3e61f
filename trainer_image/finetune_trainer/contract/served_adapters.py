"""Adapters that pods of a base model serve: what is wanted of them, what each pod tells, and what an adapter must be. Pure.

    ConfigMap ── wanted.json ──► keeper, in each pod ── engine's own API, on the loopback ──► engine
                                   ├─ names.json ──► front: which engine's name a caller's name stands for
                                   └─ state.json ──► front ── GET /finetune/adapters ──► the gate of an adapter

The engine knows an adapter by its name and its digest: it keeps what it has computed under an adapter's name, and would go on
with another's numbers where two follow each other under one.
"""

from __future__ import annotations

from collections.abc import Iterable

from finetune_trainer.contract.fields import Report, Strict

WANTED = "wanted.json"  # key of the ConfigMap
NAMES, STATE = "names.json", "state.json"  # files of the folder that keeper, front and engine share
PATH = "/finetune/adapters"  # of the front: the state
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM's --max-lora-rank takes
MARK_DIGITS = 8


class WantedAdapter(Strict):
    """One adapter that pods are to have loaded."""

    name: str
    digest: str
    uri: str
    serves: bool  # who asks for the name is answered by it; otherwise it is tried
    trial: str  # another one is another try, whatever came of the one before

    @property
    def engine_name(self) -> str:
        return engine_name(self.name, self.digest)


class WantedAdapters(Strict):
    """All of them, as one version."""

    version: str  # a hash of the rest
    adapters: tuple[WantedAdapter, ...] = ()


class LoadedAdapter(Report):
    """How an adapter stands in one pod."""

    engine_name: str
    trial: str
    loaded: bool = False
    serves: bool = False
    """Whether its name leads to it here."""
    reason: str | None = None
    """Why not, and for good: it is tried no more."""
    message: str | None = None


class PodAdapters(Report):
    """What one pod tells of all."""

    version: str
    settled: bool = False
    """Whether each adapter that serves is loaded, refused, or was tried for long enough."""
    adapters: tuple[LoadedAdapter, ...] = ()


class Awaited(Strict):
    """The adapter that each ready pod must have: before a gate asks for it, before it is said to serve, and of pods that came
    later."""

    host: str  # stands for the addresses of all ready pods
    port: int
    engine_name: str
    trial: str
    serves: bool = False  # its name must lead to it, too, and nothing else is asked
    pods: int = 1  # that were ready: a name may lead to fewer for a moment
    seconds: int


def engine_name(name: str, digest: str) -> str:
    """What the engine calls an adapter. `@` is in no name of ours."""
    return f"{name}@{digest.removeprefix('sha256:')[:MARK_DIGITS]}"


def rank_for(rank: int) -> int | None:
    """The least that vLLM can be told for adapters of this rank; None where it takes none so high."""
    return next((r for r in RANKS if r >= rank), None)


def misfit(rank: int, most: int, *, dora: bool, whole: Iterable[str]) -> str | None:
    """Why an engine with room for adapters of rank `most` takes none like this; `whole` are modules that were trained whole."""
    if dora:
        return "it was trained by DoRA, which vLLM has not; serve the merged model"
    if whole := sorted(whole):
        return f"it has modules that were trained whole ({', '.join(whole)}), which vLLM does not take; serve the merged model"
    if rank > most:
        return f"its rank is {rank}, and there is room for {most}: set spec.lora.maxRank to {rank_for(rank) or RANKS[-1]}"
    return None
