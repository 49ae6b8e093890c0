"""From the bytes a client sent to one JSON object, with no guessing: names are exact, nothing is given twice.

Every error about a field comes from `wrong`: one sentence that starts with the field, which it also names to programs.
"""

from __future__ import annotations

import json
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


def wrong(where: str, sentence: str) -> BadRequestError:
    """Return the error about one field; `where` is its path in the document, such as `messages[0].role`."""
    return BadRequestError(f"{where}: {sentence}", param=where)


def refuse_unknown(document: Document, known: Collection[str], where: str = "") -> None:
    """Raise for the first field that is not `known`, with the likely meant one."""
    for name in document:
        if name not in known:
            close = get_close_matches(name[:SHOWN_CHARACTERS], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known fields: {', '.join(sorted(known))}."
            raise wrong(f"{where}{shown(name)}", f"unknown field; {hint}")


def text(value: Any, where: str) -> str:
    """Return a string that can be encoded."""
    if not isinstance(value, str):
        raise wrong(where, f"must be a string, got {kind(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise wrong(where, f"holds half a surrogate pair at character {error.start}, which is no text.") from error
    return value


def members(value: Any, where: str, what: str) -> Document:
    """Return an object; `what` says of what, as in "an object with role and content"."""
    if not isinstance(value, dict):
        raise wrong(where, f"must be {what}, got {kind(value)}.")
    return value


def items(value: Any, where: str, what: str) -> list[Any]:
    """Return a list that is not empty; `what` says of what, as in "a list of messages"."""
    if not isinstance(value, list):
        raise wrong(where, f"must be {what}, got {kind(value)}.")
    if not value:
        raise wrong(where, "must not be empty.")
    return value


def portable(value: Any, where: str) -> Any:
    """Return JSON of a client's own making that others can read too: no half surrogates in it, no number beyond a double."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise wrong(where, "holds half a surrogate pair, which is no text.") from error
    except ValueError as error:
        raise wrong(where, "holds a number that is more than a number can be.") from error
    except RecursionError as error:
        raise wrong(where, "is nested too deeply.") from error
    return value


def kind(value: Any) -> str:
    """Name a JSON value's type as JSON does."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def shown(name: str) -> str:
    """Return `name` cut to a length that belongs in a message."""
    return name if len(name) <= SHOWN_CHARACTERS else f"{name[:SHOWN_CHARACTERS]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise wrong(shown(name), "given twice.")
        document[name] = value
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequestError(f"body: {name} is no JSON number.")
