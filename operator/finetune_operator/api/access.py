"""Who reaches a ModelServe, and how many pods answer: the parts of its spec beside model, engine and rollout."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field

from finetune_operator.meta import Quantity
from finetune_trainer.contract.fields import Strict


class ApiKey(Strict):
    name: str = Field(min_length=1, max_length=253)
    """Name of a Secret in the same namespace."""
    key: str = Field("api-key", min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")
    """Its key with the API key."""


class RedisUrl(Strict):
    name: str = Field(min_length=1, max_length=253)
    """Name of a Secret in the same namespace."""
    key: str = Field("url", min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")
    """Its key with the URL of a Redis: redis://:password@host:6379/0, or rediss:// by TLS."""


class ResponseCache(Strict):
    secret_ref: RedisUrl
    """The Redis in which answers are kept. Where it is away, the engine answers."""
    ttl_seconds: int = Field(3600, ge=1, le=2592000)
    """How long an answer is kept."""


class Load(StrEnum):
    """What an autoscaler looks at."""

    WAITING_REQUESTS = "WaitingRequests"
    CACHE_USAGE = "CacheUsage"
    CPU = "CPU"


# Averages over the pods that suit most: requests that wait, share of the KV cache, percent of the CPUs that were asked for.
USUAL = {Load.WAITING_REQUESTS: "5", Load.CACHE_USAGE: "800m", Load.CPU: "80"}


class Autoscaling(Strict):
    min_replicas: int = Field(1, ge=0, le=1000)
    """Fewest pods. 0: none while nobody asks; a gateway takes the requests, and the first one starts the pods again."""
    idle_seconds: int = Field(300, ge=10, le=604800)
    """With minReplicas 0: time without a request, after which the pods go."""
    hold_seconds: int = Field(600, ge=1, le=3600)
    """With minReplicas 0: how long a request waits for a pod, at most. Then it is answered 503 with Retry-After."""
    hold_requests: int = Field(100, ge=1, le=10000)
    """With minReplicas 0: how many are held at once, at most. Others are answered 429 with Retry-After."""
    max_replicas: int = Field(ge=1, le=1000)
    """Most pods."""
    metric: Load = Load.WAITING_REQUESTS
    """What is kept at the target. WaitingRequests and CacheUsage are the engine's own metrics and need a metrics adapter (see
    docs/serving.md), CPU needs the metrics server."""
    target: Quantity | None = None
    """Average over the pods: requests that wait, share of the KV cache that is in use (800m is 80 %), or percent of the CPUs
    that spec.resources asks for. Unset: 5, 800m, 80."""

    @property
    def awake_replicas(self) -> int:
        """Fewest pods while somebody asks."""
        return max(1, self.min_replicas)


class Scheme(StrEnum):
    HTTPS = "https"
    HTTP = "http"


class Gateway(Strict):
    name: str = Field(min_length=1, max_length=253)
    """Name of a Gateway of the Gateway API."""
    namespace: str | None = Field(None, min_length=1, max_length=63)
    """Its namespace. Unset: that of the ModelServe."""
    section_name: str | None = Field(None, min_length=1, max_length=253)
    """One listener of it. Unset: all that allow the route."""


class Route(Strict):
    gateway: Gateway
    """Who takes requests from outside. Its pods must be let in by spec.network.allowFrom."""
    hostname: str | None = Field(
        None,
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    )
    """The name that callers use. Unset: any that the listener has."""
    scheme: Scheme = Scheme.HTTPS
    """How the listener is called. With hostname it makes status.url."""


class Network(Strict):
    policy: bool = True
    """False makes no NetworkPolicy: whoever reaches the pods may ask. So does the chart's value networkPolicies."""
    allow_from: list[dict[str, Any]] = Field(default_factory=list, max_length=16, json_schema_extra={"x-preserve": True})
    """Who may ask besides the pods of this namespace: namespaceSelector, podSelector or ipBlock, as in `ingress.from` of a
    NetworkPolicy."""
