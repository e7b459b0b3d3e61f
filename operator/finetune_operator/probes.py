"""/healthz, /readyz and /metrics. A standby is ready too: it answers, and takes over when it must."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST


async def serve(port: int) -> web.AppRunner:
    """Start to answer on all addresses; the caller ends it by `cleanup`. Port 0 serves nothing."""
    app = web.Application()
    app.router.add_get("/healthz", _ok)
    app.router.add_get("/readyz", _ok)
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
