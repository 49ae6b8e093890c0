"""A route's fields as a table: each name with the reader that checks and returns its value, or its default when absent.

Types are strict: no string is a number and no number is true. A field that changes the answer is read or refused; one whose
absence from this server changes no answer is `ignored`, with the reason beside its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lmd_worker.api.documents import Document, kind, refuse_unknown, shown, text, wrong

Reader = Callable[[Document, str], Any]
"""Takes the document and the field's name; raises `BadRequestError`."""
Fields = Mapping[str, Reader]

MOST_SEED = 2**63 - 1
MOST_STOPS = 4
MOST_STOP_CHARACTERS = 256
"""A stop string's end is held back while it may still come; no answer should wait for a whole page."""


def read(document: Document, fields: Fields, where: str = "") -> dict[str, Any]:
    """Return every field's value; raises for the first that is unknown or wrong."""
    refuse_unknown(document, fields, where)
    return {name: reader(document, name) for name, reader in fields.items()}


def integer(low: int, high: int | None = None, default: int | None = None) -> Reader:
    """Read an integer within bounds, both included."""
    bounds = f"an integer, {low} or more" if high is None else f"an integer from {low} to {high}"

    def reader(document: Document, name: str) -> int | None:
        if name not in document:
            return default
        value = document[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(name, f"must be {bounds}, got {kind(value)}.")
        if value < low or (high is not None and value > high):
            raise wrong(name, f"must be {bounds}, got {shown(str(value))}.")
        return value

    return reader


def number(low: float, high: float, default: float, *, above_low: bool = False) -> Reader:
    """Read a number from `low` (above it, if so asked) to `high`."""
    bounds = f"a number {'above' if above_low else 'from'} {low:g} {'and up to' if above_low else 'to'} {high:g}"

    def reader(document: Document, name: str) -> float:
        if name not in document:
            return default
        value = document[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(name, f"must be {bounds}, got {kind(value)}.")
        if not low <= value <= high or (above_low and value == low):
            raise wrong(name, f"must be {bounds}, got {_figure(value)}.")
        return float(value)

    return reader


def boolean(*, default: bool = False) -> Reader:
    """Read true or false."""

    def reader(document: Document, name: str) -> bool:
        value = document.get(name, default)
        if not isinstance(value, bool):
            raise wrong(name, f"must be true or false, got {kind(value)}.")
        return value

    return reader


def raw(document: Document, name: str) -> Any:
    """Return the value as it is, for a field that is understood together with others."""
    return document.get(name)


def ignored(reason: str) -> Reader:
    """Accept anything; `reason` says why that changes no answer."""
    assert reason
    return lambda _document, _name: None


def only(neutral: object, sentence: str) -> Reader:
    """Accept the one value that asks for nothing, and refuse any other with a sentence."""

    def reader(document: Document, name: str) -> None:
        if name in document and (document[name] != neutral or isinstance(document[name], bool) is not isinstance(neutral, bool)):
            raise wrong(name, sentence)

    return reader


def stop_strings(document: Document, name: str) -> tuple[str, ...]:
    """Return the stop strings, given as one string or a list, as a tuple."""
    value = document.get(name, [])
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise wrong(name, f"must be a string or a list of strings, got {kind(value)}.")
    if len(stops) > MOST_STOPS:
        raise wrong(name, f"at most {MOST_STOPS} strings, got {len(stops)}.")
    for index, stop in enumerate(stops):
        where = name if isinstance(value, str) else f"{name}[{index}]"
        if not text(stop, where):
            raise wrong(where, "must not be empty.")
        if len(stop) > MOST_STOP_CHARACTERS:
            raise wrong(where, f"at most {MOST_STOP_CHARACTERS} characters, got {len(stop)}.")
    return tuple(stops)


def _figure(value: float) -> str:
    if isinstance(value, int):
        return shown(str(value))
    return f"{value:g}" if math.isfinite(value) else "more than a number can be"
