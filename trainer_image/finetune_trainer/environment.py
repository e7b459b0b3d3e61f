"""The environment of a process: no other module reads it or writes to it.

What the operator tells a pod is read once, where a program starts, and passed on as a value. What belongs to libraries
(credentials, endpoints, their switches) has a function each for those who deal with that library.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.contract import places, pod
from finetune_trainer.contract.pod import Owner
from finetune_trainer.contract.training import HANG_AFTER_MEDIAN_STEPS

OF_CREDENTIALS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "AUTHORIZATION", "_PROXY")  # how names of variables end
SHORTEST_HIDDEN = 6  # characters; a shorter word is found in any text
ENV_ENDS, ENV_LOG = "FINETUNE_RANK_ENDS", "FINETUNE_RANK_LOG"  # from a pod's first process to those that it starts


@dataclass(frozen=True)
class Pod:
    """What contract/pod.py names, and the defaults of a pod."""

    run_file: Path
    mounts: str
    scratch: Path
    termination_log: Path
    attempt: str  # counts from 1
    uid: str | None  # None outside of a cluster
    grace_seconds: float
    micro_batch_size: int | None  # in place of the fit's, where the memory did not hold that
    hang_after: int  # medians of a step's time
    node_rank: int  # of this pod among those of the attempt
    master: str  # host:port where all ranks meet
    metrics_port: int | None
    kept_log: str | None  # folder below the store's root
    in_use: frozenset[str] | None  # fingerprints that stay in the store; None where that is unknown, or all of it
    llama_cpp: Path
    otlp_endpoint: str  # of a collector of traces; empty: none are sent
    traceparent: str


def read(variables: Mapping[str, str] = os.environ) -> Pod:
    """What this process was told. Raises ValueError where a number is none."""
    smaller, port = variables.get(pod.ENV_MICRO_BATCH_SIZE), variables.get(pod.ENV_METRICS_PORT)
    return Pod(
        run_file=Path(variables.get(pod.ENV_RUN_FILE, pod.RUN_FILE)),
        mounts=variables.get(pod.ENV_MOUNTS, pod.MOUNTS),
        scratch=Path(variables.get(pod.ENV_SCRATCH, pod.SCRATCH)),
        termination_log=Path(variables.get(pod.ENV_TERMINATION_LOG, pod.TERMINATION_LOG)),
        attempt=variables.get(pod.ENV_ATTEMPT, "1"),
        uid=variables.get(pod.ENV_POD_UID) or None,
        grace_seconds=float(variables.get(pod.ENV_GRACE_SECONDS) or pod.GRACE_SECONDS),
        micro_batch_size=int(smaller) if smaller else None,
        hang_after=int(variables.get(pod.ENV_HANG_AFTER) or HANG_AFTER_MEDIAN_STEPS),
        node_rank=int(variables.get(pod.ENV_NODE_RANK, "0")),
        master=variables.get(pod.ENV_MASTER, "127.0.0.1:29500"),
        metrics_port=int(port) if port else None,
        kept_log=variables.get(pod.ENV_KEPT_LOG) or None,
        in_use=None if (used := variables.get(pod.ENV_IN_USE)) in (None, pod.ALL_IN_USE) else frozenset((used or "").split()),
        llama_cpp=Path(variables.get(pod.ENV_LLAMA_CPP, pod.LLAMA_CPP)),
        otlp_endpoint=variables.get(pod.ENV_OTLP, ""),
        traceparent=variables.get(pod.ENV_TRACEPARENT, ""),
    )


# ── Ranks, as torchrun and Ray number them ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Place:
    """A rank's place among all, and on its node; and the folder where it leaves how it ended."""

    rank: int
    local_rank: int
    world_size: int
    ends: Path

    @property
    def end_file(self) -> Path:
        """Where this rank leaves its exit status and its report."""
        return self.ends / f"rank-{self.rank}"


def place(variables: Mapping[str, str] = os.environ) -> Place | None:
    """This process's place; None where no launcher started it as one of several."""
    if "LOCAL_RANK" not in variables:
        return None
    return Place(
        rank=int(variables.get("RANK", "0")),
        local_rank=int(variables["LOCAL_RANK"]),
        world_size=int(variables.get("WORLD_SIZE", "1")),
        ends=ends(variables),
    )


def ends(variables: Mapping[str, str] = os.environ) -> Path:
    """The folder in which the ranks of this node leave how they ended."""
    return Path(variables.get(ENV_ENDS, "."))


def rank_log() -> Path:
    """Where Ray's workers let their ranks write: the pod's own log."""
    return Path(os.environ[ENV_LOG])


def of_child(over: Mapping[str, str], under: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that this one starts: its own, with `over` in its place and `under` where it has none."""
    return {**(under or {}), **os.environ, **over}


# ── Libraries ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Access:
    """How hubs, buckets and servers are reached, as their own clients would read it; None where nothing is said."""

    secret: Mapping[str, str]  # what the Secret of the place says, which is also in all that follows
    hub_endpoint: str | None
    hub_token: str | None
    https_authorization: str | None
    served_api_key: str | None
    cache_url: str | None
    revision: str | None
    judge_api_key: str | None
    google_endpoint: str | None
    azure_endpoint: str | None
    s3_endpoint: str | None
    s3_region: str | None
    ca_bundle: Path | None

    @property
    def own_s3_endpoint(self) -> str | None:
        """The server that this Secret alone is for."""
        return self.secret.get("AWS_ENDPOINT_URL")

    @property
    def own_s3_region(self) -> str | None:
        return self.secret.get("AWS_REGION")


def access(owner: Owner | None = None, place: places.Place | None = None, variables: Mapping[str, str] = os.environ) -> Access:
    """How an owner comes to a place: by its Secret, and by the environment in all that this says nothing of."""
    found = {} if owner is None or place is None else _credentials(owner, place, variables)
    variables = {**variables, **found}
    bundle = variables.get("AWS_CA_BUNDLE")
    return Access(
        secret=found,
        hub_endpoint=variables.get("HF_ENDPOINT"),
        hub_token=variables.get("HF_TOKEN"),
        https_authorization=variables.get("HTTPS_AUTHORIZATION"),
        served_api_key=variables.get(pod.ENV_API_KEY),
        cache_url=variables.get(pod.ENV_CACHE_URL),
        revision=variables.get(pod.ENV_REVISION),
        judge_api_key=variables.get(pod.ENV_JUDGE_KEY),
        google_endpoint=variables.get("GOOGLE_BASE_URL"),
        azure_endpoint=variables.get("AZURE_STORAGE_ENDPOINT"),
        s3_endpoint=variables.get("AWS_ENDPOINT_URL"),
        s3_region=variables.get("AWS_REGION"),
        ca_bundle=Path(bundle) if bundle else None,
    )


def secret(owner: Owner, variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The owner's Secret as it is mounted; nothing where it has none."""
    folder = Path(pod.secret_folder(variables.get(pod.ENV_MOUNTS, pod.MOUNTS), owner))
    files = [] if not folder.is_dir() else [path for path in folder.iterdir() if path.is_file()]
    return {path.name: path.read_text(errors="replace").rstrip("\n") for path in files}


def hidden(variables: Mapping[str, str] = os.environ) -> list[str]:
    """What no text that is kept may show: each line of all that the pod's Secrets say, and of variables that are named like
    credentials. The longest come first, as one may be a part of another."""
    said = [value for owner in Owner for value in secret(owner, variables).values()]
    said += [value for name, value in variables.items() if name.upper().endswith(OF_CREDENTIALS)]
    lines = {line.strip() for value in said for line in value.splitlines()}
    return sorted((line for line in lines if len(line) >= SHORTEST_HIDDEN), key=len, reverse=True)


def _credentials(owner: Owner, place: places.Place, variables: Mapping[str, str]) -> dict[str, str]:
    """What the owner's Secret says of a place; where that says nothing, what the store's does, and for a source another's."""
    lenders = {Owner.STORE: (), Owner.PUBLISH: (Owner.STORE,)}.get(owner, (Owner.STORE, *pod.SOURCES))
    secrets = (secret(each, variables) for each in (owner, *lenders))
    said = ({k: v for k, v in keys.items() if place.keys and k.startswith(place.variables)} for keys in secrets)
    return next(filter(None, said), {})


def asked_threads() -> int | None:
    """Threads that $OMP_NUM_THREADS asks for; None where it names no number."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(asked)) if asked.isdigit() else None


def missing(names: Iterable[str]) -> list[str]:
    """Those of the variables that are unset or empty."""
    return [name for name in names if not os.environ.get(name)]


def offer(variables: Mapping[str, str]) -> None:
    """Set what libraries read, but for what the pod's spec has set itself."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def put(variables: Mapping[str, str]) -> None:
    """Set what libraries read."""
    os.environ.update(variables)
