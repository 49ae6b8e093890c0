"""What TorchServe calls when the object brings a handler of its own: the user's entry point, inside our failure handling.

MANIFEST.json names this module instead of the user's, so that an import error is told and not hidden behind TorchServe's second
try, a rank without a frontend ends, and the drain sees what is in flight. TorchServe's loader takes the one class defined here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from lmd_worker import entry, lastwords, logs, rundir, watch
from lmd_worker.environment import Environment
from lmd_worker.errors import WorkerError
from lmd_worker.watch import Watch

log = logging.getLogger(__name__)


class UsersHandler:
    """One rank of the user's handler, which loads and answers as it does under TorchServe alone."""

    _handle: Callable[[Any, Any], Any]

    def initialize(self, context: Any) -> None:
        """Import and initialize the user's handler; on failure say why in one sentence and end the process, so that no peer waits."""
        self._rank = int(os.environ.get("RANK", "0"))
        logs.configure(self._rank)
        environment = Environment.from_variables(os.environ)
        self._run_directory = environment.run_directory
        last_words = environment.termination_message_path
        watcher = Watch(is_leader=self._rank == 0, last_words=last_words)
        watcher.start()
        config: Mapping[str, Any] = context.model_yaml_config
        name = config["custom"]["handler"]
        try:
            self._handle, initialize = entry.load(name)
            if config.get("deviceType") == "cpu":
                entry.prepare_for_cpu()
            initialize(context)
        except WorkerError as error:
            watch.tell_and_end(lastwords.of(self._rank, error), status=watch.EXIT_LOAD_FAILED, path=last_words)
        except Exception as error:
            log.exception("The handler %s failed while initializing", name)
            cause = f"Rank {self._rank}: the handler {name} failed while initializing: {entry.last_line(error)}"
            watch.tell_and_end(cause, status=watch.EXIT_LOAD_FAILED, path=last_words)
        log.info("Handler initialized: handler=%s", name)

    def handle(self, data: Any, context: Any) -> Any:
        """Answer as the user's handler does; an error of it is TorchServe's to answer, and the next request gets a new chance."""
        self._tell_drain(len(data) if data is not None else 0)
        try:
            return self._handle(data, context)
        finally:
            self._tell_drain(0)

    def _tell_drain(self, in_flight: int) -> None:
        if self._rank != 0:
            return
        try:
            rundir.write_in_flight(self._run_directory, in_flight)
        except OSError as error:
            log.warning("The number of requests in flight could not be written: error=%s", error.strerror)
