"""The text of answers over real kinds of tokenizers, built here: what is streamed is what the whole decodes to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from lmd_worker.assembly import HELD_TOKENS, REPLACEMENT, TextStream
from lmd_worker.engine.tokenizer import ModelText
from lmd_worker.errors import BadRequestError, ModelRefusedError

SPECIAL = "<|end|>"
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
CORPUS = [
    "the cat sat on the mat",
    "Grüße, 世界! Größe",
    "def f(x):\n    return x + 1\n",
    "naïve café €5 🙂🙃",
    "日本語の文字 и русский",
] * 3
WORDS = ["the", "cat", "sat", "on", "mat", "dog"]


def byte_level_bpe() -> Tokenizer:
    """As GPT-2, LLaMA 3 and SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=[SPECIAL], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_fallback_bpe() -> Tokenizer:
    """As LLaMA 2, whose tokenizer comes from SentencePiece: a mark for spaces, bytes for unknown characters, one leading space dropped."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=80, show_progress=False, limit_alphabet=40)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [(left, right) for left, right in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tokenizer


def word_level() -> Tokenizer:
    """Words, written with a space between them."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate([SPECIAL, "[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def metaspace() -> Tokenizer:
    """A unigram model with a mark for spaces, as T5."""
    pieces = [("<unk>", 0.0), (SPECIAL, 0.0), ("▁", -1.0), *((f"▁{word}", -2.0) for word in WORDS), ("s", -3.0), ("é", -3.0), ("cat", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level_bpe,
    "byte-fallback": byte_fallback_bpe,
    "word-level": word_level,
    "metaspace": metaspace,
}


@pytest.fixture(scope="module")
def make_text(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelText]:
    """Write a tokenizer as a model directory has it and read it as the worker does."""

    @cache
    def make(kind: str, template: str | None = TEMPLATE) -> ModelText:
        directory = tmp_path_factory.mktemp("model")
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), eos_token=SPECIAL)
        fast.chat_template = template
        fast.save_pretrained(directory)
        (directory / "config.json").write_text('{"model_type": "llama"}')
        return ModelText(directory)

    return make


@pytest.fixture(scope="module", params=list(KINDS))
def text(request: pytest.FixtureRequest, make_text: Callable[..., ModelText]) -> ModelText:
    return make_text(request.param)


def streamed(text: ModelText, tokens: Sequence[int], before: Sequence[int] = ()) -> str:
    stream = TextStream(text.decode, before=before)
    return "".join([*(stream.feed(token) for token in tokens), stream.finish()])


def size(text: ModelText) -> int:
    return len(text._tokenizer)


def byte_tokens(text: ModelText) -> set[int]:
    return {token for token in range(size(text)) if text._tokenizer.convert_ids_to_tokens(token).startswith("<0x")}


WRITTEN = st.one_of(st.text(max_size=30), st.lists(st.sampled_from([*CORPUS, *WORDS, " ", "  ", "é"]), max_size=8).map(" ".join))


@settings(deadline=None, max_examples=60)
@given(written=WRITTEN)
def test_what_is_streamed_is_what_the_whole_decodes_to(text: ModelText, written: str) -> None:
    tokens = text.encode(written)
    assert streamed(text, tokens) == text.decode(tokens)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_tokens_but_single_bytes_are_streamed_as_they_decode(text: ModelText, data: st.DataObject) -> None:
    allowed = sorted(set(range(size(text))) - byte_tokens(text))
    tokens = data.draw(st.lists(st.sampled_from(allowed), max_size=HELD_TOKENS - 1))
    assert streamed(text, tokens) == text.decode(tokens)


@settings(deadline=None, max_examples=60)
@given(before=WRITTEN, after=WRITTEN)
def test_an_answer_that_continues_its_prompt_keeps_the_space_between(text: ModelText, before: str, after: str) -> None:
    prompt, answer = text.encode(before), text.encode(after)
    assert text.decode(prompt) + streamed(text, answer, prompt) == text.decode([*prompt, *answer])


def is_part(few: str, many: str) -> bool:
    """Whether the characters of `few`, U+FFFD aside, are all in `many`, in that order."""
    rest = iter(many)
    return all(one in rest for one in few if one != REPLACEMENT)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_junk_bytes_cost_at_most_their_own_run(make_text: Callable[..., ModelText], data: st.DataObject) -> None:
    """A run of bytes decodes to U+FFFD alone if any of it is junk; what was good and sent before the junk came stays sent."""
    text = make_text("byte-fallback")
    tokens = data.draw(st.lists(st.sampled_from(sorted(byte_tokens(text))), max_size=HELD_TOKENS - 1))
    spelt = b"".join(map(text.token_bytes, tokens)).decode(errors="replace")
    assert is_part(text.decode(tokens), streamed(text, tokens))
    assert is_part(streamed(text, tokens), spelt)


def test_what_was_sent_before_junk_is_not_sent_again(make_text: Callable[..., ModelText]) -> None:
    text = make_text("byte-fallback")
    euro, junk, word = [2 + byte for byte in "€".encode()], [2 + 0xE2], text.encode("x")
    assert streamed(text, [*euro, *junk, *word]) == f"€{REPLACEMENT}{text.decode(word)}".replace("x", " x")


@settings(deadline=None, max_examples=60)
@given(written=WRITTEN, stop=st.sampled_from(["a", "cat", " t", "ü", "🙂", "文", "e c", "\n"]))
def test_a_stop_string_cuts_the_streamed_text_where_it_cuts_the_whole(text: ModelText, written: str, stop: str) -> None:
    tokens = text.encode(written)
    stream = TextStream(text.decode, [stop])
    made = "".join([*(stream.feed(token) for token in tokens), stream.finish()])
    assert made == text.decode(tokens).partition(stop)[0]
    assert stream.stopped == (stop in text.decode(tokens))


@settings(deadline=None, max_examples=60)
@given(written=WRITTEN)
def test_the_bytes_of_tokens_are_the_bytes_of_their_text(text: ModelText, written: str) -> None:
    tokens = text.encode(written)
    spelt = b"".join(map(text.token_bytes, tokens)).decode(errors="replace")
    known = [token for token in tokens if text.token_bytes(token) != b"<unk>"]
    if known == tokens:
        assert text.decode(tokens) in (spelt, spelt.removeprefix(" "))


def test_a_special_token_is_its_name_and_no_text(text: ModelText) -> None:
    (end,) = text.stop_token_ids
    assert text.token_bytes(end) == SPECIAL.encode()
    assert text.decode([end]) == ""
    assert text.decode([end], special_tokens=True) == SPECIAL
    assert text.token_bytes(size(text) + 5) == b"", "models pad their vocabulary"


TOOLS = [{"type": "function", "function": {"name": "weather"}}]
TOOL_TEMPLATE = TEMPLATE + '{% if tools %}{{ tools | tojson }} write <tool_call>{"name": ...}</tool_call>{% endif %}'


def test_tools_go_to_templates_that_take_them_and_are_refused_elsewhere(make_text: Callable[..., ModelText]) -> None:
    without, taking = make_text("byte-level"), make_text("byte-level", TOOL_TEMPLATE)
    messages = [{"role": "user", "content": "Hi"}]
    assert "weather" in taking.decode(taking.encode_chat(messages, tools=TOOLS))
    assert "weather" not in taking.decode(taking.encode_chat(messages))
    assert (without.writes_tool_calls, taking.writes_tool_calls) == (False, True)
    with pytest.raises(BadRequestError, match="takes no tools") as caught:
        without.encode_chat(messages, tools=TOOLS)
    assert caught.value.param == "tools"
    assert make_text("byte-level", TEMPLATE + "{{ tools }}").writes_tool_calls is False


def test_a_model_without_a_template_takes_no_chat(make_text: Callable[..., ModelText]) -> None:
    bare = make_text("byte-level", None)
    assert bare.writes_tool_calls is False
    with pytest.raises(BadRequestError, match="no chat template"):
        bare.encode_chat([{"role": "user", "content": "Hi"}])


def test_special_tokens_at_the_start_can_be_left_out(make_text: Callable[..., ModelText], tmp_path: Path) -> None:
    kind = byte_level_bpe()
    kind.post_processor = tokenizers.processors.TemplateProcessing(single=f"{SPECIAL} $A", special_tokens=[(SPECIAL, 0)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=kind, eos_token=SPECIAL).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    text = ModelText(tmp_path)
    assert text.encode("Hi")[0] == 0
    assert text.encode("Hi") == [0, *text.encode("Hi", special_tokens=False)]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def answered(text: ModelText, wanted: str, schema: dict[str, Any], vocabulary: int) -> str:
    """What a model says that wants `wanted` and is held to a schema."""
    import torch

    constraint = text.grammar(schema)()
    made: list[int] = []
    plan = text.encode(wanted)
    while len(made) < 50 and not text.stop_token_ids & set(made):
        scores = torch.zeros(1, vocabulary)
        scores[0, list(text.stop_token_ids)] = 1.0
        scores[0, size(text) :] = 9.0  # what a padded vocabulary never should say
        if len(made) < len(plan):
            scores[0, plan[len(made)]] = 2.0
        before = scores.clone()
        made.append(int(constraint.restrict(scores).argmax()))
        assert torch.equal(scores, before), "the scores given are others' too"
        constraint.accept(made[-1])
    assert text.stop_token_ids & set(made), "it never ended"
    return text.decode(made)


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
@pytest.mark.parametrize("padding", [0, 3, 40])
def test_a_constrained_answer_keeps_to_its_schema_whatever_the_model_wants(
    make_text: Callable[..., ModelText], kind: str, padding: int
) -> None:
    text = make_text(kind)
    vocabulary = size(text) + padding
    for wanted in ('{"a": 7}', '{"a": 7, "b": 8}', '{"b": 8}', "no", '{"a": "b"}'):
        answer = json.loads(answered(text, wanted, SCHEMA, vocabulary))
        assert list(answer) == ["a"]
        assert isinstance(answer["a"], int)
    assert json.loads(answered(text, '"Köln"', {"enum": ["Köln", "Bonn"]}, vocabulary)) in ("Köln", "Bonn")


def test_a_constraint_leaves_alone_what_fits(make_text: Callable[..., ModelText]) -> None:
    text = make_text("byte-level")
    assert answered(text, '{"a": 7}', SCHEMA, size(text)) == '{"a": 7}'
    assert answered(text, '"Köln"', {"enum": ["Köln", "Bonn"]}, size(text)) == '"Köln"'


def test_choices_of_one_request_have_states_of_their_own(make_text: Callable[..., ModelText]) -> None:
    import torch

    text = make_text("byte-level")
    make = text.grammar(SCHEMA)
    first, second = make(), make()
    scores = torch.zeros(1, size(text))
    beginning = second.restrict(scores)
    first.accept(text.encode("{")[0])
    assert torch.equal(second.restrict(scores), beginning)
    assert not torch.equal(first.restrict(scores), beginning)


def test_a_template_that_fails_in_any_way_is_the_requests_fault(make_text: Callable[..., ModelText]) -> None:
    for template in ("{{ messages[5].role }}", "{{ messages[0].content.nothing() }}", "{{ 1 / (messages | length - 1) }}"):
        with pytest.raises(BadRequestError, match="chat template refuses") as caught:
            make_text("byte-level", template).encode_chat([{"role": "user", "content": "Hi"}])
        assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "nothing"}, id="no such type"),
        pytest.param({"not": {"type": "string"}}, id="not"),
        pytest.param({"oneOf": [{"type": "object"}, {"type": "object"}], "x-guidance": {"coerce_one_of": True}}, id="oneOf"),
        pytest.param({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, id="a client's own options do not win"),
        pytest.param({"$ref": "http://127.0.0.1:1/schema.json"}, id="nothing is fetched"),
        pytest.param({"type": "string", "pattern": "(?=a)"}, id="look-ahead"),
        pytest.param({"$defs": {"a": {"$ref": "#/$defs/b"}}, "$ref": "#/$defs/b"}, id="a reference to nothing"),
        pytest.param({"type": "object", "properties": []}, id="not a schema"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(make_text: Callable[..., ModelText], schema: dict[str, Any]) -> None:
    text = make_text("byte-level")
    with pytest.raises(BadRequestError, match="not supported") as caught:
        text.grammar(schema)
    assert caught.value.param == "response_format"


def test_a_tokenizer_that_is_not_known_to_the_library_is_refused(make_text: Callable[..., ModelText]) -> None:
    with pytest.raises(BadRequestError, match="cannot be constrained"):
        make_text("word-level").grammar(SCHEMA)


def test_a_directory_without_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelRefusedError, match="transformers cannot load the tokenizer"):
        ModelText(tmp_path)
