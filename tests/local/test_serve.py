"""`lmd serve` with the real model on three real ranks: it answers, refuses, survives input, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.model

Start = Callable[..., Any]
PARIS = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 24}


def test_a_chat_question_is_answered_right(server: Any) -> None:
    status, answer = server.post(PARIS)
    assert status == http.HTTPStatus.OK
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] == "stop"


def test_the_start_says_what_every_rank_holds(server: Any) -> None:
    assert "3 ranks on cpu verified" in server.wait_for("ready after")


def test_tokens_of_three_ranks_equal_one_process(server: Any, plain: Any) -> None:
    """The whole path, HTTP included, against plain transformers in one process; prompts of different lengths at once."""
    prompts = ["The sea is", "Once upon a time there was a small dragon who", "1, 2, 3, 4,", "def fibonacci(n):\n"]
    lengths = [12, 40, 8, 24]
    expected = [plain.answer(prompt, length)[0] for prompt, length in zip(prompts, lengths, strict=True)]
    answers: list[str | None] = [None] * len(prompts)

    def fetch(index: int) -> None:
        answers[index] = server.post({"prompt": prompts[index], "max_tokens": lengths[index]})[1]["text"]

    threads = [threading.Thread(target=fetch, args=[index]) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == expected


def test_a_streamed_answer_comes_in_pieces_and_equals_the_whole(server: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    body = {"prompt": "The sea is", "max_tokens": 12, "stream": True}
    connection.request("POST", "/predictions/smollm2", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    data = [line.decode().strip().removeprefix("data: ") for line in response if line.strip()]
    connection.close()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert data[-1] == "[DONE]"
    events = [json.loads(entry) for entry in data[:-1]]
    pieces = [event["text"] for event in events if event.get("text")]
    assert len(pieces) > 4
    assert "".join(pieces) == server.post({"prompt": "The sea is", "max_tokens": 12})[1]["text"]


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    line = server.wait_for("base URL for OpenAI clients")
    with openai.OpenAI(base_url=line.split()[-1], api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_the_openai_package_gets_the_same_answer_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "temperature": 0, **PARIS}
    whole = client.chat.completions.create(**asked)
    events = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    (choice,) = whole.choices
    assert "Paris" in (choice.message.content or "")
    assert choice.finish_reason == "stop"
    assert "".join(one.delta.content or "" for event in events for one in event.choices) == choice.message.content
    assert events[-1].usage == whole.usage
    assert [model.id for model in client.models.list()] == ["smollm2"]


def test_log_probabilities_are_those_of_one_process(client: openai.OpenAI, plain: Any) -> None:
    import torch

    (choice,) = client.completions.create(model="smollm2", prompt="The sea is", max_tokens=8, temperature=0, logprobs=3).choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or []) == choice.text
    known = plain.tokenizer("The sea is" + choice.text, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        scores = plain.model(known).logits[0].log_softmax(-1)
    start = known.shape[1] - len(logprobs.tokens or [])
    expected = [float(scores[at - 1, known[0, at]]) for at in range(start, known.shape[1])]
    assert logprobs.token_logprobs == pytest.approx(expected, abs=1e-3)
    assert [len(likely) for likely in logprobs.top_logprobs or []] == [3] * len(expected), "greedy tokens are among the likeliest"


def test_choices_differ_and_come_again_with_their_seed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "prompt": "Once upon a time", "n": 2, "seed": 7, "temperature": 1.5, "max_tokens": 12}
    first, second = ([choice.text for choice in client.completions.create(**asked).choices] for _ in range(2))
    assert first == second
    assert first[0] != first[1]


def test_an_answer_keeps_to_a_json_schema_and_to_token_weights(client: openai.OpenAI) -> None:
    class Capital(BaseModel):
        city: str
        inhabitants: int

    asked: Any = {"model": "smollm2", "messages": PARIS["messages"], "max_tokens": 60, "temperature": 0}
    parsed = client.chat.completions.parse(**asked, response_format=Capital).choices[0].message.parsed
    assert parsed is not None
    greedy = client.completions.create(model="smollm2", prompt="The sea is", max_tokens=1, temperature=0, logprobs=0)
    (token,) = greedy.choices[0].logprobs.tokens or []  # type: ignore[union-attr]
    (first,) = token_ids(client, token)
    other = client.completions.create(model="smollm2", prompt="The sea is", max_tokens=1, temperature=0, logit_bias={str(first): -100})
    assert other.choices[0].text != greedy.choices[0].text


def token_ids(client: openai.OpenAI, text: str) -> list[int]:
    """Return a text's token ids, as the server's own `tokenize` gives them."""
    url = str(client.base_url).replace("/v1/", "/tokenize")
    tokens: list[int] = client.post(url, body={"prompt": text}, cast_to=dict[str, Any])["tokens"]
    return tokens


def test_tools_are_refused_where_the_template_takes_none(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "weather"}}]
    with pytest.raises(openai.BadRequestError, match="takes no tools"):
        client.chat.completions.create(model="smollm2", messages=PARIS["messages"], tools=tools)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(json.dumps({"prompt": "word " * 5000}).encode(), "2048", id="a prompt longer than the context"),
        pytest.param(b'{"prompt": ""}', "prompt", id="an empty prompt"),
        pytest.param(b'{"prompt": 5}', "prompt", id="a wrong type"),
        pytest.param(b'{"prompt": "x", "max_tokens": "many"}', "max_tokens", id="a wrong parameter type"),
        pytest.param(b'{"promt": "x"}', "prompt", id="a misspelt field"),
        pytest.param(b"\xff\x00junk" * 200_000, "", id="a mebibyte of junk"),
        pytest.param(b"{" * 2**20, "", id="a mebibyte of braces"),
        pytest.param(b"", "", id="nothing"),
    ],
)
def test_bad_input_gets_a_sentence_and_the_server_goes_on(server: Any, raw: bytes, words: str) -> None:
    status, answer = server.post(None, raw=raw)
    assert 400 <= status < 500
    message = answer["error"]["message"]
    assert words in message
    assert "Traceback" not in message
    assert server.post(PARIS)[0] == http.HTTPStatus.OK


def test_bad_input_beside_good_requests_fails_only_itself(server: Any) -> None:
    results: dict[str, int] = {}

    def send(name: str, body: object) -> None:
        results[name] = server.post(body)[0]

    threads = [threading.Thread(target=send, args=[f"good {n}", PARIS]) for n in range(4)]
    threads += [threading.Thread(target=send, args=[f"bad {n}", {"prompt": ""}]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: status for name, status in results.items() if name.startswith("good")} == {f"good {n}": 200 for n in range(4)}
    assert {name: status for name, status in results.items() if name.startswith("bad")} == {f"bad {n}": 400 for n in range(4)}


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGKILL])
def test_stopping_it_leaves_no_process_socket_or_file(start: Start, remains: Any, number: signal.Signals) -> None:
    """SIGTERM ends the server that all other tests share."""
    serving = start()
    serving.wait_for("serving")
    assert_nothing_left = remains.of(serving)
    assert len(serving.ranks()) == 3
    serving.process.send_signal(number)
    serving.wait_for_end()
    assert_nothing_left()


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.long), 2])
def test_a_killed_rank_ends_the_server_and_every_client(start: Start, remains: Any, rank: int) -> None:
    """Kill -9 while a client streams: the client gets an end or an error, nothing hangs, and the end says why."""
    serving = start()
    serving.wait_for("serving")
    assert_nothing_left = remains.of(serving)
    outcome: list[object] = []

    def stream() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", serving.port, timeout=120)
        body = {"prompt": "Once upon a time", "max_tokens": 1000, "stream": True}
        try:
            connection.request("POST", "/predictions/smollm2", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            begun.set()
            outcome.append(response.read())
        except (OSError, http.client.HTTPException) as error:
            outcome.append(error)
        finally:
            begun.set()
            connection.close()

    begun = threading.Event()
    client = threading.Thread(target=stream)
    client.start()
    assert begun.wait(timeout=120)
    serving.ranks()[rank].kill()
    assert serving.wait_for_end() == 1
    client.join(timeout=60)
    assert not client.is_alive()
    assert not (isinstance(outcome[0], bytes) and b"[DONE]" in outcome[0] and b"error" not in outcome[0])
    assert any("no longer healthy" in line or "the worker ended" in line for line in serving.lines)
    assert_nothing_left()
