"""What kopf does for us: the login and the watch of our objects. Nothing is decided here.

No change handlers, no `patch`, no peering: kopf would keep its state in annotations of the users' objects, write two to
seven times per object, and lose a status when the second of its two writes fails (measured with kopf 1.45.2). Its events
feed a work queue instead; see `lmd_operator.app`.

It runs in a thread with an event loop of its own. kopf gives up on some answers of the API server (404 and 410 to a
watch, an error inside a stream), and then cancels every task of its loop that is younger than itself, which our workers
and our lease would be.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import kopf

from lmd_operator.api.v1alpha1 import GROUP, PLURAL, VERSION
from lmd_operator.app import App
from lmd_operator.cluster.connection import Connection
from lmd_operator.runtime import loop
from lmd_operator.settings import Settings

log = logging.getLogger(__name__)

Seen = Callable[[dict[str, Any], bool], None]
"""Told the object, and whether it is gone."""

RESTART_SECONDS = 1.0
END_SECONDS = 3.0
LOGIN_SECONDS = 600
"""A mounted token is read again this often; Kubernetes rotates it every hour or so."""


class ForeverBackoffs:
    """Delays between retries, without end: an outage of the API server must not end the operator."""

    def __iter__(self) -> Iterator[float]:
        """Yield growing, jittered delays, in seconds."""
        delay = 0.5
        while True:
            yield delay * (0.5 + random.random())
            delay = min(delay * 2, 15.0)


class ParentWatch:
    """kopf in a thread, started again whenever it gives up; what it hears is handed to the app in the app's loop."""

    def __init__(self, app: App, connection: Connection, settings: Settings, app_loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._connection = connection
        self._namespaces = [name for name in settings.watched_namespaces if name is not None]
        self._app_loop = app_loop
        self._ending = threading.Event()
        self._end_run: Callable[[], object] = bool
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        """Start the thread; returns at once."""
        self._thread.start()

    async def stop(self) -> None:
        """End kopf, and wait for it no longer than a few seconds: it holds nothing that the process' end would not free."""
        self._ending.set()
        with suppress(RuntimeError):  # its loop has ended just now
            self._end_run()
        await asyncio.to_thread(self._thread.join, END_SECONDS)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                loop.run(self._operate())
                error: Exception | None = None
            except Exception as caught:
                error = caught
            if self._ending.wait(0.0 if self._ending.is_set() else RESTART_SECONDS * (0.5 + random.random())):
                return
            log.warning("kopf gave up and is started again: error=%s", error)
            self._tell(self._app.check_for_ghosts_soon)

    async def _operate(self) -> None:
        ending = asyncio.Event()
        running = asyncio.get_running_loop()
        self._end_run = lambda: running.call_soon_threadsafe(ending.set)
        if self._ending.is_set():
            return
        await kopf.operator(
            registry=registry(self._seen, self._connection),
            settings=kopf_settings(),
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            standalone=True,
            stop_flag=ending,
        )

    def _seen(self, document: dict[str, Any], is_gone: bool) -> None:
        self._tell(lambda: self._app.parent_seen(document, is_gone=is_gone))

    def _tell(self, work: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the app's loop has ended
            self._app_loop.call_soon_threadsafe(work)


def registry(tell: Seen, connection: Connection) -> kopf.OperatorRegistry:
    """Return kopf's registry: it logs in as we do, and hands on what it hears of our objects."""
    handlers = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(connection)

    async def seen(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf passes it by this name
        tell(dict(body), type == "DELETED")

    kopf.on.login(registry=handlers)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)(seen)
    return handlers


class NoDiffs(kopf.DiffBaseStorage):
    """Keeps kopf from copying and comparing every object for change handlers, which we have none of."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        """Say that nothing of an object is worth comparing."""
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Say that nothing was stored."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Store nothing."""


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings, where its defaults are wrong for us; each line has its reason."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # no watch of CRDs and namespaces, so no cluster-wide rights for it
    settings.posting.enabled = False  # events are ours, for transitions only
    settings.persistence.diffbase_storage = NoDiffs()
    settings.persistence.finalizer = f"{GROUP}/finalizer"  # never used; kopf's own name must not appear on objects
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = ForeverBackoffs()
    settings.networking.enforce_retry_after = True
    settings.watching.connect_timeout = 10
    settings.watching.server_timeout = 300  # with kopf's own limit of 70 s without a bookmark
    settings.watching.chunk_size = 500
    settings.watching.reconnect_backoff = 1.0
    settings.queueing.idle_timeout = 0.1  # a task that waits for more of an object keeps all of its last event
    settings.queueing.error_delays = (1, 2, 5, 10, 30)  # the default ends at ten minutes
    settings.process.ultimate_exiting_timeout = None  # kopf would kill the process that long after it gave up
    settings.peering.standalone = True  # leadership is a Lease of ours
    return settings


def connection_info(connection: Connection) -> kopf.ConnectionInfo:
    """Return the same credentials in kopf's form."""
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=LOGIN_SECONDS)
    return kopf.ConnectionInfo(
        server=connection.server,
        ca_path=connection.ca_file,
        certificate_path=connection.certificate_file,
        private_key_path=connection.key_file,
        insecure=connection.is_insecure,
        token=connection.current_token(),
        expiration=expires.replace(tzinfo=None) if connection.token_file else None,
    )
