"""The operator's only Kubernetes client: plain dicts in and out, one field manager, errors by what follows from them.

`fence` is called before every write but the Lease's and raises where this replica may not act any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from finetune_operator.apiserver import TIMEOUT_SECONDS, ApiServer, Request
from finetune_operator.claims import CLAIM, claim_modes
from finetune_operator.decision import Event, Ref
from finetune_operator.decoding import decode_objects
from finetune_operator.errors import NotFound
from finetune_operator.kueue import LOCAL_QUEUE
from finetune_operator.meta import API_VERSION, Key, Object
from finetune_operator.names import CONTROLLER, FIELD_MANAGER, STEP_CONTAINER
from finetune_operator.queues import local_queue
from finetune_operator.refusals import REFUSAL
from finetune_operator.remembered import Remembered
from finetune_operator.resources import RESOURCES

LEASE_TIMEOUT_SECONDS = 4.0  # several tries fit into the time in which a lease must be renewed
LOG_BYTES = 65536
PAGE = 100  # objects of one answer: what was decoded takes ten times its text, and the most that was ever held stays with us
WATCH_SECONDS = 600
SILENT_SECONDS = 150.0  # a bookmark comes each minute
APPLY_PATCH, MERGE_PATCH = "application/apply-patch+yaml", "application/merge-patch+json"


class Cluster:
    """The API server. Methods raise the errors of errors.py."""

    def __init__(self, api: ApiServer, fence: Callable[[], None], identity: str) -> None:
        self._api = api
        self._fence = fence
        self._identity = identity
        self._remembered = {
            LOCAL_QUEUE: Remembered(partial(local_queue, api)),
            CLAIM: Remembered(partial(claim_modes, self.get)),
        }

    @classmethod
    async def connect(cls, fence: Callable[[], None], identity: str) -> Cluster:
        """With the credentials that ApiServer.connect finds."""
        return cls(await ApiServer.connect(), fence, identity)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object, or None where there is none."""
        timeout = LEASE_TIMEOUT_SECONDS if kind == "Lease" else TIMEOUT_SECONDS
        try:
            found: Object = await self._api.json(Request("GET", RESOURCES[kind].path(namespace, name), timeout=timeout))
        except NotFound:
            return None
        return found

    async def read(self, namespace: str, ref: Ref) -> Object | None:
        """What a reference stands for: the object of that name, or for REFUSAL the newest event of a Job without a pod."""
        if ref.kind in self._remembered:
            return await self._remembered[ref.kind].find(namespace, ref.name)
        if ref.kind != REFUSAL:
            return await self.get(ref.kind, namespace, ref.name)
        fields = f"regarding.kind=Job,regarding.name={ref.name},reason=FailedCreate"
        events = _items(await self._api.json(Request("GET", RESOURCES["Event"].path(namespace), {"fieldSelector": fields})))
        return max(events, key=lambda event: str(event["metadata"].get("creationTimestamp")), default=None)

    async def list(self, kind: str, namespace: str = "", labels: dict[str, str] | None = None) -> tuple[Object, ...]:
        """All objects of a kind with these labels. An empty namespace is all of them."""
        resource = RESOURCES[kind]
        query = {"labelSelector": selector(labels)} if labels else {}
        found = await self._api.json(Request("GET", resource.path(namespace), query))
        return tuple({"apiVersion": resource.api_version, "kind": kind, **item} for item in _items(found))

    async def pages(self, kind: str, namespace: str, labels: dict[str, str]) -> AsyncIterator[tuple[tuple[Object, ...], str]]:
        """All objects of a kind with these labels, page by page, each with the version from which a watch goes on."""
        resource, query = RESOURCES[kind], {"labelSelector": selector(labels)}
        async for found in self._answers(Request("GET", resource.path(namespace), query)):
            page = tuple({"apiVersion": resource.api_version, "kind": kind, **item} for item in _items(found))
            yield page, found["metadata"]["resourceVersion"]

    async def _answers(self, asked: Request) -> AsyncIterator[Object]:
        """A list, PAGE objects at a time."""
        going_on: str | None = ""
        while going_on is not None:
            query = {**asked.query, "limit": str(PAGE), **({"continue": going_on} if going_on else {})}
            found = await self._api.json(replace(asked, query=query))
            going_on = found["metadata"].get("continue") or None
            yield found

    async def own_resources(self) -> frozenset[str]:
        """Plural names of what the API server serves of our group; none before the CRDs are there."""
        return await self._api.resources(API_VERSION)

    async def versions(self, kind: str, namespace: str) -> tuple[dict[Key, int], int]:
        """Version of each object of a kind, and of the list: names and versions alone are sent."""
        accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
        versions, of_list = dict[Key, int](), 0
        async for found in self._answers(Request("GET", RESOURCES[kind].path(namespace), accept=accept)):
            metas = [item["metadata"] for item in _items(found)]
            versions |= {Key(kind, m["namespace"], m["name"]): int(m["resourceVersion"]) for m in metas}
            of_list = int(found["metadata"]["resourceVersion"])
        return versions, of_list

    async def watch(self, kind: str, namespace: str, labels: dict[str, str], version: str) -> AsyncIterator[Object]:
        """Events after this version, until the server ends the watch. One that is silent without bookmarks is Unavailable."""
        query = {"watch": "true", "allowWatchBookmarks": "true", "labelSelector": selector(labels)}
        query |= {"resourceVersion": version, "timeoutSeconds": str(WATCH_SECONDS)}
        async for line in self._api.lines(Request("GET", RESOURCES[kind].path(namespace), query, timeout=SILENT_SECONDS)):
            yield decode_objects(line)

    async def log_tail(self, namespace: str, pod: str, lines: int) -> str:
        """The last lines that our container of a step's pod printed."""
        query = {"container": STEP_CONTAINER, "tailLines": str(lines), "limitBytes": str(LOG_BYTES)}
        return await self._api.text(Request("GET", RESOURCES["Pod"].path(namespace, pod, "log"), query))

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def create(self, body: Object) -> Object:
        """POST. Raises AlreadyExists."""
        metadata = body["metadata"]
        timeout = self._fenced(body)
        return await self._api.json(
            Request("POST", RESOURCES[body["kind"]].path(metadata["namespace"]), body=body, timeout=timeout)
        )

    async def replace(self, body: Object) -> Object:
        """PUT of what was read; raises Conflict where somebody wrote in between."""
        metadata = body["metadata"]
        timeout = self._fenced(body)
        path = RESOURCES[body["kind"]].path(metadata["namespace"], metadata["name"])
        return await self._api.json(Request("PUT", path, body=body, timeout=timeout))

    async def apply(self, body: Object, manager: str = FIELD_MANAGER) -> Object:
        """Server-side apply by force: the fields in the body become ours and as the body says."""
        self._fence()
        metadata = body["metadata"]
        path = RESOURCES[body["kind"]].path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": manager, "force": "true"}
        return await self._api.json(Request("PATCH", path, query, body, content_type=APPLY_PATCH))

    async def merge(self, read: Object, patch: Object) -> Object:
        """A merge patch of an object as it was read; raises Conflict if anybody wrote to it since.

        It replaces lists whole, which an apply can't where others have items in them.
        """
        self._fence()
        metadata = read["metadata"]
        path = RESOURCES[read["kind"]].path(metadata["namespace"], metadata["name"])
        identity = {k: metadata[k] for k in ("uid", "resourceVersion")}
        body = {**patch, "metadata": {**patch.get("metadata", {}), **identity}}
        query = {"fieldManager": FIELD_MANAGER}
        return await self._api.json(Request("PATCH", path, query, body, content_type=MERGE_PATCH))

    async def annotate(self, kind: str, namespace: str, name: str, uid: str, notes: Mapping[str, str]) -> Object:
        """Annotate just this object, whoever wrote to it since it was read. Raises NotFound where it is gone, and Conflict
        where another has its name by now.
        """
        self._fence()
        path, query = RESOURCES[kind].path(namespace, name), {"fieldManager": FIELD_MANAGER}
        body = {"metadata": {"uid": uid, "annotations": dict(notes)}}
        return await self._api.json(Request("PATCH", path, query, body, content_type=MERGE_PATCH))

    async def replace_status(self, read: Object, status: dict[str, Any]) -> Object:
        """Write the whole status of an object as it was read; raises Conflict if anybody wrote to it since.

        What is not status is left out: the API server takes it from what it has, and what was read may be cut short.
        Not by server-side apply: that fails as a whole where the CRD is older than the operator and lacks one field.
        """
        self._fence()
        metadata = read["metadata"]
        path = RESOURCES[read["kind"]].path(metadata["namespace"], metadata["name"], "status")
        query = {"fieldManager": FIELD_MANAGER}
        identity = {k: metadata[k] for k in ("name", "namespace", "uid", "resourceVersion")}
        body = {"apiVersion": read["apiVersion"], "kind": read["kind"], "metadata": identity, "status": status}
        return await self._api.json(Request("PUT", path, query, body))

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete just this object, what it owns in the background. Gone is fine.

        Raises Conflict where it is another by now, of which a watch tells, or where somebody writes to it meanwhile.
        """
        self._fence()
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._api.json(Request("DELETE", RESOURCES[kind].path(namespace, name), body=body))
        except NotFound:
            return

    async def post_event(self, regarding: Object, event: Event) -> None:
        """An events.k8s.io/v1 Event that `kubectl describe` shows."""
        self._fence()
        metadata = regarding["metadata"]
        body = {
            "apiVersion": RESOURCES["Event"].api_version,
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name'][:40].rstrip('.-')}-", "namespace": metadata["namespace"]},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": CONTROLLER,
            "reportingInstance": self._identity[:128],
            "action": "Reconcile",
            "reason": event.reason,
            "note": event.message[:1000],
            "type": "Warning" if event.warning else "Normal",
            "regarding": {
                "apiVersion": regarding["apiVersion"],
                "kind": regarding["kind"],
                **{k: metadata[k] for k in ("name", "namespace", "uid")},
            },
        }
        await self._api.json(Request("POST", RESOURCES["Event"].path(metadata["namespace"]), body=body))

    def _fenced(self, body: Object) -> float:
        """Seconds that a write of this body may take. Raises NotLeader where this replica may not write. The Lease alone is
        written without that check, because it decides who leads."""
        if body["kind"] == "Lease":
            return LEASE_TIMEOUT_SECONDS
        self._fence()
        return TIMEOUT_SECONDS


def _items(found: Object) -> list[Object]:
    """A list's objects. One of metadata alone that holds none says null."""
    return found["items"] or []


def selector(labels: dict[str, str]) -> str:
    """A label selector as a query takes it."""
    return ",".join(f"{k}={v}" for k, v in labels.items())
