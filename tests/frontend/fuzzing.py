"""Request bodies for fuzzing: right ones, nearly right ones, and junk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from lmd_worker.api import chat, completions, plain, tokens

TABLES = {
    "": plain.FIELDS,
    "v1/completions": completions.FIELDS,
    "v1/chat/completions": chat.FIELDS,
    "tokenize": tokens.TOKENIZE,
    "detokenize": tokens.DETOKENIZE,
}
PATHS = [*TABLES, "v1/models", "v1/models/echo", "v1/models/other", "v1/embeddings", "lmd/report", "v1", "nothing"]

_leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 300), st.floats(allow_nan=False), st.text(max_size=12), st.just("\ud800")
)
JUNK: SearchStrategy[Any] = st.recursive(
    _leaves, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)), max_leaves=8
)


@st.composite
def mostly(draw: st.DrawFn, right: SearchStrategy[Any], other: SearchStrategy[Any], others_in_twenty: int = 1) -> Any:
    """One value, now and then of the other kind; `one_of` would take either as often."""
    return draw(other if draw(st.integers(0, 19)) >= 20 - others_in_twenty else right)


_texts = st.one_of(
    st.text(min_size=1, max_size=20), st.sampled_from(["now", "busy", "seed", "STOP", '{"a": 1}', "<tool_call>{}</tool_call>"])
)
_tokens = st.lists(st.integers(0, 256), min_size=1, max_size=12)
_messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": _texts}),
        st.fixed_dictionaries(
            {"role": st.just("user"), "content": st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": _texts}), min_size=1)}
        ),
        st.fixed_dictionaries({"role": st.just("tool"), "content": _texts, "tool_call_id": _texts}),
        JUNK,
    ),
    min_size=1,
    max_size=3,
)
_schemas = st.one_of(
    st.sampled_from([{"type": "object"}, {"type": "array", "items": {"type": "integer"}}, {"enum": ["a", "b"]}, {"not": {}}, {}]),
    st.dictionaries(st.sampled_from(["type", "properties", "items", "enum", "pattern", "$ref", "anyOf", "x-guidance"]), JUNK, max_size=3),
)
_RIGHT: Mapping[str, SearchStrategy[Any]] = {
    "model": mostly(st.sampled_from(["echo", "MODEL"]), st.just("other")),
    "prompt": st.one_of(_texts, _tokens, st.lists(_texts, min_size=1, max_size=3), st.lists(_tokens, min_size=1, max_size=3)),
    "messages": _messages,
    "max_tokens": st.integers(1, 40),
    "max_completion_tokens": st.integers(1, 40),
    "n": st.integers(1, 3),
    "best_of": st.integers(1, 3),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(0, 10**6),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.one_of(_texts, st.lists(_texts, max_size=4)),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans()}),
    "logprobs": st.one_of(st.booleans(), st.integers(0, 20)),
    "top_logprobs": st.integers(0, 20),
    "echo": st.booleans(),
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.floats(-100, 100), max_size=3),
    "frequency_penalty": st.floats(-2, 2),
    "presence_penalty": st.floats(-2, 2),
    "response_format": st.one_of(
        st.fixed_dictionaries({"type": st.sampled_from(["text", "json_object"])}),
        st.fixed_dictionaries({"type": st.just("json_schema"), "json_schema": st.fixed_dictionaries({"name": _texts, "schema": _schemas})}),
    ),
    "tools": st.lists(
        st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries({"name": _texts})}), max_size=2
    ),
    "tool_choice": st.sampled_from(["auto", "none", "required"]),
    "tokens": _tokens,
}


@st.composite
def documents(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A JSON object for a route: what it needs, some of its other fields, most of them right, and sometimes one of nobody's."""
    table = TABLES.get(path, {})
    needed = [name for name in ("prompt", "messages", "tokens") if name in table]
    others = sorted(set(table) - set(needed))
    names = draw(st.lists(st.sampled_from(others), max_size=4, unique=True)) if others else []
    names += [draw(st.sampled_from(needed))] if needed and draw(st.integers(0, 19)) < 19 else []
    document = {name: draw(_value(name)) for name in names}
    return document | draw(mostly(st.just({}), st.dictionaries(st.text(max_size=10), JUNK, min_size=1, max_size=1)))


@cache
def bodies(path: str) -> SearchStrategy[bytes]:
    """A request's body: nearly always JSON, as Python writes it, half surrogates and infinity included."""
    right, other = documents(path), JUNK
    written = mostly(right, other).map(lambda document: json.dumps(document).encode())
    return mostly(written, st.binary(max_size=60))


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path and a body for it."""
    path = draw(mostly(st.sampled_from(list(TABLES)), st.sampled_from(PATHS), 3))
    return path, draw(bodies(path))


@cache
def _value(name: str) -> SearchStrategy[Any]:
    right = _RIGHT.get(name)
    return JUNK if right is None else mostly(right, JUNK)


def complaint(status: int, content_type: str, body: bytes) -> str | None:
    """What is wrong with an answer to a fuzzed request: it must be 200 or a 4xx with OpenAI's error, and JSON or events of it."""
    if content_type == "text/event-stream":
        parts = body.decode().split("\n\n")
        if parts.pop() or parts.pop() != "data: [DONE]":
            return "a stream that does not end with [DONE]"
        found = [json.loads(part.removeprefix("data: ")) for part in parts]
        return "an error in a stream" if status != 200 or any("error" in event for event in found) else None
    document = json.loads(body)
    if status == 200:
        return "an error with status 200" if "error" in document else None
    if not 400 <= status < 500:
        return f"status {status}: {document}"
    error = document["error"]
    shaped = set(error) == {"message", "type", "param", "code"} and isinstance(error["message"], str) and isinstance(error["type"], str)
    named = all(error[name] is None or isinstance(error[name], str) for name in ("param", "code"))
    return None if shaped and named and len(error["message"]) < 2000 else f"not OpenAI's error: {document}"
