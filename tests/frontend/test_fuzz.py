"""Any request body gives 200 or a 4xx with OpenAI's error, and the engine still answers right afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import echo_engine
import fuzzing
import pytest
from hypothesis import HealthCheck, example, given, settings

from lmd_worker.api.generation import Answer, Call, Part
from lmd_worker.api.routes import routes
from lmd_worker.sessions import Row, Sessions

MOST_STEPS = 50
SLOW_IS_FINE = [HealthCheck.too_slow, HealthCheck.data_too_large]
RIGHT = b'{"messages": [{"role": "user", "content": "now"}]'


class InProcess:
    """Sessions over the echoing engine, asked as the transport asks."""

    def __init__(self, directory: Path) -> None:
        text = echo_engine.Bytes()
        self.engine = echo_engine.EchoEngine(directory, instant=True)
        limits = {"context_tokens": self.engine.context_tokens, "vocabulary_size": self.engine.vocabulary_size}
        self.sessions = Sessions(self.engine, text, routes("echo", text, report=lambda: "{}", **limits))
        self._requests = 0

    def ask(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        self._requests += 1
        name, call = str(self._requests), Call(path, "application/json", body)
        answers: list[Answer] = []
        while not answers or answers[-1].part is Part.MORE:
            assert len(answers) < MOST_STEPS, "it never ends"
            answers += self.sessions.step([Row(name, call)])
        return answers[0].status, answers[0].content_type, b"".join(answer.body for answer in answers)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> InProcess:
    return InProcess(tmp_path_factory.mktemp("run"))


@pytest.mark.model
@settings(max_examples=2000, deadline=None, suppress_health_check=SLOW_IS_FINE)
@example(("v1/chat/completions", b'{"messages": [{"role": "user", "content": null}]}'))
@example(("v1/completions", b'{"prompt": [true]}'))
@example(("v1/completions", b'{"prompt": [[]]}'))
@example(("v1/completions", b'{"prompt": [1, "x"]}'))
@example(("v1/completions", b'{"prompt": [-1]}'))
@example(("v1/completions", b'{"prompt": "x", "logit_bias": {"1": 1e999}}'))
@example(("v1/completions", b'{"prompt": "x", "seed": -1, "n": 3, "temperature": 1}'))
@example(("v1/chat/completions", b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "["}}]}]}'))
@example(
    (
        "v1/chat/completions",
        RIGHT + b',"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": "\\ud800"}}}}',
    )
)
@example(("v1/chat/completions", RIGHT + b',"tools": [{"type": "function", "function": {"name": "x", "parameters": {"a": 1e999}}}]}'))
@given(fuzzing.requests())
def test_any_body_is_answered_or_refused_in_words(server: InProcess, request_: tuple[str, bytes]) -> None:
    path, body = request_
    assert fuzzing.complaint(*server.ask(path, body)) is None
    assert server.sessions.running == 0
    assert server.engine.running == 0, "the engine still holds what nobody asks for"


@pytest.mark.model
def test_the_fuzz_reaches_answers_and_refusals(server: InProcess) -> None:
    """A fuzz that only ever sees refusals would not notice a broken route."""
    seen: dict[str, set[int]] = {}

    @settings(max_examples=600, deadline=None, database=None, derandomize=True, suppress_health_check=SLOW_IS_FINE)
    @given(fuzzing.requests())
    def look(request_: tuple[str, bytes]) -> None:
        seen.setdefault(request_[0], set()).add(server.ask(*request_)[0])

    look()
    assert [path for path in fuzzing.TABLES if 200 not in seen[path]] == []
    assert {400, 404} <= set().union(*seen.values())
    assert server.ask("v1/completions", b'{"prompt": "busy"}')[0] == 429


@pytest.mark.model
def test_the_same_over_http_and_the_engine_answers_right_afterwards(start: Callable[..., Any]) -> None:
    frontend = start()

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=SLOW_IS_FINE)
    @given(fuzzing.requests())
    def send(request_: tuple[str, bytes]) -> None:
        path, body = request_
        full = f"/predictions/echo/1.0/{path}" if path else "/predictions/echo"
        with frontend.open(full, body) as response:
            assert fuzzing.complaint(response.status, response.headers["content-type"], response.read()) is None

    send()
    answer = frontend.ask({"messages": [{"role": "user", "content": "Grüße"}]}, path="v1/chat/completions")[2]
    assert answer["choices"][0]["message"]["content"] == "Grüße"
    assert frontend.in_flight() == 0
    log = frontend.log.read_text()
    assert "Traceback" not in log
    assert json.dumps("Grüße") not in log
