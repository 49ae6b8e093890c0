"""Watches keep a connection each for minutes and a crowd of requests takes all others; whatever is open, the rest gets through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from lmd_operator.app import App
from lmd_operator.cluster.connection import CONNECTION_LIMIT, Connection
from lmd_operator.cluster.kinds import SERVICE
from lmd_operator.settings import Settings

MANY = CONNECTION_LIMIT + 3


class Server:
    """An API server that holds some requests until it is told to answer them."""

    def __init__(self, holds: Callable[[web.Request], bool]) -> None:
        self._holds = holds
        self._held = 0
        self.all_held = asyncio.Event()
        self.release = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self._holds(request):
            response = web.StreamResponse()
            await response.prepare(request)
            self._held += 1
            if self._held >= CONNECTION_LIMIT:
                self.all_held.set()
            await self.release.wait()
            return response
        if request.method == "GET" and "leases" in request.path:
            return web.json_response({"kind": "Status"}, status=404)
        return web.json_response({"kind": "Service"})


@asynccontextmanager
async def operator_of(server: Server) -> AsyncIterator[App]:
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        app = App(Connection(f"http://127.0.0.1:{runner.addresses[0][1]}"), Settings(lease_namespace="n"))
        try:
            yield app
        finally:
            server.release.set()
            await app.stop()
    finally:
        await runner.cleanup()


def test_requests_get_through_beside_any_number_of_watches() -> None:
    """An operator of eleven namespaces once had every connection taken by its watches."""

    async def run() -> object:
        server = Server(lambda request: "watch" in request.query)

        async def watch(app: App) -> None:
            async for _ in app.api.watch(SERVICE, "n", "", "1"):
                pass

        async with asyncio.timeout(60), operator_of(server) as app, asyncio.TaskGroup() as group:
            for _ in range(MANY):
                group.create_task(watch(app))
            await server.all_held.wait()
            found = await app.api.get(SERVICE, "n", "a")
            server.release.set()
            return found

    assert asyncio.run(run()) == {"kind": "Service"}


def test_the_lease_is_renewed_beside_any_number_of_requests() -> None:
    """An operator that was given 150 objects at once did not get a connection for its lease, and stood by in the midst of it."""

    async def run() -> bool:
        server = Server(lambda request: "services" in request.path)
        async with asyncio.timeout(60), operator_of(server) as app:
            requests = [asyncio.create_task(app.api.get(SERVICE, "n", "a")) for _ in range(MANY)]
            leading = asyncio.create_task(app.leadership.run())
            try:
                await server.all_held.wait()
                await app.leadership.acquired.wait()
                return app.leadership.is_leader and not any(request.done() for request in requests)
            finally:
                for task in (leading, *requests):
                    task.cancel()
                await asyncio.gather(leading, *requests, return_exceptions=True)

    assert asyncio.run(run())
