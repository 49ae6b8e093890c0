"""The proxy itself: a TLS server on loopback in a thread of its own, so that tests need not be asynchronous."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict
from yarl import URL

from lmd_plane.certificates import Authority, kubeconfig
from lmd_plane.client import Access, eventually
from lmd_plane.components import LOOPBACK
from lmd_plane.faults.requests import Exchange, Match, request_of
from lmd_plane.faults.rules import Action, Delay, Drop, LoseResponse, Reply, Rule, error_event, status_object
from lmd_plane.faults.watches import Watch, reset

T = TypeVar("T")
WriteCallback = Callable[[Exchange], None]

CONNECT_SECONDS = 10.0
TLS_CLOSE_SECONDS = 0.25
"""TLS connections are not closed yet when aiohttp's sessions are, and nothing tells when (aiohttp's own advice, 3.14)."""
_HOP_BY_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host", "content-length"}
_OWN_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""What the HTTP library would add by itself."""


class FaultProxy:
    """A proxy to the API server of a kubeconfig; it works inside a `with` block.

    A request with a bearer token is passed on with that token alone, every other one with the kubeconfig's own credentials.
    """

    def __init__(self, upstream: Path, folder: Path) -> None:
        self._access = Access.read(upstream)
        self._folder = folder
        self._authority = Authority(folder / "pki")
        self._rules: list[Rule] = []
        self._exchanges: list[Exchange] = []
        self._watches: list[Watch] = []
        self._write_callbacks: list[WriteCallback] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._port = 0

    # ---- what tests use

    def add(self, match: Match, action: Action, *, nth: int | None = None, times: int | None = None) -> Rule:
        """Do this to matching requests from now on: to all, to the nth, or to the first few. Delays add up; else the first rule wins."""
        rule = Rule(match, action, nth, times)
        self._rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """Forget a rule."""
        self._rules.remove(rule)

    def clear(self) -> None:
        """Forget all rules and callbacks; frozen watches stay frozen."""
        self._rules.clear()
        self._write_callbacks.clear()

    def after_write(self, callback: WriteCallback) -> None:
        """Call this, in another thread, after each write reached the server and before the client hears of it."""
        self._write_callbacks.append(callback)

    def kubeconfig(self, *, token: str | None = None, name: str = "proxy") -> Path:
        """Write a kubeconfig that leads through the proxy, with a bearer token or as the proxy's own user."""
        path = self._folder / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(kubeconfig(f"https://{LOOPBACK}:{self._port}", self._authority.certificate, token=token))
        return path

    def exchanges(self, match: Match | None = None) -> list[Exchange]:
        """Return what was asked so far, in order."""
        return [exchange for exchange in list(self._exchanges) if match is None or match.of(exchange.request)]

    def forget(self) -> None:
        """Empty the record."""
        self._exchanges.clear()

    def wait_for(self, match: Match, *, count: int = 1, seconds: float = 60.0) -> list[Exchange]:
        """Return the exchanges that match once there are so many."""
        return eventually(lambda: found if len(found := self.exchanges(match)) >= count else None, f"{count} of {match}", seconds=seconds)

    def open_watches(self, match: Match | None = None) -> list[Exchange]:
        """Return the watches that are open now."""
        return [watch.exchange for watch in list(self._watches) if match is None or match.of(watch.exchange.request)]

    def cut_watches(self, match: Match | None = None) -> int:
        """Reset open watches, as a lost connection does; return how many."""
        return self._to_watches(match, Watch.cut)

    def end_watches(self, match: Match | None = None) -> int:
        """End open watches in good order, as the server's own time limit does; return how many."""
        return self._to_watches(match, Watch.end)

    def fail_watches(self, code: int, match: Match | None = None) -> int:
        """End open watches with an ERROR event; return how many."""
        return self._to_watches(match, lambda watch: watch.end(error_event(code)))

    def freeze_watches(self, match: Match | None = None) -> int:
        """Say nothing more on open watches and keep them open; return how many."""
        return self._to_watches(match, Watch.freeze)

    def thaw_watches(self, match: Match | None = None) -> int:
        """Let frozen watches go on, with everything that was held back; return how many."""
        return self._to_watches(match, Watch.thaw)

    # ---- its life

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        timeout = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)

        def session(*, with_certificate: bool) -> ClientSession:
            # a connection each: one kept open to a server that was killed would be a fault nobody asked for
            connector = TCPConnector(ssl=self._access.tls(with_certificate=with_certificate), force_close=True, limit=0)
            return ClientSession(connector=connector, timeout=timeout, auto_decompress=False, skip_auto_headers=_OWN_HEADERS)

        self._with_certificate, self._with_token = session(with_certificate=True), session(with_certificate=False)
        certificate, key = self._authority.issue("proxy", "/CN=fault-proxy", [f"IP:{LOOPBACK}", "DNS:localhost"])
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
        self._runner = web.ServerRunner(web.Server(self._handle, handler_cancellation=True, access_log=None), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, 0, ssl_context=tls)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        for watch in list(self._watches):
            watch.cut()
        for site in list(self._runner.sites):
            await site.stop()
        for connection in self._runner.server.connections if self._runner.server else []:
            if connection.transport is not None:  # a client that lives on would have to agree to a TLS shutdown first
                connection.transport.abort()
        await self._runner.cleanup()
        await self._with_certificate.close()
        await self._with_token.close()
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await asyncio.sleep(TLS_CLOSE_SECONDS)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

    def _to_watches(self, match: Match | None, do: Callable[[Watch], None]) -> int:
        async def work() -> int:
            chosen = [watch for watch in self._watches if match is None or match.of(watch.exchange.request)]
            for watch in chosen:
                do(watch)
            return len(chosen)

        return self._call(work())

    # ---- one request

    async def _handle(self, incoming: web.BaseRequest) -> web.StreamResponse:
        body = await incoming.read()
        request = request_of(len(self._exchanges) + 1, incoming.method, incoming.raw_path, incoming.headers.get("User-Agent", ""))
        exchange = Exchange(request, body=body)
        self._exchanges.append(exchange)
        due = [rule.action for rule in list(self._rules) if rule.fires(request)]
        for action in due:
            if isinstance(action, Delay):
                exchange.fault = "Delay"
                await asyncio.sleep(action.seconds)
        fate = next((action for action in due if not isinstance(action, Delay)), None)
        if fate is not None:
            exchange.fault = type(fate).__name__
        match fate:
            case Drop():
                return await reset(incoming)
            case Reply():
                return _reply(fate)
        try:
            return await self._forward(incoming, exchange, fate)
        except (ClientError, TimeoutError, ConnectionError):
            exchange.fault = exchange.fault or "Unreachable"
            return await reset(incoming)

    async def _forward(self, incoming: web.BaseRequest, exchange: Exchange, fate: Action | None) -> web.StreamResponse:
        request = exchange.request
        headers = CIMultiDict((key, value) for key, value in incoming.headers.items() if key.lower() not in _HOP_BY_HOP)
        session = self._with_token if "Authorization" in headers else self._with_certificate
        if self._access.token:
            headers.setdefault("Authorization", f"Bearer {self._access.token}")
        if request.verb == "watch":  # events that can be read, one a line
            headers["Accept"] = "application/json"
            headers.pop("Accept-Encoding", None)
        address = URL(self._access.server + request.target, encoded=True)
        async with session.request(request.method, address, data=exchange.body or None, headers=headers, allow_redirects=False) as answer:
            exchange.status = answer.status
            if request.verb == "watch" and answer.status == 200:
                watch = Watch(incoming, exchange, self._rules)
                self._watches.append(watch)
                try:
                    return await watch.relay(answer, fate)
                finally:
                    self._watches.remove(watch)
            content = await answer.read()
        if request.is_write:
            for callback in list(self._write_callbacks):
                await asyncio.to_thread(callback, exchange)
        if isinstance(fate, LoseResponse):
            return await reset(incoming)
        kept = CIMultiDict((key, value) for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP)
        return web.Response(status=answer.status, headers=kept, body=content)


def _reply(reply: Reply) -> web.Response:
    headers = {} if reply.retry_after_seconds is None else {"Retry-After": str(reply.retry_after_seconds)}
    document = status_object(reply.code, reply.reason, reply.message, reply.retry_after_seconds)
    return web.Response(status=reply.code, headers=headers, body=json.dumps(document).encode(), content_type="application/json")
