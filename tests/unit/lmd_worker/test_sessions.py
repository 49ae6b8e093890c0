"""Sessions between a transport that asks and an engine that runs, with an engine in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from lmd_worker.api.generation import Answer, Call, Part
from lmd_worker.api.routes import routes
from lmd_worker.engine.protocol import EngineStats, Progress, RequestTiming, Sampling, TokenLogprobs
from lmd_worker.errors import BadRequestError
from lmd_worker.sessions import (
    ENGINE_GONE,
    LONGEST_STEP_SECONDS,
    RETURN_SECONDS,
    SILENCE_SECONDS,
    SILENT_LOOKS,
    STEP_SECONDS,
    Row,
    Sessions,
)

END = 300


class Letters:
    """One token a character."""

    stop_token_ids = frozenset({END})
    writes_tool_calls = False

    def encode(self, prompt: str, *, special_tokens: bool = True) -> list[int]:
        if prompt == "broken":
            raise RuntimeError(prompt)
        return [] if prompt == "nothing" else [ord(character) for character in prompt]

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        if messages[0]["role"] == "system":
            raise BadRequestError("messages: this model takes no system message.")
        return self.encode("".join(message["content"] for message in messages))

    def decode(self, tokens: Sequence[int], *, special_tokens: bool = False) -> str:
        return "".join(chr(token) for token in tokens)

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode()

    def grammar(self, schema: Mapping[str, Any]) -> Callable[[], Any]:
        return object


class FakeEngine:
    """Runs only when told, by the request's id (its choice's, where it is not the first one).

    A step that waits takes time, unless `during_waits` says what comes meanwhile.
    """

    context_tokens = 20
    vocabulary_size = 301
    capacity: int | None = None

    def __init__(self) -> None:
        self.submitted: dict[str, tuple[list[int], Sampling]] = {}
        self.news: dict[str, Progress] = {}
        self.cancelled: list[str] = []
        self.during_waits: list[dict[str, Progress]] = []
        self.dead: str | None = None
        self.room: int | None = None
        self.now = 0.0
        self.turn_seconds = 0.0

    def start(self) -> None: ...

    def submit(self, request_id: str, prompt: Sequence[int], sampling: Sampling) -> None:
        assert request_id not in self.submitted
        if self.room is not None and len(self.submitted) >= self.room:
            raise BadRequestError("The queue is full.", 429, retry_after_seconds=3)
        self.submitted[request_id] = (list(prompt), sampling)

    def wait(self, request_ids: Iterable[str], timeout_seconds: float) -> None:
        assert set(request_ids) <= set(self.submitted)
        if self.during_waits:
            self.now += self.turn_seconds
            self.news.update({name(each): progress for each, progress in self.during_waits.pop(0).items()})
        else:
            self.now += timeout_seconds

    def progress(self, request_id: str) -> Progress:
        return self.news.pop(request_id, Progress())

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def failure(self) -> str | None:
        return self.dead

    def stats(self) -> EngineStats:
        return EngineStats()

    def drain_timings(self) -> Sequence[RequestTiming]:
        return ()

    def says(self, request_id: str, text: str, finish_reason: Any = None, *end: int, error: str | None = None) -> None:
        self.news[name(request_id)] = Progress((*map(ord, text), *end), finish_reason, error)


def name(request_id: str) -> str:
    """The engine's name for a request's only choice."""
    return request_id if "." in request_id else f"{request_id}.0"


class Bench:
    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.counts: list[int] = []
        table = routes("m", Letters(), context_tokens=20, vocabulary_size=301, report=lambda: '{"ranks": []}')
        clock = lambda: self.engine.now  # noqa: E731
        self.sessions = Sessions(self.engine, Letters(), table, count_changed=self.counts.append, clock=clock)

    def step(self, *open_requests: str | tuple[str, dict[str, Any]], path: str = "") -> list[Answer]:
        """One step; a bare id continues, an id with a body is new."""
        rows = []
        for request in open_requests:
            request_id, body = (request, None) if isinstance(request, str) else request
            raw = None if body is None else json.dumps(body).encode()
            rows.append(Row(request_id, Call(path, "application/json", raw)))
        return self.sessions.step(rows)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def parsed(answer: Answer) -> Any:
    return json.loads(answer.body)


def message(answer: Answer) -> str:
    return str(parsed(answer)["error"]["message"])


def test_a_whole_answer_comes_once_it_is_finished(bench: Bench) -> None:
    assert bench.step(("a", {"prompt": "hi"})) == [Answer(b"", Part.MORE)]
    assert bench.engine.now == LONGEST_STEP_SECONDS, "a step without news took its whole time"
    bench.engine.says("a", "yes")
    assert bench.step("a") == [Answer(b"", Part.MORE)]
    bench.engine.says("a", "!", "stop", END)
    (answer,) = bench.step("a")
    assert answer.part is Part.LAST
    assert parsed(answer) == {"model": "m", "text": "yes!", "finish_reason": "stop", "prompt_tokens": 2, "completion_tokens": 5}
    assert bench.counts == [1, 0]


def test_a_stream_comes_as_it_is_made(bench: Bench) -> None:
    bench.engine.during_waits = [{"a": Progress((ord("y"),))}]
    assert bench.step(("a", {"prompt": "hi", "stream": True})) == [
        Answer(b'data: {"text":"y"}\n\n', Part.MORE, content_type="text/event-stream")
    ]
    assert bench.engine.now == 0.0, "news end a step at once"
    bench.engine.says("a", "es", "length")
    (answer,) = bench.step("a")
    ending = b'data: {"model":"m","finish_reason":"length","prompt_tokens":2,"completion_tokens":3}\n\ndata: [DONE]\n\n'
    assert answer == Answer(b'data: {"text":"es"}\n\n' + ending, Part.LAST, content_type="text/event-stream")


@pytest.mark.parametrize("stream", [False, True])
def test_a_first_piece_that_is_also_the_last_is_the_only_one(bench: Bench, stream: bool) -> None:
    bench.engine.during_waits = [{"a": Progress((END,), "stop")}]
    (answer,) = bench.step(("a", {"prompt": "hi", "stream": stream}))
    assert answer.part is Part.ONLY
    assert answer.status == 200
    assert (b'"text"' in answer.body) is not stream


def test_one_token_of_a_whole_answer_does_not_end_a_step(bench: Bench) -> None:
    bench.engine.during_waits = [{"a": Progress((ord("x"),))}] * 3
    bench.step(("a", {"prompt": "hi"}))
    assert bench.engine.now == LONGEST_STEP_SECONDS


def test_a_step_with_nothing_to_say_ends_with_a_turn_so_that_the_next_begins_with_who_has_come(bench: Bench) -> None:
    """It ended after 0.1 s in the midst of turns of 0.115 s, and each turn cost the frontend two exchanges."""
    bench.engine.turn_seconds = 0.6 * STEP_SECONDS
    bench.engine.during_waits = [{"a": Progress((ord("x"),))}] * 5
    assert bench.step(("a", {"prompt": "hi"})) == [Answer(b"", Part.MORE)]
    assert bench.engine.now == 2 * bench.engine.turn_seconds
    bench.engine.turn_seconds = 2 * STEP_SECONDS
    bench.step("a")
    assert bench.engine.now == pytest.approx(3.2 * STEP_SECONDS), "not before a turn has ended"


def test_who_has_got_an_answer_and_asks_again_begins_with_the_next_turn(bench: Bench) -> None:
    """It waited for the end of the turn that had begun, and for the one after."""
    bench.step(("a", {"prompt": "hi"}), ("b", {"prompt": "hi"}))
    bench.engine.says("a", "yes", "stop", END)
    assert [answer.part for answer in bench.step("a", "b")] == [Part.LAST, Part.MORE]
    began = bench.engine.now
    bench.step("b")
    assert bench.engine.now == pytest.approx(began + RETURN_SECONDS), "in the midst of a turn"
    bench.step("b", ("c", {"prompt": "hi"}))
    assert "c.0" in bench.engine.submitted
    assert bench.engine.now == pytest.approx(began + RETURN_SECONDS + LONGEST_STEP_SECONDS), "once"


def test_sampling_is_handed_on_and_top_k_kept_within_the_vocabulary(bench: Bench) -> None:
    body = {"prompt": "hi", "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 10**30, "seed": 7}
    bench.step(("a", body))
    assert bench.engine.submitted["a.0"] == ([104, 105], Sampling(4, 0.5, 0.9, 301, 7, frozenset({END})))


def test_max_tokens_defaults_to_what_is_left_of_the_context(bench: Bench) -> None:
    bench.step(("a", {"prompt": "x" * 15}))
    assert bench.engine.submitted["a.0"][1].max_tokens == 5
    bench.engine.context_tokens = 4096
    bench.step("a", ("b", {"prompt": "x"}))
    assert bench.engine.submitted["b.0"][1].max_tokens == 256


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        pytest.param({"prompt": "x" * 20}, "The prompt has 20 tokens, which leaves no room for an answer in the context of 20.", id="full"),
        pytest.param(
            {"prompt": "xx", "max_tokens": 19},
            "max_tokens: the prompt has 2 tokens, so at most 18 of the context of 20 are left.",
            id="too long together",
        ),
        pytest.param({"prompt": "nothing"}, "prompt: holds no tokens.", id="a prompt of no tokens"),
        pytest.param({"prompt": "日"}, "prompt: holds a token the model does not know; its vocabulary has 301 tokens.", id="vocabulary"),
        pytest.param(
            {"messages": [{"role": "system", "content": "x"}]},
            "messages: this model takes no system message.",
            id="the template's own refusal",
        ),
        pytest.param({"prompt": 5}, "prompt: must be a string, got a number.", id="the route's refusal"),
    ],
)
def test_bad_input_is_refused_at_once_and_touches_no_neighbour(bench: Bench, body: dict[str, Any], sentence: str) -> None:
    bench.step(("good", {"prompt": "hi", "stream": True}))
    before = bench.engine.now
    bench.engine.says("good", "y")
    good, bad = bench.step("good", ("bad", body))
    assert (bad.part, bad.status, message(bad)) == (Part.ONLY, 400, sentence)
    assert good.body == b'data: {"text":"y"}\n\n'
    assert bench.step("good", ("worse", body))[0] == Answer(b"", Part.MORE, content_type="text/event-stream")
    assert bench.engine.now == before, "a refusal does not wait for the news of others"
    assert list(bench.engine.submitted) == ["good.0"]
    assert bench.engine.cancelled == []


def test_refusals_are_counted_by_status(bench: Bench) -> None:
    bench.step(("a", {"prompt": ""}), ("b", {"prompt": 5}))
    bench.step(("c", {"prompt": "hi"}))
    assert bench.sessions.refused == {400: 2}
    bench.step(("d", {"prompt": ""}), path="nothing")
    bench.engine.room = 0
    bench.step(("e", {"prompt": "hi"}))
    assert bench.sessions.refused == {400: 2, 404: 1, 429: 1}


def test_a_fault_of_ours_is_a_500_for_its_request_and_quotes_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = bench.step(("good", {"prompt": "hi"}), ("bad", {"prompt": "broken"}))
    assert (bad.status, good.part) == (500, Part.MORE)
    assert "broken" not in bad.body.decode()
    assert "broken" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_the_report_and_unknown_routes_answer_at_once(bench: Bench) -> None:
    assert bench.step(("a", {}), path="lmd/report") == [Answer(b'{"ranks": []}', Part.ONLY)]
    (answer,) = bench.step(("b", {}), path="v1/nothing")
    assert (answer.status, message(answer)) == (404, "There is no such route.")
    assert bench.engine.now == 0.0


def test_a_request_that_is_not_asked_for_is_cancelled(bench: Bench) -> None:
    bench.step(("a", {"prompt": "x"}), ("b", {"prompt": "x"}))
    bench.step("b")
    assert bench.engine.cancelled == ["a.0"]
    assert bench.counts == [2, 1]


def test_a_stop_string_ends_the_answer_and_the_engines_work(bench: Bench) -> None:
    bench.engine.during_waits = [{"a": Progress(tuple(map(ord, "one STOP two")))}]
    (answer,) = bench.step(("a", {"prompt": "x", "stop": ["STOP"]}))
    assert parsed(answer) == {"model": "m", "text": "one ", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 8}
    assert bench.engine.cancelled == ["a.0"]
    assert bench.counts == [1, 0]


def test_a_stop_string_that_was_not_finished_is_text(bench: Bench) -> None:
    bench.engine.during_waits = [{"a": Progress(tuple(map(ord, "one STO")), "length")}]
    (answer,) = bench.step(("a", {"prompt": "x", "stop": ["STOP"]}))
    assert (parsed(answer)["text"], parsed(answer)["finish_reason"]) == ("one STO", "length")


def test_silence_cancels_what_runs_and_a_slow_transport_gets_it_ended(bench: Bench) -> None:
    bench.step(("a", {"prompt": "x", "stream": True}))
    bench.engine.now += SILENCE_SECONDS
    assert [bench.sessions.cancel_if_silent() for _ in range(SILENT_LOOKS)] == [0] * SILENT_LOOKS
    bench.engine.now += 0.1
    assert bench.sessions.cancel_if_silent() == 1
    assert bench.sessions.cancel_if_silent() == 0
    assert bench.engine.cancelled == ["a.0"]
    assert bench.counts == [1, 0]
    (answer,) = bench.step("a")
    assert answer.part is Part.LAST
    assert b"seemed to be gone" in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n")
    bench.step(("b", {"prompt": "x"}))
    assert bench.engine.cancelled == ["a.0"]


def test_a_process_that_was_held_up_cancels_nobody(bench: Bench) -> None:
    bench.step(("a", {"prompt": "x"}))
    bench.engine.now += 10 * SILENCE_SECONDS
    assert [bench.sessions.cancel_if_silent() for _ in range(SILENT_LOOKS - 1)] == [0] * (SILENT_LOOKS - 1)
    bench.step("a")
    assert bench.sessions.cancel_if_silent() == 0
    assert bench.engine.cancelled == []


def test_a_dead_engine_is_told_in_band_and_new_requests_are_refused(bench: Bench) -> None:
    bench.step(("whole", {"prompt": "x"}), ("stream", {"prompt": "x", "stream": True}))
    bench.engine.says("stream", "y")
    bench.engine.dead = "gloo: 10.0.0.7 has gone"
    whole, stream, new = bench.step("whole", "stream", ("new", {"prompt": "x"}))
    error = {"error": {"message": ENGINE_GONE, "type": "server_error", "param": None, "code": None}}
    assert (whole.part, parsed(whole)) == (Part.LAST, error)
    assert stream.part is Part.LAST
    assert stream.body.startswith(b'data: {"text":"y"}\n\ndata: {"error"')
    assert (new.part, new.status, parsed(new)) == (Part.ONLY, 503, error)


def test_one_requests_error_is_its_own(bench: Bench) -> None:
    bench.engine.during_waits = [{"a": Progress((), "error", "The cache is full.")}]
    a, b = bench.step(("a", {"prompt": "x"}), ("b", {"prompt": "x"}))
    assert (a.part, a.status, message(a)) == (Part.ONLY, 503, "The cache is full.")
    assert b.part is Part.MORE


def completions(bench: Bench, request_id: str, **body: Any) -> Answer:
    return bench.step((request_id, {"prompt": "hi", "max_tokens": 9, **body}), path="v1/completions")[0]


def test_every_choice_is_a_request_of_its_own_with_the_next_seed(bench: Bench) -> None:
    completions(bench, "a", prompt=["hi", "ho"], n=2, seed=2**63 - 1)
    seeds = {engine_id: sampling.seed for engine_id, (_, sampling) in bench.engine.submitted.items()}
    assert seeds == {"a.0": 2**63 - 1, "a.1": 0, "a.2": 2**63 - 1, "a.3": 0}
    assert bench.counts == [1], "one client waits, however many choices it asked for"


def test_choices_end_one_by_one_and_the_answer_with_the_last(bench: Bench) -> None:
    completions(bench, "a", n=2, stream=True, stream_options={"include_usage": True})
    bench.engine.says("a.1", "no", "length")
    (answer,) = bench.step("a")
    (event,) = [json.loads(part.removeprefix(b"data: ")) for part in answer.body.split(b"\n\n")[:-1]]
    assert event["choices"] == [{"index": 1, "text": "no", "logprobs": None, "finish_reason": "length"}]
    assert answer.part is Part.MORE
    bench.engine.says("a.0", "yes", "stop", END)
    (answer,) = bench.step("a")
    assert answer.part is Part.LAST
    first, usage = [json.loads(part.removeprefix(b"data: ")) for part in answer.body.split(b"\n\n")[:-2]]
    assert [choice["index"] for choice in first["choices"]] == [0]
    assert usage["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_more_choices_than_there_is_room_for_are_refused_for_good(bench: Bench) -> None:
    bench.engine.capacity = 3
    refused = completions(bench, "a", n=4)
    assert (refused.status, refused.headers) == (400, {})
    assert parsed(refused)["error"]["message"] == "n: 4 answers are asked for at once; this model takes 3."
    assert not bench.engine.submitted
    completions(bench, "b", n=3)
    assert len(bench.engine.submitted) == 3


def test_a_queue_that_is_full_half_way_takes_none_of_the_choices(bench: Bench) -> None:
    bench.engine.room = 2
    answer = completions(bench, "a", n=3)
    assert (answer.status, answer.part, answer.headers) == (429, Part.ONLY, {"Retry-After": "3"})
    assert parsed(answer)["error"] == {"message": "The queue is full.", "type": "rate_limit_error", "param": None, "code": None}
    assert bench.engine.cancelled == ["a.0", "a.1"]
    assert bench.sessions.running == 0


def test_one_choices_failure_ends_the_request_and_the_others_work(bench: Bench) -> None:
    completions(bench, "a", n=3)
    bench.engine.says("a.0", "x", "length")
    bench.engine.says("a.1", "", "error", error="The cache is full.")
    (answer,) = bench.step("a")
    assert (answer.part, message(answer)) == (Part.LAST, "The cache is full.")
    assert "a.2" in bench.engine.cancelled
    assert "a.0" not in bench.engine.cancelled


def test_a_client_that_leaves_ends_all_its_running_choices(bench: Bench) -> None:
    completions(bench, "a", n=3)
    bench.engine.says("a.1", "x", "length")
    bench.step("a")
    bench.step()
    assert bench.engine.cancelled == ["a.0", "a.2"]


def test_log_probabilities_leave_out_what_a_stop_string_cuts(bench: Bench) -> None:
    tokens = tuple(map(ord, "ab STOP"))
    bench.engine.during_waits = [{"a": Progress(tokens, logprobs=tuple(TokenLogprobs(-1.0, ((token, -1.0),)) for token in tokens))}]
    (choice,) = parsed(completions(bench, "a", stop="STOP", logprobs=1))["choices"]
    assert choice["text"] == "ab "
    assert choice["logprobs"] == {
        "tokens": ["a", "b", " "],
        "token_logprobs": [-1.0] * 3,
        "top_logprobs": [{"a": -1.0}, {"b": -1.0}, {" ": -1.0}],
        "text_offset": [0, 1, 2],
    }


def test_constraints_are_each_choices_own(bench: Bench) -> None:
    completions(bench, "a", n=2, presence_penalty=1)
    first, second = (bench.engine.submitted[name][1].constraint for name in ("a.0", "a.1"))
    assert first is not None
    assert first is not second
    assert message(completions(bench, "b", logit_bias={"301": 1})) == (
        "logit_bias: names a token the model does not know; its vocabulary has 301 tokens."
    )


def test_a_chat_without_max_tokens_may_fill_the_context(bench: Bench) -> None:
    bench.step(("a", {"messages": [{"role": "user", "content": "hi"}]}), path="v1/chat/completions")
    assert bench.engine.submitted["a.0"][1].max_tokens == 18


def test_an_echo_goes_before_the_answer(bench: Bench) -> None:
    bench.engine.during_waits = [{"a": Progress((ord("!"), END), "stop")}]
    assert parsed(completions(bench, "a", echo=True))["choices"][0]["text"] == "hi!"
    bench.engine.during_waits = [{"b": Progress((ord("!"), END), "stop")}]
    assert parsed(completions(bench, "b", prompt=[104, 105], echo=True))["choices"][0]["text"] == "hi!"
