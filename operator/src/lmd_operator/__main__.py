"""The operator's process: `python -m lmd_operator`. Start-up only."""

from __future__ import annotations

import asyncio
import logging
import random
import sys

import kopf

from lmd_operator.app import App
from lmd_operator.cluster.connection import Connection, connect
from lmd_operator.errors import LmdError
from lmd_operator.handlers import kopf_settings, registry
from lmd_operator.runtime import logs
from lmd_operator.settings import Settings

log = logging.getLogger("lmd_operator")

RESTART_SECONDS = 1.0


def main() -> int:
    """Run until a signal; 1 when the configuration or the cluster cannot be used."""
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_level)
        connection = connect()
    except LmdError as error:
        print(f"lmd-operator: {error}", file=sys.stderr)
        return 1
    asyncio.run(operate(connection, settings))
    return 0


async def operate(connection: Connection, settings: Settings) -> None:
    """Run until kopf ends by a signal.

    kopf gives up on some answers of the API server (404 and 410 to a watch, an error inside a stream; kopf 1.45.2). That
    must not end the process, with its caches and its lease: kopf is started again, and what it missed is looked up.
    """
    namespaces = [name for name in settings.watched_namespaces if name is not None]
    app = App(connection, settings)
    await app.start()
    try:
        while True:
            try:
                await kopf.operator(
                    registry=registry(app, connection),
                    settings=kopf_settings(),
                    clusterwide=not namespaces,
                    namespaces=namespaces,
                    standalone=True,
                )
            except Exception as error:
                log.warning("kopf gave up and is started again: error=%s", error)
                await asyncio.sleep(RESTART_SECONDS * (0.5 + random.random()))
                app.check_for_ghosts_soon()
            else:
                return
    finally:
        await app.stop()


if __name__ == "__main__":
    sys.exit(main())
