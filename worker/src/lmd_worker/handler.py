"""What TorchServe calls, named `lmd_worker.handler` in MANIFEST.json: glue between its batches and our sessions.

TorchServe's loader takes the one class defined in this module; a second class, or a function `handle`, would break it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmd_worker import lastwords, loading, logs, report, rundir, transport, watch, wire
from lmd_worker.api.routes import routes
from lmd_worker.environment import Environment
from lmd_worker.errors import WorkerError
from lmd_worker.loading import Loaded
from lmd_worker.metrics import Exporter
from lmd_worker.sessions import Sessions
from lmd_worker.settings import Settings
from lmd_worker.transport import Context
from lmd_worker.watch import Watch

SWITCH_SECONDS = 0.0005
"""How long rank 0's engine waits, at every operation of a turn, for a thread that speaks with clients to hand the interpreter over."""

log = logging.getLogger(__name__)


class TextGeneration:
    """One rank's side of the transport; rank 0 alone speaks, the engines keep the ranks in step among themselves."""

    _sessions: Sessions | None = None

    def initialize(self, context: Context) -> None:
        """Load the model; on failure say why in one sentence and end the process, so that no peer waits for it."""
        rank = int(os.environ.get("RANK", "0"))
        logs.configure(rank)
        environment = Environment.from_variables(os.environ)
        last_words = environment.termination_message_path
        watcher = Watch(is_leader=rank == 0, last_words=last_words)
        watcher.start()
        try:
            loaded = self._load(context)
        except WorkerError as error:
            watch.tell_and_end(lastwords.of(rank, error), status=watch.EXIT_LOAD_FAILED, path=last_words)
        except Exception as error:
            log.exception("Rank %d failed while loading", rank)
            cause = f"Rank {rank}: while loading the model: {type(error).__name__}: {error}"
            watch.tell_and_end(cause, status=watch.EXIT_LOAD_FAILED, path=last_words)
        self._serve(loaded, context.model_name, environment.run_directory, watcher)
        wire.read_in_large_pieces()

    def handle(self, data: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
        """Give every open request a piece of its answer, in order; on ranks other than 0 nothing."""
        if self._sessions is None:
            return [b""] * len(data)
        return transport.write(self._sessions.step(transport.rows(data, context)), context)

    def _load(self, context: Context) -> Loaded:
        model_directory = Path(context.system_properties["model_dir"])
        settings = Settings.from_model_config(context.model_name, model_directory, context.model_yaml_config)
        return loading.load(settings)

    def _serve(self, loaded: Loaded, model_name: str, run_directory: Path, watcher: Watch) -> None:
        if loaded.rank != 0:
            watcher.attend(loaded.engine.failure)
            return
        self._sessions = sessions = Sessions(
            loaded.engine,
            loaded.text,
            routes(
                model_name,
                loaded.text,
                context_tokens=loaded.engine.context_tokens,
                vocabulary_size=loaded.engine.vocabulary_size,
                report=lambda: report.to_json(loaded.reports),
            ),
            count_changed=lambda count: _tell_drain(run_directory, count),
        )
        sys.setswitchinterval(SWITCH_SECONDS)
        exporter = Exporter(model_name, loaded.engine, lambda: sessions.refused)
        watcher.attend(loaded.engine.failure, sessions.cancel_if_silent, exporter.publish)
        log.info("Model loaded: model=%s ranks=%d context_tokens=%d", model_name, len(loaded.reports), loaded.engine.context_tokens)


def _tell_drain(run_directory: Path, in_flight: int) -> None:
    """Leave the count for the drain; a full disk must not cost anyone an answer."""
    try:
        rundir.write_in_flight(run_directory, in_flight)
    except OSError as error:
        log.warning("The number of requests in flight could not be written: path=%s error=%s", run_directory, error.strerror)
