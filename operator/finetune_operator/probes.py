"""/healthz, /readyz and /metrics. A standby is ready too: it answers, and takes over when it must."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST


class Readiness:
    """What keeps this process from its work, in a sentence; nothing while it works or stands by."""

    def __init__(self) -> None:
        self.waits_for = ""

    async def answer(self, _: web.Request) -> web.Response:
        """503 with the sentence while there is one."""
        return web.Response(text=f"{self.waits_for or 'ok'}\n", status=503 if self.waits_for else 200)


async def serve(port: int, readiness: Readiness) -> web.AppRunner:
    """Start to answer on all addresses; the caller ends it by `cleanup`. Port 0 serves nothing."""
    app = web.Application()
    app.router.add_get("/healthz", _ok)
    app.router.add_get("/readyz", readiness.answer)
    app.router.add_get("/metrics", _metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    if port:
        await web.TCPSite(runner, port=port).start()
    return runner


async def _ok(_: web.Request) -> web.Response:
    # Answering is the proof: what could be ill in other ways (lease, watches, tasks) ends the process at once.
    return web.Response(text="ok\n")


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
