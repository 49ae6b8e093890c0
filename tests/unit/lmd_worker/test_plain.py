"""The plain route's JSON: what is taken, and what is refused in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmd_worker.api import plain
from lmd_worker.api.generation import Call, Generation, Piece, Usage
from lmd_worker.api.prompts import Chat, Message, Plain, Prompt
from lmd_worker.errors import BadRequestError

NUMBER_TOO_LONG = b"9" * 5000


def generation(prompt: str | Prompt, **more: Any) -> Generation:
    return Generation((Plain(prompt) if isinstance(prompt, str) else prompt,), **more)


def call(body: bytes | dict[str, Any] | None, content_type: str = "application/json") -> Call:
    return Call("", content_type, json.dumps(body).encode() if isinstance(body, dict) else body)


def refusal_of(body: bytes | dict[str, Any] | None, content_type: str = "application/json") -> str:
    with pytest.raises(BadRequestError) as caught:
        plain.parse(call(body, content_type))
    assert caught.value.status == 400
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"prompt": "x"}, generation("x"), id="a prompt alone is greedy, whole and of default length"),
        pytest.param(
            {"prompt": "x", "max_tokens": 5, "temperature": 1, "top_p": 0.5, "top_k": 3, "seed": 2**63 - 1, "stop": "a", "stream": True},
            generation("x", max_tokens=5, temperature=1.0, top_p=0.5, top_k=3, seed=2**63 - 1, stop=("a",), stream=True),
            id="every field is read",
        ),
        pytest.param({"prompt": "x", "stop": ["a", "b"]}, generation("x", stop=("a", "b")), id="stop may be a list"),
        pytest.param({"prompt": "x", "stop": []}, generation("x"), id="an empty list stops at nothing"),
        pytest.param({"prompt": "x", "temperature": 2, "top_p": 1}, generation("x", temperature=2.0), id="upper bounds are included"),
        pytest.param({"prompt": "x\u0000"}, generation("x\0"), id="any character is text"),
        pytest.param(
            {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "x"}]},
            generation(Chat((Message("system", ""), Message("user", "x")))),
            id="messages keep their order and may be empty",
        ),
    ],
)
def test_a_good_request_is_read_whole(body: dict[str, Any], expected: Generation) -> None:
    assert plain.parse(call(body)) == expected


@pytest.mark.parametrize("content_type", ["", "application/json", "Application/JSON; charset=utf-8"])
def test_json_is_taken_under_its_own_type_or_none(content_type: str) -> None:
    assert plain.parse(call({"prompt": "x"}, content_type)) == generation("x")


FIELD_TYPES = [
    ({"prompt": 5}, "prompt: must be a string, got a number."),
    ({"prompt": None}, "prompt: must be a string, got null."),
    ({"prompt": ["x"]}, "prompt: must be a string, got an array."),
    ({"prompt": ""}, "prompt: must not be empty."),
    ({}, "prompt: missing; give prompt or messages."),
    ({"prompt": "x", "messages": []}, "prompt: give either prompt or messages, not both."),
    ({"messages": "x"}, "messages: must be a list of messages, got a string."),
    ({"messages": []}, "messages: must not be empty."),
    ({"messages": ["x"]}, "messages[0]: must be an object with role and content, got a string."),
    ({"messages": [{"role": "user"}]}, "messages[0].content: missing."),
    ({"messages": [{"content": "x"}]}, "messages[0].role: missing."),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: must be one of system, user, assistant, got tool."),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content: must be a string, got an array."),
    ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name: unknown field; known fields: content, role."),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens: must be an integer, 1 or more, got 0."),
    ({"prompt": "x", "max_tokens": "5"}, "max_tokens: must be an integer, 1 or more, got a string."),
    ({"prompt": "x", "max_tokens": True}, "max_tokens: must be an integer, 1 or more, got a boolean."),
    ({"prompt": "x", "max_tokens": 5.0}, "max_tokens: must be an integer, 1 or more, got a number."),
    ({"prompt": "x", "max_tokens": None}, "max_tokens: must be an integer, 1 or more, got null."),
    ({"prompt": "x", "temperature": -0.1}, "temperature: must be a number from 0 to 2, got -0.1."),
    ({"prompt": "x", "temperature": 2.5}, "temperature: must be a number from 0 to 2, got 2.5."),
    ({"prompt": "x", "temperature": "1"}, "temperature: must be a number from 0 to 2, got a string."),
    ({"prompt": "x", "temperature": False}, "temperature: must be a number from 0 to 2, got a boolean."),
    ({"prompt": "x", "top_p": 0}, "top_p: must be a number above 0 and up to 1, got 0."),
    ({"prompt": "x", "top_p": 1.5}, "top_p: must be a number above 0 and up to 1, got 1.5."),
    ({"prompt": "x", "top_k": -1}, "top_k: must be an integer, 0 or more, got -1."),
    ({"prompt": "x", "seed": -1}, "seed: must be an integer from 0 to 9223372036854775807, got -1."),
    ({"prompt": "x", "seed": 2**63}, "seed: must be an integer from 0 to 9223372036854775807, got 9223372036854775808."),
    ({"prompt": "x", "stop": ""}, "stop: must not be empty."),
    ({"prompt": "x", "stop": ["a", ""]}, "stop[1]: must not be empty."),
    ({"prompt": "x", "stop": [1]}, "stop[0]: must be a string, got a number."),
    ({"prompt": "x", "stop": 1}, "stop: must be a string or a list of strings, got a number."),
    ({"prompt": "x", "stop": None}, "stop: must be a string or a list of strings, got null."),
    ({"prompt": "x", "stop": list("abcde")}, "stop: at most 4 strings, got 5."),
    ({"prompt": "x", "stop": "a" * 257}, "stop: at most 256 characters, got 257."),
    ({"prompt": "x", "stream": 1}, "stream: must be true or false, got a number."),
    ({"prompt": "x", "stream": "true"}, "stream: must be true or false, got a string."),
    ({"prompt": "x", "max_token": 5}, "max_token: unknown field; did you mean max_tokens?"),
    (
        {"prompt": "x", "zzz": 5},
        "zzz: unknown field; known fields: max_tokens, messages, prompt, seed, stop, stream, temperature, top_k, top_p.",
    ),
]


@pytest.mark.parametrize(("body", "message"), [pytest.param(*case, id=case[1]) for case in FIELD_TYPES])
def test_a_wrong_field_is_named_with_what_it_must_be(body: dict[str, Any], message: str) -> None:
    assert refusal_of(body) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"", "body: empty; POST a JSON object.", id="nothing"),
        pytest.param(b" \n", "body: empty; POST a JSON object.", id="blanks"),
        pytest.param(b"hello", "body: not JSON at line 1 column 1: Expecting value.", id="words"),
        pytest.param(b'{"prompt": "x"', "body: not JSON at line 1 column 15: Expecting ',' delimiter.", id="half an object"),
        pytest.param(
            b"{'prompt': 'x'}", "body: not JSON at line 1 column 2: Expecting property name enclosed in double quotes.", id="Python"
        ),
        pytest.param(b'{"prompt": "x"} x', "body: not JSON at line 1 column 17: Extra data.", id="more behind it"),
        pytest.param(b'{"prompt": "\xff"}', "body: not UTF-8 at byte 12.", id="latin-1"),
        pytest.param(b"[1]", "body: must be a JSON object, got an array.", id="an array"),
        pytest.param(b'"x"', "body: must be a JSON object, got a string.", id="a string"),
        pytest.param(b"null", "body: must be a JSON object, got null.", id="null"),
        pytest.param(b"[" * 100_000, "body: JSON is nested too deeply.", id="deep"),
        pytest.param(b'{"seed": ' + NUMBER_TOO_LONG + b"}", "body: a number has too many digits.", id="a huge integer"),
        pytest.param(b'{"prompt": "x", "prompt": "y"}', "prompt: given twice.", id="a key twice"),
        pytest.param(b'{"prompt": "x", "temperature": NaN}', "body: NaN is no JSON number.", id="NaN"),
        pytest.param(b'{"prompt": "x", "temperature": -Infinity}', "body: -Infinity is no JSON number.", id="infinity"),
        pytest.param(
            b'{"prompt": "x", "temperature": 1e999}',
            "temperature: must be a number from 0 to 2, got more than a number can be.",
            id="a number that overflows",
        ),
        pytest.param(
            b'{"prompt": "a\\ud800"}',
            "prompt: holds half a surrogate pair at character 1, which is no text.",
            id="half a surrogate pair",
        ),
        pytest.param(
            b'{"' + b"a" * 1000 + b'": 1}',
            f"{'a' * 60}...: unknown field; known fields: max_tokens, messages, prompt, seed, stop, stream, temperature, top_k, top_p.",
            id="a long name is cut",
        ),
    ],
)
def test_a_body_that_is_no_object_is_refused_with_the_place(body: bytes, message: str) -> None:
    assert refusal_of(body) == message


@pytest.mark.parametrize(
    ("content_type", "body", "got"),
    [
        pytest.param("application/x-www-form-urlencoded", None, "application/x-www-form-urlencoded", id="curl -d without a content type"),
        pytest.param("multipart/form-data; boundary=b", None, "multipart/form-data", id="curl -F"),
        pytest.param("text/plain", b'{"prompt": "x"}', "text/plain", id="text"),
        pytest.param("", None, "a form", id="no parameters at all"),
    ],
)
def test_other_content_types_are_refused(content_type: str, body: bytes | None, got: str) -> None:
    assert refusal_of(body, content_type) == f"content-type: got {got}; send JSON with content-type application/json."


def test_answers_are_json_and_events() -> None:
    reply, usage = plain.PlainReply("m"), Usage(3, 2)
    ending = {"finish_reason": "length", "prompt_tokens": 3, "completion_tokens": 2}
    assert json.loads(reply.whole([Piece(0, "ß\ud800", "length")], usage)) == {"model": "m", "text": "ß\ud800", **ending}
    assert reply.events(Piece(0, "a\nb")) == b'data: {"text":"a\\nb"}\n\n'
    assert reply.events(Piece(0, "", "stop")) == b""
    assert reply.end(["length"], usage) == b"data: " + json.dumps({"model": "m", **ending}, separators=(",", ":")).encode() + b"\n\n"


def test_the_error_names_the_field_to_programs_too() -> None:
    with pytest.raises(BadRequestError) as caught:
        plain.parse(call({"messages": [{"role": "user"}]}))
    assert caught.value.param == "messages[0].content"
