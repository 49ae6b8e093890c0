"""TorchServe's own context and loader with our handler's glue; no frontend."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

from lmd_worker import transport
from lmd_worker.api.generation import Answer, Call, Part

FORM = "application/x-www-form-urlencoded"


class FakeContext:
    model_name = "m"
    model_yaml_config: dict[str, Any] = {}
    system_properties: dict[str, Any] = {}
    stopping_criteria: Any = None

    def __init__(self, headers: dict[str, Any]) -> None:
        self.headers = headers
        self.written: list[tuple[object, ...]] = []

    def get_request_id(self, idx: int) -> str:
        return f"id-{idx}"

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return self.headers

    def set_response_status(self, code: int, phrase: str, idx: int) -> None:
        self.written.append((idx, code, phrase))

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.written.append((idx, key, value))


@pytest.mark.parametrize(
    ("parameters", "headers", "call"),
    [
        pytest.param({"body": bytearray(b"x")}, {"Content-Type": "a/b", "url_path": "p"}, Call("p", "a/b", b"x"), id="a body"),
        pytest.param({"body": bytearray()}, {"url_path": ""}, Call("", "", b""), id="a GET has an empty body"),
        pytest.param({}, {"url_path": ""}, Call("", "", None), id="a request that goes on brings nothing"),
        pytest.param({"body": b"x"}, {"content-type": FORM}, Call("", FORM, None), id="a form field called body is no body"),
        pytest.param(
            {"url_path": b"lmd/report"},
            {"CONTENT-TYPE": FORM, "url_path": {"content-type": "text/plain"}},
            Call("", FORM, None),
            id="a form field is no header, though TorchServe files it there",
        ),
        pytest.param({"body": {"prompt": "x"}}, {}, Call("", "", None), id="a body that was decoded is not taken"),
    ],
)
def test_a_row_is_read_from_parameters_and_headers(parameters: dict[str, Any], headers: dict[str, Any], call: Call) -> None:
    (row,) = transport.rows([parameters], FakeContext(headers))
    assert (row.request_id, row.call) == ("id-0", call)


def test_answers_set_status_headers_and_criterion_in_order() -> None:
    context = FakeContext({})
    answers = [
        Answer(b"a", Part.ONLY, 429, headers={"Retry-After": "7"}),
        Answer(b"b", Part.MORE, content_type="text/event-stream"),
        Answer(b"c", Part.LAST),
    ]
    assert transport.write(answers, context) == [b"a", b"b", b"c"]
    assert [criterion(b"") for criterion in context.stopping_criteria] == [None, False, True]
    assert context.written == [
        (0, 429, "Too Many Requests"),
        (0, "content-type", "application/json"),
        (0, "Retry-After", "7"),
        (1, 200, "OK"),
        (1, "content-type", "text/event-stream"),
        (2, 200, "OK"),
        (2, "content-type", "application/json"),
    ]


def test_the_handler_module_defines_the_one_class_that_torchserve_takes() -> None:
    module = importlib.import_module("lmd_worker.handler")
    defined = [name for name, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__]
    assert defined == ["TextGeneration"]
    assert not hasattr(module, "handle")


def test_the_handler_is_imported_without_torch() -> None:
    program = "import lmd_worker.handler, sys; print(sorted({'torch', 'transformers', 'deepspeed', 'ts'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
