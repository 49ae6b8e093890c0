"""What the benchmarks' client reads in what a server sends; the server is one of the test's own."""

from __future__ import annotations

import asyncio

import pytest
from client import Streamed, ask, prepared

DEADLINE_SECONDS = 30
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


def answered(answer: bytes) -> Streamed:
    """Return what the client has heard of a server that answers so."""
    asked: list[bytes] = []

    async def run() -> Streamed:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"}"))
            writer.write(answer)
            if answer.endswith(END):
                assert await reader.read() == b"", "the client leaves first"
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await asyncio.wait_for(ask(f"http://127.0.0.1:{port}/v1/completions", "Once", {"max_tokens": 2}), DEADLINE_SECONDS)

    heard = asyncio.run(run())
    assert asked[0].startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert asked[0].endswith(b'{"prompt": "Once", "temperature": 0, "stream": true, "max_tokens": 2}')
    return heard


def test_pieces_of_text_are_counted_however_they_are_cut() -> None:
    events = [b'data: {"choices": [{"text": "%s"}]}\n\n' % text for text in (b"a", b"", b"b")]
    sent = HEAD + b"".join(map(chunk, [*events, b"data: [DONE]\n\n"])) + END
    end_of_first = len(HEAD + chunk(events[0]))
    for length in (1, 7, len(sent)):
        connection, _ = prepared("http://host/v1/completions", {})
        begins = range(0, len(sent), length)
        answer = Streamed("", connection, 0.0, [(float(begin), sent[begin : begin + length]) for begin in begins])
        assert answer.tokens == len(answer.came) == 2
        assert answer.came[0] == next(begin for begin in begins if begin + length >= end_of_first - len(b"\n\r\n"))


def test_the_servers_own_count_comes_first() -> None:
    text, usage = b'data: {"choices": [{"text": "ab"}]}\n\n', b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
    answer = answered(HEAD + chunk(text + usage) + END)
    assert (answer.tokens, len(answer.came)) == (2, 1)


def test_an_error_is_told_with_the_servers_words() -> None:
    answer = answered(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 9\r\n\r\ntoo many\n")
    with pytest.raises(RuntimeError, match=r"/v1/completions answered 429: too many"):
        _ = answer.tokens


def test_half_an_answer_is_none() -> None:
    answer = answered(HEAD + chunk(b'data: {"choices": [{"text": "a"}]}\n\n'))
    with pytest.raises(Exception, match="peer closed connection"):
        _ = answer.tokens
