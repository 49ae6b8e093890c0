"""OpenAI's requests: what each field becomes, what is refused in which words, and that no field of the package is forgotten."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions

from lmd_worker.api import chat, completions, parameters
from lmd_worker.api.generation import Call, Generation
from lmd_worker.api.prompts import Chat, Message, Plain
from lmd_worker.errors import BadRequestError

OF_THE_PACKAGE = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "now", "parameters": {"type": "object"}}}
ASSISTANT_CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}


class NoText:
    writes_tool_calls = True


def call(document: dict[str, Any]) -> Call:
    return Call("", "application/json", json.dumps(document).encode())


def chat_of(**document: Any) -> tuple[Generation, chat.ChatReply]:
    return chat.parse(call({"messages": HI, **document}), "m", NoText())  # type: ignore[arg-type]


def completion_of(**document: Any) -> tuple[Generation, completions.CompletionReply]:
    return completions.parse(call({"prompt": "x", **document}), "m")


@pytest.mark.parametrize(("create", "table"), [(ChatCompletions.create, chat.FIELDS), (Completions.create, completions.FIELDS)])
def test_every_field_of_the_package_is_read_refused_or_ignored_for_a_reason(create: Any, table: Any) -> None:
    known = set(inspect.signature(create).parameters) - OF_THE_PACKAGE
    assert known - set(table) == set()
    assert set(table) - known <= {"top_k", *parameters.IGNORED}, "fields of our own"


def test_a_completion_alone_has_openais_defaults() -> None:
    generation, reply = completion_of()
    assert generation == Generation((Plain("x"),), default_max_tokens=16, temperature=1.0)
    assert (reply.include_usage, reply.with_logprobs) == (False, False)


def test_a_chat_alone_has_openais_defaults() -> None:
    generation, reply = chat_of()
    assert generation == Generation((Chat((Message("user", "Hi"),)),), default_max_tokens=None, temperature=1.0)
    assert (reply.include_usage, reply.with_logprobs, reply.reads_calls) == (False, False, False)


def test_null_is_absence() -> None:
    assert completion_of(**dict.fromkeys(set(completions.FIELDS) - {"prompt"}))[0] == completion_of()[0]
    assert chat_of(**dict.fromkeys(set(chat.FIELDS) - {"messages"}))[0] == chat_of()[0]


def test_what_changes_no_answer_is_accepted() -> None:
    indifferent = dict.fromkeys(parameters.IGNORED, "anything") | {"model": "m"}
    assert completion_of(**indifferent, suffix="", best_of=1)[0] == completion_of()[0]
    neutral = {"store": False, "service_tier": "auto", "parallel_tool_calls": True, "modalities": ["text"], "tool_choice": "none"}
    assert chat_of(**indifferent, **neutral, response_format={"type": "text"}, tools=[])[0] == chat_of()[0]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_tokens": 5}),
        ({"seed": -1}, {"seed": 2**63 - 1}),
        ({"n": 3}, {"choices": 3}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": False}, {"logprobs": None}),
        ({"logit_bias": {"5": -100, "7": 1}}, {"token_weights": {5: -100.0, 7: 1.0}}),
        ({"frequency_penalty": 1, "presence_penalty": -2}, {"frequency_penalty": 1.0, "presence_penalty": -2.0}),
        ({"response_format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": None, "schema": {"enum": [1]}}}},
            {"schema": {"enum": [1]}},
        ),
    ],
)
def test_a_field_becomes(document: dict[str, Any], expected: dict[str, Any]) -> None:
    generation = chat_of(**document)[0]
    assert {name: getattr(generation, name) for name in expected} == expected


def test_messages_of_every_kind() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "Hi", "name": "Ada"},
        {"role": "assistant", "content": None, "tool_calls": [ASSISTANT_CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "assistant", "content": None, "refusal": "No."},
    ]
    (prompt,) = chat_of(messages=messages, tools=[TOOL])[0].prompts
    called = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    assert prompt == Chat(
        (
            Message("system", "Be\nbrief."),
            Message("user", "Hi", {"name": "Ada"}),
            Message("assistant", "", {"tool_calls": [called]}),
            Message("tool", "sunny", {"tool_call_id": "1"}),
            Message("assistant", "No."),
        ),
        (TOOL,),
    )
    assert chat_of(tools=[TOOL])[1].reads_calls
    assert chat_of(tools=[TOOL], tool_choice="none")[0] == chat_of()[0]


REFUSED_CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "messages: must not be empty."),
    ({"messages": None}, "messages", "messages: missing."),
    (
        {"messages": [{"role": "bot", "content": "x"}]},
        "messages[0].role",
        "messages[0].role: must be one of system, developer, user, assistant, tool, got bot.",
    ),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content: missing."),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "messages[0].content: must not be empty."),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0].type",
        "messages[0].content[0].type: this server answers text only; parts must be of type text, got image_url.",
    ),
    (
        {"messages": [{**HI[0], "tool_calls": []}]},
        "messages[0].tool_calls",
        "messages[0].tool_calls: unknown field; known fields: content, name, role.",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "["}}]}]},
        "messages[0].tool_calls[0].function.arguments",
        "messages[0].tool_calls[0].function.arguments: must be a string that holds a JSON object.",
    ),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "max_tokens: an older name of max_completion_tokens; give one of them."),
    ({"top_logprobs": 2}, "top_logprobs", "top_logprobs: only together with logprobs: true."),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "top_logprobs: must be an integer from 0 to 20, got 21."),
    ({"logprobs": 2}, "logprobs", "logprobs: must be true or false, got a number."),
    ({"n": 0}, "n", "n: must be an integer from 1 to 128, got 0."),
    ({"stream_options": {}}, "stream_options", "stream_options: only together with stream: true."),
    (
        {"stream": True, "stream_options": {"include_use": True}},
        "stream_options.include_use",
        "stream_options.include_use: unknown field; did you mean include_usage?",
    ),
    ({"store": True}, "store", "store: answers are not stored here; leave it out."),
    ({"service_tier": "flex"}, "service_tier", "service_tier: must be one of auto, default, got flex."),
    ({"modalities": ["text", "audio"]}, "modalities", "modalities: this server answers text only; leave it out."),
    ({"tool_choice": "required", "tools": [TOOL]}, "tool_choice", "tool_choice: must be auto or none; a call cannot be forced here."),
    ({"tool_choice": "auto"}, "tool_choice", "tool_choice: only together with tools."),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "tools[0].type: must be function; other tools are not supported."),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "tools[0].function.name: must be a string, got null."),
    (
        {"parallel_tool_calls": False},
        "parallel_tool_calls",
        "parallel_tool_calls: the number of calls cannot be held to one here; leave it out.",
    ),
    (
        {"parallel_tool_calls": 1},
        "parallel_tool_calls",
        "parallel_tool_calls: the number of calls cannot be held to one here; leave it out.",
    ),
    ({"logit_bias": {"x": 1}}, "logit_bias", "logit_bias: names must be token ids, got x."),
    ({"logit_bias": {"5": 101}}, "logit_bias", "logit_bias: the weight of token 5: must be a number from -100 to 100, got 101."),
    ({"response_format": {"type": "xml"}}, "response_format.type", "response_format.type: must be one of text, json_object, json_schema."),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "response_format.json_schema: must be an object with name and schema, got null.",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": "\ud800"}}}},
        "response_format.json_schema.schema",
        "response_format.json_schema.schema: holds half a surrogate pair, which is no text.",
    ),
    ({"guided_json": {}}, "guided_json", ""),
    ({"temprature": 1}, "temprature", "temprature: unknown field; did you mean temperature?"),
]
REFUSED_COMPLETIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "prompt: missing."),
    ({"prompt": ""}, "prompt", "prompt: must not be empty."),
    ({"prompt": []}, "prompt", "prompt: must not be empty."),
    ({"prompt": ["x", ""]}, "prompt[1]", "prompt[1]: must not be empty."),
    ({"prompt": ["x", 1]}, "prompt[1]", "prompt[1]: must be a string, got a number."),
    ({"prompt": [1, "x"]}, "prompt[1]", "prompt[1]: must be a token id, got a string."),
    ({"prompt": [True]}, "prompt[0]", "prompt[0]: must be a string, got a boolean."),
    ({"prompt": [[1], []]}, "prompt[1]", "prompt[1]: must not be empty."),
    (
        {"prompt": {"a": 1}},
        "prompt",
        "prompt: must be a string, a list of strings, a list of token ids, or a list of such lists, got an object.",
    ),
    ({"prompt": ["x"] * 129}, "prompt", "prompt: at most 128 prompts, got 129."),
    ({"prompt": ["x"] * 65, "n": 2}, "prompt", "prompt: 65 prompts with n 2 are more than 128 answers; send fewer."),
    ({"best_of": 2}, "best_of", "best_of: must be n (1) or left out; choosing among more answers than are returned is not supported."),
    ({"suffix": "end"}, "suffix", "suffix: text before a given end is not supported; leave it out."),
    ({"echo": True, "logprobs": 1}, "echo", "echo: log-probabilities of the prompt are not computed; use echo or logprobs, not both."),
    ({"logprobs": True}, "logprobs", "logprobs: must be an integer from 0 to 20, got a boolean."),
    ({"max_tokens": 0}, "max_tokens", "max_tokens: must be an integer, 1 or more, got 0."),
]


@pytest.mark.parametrize(("document", "param", "message"), REFUSED_CHATS)
def test_a_wrong_chat_is_refused(document: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        chat_of(**document)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("document", "param", "message"), REFUSED_COMPLETIONS)
def test_a_wrong_completion_is_refused(document: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        completion_of(**document)
    assert (caught.value.status, caught.value.param, str(caught.value)) == (400, param, message)


def test_another_model_is_not_found() -> None:
    for parse in (chat_of, completion_of):
        assert parse(model="m")[0] == parse(model="MODEL")[0] == parse()[0]
        with pytest.raises(BadRequestError, match="does not exist") as caught:
            parse(model="gpt-4")
        assert (caught.value.status, caught.value.param, caught.value.code) == (404, "model", "model_not_found")
