"""Tool calls in an answer's text: the same however the text is split, and text where they are not well formed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd_worker.api.chat import ChatReply
from lmd_worker.api.generation import Piece, Usage
from lmd_worker.api.tools import ToolCall, ToolCallReader

GOOD = '<tool_call>\n{"name": "f", "arguments": {"a": "ß"}}\n</tool_call>'


def read(*pieces: str) -> list[str | tuple[str, str]]:
    reader = ToolCallReader()
    found = [item for piece in pieces for item in reader.feed(piece)] + reader.finish()
    plain: list[str | tuple[str, str]] = []
    for item in found:
        if isinstance(item, ToolCall):
            plain.append((item.name, item.arguments))
        elif plain and isinstance(plain[-1], str):
            plain[-1] += item
        else:
            plain.append(item)
    return plain


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("hello", ["hello"], id="text"),
        pytest.param(GOOD, [("f", '{"a": "ß"}')], id="a call"),
        pytest.param(f"a{GOOD}b{GOOD}", ["a", ("f", '{"a": "ß"}'), "b", ("f", '{"a": "ß"}')], id="calls between text"),
        pytest.param('<tool_call>{"name": "f"}</tool_call>', [("f", "{}")], id="no arguments"),
        pytest.param("<tool_call>{oops}</tool_call>!", ["<tool_call>{oops}</tool_call>!"], id="no JSON"),
        pytest.param('<tool_call>{"name": 5}</tool_call>', ['<tool_call>{"name": 5}</tool_call>'], id="no name"),
        pytest.param("<tool_call>[]</tool_call>", ["<tool_call>[]</tool_call>"], id="no object"),
        pytest.param('<tool_call>{"name": "f"', ['<tool_call>{"name": "f"'], id="half a call"),
        pytest.param('<tool_call>{"name": "f"}</tool_', ['<tool_call>{"name": "f"}</tool_'], id="half a closing tag"),
        pytest.param("a <tool_", ["a <tool_"], id="half an opening tag"),
        pytest.param("<<tool_call></tool_call>", ["<<tool_call></tool_call>"], id="nothing inside"),
    ],
)
def test_calls_are_read_out_of_text(text: str, found: list[str | tuple[str, str]]) -> None:
    assert read(text) == found
    assert read(*text) == found


@given(st.lists(st.sampled_from([GOOD, "<tool_call>", "</tool_call>", "{}", "<", "text"]), max_size=6), st.integers(1, 9))
def test_nothing_is_lost_however_it_is_split(parts: list[str], width: int) -> None:
    text = "".join(parts)
    assert read(*(text[at : at + width] for at in range(0, len(text), width))) == read(text)


def test_text_is_sent_before_a_call_is_complete() -> None:
    reader = ToolCallReader()
    assert reader.feed("hello <to") == ["hello "]
    assert reader.feed("day") == ["<today"]


def test_log_probabilities_come_with_a_delta_even_when_the_text_is_held() -> None:
    from lmd_worker.api.generation import TokenReport, TokenText

    reply = ChatReply("m", with_logprobs=True, reads_calls=True)
    token = TokenReport(TokenText(b"<tool_call>", float("-inf")), (), 0)
    events = [
        json.loads(part.removeprefix(b"data: ")) for part in reply.events(Piece(0, "<tool_call>", None, (token,))).split(b"\n\n")[:-1]
    ]
    assert [event["choices"][0]["delta"] for event in events] == [{"role": "assistant", "content": ""}, {"content": ""}]
    assert events[1]["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0
    assert reply.end(["stop"], Usage(1, 1)) == b""
