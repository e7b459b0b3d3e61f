"""Which replica acts: a Lease, renewed every 2 s, good for 15 s, given up for lost after 10 s without an answer.

    acquire ──► hold ─(renewed every 2 s)─► … ──► release      (SIGTERM: the next replica starts at once)
                 └─(10 s without an answer, or taken by another)──► lost: the process ends at once

Whether another's lease has run out is judged by our own monotonic clock since we last saw it change, never by its
timestamps: clocks of nodes differ.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from finetune_operator import metrics
from finetune_operator.errors import AlreadyExists, ClusterError, Conflict, NotLeader
from finetune_operator.meta import Key, Object

LEASE_SECONDS = 15
RENEW_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0


class Leases(Protocol):
    """The three calls of the Cluster that an election needs."""

    async def get(self, kind: str, namespace: str, name: str) -> Object | None: ...

    async def create(self, body: Object) -> Object: ...

    async def replace(self, body: Object) -> Object: ...


@dataclass(frozen=True)
class Clock:
    """Time as the elector sees it; a test brings its own."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class Elector:
    """One candidate. `lost` is called when the lease is gone: it must end the process and not return."""

    def __init__(
        self, leases: Leases, lease: Key, identity: str, lost: Callable[[str], None], clock: Clock | None = None
    ) -> None:
        self._leases = leases
        self._lease = lease
        self._identity = identity
        self._lost = lost
        self._clock = clock or Clock()
        self._mine: Object | None = None  # the Lease as we last wrote it
        self._renewed = float("-inf")
        self._seen: tuple[str, float] = ("", 0.0)  # another's resourceVersion, and when we first saw it

    def check(self) -> None:
        """Each write asks here first. Raises NotLeader where the lease may have run out, as after the process was frozen."""
        if self._clock.monotonic() - self._renewed > LEASE_SECONDS:
            raise NotLeader(f"{self._identity} has not renewed its lease for {LEASE_SECONDS} s")

    async def acquire(self) -> None:
        """Return when this replica is the leader. Errors of the API server are waited out."""
        metrics.LEADER.labels(self._lease.name).set(0)
        while not await self._try_to_acquire():
            await self._clock.sleep(RETRY_SECONDS)
        metrics.LEADER.labels(self._lease.name).set(1)

    async def hold(self) -> None:
        """Renew for ever; calls `lost` when that fails for too long or another replica holds the lease."""
        while True:
            await self._clock.sleep(RETRY_SECONDS)
            try:
                await self._renew()
            except NotLeader as error:
                return self._lost(str(error))
            except ClusterError as error:
                if self._clock.monotonic() - self._renewed > RENEW_DEADLINE_SECONDS:
                    return self._lost(f"the lease could not be renewed: {error}")

    async def release(self) -> None:
        """Let the next replica start at once. Where that fails it starts when the lease has run out."""
        if self._mine is not None:
            try:
                await self._leases.replace(self._body(self._mine, holder="", seconds=1))
            finally:
                self._mine, self._renewed = None, float("-inf")

    async def _try_to_acquire(self) -> bool:
        try:
            lease = await self._leases.get(*self._lease)
            if lease is not None and not self._is_free(lease):
                return False
            await self._write(lease)
        except (AlreadyExists, Conflict, ClusterError):
            return False  # somebody was faster, or there is no answer: look again in a moment
        return True

    def _is_free(self, lease: Object) -> bool:
        spec = lease.get("spec", {})
        if spec.get("holderIdentity", "") in ("", self._identity):
            return True
        version, since = self._seen
        if lease["metadata"]["resourceVersion"] != version:
            self._seen = (lease["metadata"]["resourceVersion"], self._clock.monotonic())
            return False
        return self._clock.monotonic() - since > float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)

    async def _renew(self) -> None:
        try:
            await self._write(self._mine)
        except Conflict:  # another took it, or the answer to our own last write was lost on the way
            lease = await self._leases.get(*self._lease)
            if lease is None or lease.get("spec", {}).get("holderIdentity") != self._identity:
                raise NotLeader("another replica took the lease") from None
            self._mine = lease

    async def _write(self, lease: Object | None) -> None:
        begin = self._clock.monotonic()  # the lease counts from before the request, however long the answer takes
        body = self._body(lease, holder=self._identity, seconds=LEASE_SECONDS)
        self._mine = await (self._leases.create(body) if lease is None else self._leases.replace(body))
        self._renewed = begin

    def _body(self, lease: Object | None, *, holder: str, seconds: int) -> Object:
        now = self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((lease or {}).get("spec", {}))
        if holder and spec.get("holderIdentity") != holder:
            spec |= {"acquireTime": now, "leaseTransitions": spec.get("leaseTransitions", -1) + 1}
        spec |= {"holderIdentity": holder, "leaseDurationSeconds": seconds, "renewTime": now}
        metadata = {"name": self._lease.name, "namespace": self._lease.namespace}
        if lease is not None:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
