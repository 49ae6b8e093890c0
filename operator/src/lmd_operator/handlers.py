"""What kopf does for us: the process, the login, the watch of our objects, the end. Nothing is decided here.

No change handlers, no `patch`, no peering: kopf would keep its state in annotations of the users' objects, write two to
seven times per object, and lose a status when the second of its two writes fails (measured with kopf 1.45.2). Its events
feed a work queue instead; see `lmd_operator.app`.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator
from typing import Any

import kopf

from lmd_operator.api.v1alpha1 import GROUP, PLURAL, VERSION
from lmd_operator.app import App
from lmd_operator.cluster.connection import Connection

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


def registry(app: App, connection: Connection) -> kopf.OperatorRegistry:
    """Return kopf's registry: it logs in as we do, and hands on what it hears of our objects."""
    handlers = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(connection)

    async def seen(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf passes it by this name
        app.parent_seen(dict(body), is_gone=type == "DELETED")

    kopf.on.login(registry=handlers)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)(seen)
    return handlers


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings, where its defaults are wrong for us; each line has its reason."""
    settings = kopf.OperatorSettings()
    configure(settings)
    return settings


def configure(settings: kopf.OperatorSettings) -> None:
    """Set what the defaults get wrong for us; each line has its reason."""
    settings.scanning.disabled = True  # no watch of CRDs and namespaces, so no cluster-wide rights for it
    settings.posting.enabled = False  # events are ours, for transitions only
    settings.persistence.finalizer = f"{GROUP}/finalizer"  # never used; kopf's own name must not appear on objects
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = ForeverBackoffs()
    settings.networking.enforce_retry_after = True
    settings.watching.connect_timeout = 10
    settings.watching.server_timeout = 300  # with kopf's own limit of 70 s without a bookmark
    settings.watching.chunk_size = 500
    settings.watching.reconnect_backoff = 1.0
    settings.queueing.error_delays = (1, 2, 5, 10, 30)  # the default ends at ten minutes
    settings.process.ultimate_exiting_timeout = 8.0
    settings.peering.standalone = True  # leadership is a Lease of ours


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
