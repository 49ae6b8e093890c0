"""The handler behind the real frontend: a JVM, torchrun and two ranks, with an engine that echoes.

One test starts one frontend and tells its whole story, as a start takes several seconds.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

pytestmark = pytest.mark.model

COUNTS = ("finish_reason", "prompt_tokens", "completion_tokens")


def joined(events: list[Any]) -> str:
    return "".join(event.get("text", "") for event in events[:-1])


def test_answers_whole_and_streamed_and_refuses_bad_input_beside_good(start, wait_until) -> None:
    frontend = start()

    whole = {"model": "echo", "text": "Grüße", "finish_reason": "stop", "prompt_tokens": 7, "completion_tokens": 8}
    assert frontend.ask({"prompt": "Grüße"}) == (200, "application/json", whole)
    messages = [{"role": "user", "content": "Grüße"}]
    assert frontend.ask({"messages": messages})[2] == whole

    status, kind, events = frontend.ask({"prompt": "Grüße und mehr", "stream": True, "stop": "mehr"})
    assert (status, kind) == (200, "text/event-stream")
    assert joined(events) == "Grüße und "
    assert len(events) > 3, "tokens were not sent as they came"
    assert {key: events[-2][key] for key in COUNTS} == {"finish_reason": "stop", "prompt_tokens": 16, "completion_tokens": 16}
    assert events[-1] == "[DONE]"

    # a first step that is also the last once hung the client
    assert frontend.ask({"prompt": "now"})[2]["text"] == "now"
    assert frontend.ask({"prompt": "now", "max_tokens": 1})[2] == {
        **whole,
        "text": "n",
        "finish_reason": "length",
        "prompt_tokens": 3,
        "completion_tokens": 1,
    }
    assert joined(frontend.ask({"prompt": "now", "stream": True})[2]) == "now"

    neighbour: list[Any] = []
    good = threading.Thread(target=lambda: neighbour.append(frontend.ask({"prompt": "again " * 3, "max_tokens": 100})))
    good.start()
    wait_until("the neighbour runs", lambda: frontend.in_flight() == 1)
    refused: dict[bytes, tuple[str, str | None, str | None]] = {
        b"{": ("body: not JSON at line 1 column 2: Expecting property name enclosed in double quotes.", None, None),
        b"": ("body: empty; POST a JSON object.", None, None),
        b"\xff" * (1 << 20): ("body: not UTF-8 at byte 0.", None, None),
        b'{"prompt": "x", "promt": "y"}': ("promt: unknown field; did you mean prompt?", "promt", None),
        b'{"prompt": "x", "max_tokens": 4096}': (
            "max_tokens: the prompt has 1 tokens, so at most 4095 of the context of 4096 are left.",
            "max_tokens",
            "context_length_exceeded",
        ),
    }
    for body, (message, parameter, word) in refused.items():
        error = {"message": message, "type": "invalid_request_error", "param": parameter, "code": word}
        assert frontend.ask(body) == (400, "application/json", {"error": error})
    not_json = "content-type: got {}; send JSON with content-type application/json."
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # curl -d without a content type
    for headers, body, got in (
        (form, b'{"prompt": "x"}', "application/x-www-form-urlencoded"),
        (form, b"", "application/x-www-form-urlencoded"),
        ({"Content-Type": "text/plain"}, b'{"prompt": "x"}', "text/plain"),
    ):
        status, _, answer = frontend.ask(body, headers=headers)
        assert (status, answer["error"]["message"]) == (400, not_json.format(got))
    multipart = b'--b\r\nContent-Disposition: form-data; name="body"\r\n\r\n{"prompt": "x"}\r\n--b--\r\n'
    status, _, answer = frontend.ask(multipart, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (status, answer["error"]["message"]) == (400, not_json.format("multipart/form-data"))
    assert frontend.ask(b'{"prompt": "now"}', headers={})[0] == 200
    assert frontend.ask(b"", headers={}, method="GET")[0] == 400
    status, _, answer = frontend.ask({}, path="v1/nothing")
    assert (status, answer["error"]["message"]) == (404, "There is no such route.")
    status, kind, answer = frontend.ask(b"", path="lmd/report", headers={}, method="GET")
    assert (status, kind) == (200, "application/json")
    assert [rank["rank"] for rank in answer["ranks"]] == [0, 1]
    good.join()
    assert neighbour[0][2]["text"] == ("again " * 3 * 100)[:100]
    wait_until("nothing is in flight", lambda: frontend.in_flight() == 0)

    assert frontend.probe("/livez") == (200, "/ping answered 200")
    assert frontend.probe("/readyz") == (200, "workers of echo: READY")
    assert frontend.command("drain") == (0, "drained")
    assert frontend.probe("/readyz") == (503, "draining")
    log = frontend.log.read_text()
    assert "Grüße" not in log
    assert "Traceback" not in log
    assert "torch/distributed/launcher" not in log
    assert log.count("\n") < 40, log


def test_a_client_that_leaves_is_cancelled(start, wait_until) -> None:
    frontend = start()
    path, endless = "/predictions/echo", {"prompt": "again", "max_tokens": 4000, "stream": True}

    with frontend.open(path, endless) as other:
        with frontend.open(path, endless) as leaver:
            assert leaver.read(6) == b"data: "
            wait_until("both run", lambda: frontend.in_flight() == 2)
        wait_until("the one that left is cancelled", lambda: frontend.cancelled() == 1 and frontend.in_flight() == 1)
        assert other.read(6) == b"data: "
    wait_until("the last one is cancelled though no step follows", lambda: frontend.cancelled() == 2 and frontend.in_flight() == 0)
    assert frontend.ask({"prompt": "now"})[2]["text"] == "now"


def test_a_killed_rank_makes_ping_fail_and_leaves_no_process(start, wait_until) -> None:
    frontend = start()
    with frontend.open("/predictions/echo", {"prompt": "again", "max_tokens": 4000, "stream": True}):
        frontend.ranks()[1].send_signal(signal.SIGKILL)
        wait_until("ping fails", lambda: frontend.ping() != 200)
        wait_until("only the frontend is left", lambda: not frontend.besides())
    assert frontend.probe("/livez")[0] == 503
    assert frontend.command("drain") == (0, "nothing to drain: the frontend is not healthy")


def test_a_failed_engine_tells_its_clients_and_leaves_last_words(start, wait_until) -> None:
    frontend = start()
    answers: list[Any] = []
    body = {"prompt": "again", "max_tokens": 4000, "stream": True}
    client = threading.Thread(target=lambda: answers.append(frontend.ask(body)))
    client.start()
    wait_until("the request runs", lambda: frontend.in_flight() == 1)
    (frontend.run_directory / "fail-0").touch()
    wait_until("ping fails", lambda: frontend.ping() != 200)
    client.join()
    (_, _, events) = answers[0]
    assert events[-2]["error"]["type"] == "server_error"
    assert events[-1] == "[DONE]"
    assert frontend.last_words.read_text() == "The echo engine was told to fail.\n"
    wait_until("no rank is left", lambda: not frontend.ranks())


def test_a_rank_that_cannot_load_says_why_and_ends(start, wait_until) -> None:
    frontend = start(ready=False, ECHO_FAILURE="1")
    wait_until("last words are written", lambda: frontend.last_words.exists() and frontend.last_words.read_text())
    assert frontend.last_words.read_text() == "Rank 1: the echo engine was told not to load.\n"
    wait_until("ping fails", lambda: frontend.ping() == 500)
    wait_until("no rank is left", lambda: not frontend.ranks())
    assert frontend.probe("/readyz")[0] == 503


def test_the_handler_of_the_package_is_found_by_its_dotted_name(start, wait_until) -> None:
    frontend = start(ready=False, handler="lmd_worker.handler")
    wait_until("last words are written", lambda: frontend.last_words.exists() and frontend.last_words.read_text())
    assert "/nowhere" in frontend.last_words.read_text(), "the module ran, and its load said what is missing"
    wait_until("no rank is left", lambda: frontend.ping() == 500 and not frontend.ranks())


def test_sigterm_leaves_no_rank(start, wait_until) -> None:
    frontend = start()
    frontend.see()
    frontend.process.send_signal(signal.SIGTERM)
    wait_until("every process is gone", lambda: frontend.process.poll() is not None and not frontend.see())
