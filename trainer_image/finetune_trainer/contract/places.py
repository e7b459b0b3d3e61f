"""Places: where models, rows and results lie, by the scheme of their uri. All that knows schemes reads this one table.

A new scheme is a row here, a few lines where it is opened (buckets.py, if it is a bucket), and `make crds`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto


class Use(Enum):
    """What a place can be used for."""

    MODEL = auto()  # read: base model, teacher
    ROWS = auto()
    TASKS = auto()  # read: lm-eval's files
    STORE = auto()  # read and written: the artifact store, which needs a write that only the first one wins
    PUBLISH = auto()
    SERVE = auto()  # read by a ModelServe


class Reach(Enum):
    """How a pod comes to it."""

    MOUNTED = auto()
    BUCKET = auto()  # by obstore
    HUB = auto()
    HTTPS = auto()


@dataclass(frozen=True)
class Place:
    """All that follows from a scheme. `keys` are of the Secret with its credentials; `required` ones must be there."""

    scheme: str
    reach: Reach
    uses: Mapping[Use, str]  # what stands after ://, in words
    keys: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    patterns: Mapping[Use, str] = field(default_factory=dict)  # of what stands after ://, where not all will do
    kind: str = ""  # of the object that is mounted
    folder: str = ""  # below a pod's mounts

    @property
    def prefix(self) -> str:
        return f"{self.scheme}://"

    @property
    def variables(self) -> str:
        """How the names of all variables begin that its client reads, be they named in `keys` or not."""
        return f"{self.keys[0].partition('_')[0]}_"


REPOSITORY, BUCKET = "org/name[@revision]", "bucket/path"
READ = (Use.MODEL, Use.ROWS, Use.TASKS)
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

HF = Place(
    "hf",
    Reach.HUB,
    {Use.MODEL: REPOSITORY, Use.ROWS: REPOSITORY, Use.PUBLISH: "org/name[@branch]"},
    keys=("HF_TOKEN",),
    required=("HF_TOKEN",),
    patterns={Use.PUBLISH: "[^/@]+/[^/@]+(@[^@]+)?"},
)
PVC = Place("pvc", Reach.MOUNTED, dict.fromkeys(Use, "claim/path"), kind="PersistentVolumeClaim", folder="claims")
S3 = Place(  # spec's endpoint, region and caSecretRef are for it alone
    "s3", Reach.BUCKET, dict.fromkeys(Use, BUCKET), keys=S3_KEYS, required=S3_KEYS
)
GS = Place("gs", Reach.BUCKET, dict.fromkeys(READ, BUCKET), keys=("GOOGLE_SERVICE_ACCOUNT_KEY",))
AZ = Place(  # where a key is not given, the pod's own identity counts, but the account has to be named
    "az",
    Reach.BUCKET,
    dict.fromkeys(Use, "container/path"),
    keys=("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
    required=("AZURE_STORAGE_ACCOUNT_NAME",),
)
HTTPS = Place("https", Reach.HTTPS, {Use.ROWS: "host/path[#sha256=digest]"}, keys=("HTTPS_AUTHORIZATION",))
CONFIG_MAP = Place("configmap", Reach.MOUNTED, {Use.ROWS: "name/key", Use.TASKS: "name"}, kind="ConfigMap", folder="configmaps")
PLACES = (HF, PVC, S3, GS, AZ, HTTPS, CONFIG_MAP)

_BY_SCHEME = {place.scheme: place for place in PLACES}


def of(uri: str) -> Place:
    """The place of a uri. Raises KeyError for a scheme that nothing is known of."""
    return _BY_SCHEME[uri.partition("://")[0]]


def usable(use: Use, *reaches: Reach) -> tuple[Place, ...]:
    """Places with this use, of the given reaches or of any."""
    return tuple(place for place in PLACES if use in place.uses and (not reaches or place.reach in reaches))


# ── In words and patterns ─────────────────────────────────────────────────────────────────────────────────────────────


def pattern(use: Use, rest: str = ".+") -> str:
    """Regular expression of the uris with this use; `rest` is that of what stands after ://, unless a place has its own."""
    places = usable(use)
    alike = f"({'|'.join(place.scheme for place in places if use not in place.patterns)})://{rest}"
    apart = [f"{place.prefix}{place.patterns[use]}" for place in places if use in place.patterns]
    return f"^({'|'.join([alike, *apart])})$" if apart else f"^{alike}" + ("" if rest == ".+" else "$")


def forms(use: Use) -> str:
    """How such uris are written, as an enumeration."""
    return either(f"{place.prefix}{place.uses[use]}" for place in usable(use))


def credentials(places: Iterable[Place]) -> str:
    """Which keys of a Secret are for which place."""
    return ", ".join(f"{' and '.join(place.keys)} for {place.prefix}" for place in places if place.keys)


def either(names: Iterable[str]) -> str:
    """a, b or c."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


# ── In a pod ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def mounted_path(uri: str, mounts: str) -> str | None:
    """Path in the pod of what is mounted; None for sources that are fetched over the network."""
    place = of(uri)
    return f"{mounts}/{place.folder}/{uri.removeprefix(place.prefix)}" if place.reach is Reach.MOUNTED else None


def claim_of(uri: str) -> str | None:
    """Name of the claim that a uri leads into; None where it leads elsewhere."""
    return _host(uri) if uri.startswith(PVC.prefix) else None


def config_map_of(uri: str) -> str | None:
    """The same for a ConfigMap."""
    return _host(uri) if uri.startswith(CONFIG_MAP.prefix) else None


def _host(uri: str) -> str:
    return uri.partition("://")[2].partition("/")[0]
