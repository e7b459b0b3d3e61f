"""A proxy that does to one write of each case what networks, API servers and their overload do to writes.

operator ── http ──► proxy ── https ──► kube-apiserver
                       └─ a case is a namespace; the fault strikes its write k, counted as the operator sends them
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from tests.faults.rights import verbs
from tests.integration.fault_proxy import HOP_BY_HOP, UNCOUNTED, WRITES, FaultProxy, Request
from tests.waiting import lasts

from finetune_operator.cache import KINDS
from finetune_operator.resources import RESOURCES
from finetune_operator.watches import WATCHED

NAMESPACE = re.compile(r"/namespaces/([^/]+)/")
VERSION = re.compile(rb'"resourceVersion":"(\d+)"')
LISTED = tuple(RESOURCES[kind].plural for kind in (*KINDS, *KINDS, *WATCHED))  # ours before the first pass, and by Kopf
REASONS = {
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    504: "Timeout",
}
HELD_SECONDS = 40.0  # longer than the operator waits for an answer
BEHIND_SECONDS = 2.0  # how far a watch is behind


@dataclass
class Fault:
    """What happens, from write (or read) `at` of the case on, to so many of them."""

    name: str
    at: int
    times: int = 1
    of_reads: bool = False
    struck: int = 0
    under_way: int = 0  # struck requests of which the API server or the operator has not heard the last


@dataclass
class Told:
    """What the operator sent of one namespace."""

    sent: int = 0  # writes
    taken: int = 0  # those that the API server accepted
    read: int = 0
    last: float = field(default_factory=time.monotonic)
    requests: list[str] = field(default_factory=list)


class Writes(FaultProxy):
    """`faults` by namespace; `strike` is called in this thread with what struck, before anything else happens."""

    def __init__(self, server: str, authority: str) -> None:
        self.faults: dict[str, Fault] = {}
        self.told: dict[str, Told] = {}
        self.used: dict[str, set[str]] = {}  # verbs by resource
        self.strike: Callable[[str, Fault], None] = _nothing
        self.behind_until: dict[str, float] = {}  # namespaces of which the watches tell late
        self.gone = 0  # so many watches are told that their version is too old
        self.version = ""  # the newest that an answer told of
        self._old: tuple[str, Counter[str]] = ("", Counter())  # a version, and the lists that were answered as of then
        self._late_until = 0.0
        self._watches: dict[int, web.Request] = {}
        super().__init__(server, authority)

    def cut_watches(self, *, gone: bool = False) -> None:
        """End every watch, as a restarted API server does; with `gone` the next ones must list anew."""
        self.gone = len(self._watches) if gone else 0
        for request in list(self._watches.values()):
            _cut(request)

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path.endswith("/log"):
            return web.Response(text="")  # no kubelet is there to ask
        if request.query.get("watch") == "true":
            return await self._watch(request)
        found = NAMESPACE.search(path)
        if found is None or any(word in path.split("/") for word in UNCOUNTED):
            return await self._pass_on(request)
        told, fault = self.told.setdefault(found[1], Told()), self.faults.get(found[1])
        number = self._count(request, told)
        of_reads = request.method not in WRITES
        if fault is None or fault.of_reads != of_reads or fault.struck >= fault.times or number < fault.at:
            return await self._pass_on(request)
        fault.struck += 1
        told.requests[-1] += f" ◄ {fault.name}"
        fault.under_way += 1
        try:
            return await self._struck(request, found[1], fault)
        finally:
            fault.under_way -= 1
            told.last = time.monotonic()

    def _count(self, request: web.Request, told: Told) -> int:
        """Which write, or which read, of its namespace this one is."""
        what = request.path.split("/namespaces/")[-1].partition("/")[2]
        told.requests.append(f"{request.method} {what}")
        if request.method not in WRITES:
            told.read += 1
            return told.read
        told.last = time.monotonic()
        told.sent += 1
        return told.sent

    async def _struck(self, request: web.Request, space: str, fault: Fault) -> web.StreamResponse:
        match fault.name:
            case "lost":
                return _cut(request)
            case "cut":
                await self._answer(request)
                return _cut(request)
            case "crash" | "old lists":
                version = self.version
                await self._answer(request)
                if fault.name == "old lists":
                    self._old = (version, Counter())
                self.strike(space, fault)
                return _cut(request)
            case "doubled":
                await self._answer(request)
                return await self._pass_on(request)
            case "held":
                await self._answer(request)
                await lasts(HELD_SECONDS)
                return _cut(request)
            case "late":
                await request.read()
                await lasts(HELD_SECONDS)
                await self._answer(request)
                return _cut(request)
            case "504 after":
                await self._answer(request)
                return _refusal(504)
            case code if code.isdigit():
                return _refusal(int(code))
        self.strike(space, fault)  # what befalls watches and pods leaves the write alone
        return await self._pass_on(request)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        status, headers, content = await self._answer(request)
        kept = {k: v for k, v in headers.items() if k.lower() not in HOP_BY_HOP}
        return web.Response(status=status, headers=kept, body=content)

    async def _answer(self, request: web.Request) -> tuple[int, dict[str, str], bytes]:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        data = await request.read() or None
        url, timeout = self._server + request.raw_path + self._as_of(request), aiohttp.ClientTimeout(total=None)
        async with self._session.request(request.method, url, headers=headers, data=data, timeout=timeout) as answer:
            content = await answer.read()
        if request.method in WRITES and (found := VERSION.search(content)):
            self.version = found[1].decode()
        self._use(request.method, request.path, answer.status)
        known = Request(request.method, request.path, request.query_string, answer.status)
        self.requests.append(known)
        if known.is_write and answer.status < 300 and (place := NAMESPACE.search(request.path)) is not None:
            self.told.setdefault(place[1], Told()).taken += 1
        return answer.status, dict(answer.headers), content

    def _use(self, method: str, path: str, status: int) -> None:
        resource = _resource(path)
        self.used.setdefault(resource, set()).update(verbs(method, path, resource, status))

    def _as_of(self, request: web.Request) -> str:
        """Makes the lists of a restart old ones; the watches from there tell the rest, late."""
        version, listed = self._old
        resource = _resource(request.path)
        if not version or request.method != "GET" or "/" in resource or "continue" in request.query:
            return ""
        if request.path.rpartition("/")[2] != resource or listed[resource] >= LISTED.count(resource):
            return ""
        listed[resource] += 1
        self._late_until = time.monotonic() + BEHIND_SECONDS
        return f"{'&' if request.query_string else '?'}resourceVersion={version}&resourceVersionMatch=Exact"

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if self.gone > 0:
            self.gone -= 1
            await response.prepare(request)
            await response.write(json.dumps({"type": "ERROR", "object": _status(410)}).encode() + b"\n")
            return response
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        timeout = aiohttp.ClientTimeout(total=None)
        self._watches[id(request)] = request
        try:
            async with self._session.get(self._server + request.raw_path, headers=headers, timeout=timeout) as answer:
                self._use("WATCH", request.path, answer.status)
                self.requests.append(Request(request.method, request.path, request.query_string, answer.status))
                response.set_status(answer.status)
                with contextlib.suppress(ConnectionError):
                    await response.prepare(request)
                    async for line in _lines(answer.content):
                        await lasts(self._behind(line))
                        await response.write(line)
                    await response.write_eof()
        finally:
            self._watches.pop(id(request), None)
        return response

    def _behind(self, line: bytes) -> float:
        """Seconds that this event, and with it all behind it, is held back."""
        if (left := self._late_until - time.monotonic()) > 0 or not self.behind_until:
            return max(0.0, left)
        space = json.loads(line)["object"].get("metadata", {}).get("namespace", "")
        return self.behind_until.get(space, 0.0) - time.monotonic()


def _nothing(_space: str, _fault: Fault) -> None:
    """What struck the write is all that happens."""


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)  # nobody hears it


def _status(code: int) -> dict[str, object]:
    text = "the fault proxy says so"
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": text,
        "reason": REASONS.get(code, ""),
        "code": code,
    }


def _refusal(code: int) -> web.Response:
    return web.json_response(_status(code), status=code, headers={"Retry-After": "1"} if code == 429 else None)


def _resource(path: str) -> str:
    """`jobs`, or `finetunejobs/status`."""
    parts = path.strip("/").split("/")
    parts = parts[3:] if parts[0] == "apis" else parts[2:]
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    return "/".join((*parts[:1], *parts[2:]))
