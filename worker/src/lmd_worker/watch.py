"""What ends a rank that cannot go on: a dead or stalled engine, a frontend that is gone.

Nobody else would: TorchServe does not notice a stalled rank, and its ranks outlive it, because an engine's thread keeps
the interpreter alive. One thread a rank looks every `PERIOD_SECONDS`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lmd_worker import lastwords

PERIOD_SECONDS = 0.1
GRACE_SECONDS = 0.3
"""From an engine's failure to the end of rank 0, so that running requests can be told; three of its steps."""
FOLLOWER_GRACE_SECONDS = 0.6
"""The same on other ranks: their end makes the frontend cut every client off."""
EXIT_FRONTEND_GONE = 0
"""Not a failure of ours; with any other status torchrun would start the ranks again."""
EXIT_LOAD_FAILED = 70
EXIT_ENGINE_FAILED = 71

log = logging.getLogger(__name__)


def end_process(status: int) -> NoReturn:
    """End at once, whatever threads run; a rank that unwinds could wait in a collective for ever."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def tell_and_end(cause: str, *, status: int, path: Path | None, grace_seconds: float = 0.0) -> NoReturn:
    """Leave `cause` as last words and in the log, then end this process."""
    lastwords.write(path, cause)
    log.error("%s", cause)
    time.sleep(grace_seconds)
    end_process(status)


class Watch:
    """A daemon thread; starts before the model is loaded, as a frontend can also go during a long load."""

    def __init__(self, *, is_leader: bool, last_words: Path | None) -> None:
        self._last_words = last_words
        self._grace_seconds = GRACE_SECONDS if is_leader else FOLLOWER_GRACE_SECONDS
        self._parent = os.getppid()
        self._checks: list[Callable[[], object]] = []
        self._failure: Callable[[], str | None] = lambda: None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def attend(self, failure: Callable[[], str | None], *checks: Callable[[], object]) -> None:
        """From now on end the process on `failure` too, and call `checks` each time."""
        self._failure = failure
        self._checks = list(checks)

    def _run(self) -> None:
        while not self._wake.wait(PERIOD_SECONDS):
            if os.getppid() != self._parent or not threading.main_thread().is_alive():
                end_process(EXIT_FRONTEND_GONE)
            cause = self._failure()
            if cause is not None:
                tell_and_end(cause, status=EXIT_ENGINE_FAILED, path=self._last_words, grace_seconds=self._grace_seconds)
            self._check()

    def _check(self) -> None:
        try:
            for check in self._checks:
                check()
        except Exception as error:
            log.exception("The watch failed")
            cause = f"The watch of a rank failed: {type(error).__name__}; this is a fault of the worker."
            tell_and_end(cause, status=EXIT_ENGINE_FAILED, path=self._last_words)
