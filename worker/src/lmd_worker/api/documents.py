"""From the bytes a client sent to one JSON object and its fields, with no guessing: types are strict, names exact.

Every error is a `BadRequestError` of one sentence that starts with the field it speaks of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

from lmd_worker.errors import BadRequestError

Document = Mapping[str, Any]

SHOWN_CHARACTERS = 60
"""Of a name a client made up, in an error message."""


def json_object(content_type: str, body: bytes | None) -> Document:
    """Parse a request body; duplicate keys, NaN and anything that is not one object are refused."""
    media_type = content_type.partition(";")[0].strip().lower()
    if body is None or (media_type and media_type != "application/json"):
        raise BadRequestError(f"content-type: got {shown(media_type or 'a form')}; send JSON with content-type application/json.")
    if not body.strip():
        raise BadRequestError("body: empty; POST a JSON object.")
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise BadRequestError(f"body: not UTF-8 at byte {error.start}.") from error
    except json.JSONDecodeError as error:
        raise BadRequestError(f"body: not JSON at line {error.lineno} column {error.colno}: {error.msg}.") from error
    except RecursionError as error:
        raise BadRequestError("body: JSON is nested too deeply.") from error
    except ValueError as error:
        raise BadRequestError("body: a number has too many digits.") from error
    if not isinstance(document, dict):
        raise BadRequestError(f"body: must be a JSON object, got {kind(document)}.")
    return document


def refuse_unknown(document: Document, known: Collection[str], where: str = "") -> None:
    """Raise for the first field that is not `known`, with the likely meant one."""
    for name in document:
        if name not in known:
            close = get_close_matches(name[:SHOWN_CHARACTERS], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known fields: {', '.join(sorted(known))}."
            raise BadRequestError(f"{where}{shown(name)}: unknown field; {hint}")


def text(value: Any, where: str) -> str:
    """Return a string that can be encoded."""
    if not isinstance(value, str):
        raise BadRequestError(f"{where}: must be a string, got {kind(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRequestError(f"{where}: holds half a surrogate pair at character {error.start}, which is no text.") from error
    return value


def integer(document: Document, name: str, default: int | None, low: int, high: int | None = None) -> int | None:
    """Return an integer of the document within bounds, both included."""
    if name not in document:
        return default
    value = document[name]
    bounds = f"an integer, {low} or more" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRequestError(f"{name}: must be {bounds}, got {kind(value)}.")
    if value < low or (high is not None and value > high):
        raise BadRequestError(f"{name}: must be {bounds}, got {shown(str(value))}.")
    return value


def number(document: Document, name: str, default: float, low: float, high: float, *, above_low: bool = False) -> float:
    """Return a number of the document from `low` (above it, if so asked) to `high`."""
    if name not in document:
        return default
    value = document[name]
    bounds = f"a number {'above' if above_low else 'from'} {low:g} {'and up to' if above_low else 'to'} {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequestError(f"{name}: must be {bounds}, got {kind(value)}.")
    if not low <= value <= high or (above_low and value == low):
        raise BadRequestError(f"{name}: must be {bounds}, got {_figure(value)}.")
    return float(value)


def boolean(document: Document, name: str, *, default: bool) -> bool:
    """Return true or false of the document."""
    value = document.get(name, default)
    if not isinstance(value, bool):
        raise BadRequestError(f"{name}: must be true or false, got {kind(value)}.")
    return value


def kind(value: Any) -> str:
    """Name a JSON value's type as JSON does."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def shown(name: str) -> str:
    """Return `name` cut to a length that belongs in a message."""
    return name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..."


def _figure(value: float) -> str:
    if isinstance(value, int):
        return shown(str(value))
    return f"{value:g}" if math.isfinite(value) else "more than a number can be"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise BadRequestError(f"{shown(name)}: given twice.")
        document[name] = value
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequestError(f"body: {name} is no JSON number.")
