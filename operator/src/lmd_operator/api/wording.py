"""What pydantic found, said to a person: the JSON path, what is wrong there, and what to do.

Values are never repeated: they may be secrets. Field names, keys of mappings and the words of an enum are.
"""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmd_operator.api.fields import fields_at, places_of
from lmd_operator.api.hints import BY_PATH, BY_PATTERN, CHOICES, MISPLACED, MISSING
from lmd_operator.errors import Problem

Part = int | str
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,79}")
_KEY_SHOWN = 80
"""Characters of a key that a message repeats."""


def problems_of(details: Iterable[Mapping[str, Any]], body: Mapping[Any, Any]) -> list[Problem]:
    """Return each problem once, however many branches of a choice reported it."""
    return [*dict.fromkeys(_problem(detail, body) for detail in details)]


def unknown_field(location: tuple[Part, ...]) -> Problem:
    """Return the problem of a key that is no field, with the field that was probably meant."""
    name, known = str(location[-1]), sorted(fields_at(location[:-1]))
    places = places_of(name)
    near = difflib.get_close_matches(name, known, n=1)
    if name in MISPLACED:
        sentence = f"is not a field here: {MISPLACED[name]}"
    elif 1 <= len(places) <= 2:
        sentence = f"is not a field here: did you mean {' or '.join(places)}?"
    elif near:
        sentence = f"is not a field: did you mean {near[0]}?"
    else:
        sentence = f"is not a field: the fields here are {', '.join(known)}" if known else "is not a field: remove it"
    return Problem(json_path(location), sentence)


def json_path(parts: Sequence[Part]) -> str:
    """Return parts as people write them: `spec.template.env[0].name`, `metadata.labels['a b']`."""
    return "".join(_step(part) for part in parts).removeprefix(".")


def kind_of(value: object) -> str:
    """Name the kind of a value without showing it."""
    match value:
        case None:
            return "empty"
        case bool():
            return "true or false"
        case int():
            return "a number"
        case float():
            return "a number with a decimal point"
        case str():
            return "text"
        case Mapping():
            return "a mapping"
        case list():
            return "a list"
        case datetime.date():
            return "a date"
        case _:
            return "something else"


def _step(part: Part) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    if _PLAIN_KEY.fullmatch(part):
        return f".{part}"
    shown = part if len(part) <= _KEY_SHOWN else part[:_KEY_SHOWN] + "..."
    shown = shown.replace("\\", "\\\\").replace("'", "\\'")
    return "['" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown) + "']"


def _problem(detail: Mapping[str, Any], body: Mapping[Any, Any]) -> Problem:
    location, about_key = _location(detail["loc"], body)
    path = json_path(location)
    kind, context, given = detail["type"], detail.get("ctx", {}), detail["input"]
    if path in CHOICES:
        return Problem(path, f"must be {BY_PATH[path]}{_aside(given)}")
    if about_key:
        return Problem(path, f"is not accepted as a key: it {_sentence(kind, context, given)}")
    if kind == "extra_forbidden":
        return unknown_field(location)
    if kind == "missing":
        return Problem(path, "is required" + (f": {start}" if (start := MISSING.get(path) or BY_PATH.get(path)) else ""))
    if kind in ("string_pattern_mismatch", "string_too_long", "string_too_short") and path in BY_PATH:
        return Problem(path, f"must be {BY_PATH[path]}")
    return Problem(path, _sentence(kind, context, given))


def _sentence(kind: str, context: Mapping[str, Any], given: object) -> str:
    match kind:
        case "int_type" | "int_from_float":
            return f"must be a whole number, not {kind_of(given)}{_remedy(given, int)}"
        case "string_type":
            return f"must be text, not {kind_of(given)}{_remedy(given, str)}"
        case "bool_type":
            return f"must be true or false, not {kind_of(given)}{_remedy(given, bool)}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"must be a mapping, not {kind_of(given)}{_remedy(given, dict)}"
        case "list_type":
            return f"must be a list, not {kind_of(given)}{_remedy(given, list)}"
        case "literal_error":
            return _one_of(context["expected"], given)
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "too_long":
            return f"must have at most {context['max_length']} entries"
        case "string_too_short" | "too_short":
            return "must not be empty"
        case "string_pattern_mismatch" if context["pattern"] in BY_PATTERN:
            return f"must be {BY_PATTERN[context['pattern']]}"
        case "string_unicode":
            return "must be text in UTF-8: write it again without the characters that are not"
        case _:
            return f"is not accepted ({kind.replace('_', ' ')}): see the field's description in the CRD"


def _remedy(given: object, wanted: type) -> str:
    if given is None:
        return ": give a value or remove the line"
    if wanted is str and isinstance(given, (int, float, datetime.date)):
        return ": put it in quotes"
    written = given.strip().lower() if isinstance(given, str) else ""
    if (wanted is int and re.fullmatch(r"[-+]?[0-9]+", written)) or (wanted is bool and written in ("true", "false")):
        return ": remove the quotes"
    if wanted is int and isinstance(given, float) and given.is_integer():
        return ": leave the decimal point out"
    if wanted is list and isinstance(given, Mapping):
        return ": start each entry with '- '"
    return ""


def _aside(given: object) -> str:
    return f", not {kind_of(given)}" if given is None or isinstance(given, (bool, float, list, Mapping)) else ""


def _one_of(expected: str, given: object) -> str:
    words = re.findall(r"'([^']*)'", expected)
    near = difflib.get_close_matches(given.lower(), [word.lower() for word in words], n=1) if isinstance(given, str) else []
    meant = [word for word in words if word.lower() in near]
    return f"must be one of {', '.join(words)}" + (f"; did you mean {meant[0]}?" if meant else "")


def _location(loc: tuple[Part, ...], body: Mapping[Any, Any]) -> tuple[tuple[Part, ...], bool]:
    """Return the path without what pydantic adds to it, and whether it is about a key instead of a value.

    pydantic names the branch of a choice and marks keys of a mapping; both stand where the document has nothing.
    """
    kept: list[Part] = []
    node: object = body
    for index, part in enumerate(loc):
        if isinstance(node, Mapping) and isinstance(part, str) and json_path(kept) not in CHOICES:
            if part == "[key]" and part not in node:
                return tuple(kept), True
            kept.append(part)
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int):
            kept.append(part)
            node = node[part] if part < len(node) else None
        elif part == "[key]" and index == len(loc) - 1:
            return tuple(kept), True
    return tuple(kept), False
