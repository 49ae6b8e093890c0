"""Text from tokens: the same whatever way tokens come, never half a character, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd_worker.assembly import HELD_TOKENS, REPLACEMENT, StopStrings, TextStream

SPECIAL = 1000


def byte_tokens(tokens: Sequence[int]) -> str:
    """A byte-level tokenizer: half characters are U+FFFD, special tokens no text."""
    return bytes(token for token in tokens if token != SPECIAL).decode(errors="replace")


WORDS = ["▁Hello", "▁wor", "ld", "▁", "é", "▁日本", "!"]
BYTES = 256


def word_tokens(tokens: Sequence[int]) -> str:
    """A SentencePiece-like tokenizer: words mark their leading space, dropped at the start; bytes for other characters.

    Source of the byte rule: the decoders of Hugging Face tokenizers; a run of bytes is text or one U+FFFD each.
    """
    text, run = "", b""
    for token in [*tokens, BYTES]:
        if token < BYTES:
            run += bytes([token])
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError:
            text += REPLACEMENT * len(run)
        run = b""
        text += WORDS[token - BYTES - 1].replace("▁", " ") if token > BYTES else ""
    return text.removeprefix(" ")


def streamed(decode: Callable[[Sequence[int]], str], tokens: Sequence[int], stops: Sequence[str] = ()) -> list[str]:
    stream = TextStream(decode, stops)
    return [*(stream.feed(token) for token in tokens), stream.finish()]


@given(st.text(), st.integers(0, 20))
def test_bytes_give_their_text_and_no_half_characters(text: str, special: int) -> None:
    tokens = list(text.encode())
    tokens[special:special] = [SPECIAL] * (special % 3)
    pieces = streamed(byte_tokens, tokens)
    assert "".join(pieces) == text
    assert all(REPLACEMENT not in piece for piece in pieces if REPLACEMENT not in text)


@given(st.lists(st.one_of(st.integers(BYTES + 1, BYTES + len(WORDS)), st.sampled_from("🙂ßx€")), max_size=40))
def test_words_and_byte_fallback_give_the_text_of_the_whole(parts: list[int | str]) -> None:
    tokens = [token for part in parts for token in ([part] if isinstance(part, int) else part.encode())]
    assert "".join(streamed(word_tokens, tokens)) == word_tokens(tokens)


@given(st.binary(max_size=HELD_TOKENS - 1))
def test_junk_bytes_give_what_they_decode_to(junk: bytes) -> None:
    assert "".join(streamed(byte_tokens, list(junk))) == junk.decode(errors="replace")


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=2, max_size=4), max_size=4), st.randoms())
def test_stop_strings_cut_where_the_first_is_complete_however_text_is_split(text: str, stops: list[str], random) -> None:
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    expected = text if not ends else text[: min(ends)[0] + min(ends)[1]]

    assert "".join(streamed(byte_tokens, list(text.encode()), stops)) == expected
    filtered, cut = StopStrings(stops), sorted(random.randrange(len(text) + 1) for _ in range(3))
    pieces = [text[start:end] for start, end in zip([0, *cut], [*cut, len(text)], strict=True)]
    assert "".join([*map(filtered.pass_on, pieces), filtered.release()]) == expected
    assert filtered.stopped == bool(ends)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        pytest.param("xab", ["b", "ab"], "x", id="of two that end together the longer is cut"),
        pytest.param("xaab", ["ab"], "xa", id="a false start may begin the true one"),
        pytest.param("xaaab", ["aab"], "xa", id="part of what was matched may begin the true one"),
        pytest.param("xabab!", ["abac", "bab!"], "xa", id="what was held back for one string is part of another"),
        pytest.param("xabcd", ["abcd", "bc"], "xa", id="the one that is complete first counts"),
    ],
)
def test_overlapping_stop_strings(text: str, stops: list[str], expected: str) -> None:
    assert "".join(streamed(byte_tokens, list(text.encode()), stops)) == expected


def test_text_is_sent_as_soon_as_it_cannot_become_a_stop_string() -> None:
    assert streamed(byte_tokens, list(b"abac"), ["abc"]) == ["", "", "ab", "ac", ""]


def test_half_a_character_at_the_end_is_not_lost() -> None:
    assert streamed(byte_tokens, list("ß€".encode())[:-1]) == ["", "ß", "", "", REPLACEMENT]


@pytest.mark.parametrize("token", [0x80, SPECIAL], ids=["junk bytes", "special tokens"])
def test_decoding_costs_linear_time_in_the_length_of_the_answer(token: int) -> None:
    decoded = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(tokens)
        return byte_tokens(tokens)

    count = 5000
    streamed(decode, [token] * count)
    assert decoded <= 3 * HELD_TOKENS * count
    decoded = 0
    streamed(decode, [97] * count)
    assert decoded <= 4 * count
