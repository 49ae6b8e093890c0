"""The version of the worker, which an image has without any package's metadata."""

from __future__ import annotations

VERSION = "0.1.0"
