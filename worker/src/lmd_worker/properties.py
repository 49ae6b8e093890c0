"""Just enough of Java's properties format to read config.properties: `key=value` lines and comments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_ADDRESSES = {"inference_address": "http://127.0.0.1:8080", "management_address": "http://127.0.0.1:8081"}
"""TorchServe's own defaults."""


def parse(text: str) -> dict[str, str]:
    """Return keys and values in order; of a repeated key the last one counts, as in Java."""
    lines = (line.strip() for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if line and line[0] not in "#!")
    return {key.strip(): value.strip() for key, _, value in pairs}


def read(path: Path) -> dict[str, str]:
    """Read one file; raises `OSError`."""
    return parse(path.read_text())


def address(properties: Mapping[str, str], key: str) -> tuple[str, int]:
    """Return host and port of `inference_address` or `management_address`.

    Raises `ValueError` with a sentence when it is no plain `http://host:port`.
    """
    text = properties.get(key, DEFAULT_ADDRESSES[key])
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme != "http" or not host or not port:
        raise ValueError(f"config.properties: {key} is {text!r}; give http://127.0.0.1:PORT.")
    return host, port
