"""The `openai` package, sync and async, against the real TorchServe with the echoing engine: every route, streamed and not.

What comes back is parsed by the package and checked again by its own models, strictly: no missing field, no wrong type.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

pytestmark = pytest.mark.model

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture(scope="module")
def frontend(start_module: Callable[..., Any]) -> Any:
    return start_module()


@pytest.fixture(scope="module")
def client(frontend: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url(frontend), api_key="none", max_retries=0) as client:
        yield client


def base_url(frontend: Any) -> str:
    return f"http://127.0.0.1:{frontend.inference_port}/predictions/echo/1.0/v1"


def strict(answer: Any) -> Any:
    """Check an answer by the package's own model: the package itself only builds it, whatever it holds."""
    document = answer.model_dump(mode="json", exclude_unset=True)
    if isinstance(answer, Completion):  # its model, which streams share, does not know that they end later
        for choice in document["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
    type(answer).model_validate_json(json.dumps(document), strict=True)
    assert set(answer.model_extra or {}) <= {"max_model_len"}
    return answer


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert isinstance(model, Model)
    assert strict(model).id == "echo"
    assert strict(client.models.retrieve("echo")).id == "echo"
    assert client.models.retrieve("MODEL").id == "echo"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert caught.value.code == "model_not_found"


def test_a_completion(client: openai.OpenAI) -> None:
    answer = strict(client.completions.create(model="echo", prompt="Grüße", max_tokens=20))
    assert isinstance(answer, Completion)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [(0, "Grüße", "stop")]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 8, 15)
    assert strict(client.completions.create(model="MODEL", prompt="x" * 40)).choices[0].text == "x" * 16


def test_a_streamed_completion(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    with client.completions.create(model="echo", prompt="Grüße", max_tokens=20, stream=True, stream_options=options) as stream:
        events = [strict(event) for event in stream]
    assert "".join(choice.text for event in events for choice in event.choices) == "Grüße"
    assert len(events) > 4, "tokens were not sent as they came"
    assert len({event.id for event in events}) == 1
    assert events[-2].choices[0].finish_reason == "stop"
    assert [event.usage for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert events[-1].usage.total_tokens == 15


def test_prompts_of_every_form_and_several_choices(client: openai.OpenAI) -> None:
    asked: list[tuple[Any, list[str]]] = [
        ("ab", ["ab", "ab"]),
        (["ab", "cd"], ["ab", "ab", "cd", "cd"]),
        ([97, 98], ["ab", "ab"]),
        ([[97, 98], [99]], ["ab", "ab", "c", "c"]),
    ]
    for prompt, texts in asked:
        answer = strict(client.completions.create(model="echo", prompt=prompt, n=2, best_of=2))
        assert [choice.text for choice in answer.choices] == texts
        assert [choice.index for choice in answer.choices] == list(range(len(texts)))
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == len("".join(texts)) // 2, "a prompt counts once, whatever n is"
        assert answer.usage.completion_tokens == len("".join(texts)) + len(texts)
    assert client.completions.create(model="echo", prompt=["ab", "cd"], echo=True).choices[1].text == "cdcd"
    seeded = client.completions.create(model="echo", prompt=["seed", "seed"], n=3, seed=41, max_tokens=30)
    assert [choice.text for choice in seeded.choices] == ["41", "42", "43"] * 2


def test_streamed_choices_carry_their_index(client: openai.OpenAI) -> None:
    texts, ends = ["", "", "", ""], [""] * 4
    for event in client.completions.create(model="echo", prompt=["abcdef", "ghij"], n=2, stream=True, max_tokens=5):
        for choice in strict(event).choices:
            texts[choice.index] += choice.text
            ends[choice.index] += choice.finish_reason or ""
    assert texts == ["abcde", "abcde", "ghij", "ghij"]
    assert ends == ["length", "length", "stop", "stop"]


def test_stop_strings(client: openai.OpenAI) -> None:
    for stream in (False, True):
        made: Any = client.completions.create(model="echo", prompt="one STOP two", stop=["STOP", "two"], stream=stream)
        answers = list(made) if stream else [made]
        assert "".join(answer.choices[0].text for answer in answers) == "one "
        assert answers[-1].choices[0].finish_reason == "stop"


def test_logprobs_of_completions(client: openai.OpenAI) -> None:
    (choice,) = strict(client.completions.create(model="echo", prompt="aß", logprobs=2)).choices
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "bytes:\\xc3", "bytes:\\x9f"]
    assert logprobs.token_logprobs == [-0.97, -1.95, -1.59]
    assert logprobs.text_offset == [0, 1, 1]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"a": -0.97, "b": -1.97}
    pieces = [event.choices[0].logprobs for event in client.completions.create(model="echo", prompt="aß", logprobs=0, stream=True)]
    assert [token for piece in pieces if piece for token in piece.tokens or []] == logprobs.tokens


def test_a_chat_answer(client: openai.OpenAI) -> None:
    answer = strict(client.chat.completions.create(model="echo", messages=user("Grüße"), n=2))
    assert isinstance(answer, ChatCompletion)
    for index, choice in enumerate(answer.choices):
        assert (choice.index, choice.message.content, choice.message.role, choice.finish_reason) == (index, "Grüße", "assistant", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 16)


def test_a_streamed_chat_answer(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(
        model="echo", messages=user("Grüße"), stream=True, stream_options=options, max_completion_tokens=20, n=2
    )
    events = [strict(event) for event in stream]
    assert all(isinstance(event, ChatCompletionChunk) for event in events)
    for number in range(2):
        deltas = [choice.delta for event in events for choice in event.choices if choice.index == number]
        assert [delta.role for delta in deltas] == ["assistant", *[None] * (len(deltas) - 1)]
        assert "".join(delta.content or "" for delta in deltas) == "Grüße"
    assert len(events) > 8, "tokens were not sent as they came"
    assert sorted(choice.index for event in events for choice in event.choices if choice.finish_reason == "stop") == [0, 1]
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert (events[-1].usage.prompt_tokens, events[-1].usage.completion_tokens) == (7, 16)


def test_the_packages_own_helper_puts_a_stream_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="echo", messages=user("hello there"), logprobs=True) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "hello there"
    assert final.choices[0].logprobs is not None
    assert [token.token for token in final.choices[0].logprobs.content or []] == list("hello there")


def test_logprobs_of_chats(client: openai.OpenAI) -> None:
    asked: Any = {"model": "echo", "messages": user("aß"), "logprobs": True, "top_logprobs": 2}
    (choice,) = strict(client.chat.completions.create(**asked)).choices
    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert [(token.token, token.bytes, token.logprob) for token in content] == [
        ("a", [97], -0.97),
        ("\ufffd", [0xC3], -1.95),
        ("\ufffd", [0x9F], -1.59),
    ]
    assert [(token.token, token.logprob) for token in content[0].top_logprobs] == [("a", -0.97), ("b", -1.97)]
    chunks = [choice.logprobs for event in client.chat.completions.create(stream=True, **asked) for choice in strict(event).choices]
    assert [token for logprobs in chunks if logprobs for token in logprobs.content or []] == content


def test_logprobs_end_where_a_stop_string_cuts(client: openai.OpenAI) -> None:
    for stream in (False, True):
        made: Any = client.completions.create(model="echo", prompt="one STOP", stop="STOP", logprobs=0, stream=stream)
        answers = list(made) if stream else [made]
        assert [token for answer in answers for token in answer.choices[0].logprobs.tokens] == list("one ")


def test_tool_calls(client: openai.OpenAI) -> None:
    asked: Any = {"model": "echo", "messages": user(f"Let me see.\n{CALL}"), "tools": [WEATHER], "tool_choice": "auto"}
    (choice,) = strict(client.chat.completions.create(**asked)).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see.\n"
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Köln"})
    with client.chat.completions.stream(**asked) as stream:
        stream.until_done()
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert json.loads((final.message.tool_calls or [])[0].function.arguments) == {"city": "Köln"}
    untouched = client.chat.completions.create(**{**asked, "tool_choice": "none"}).choices[0]
    assert (untouched.message.content, untouched.finish_reason) == (f"Let me see.\n{CALL}", "stop")


def test_a_constrained_answer(client: openai.OpenAI) -> None:
    class Figure(BaseModel):
        a: int

    parsed = client.chat.completions.parse(model="echo", messages=user('{"a": 12}'), response_format=Figure).choices[0].message.parsed
    assert parsed == Figure(a=12)
    said = user('{"a": "twelve"} and more')
    json_schema: Any = {"type": "json_schema", "json_schema": {"name": "figure", "schema": SCHEMA, "strict": True}}
    constrained = client.chat.completions.create(model="echo", messages=said, response_format=json_schema)
    assert isinstance(json.loads(constrained.choices[0].message.content or "")["a"], int)
    free = client.chat.completions.create(model="echo", messages=said, response_format={"type": "text"})
    assert free.choices[0].message.content == said[0]["content"]
    an_object = client.chat.completions.create(model="echo", messages=said, response_format={"type": "json_object"})
    assert json.loads(an_object.choices[0].message.content or "") == {"a": "twelve"}
    unsupported: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="not supported"):
        client.chat.completions.create(model="echo", messages=said, response_format=unsupported)


def test_errors_are_the_packages_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=user("x"))
    assert (missing.value.code, missing.value.param, missing.value.type) == ("model_not_found", "model", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="echo", messages=user("x"), temperature=3)
    assert (wrong.value.code, wrong.value.param) == (None, "temperature")
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        client.embeddings.create(model="echo", input="x")
    with pytest.raises(openai.BadRequestError, match=r"did you mean temperature\?"):
        client.completions.create(model="echo", prompt="x", extra_body={"temprature": 1})
    with pytest.raises(openai.RateLimitError) as busy:
        client.completions.create(model="echo", prompt="busy")
    assert busy.value.response.headers["retry-after"] == "7"
    assert busy.value.type == "rate_limit_error"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="echo", input="x")


def test_the_async_client(frontend: Any) -> None:
    async def story() -> None:
        async with openai.AsyncOpenAI(base_url=base_url(frontend), api_key="none", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == ["echo"]
            texts = [f"request {number} " * 3 for number in range(6)]
            chats = [client.chat.completions.create(model="echo", messages=user(text)) for text in texts]
            completions = [client.completions.create(model="echo", prompt=text, max_tokens=99) for text in texts[:3]]
            answers = await asyncio.gather(*chats)
            assert [strict(answer).choices[0].message.content for answer in answers] == texts
            assert [strict(answer).choices[0].text for answer in await asyncio.gather(*completions)] == texts[:3]

            stream = await client.chat.completions.create(model="echo", messages=user("hello"), stream=True)
            said = [choice.delta.content or "" async for event in stream for choice in strict(event).choices]
            assert "".join(said) == "hello"
            pieces = await client.completions.create(model="echo", prompt="hello", stream=True)
            assert "".join([event.choices[0].text async for event in pieces]) == "hello"
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model="echo", messages=[])

    asyncio.run(story())


def test_tokenize_and_detokenize(frontend: Any) -> None:
    status, _, answer = frontend.ask({"model": "echo", "prompt": "hé", "return_token_strs": True}, path="tokenize")
    assert (status, answer) == (
        200,
        {"count": 3, "max_model_len": 4096, "tokens": [104, 195, 169], "token_strs": ["h", "\ufffd", "\ufffd"]},
    )
    assert frontend.ask({"messages": user("hé")}, path="tokenize")[2]["tokens"] == [104, 195, 169]
    assert frontend.ask({"tokens": [104, 195, 169, 256]}, path="detokenize")[2] == {"prompt": "hé<|end|>"}
    for path, body in (("tokenize", {}), ("tokenize", {"prompt": 5}), ("detokenize", {"tokens": [257]}), ("detokenize", {"tokens": "x"})):
        status, _, answer = frontend.ask(body, path=path)
        assert (status, set(answer["error"])) == (400, {"message", "type", "param", "code"})


def test_the_plain_route_is_as_it_was(frontend: Any) -> None:
    answer = frontend.ask({"prompt": "now"})[2]
    assert answer == {"model": "echo", "text": "now", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 4}
    assert [event.get("text") for event in frontend.ask({"prompt": "now", "stream": True})[2][:-1]] == ["now", None]
    assert frontend.ask({"prompt": "busy"})[0] == 429


def test_one_client_that_leaves_frees_all_its_choices(frontend: Any, wait_until: Callable[..., Any]) -> None:
    before = frontend.cancelled()
    body = {"prompt": "again", "max_tokens": 4000, "stream": True, "n": 3}
    with frontend.open("/predictions/echo/1.0/v1/completions", body) as response:
        assert response.read(6) == b"data: "
        wait_until("it runs", lambda: frontend.in_flight() == 1)
    wait_until("all its choices are cancelled", lambda: frontend.cancelled() == before + 3 and frontend.in_flight() == 0)
