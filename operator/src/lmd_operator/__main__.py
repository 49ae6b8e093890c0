"""The operator's process: `python -m lmd_operator`. Start-up and the end only."""

from __future__ import annotations

import asyncio
import signal
import sys

from lmd_operator.app import App
from lmd_operator.cluster.connection import Connection, connect
from lmd_operator.errors import LmdError
from lmd_operator.handlers import ParentWatch
from lmd_operator.runtime import logs, loop
from lmd_operator.settings import Settings


def main() -> int:
    """Run until a signal; 1 when the configuration or the cluster cannot be used."""
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_level)
        connection = connect()
    except LmdError as error:
        print(f"lmd-operator: {error}", file=sys.stderr)
        return 1
    loop.collect_seldom()
    loop.work_in_batches()
    loop.run(operate(connection, settings))
    return 0


async def operate(connection: Connection, settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; a second signal changes nothing, the end is short as it is."""
    ending = asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, ending.set)
    app = App(connection, settings)
    await app.start()
    watch = ParentWatch(app, connection, settings, running)
    watch.start()
    try:
        await ending.wait()
    finally:
        await app.stop()
        await watch.stop()


if __name__ == "__main__":
    sys.exit(main())
