"""Watches keep a connection each for minutes; however many there are, requests get through."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from aiohttp import web

from lmd_operator.app import App
from lmd_operator.cluster.connection import CONNECTION_LIMIT, Connection
from lmd_operator.cluster.kinds import SERVICE
from lmd_operator.settings import Settings

WATCHES = CONNECTION_LIMIT + 3


def test_requests_get_through_beside_any_number_of_watches() -> None:
    """An operator of eleven namespaces once had every connection taken by its watches."""

    async def run() -> object:
        all_watched, over, watched = asyncio.Event(), asyncio.Event(), 0

        async def answer(request: web.Request) -> web.StreamResponse:
            nonlocal watched
            if "watch" not in request.query:
                return web.json_response({"kind": "Service"})
            response = web.StreamResponse()
            await response.prepare(request)
            watched += 1
            if watched == WATCHES:
                all_watched.set()
            await over.wait()
            return response

        application = web.Application()
        application.router.add_get("/{path:.*}", answer)
        async with AsyncExitStack() as stack:
            runner = web.AppRunner(application)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            app = App(Connection(f"http://127.0.0.1:{runner.addresses[0][1]}"), Settings(lease_namespace="n"))
            stack.push_async_callback(app.stop)
            stack.callback(over.set)

            async def watch() -> None:
                async for _ in app.api.watch(SERVICE, "n", "", "1"):
                    pass

            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                for _ in range(WATCHES):
                    group.create_task(watch())
                await all_watched.wait()
                found = await app.api.get(SERVICE, "n", "a")
                over.set()
                return found

    assert asyncio.run(run()) == {"kind": "Service"}
