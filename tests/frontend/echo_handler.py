"""The worker's handler with the echoing engine; named in the tests' MANIFEST.json. Holds one class, as TorchServe asks."""

from __future__ import annotations

import echo_engine  # beside this file, on the ranks' PYTHONPATH

from lmd_worker import loading
from lmd_worker.handler import TextGeneration

loading.load = echo_engine.load


class Echo(TextGeneration):
    """TorchServe takes the one class that a handler module defines."""
