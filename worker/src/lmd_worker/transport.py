"""TorchServe's batch protocol for continuous batching, in the two directions; imports nothing of `ts`.

Each call of a handler brings all open requests. The first time a request brings its parameters: `body`, or the fields
of a form. Later it is an empty mapping, and `lmd_worker.wire` leaves its headers out. Its stopping criterion tells
what a piece is: None the only one, False more to come, True the last.
Source: ts/protocol/otf_message_handler.py, ContinuousBatching.java (0.12.0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from lmd_worker.api.generation import Answer, Call, Part
from lmd_worker.sessions import Row

BODY = "body"
CRITERIA: Mapping[Part, bool | None] = {Part.ONLY: None, Part.MORE: False, Part.LAST: True}
CONTENT_TYPE = "content-type"


class Context(Protocol):
    """What we use of `ts.context.Context`."""

    model_name: str
    model_yaml_config: Mapping[str, Any]
    system_properties: Mapping[str, Any]
    stopping_criteria: Sequence[Callable[[object], bool | None]] | None

    def get_request_id(self, idx: int) -> str: ...  # noqa: D102
    def get_all_request_header(self, idx: int) -> Mapping[str, Any]: ...  # noqa: D102
    def set_response_status(self, code: int, phrase: str, idx: int) -> None: ...  # noqa: D102
    def set_response_header(self, idx: int, key: str, value: str) -> None: ...  # noqa: D102


def rows(data: Sequence[Mapping[str, Any]], context: Context) -> list[Row]:
    """Return the open requests of one call, in order."""
    return [
        Row(context.get_request_id(index), _call(parameters, context.get_all_request_header(index)))
        for index, parameters in enumerate(data)
    ]


def write(answers: Sequence[Answer], context: Context) -> list[bytes]:
    """Set status, headers and stopping criterion of every request and return the bodies, in order."""
    for index, answer in enumerate(answers):
        context.set_response_status(answer.status, HTTPStatus(answer.status).phrase, index)
        for name, value in {CONTENT_TYPE: answer.content_type, **answer.headers}.items():
            context.set_response_header(index, name, value)
    context.stopping_criteria = [_criterion(answer.part) for answer in answers]
    return [answer.body for answer in answers]


def _call(parameters: Mapping[str, Any], headers: Mapping[str, Any]) -> Call:
    content_type = _header(headers, CONTENT_TYPE)
    body = parameters.get(BODY)
    is_form = content_type.lower().startswith(("multipart/", "application/x-www-form-urlencoded"))
    raw = bytes(body) if isinstance(body, bytes | bytearray) and not is_form else None
    return Call(path=_header(headers, "url_path"), content_type=content_type, body=raw)


def _header(headers: Mapping[str, Any], name: str) -> str:
    """Return a header whatever its case; TorchServe keeps the client's, and puts parts of a form among them."""
    return next((value for key, value in headers.items() if key.lower() == name and isinstance(value, str)), "")


def _criterion(part: Part) -> Callable[[object], bool | None]:
    verdict = CRITERIA[part]
    return lambda _: verdict
