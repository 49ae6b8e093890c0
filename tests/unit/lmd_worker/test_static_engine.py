"""The static engine over a tiny random model, in one process without a group."""

import json
import shutil
import threading
import time

import pytest
import torch
import transformers

from lmd_worker.engine.protocol import Sampling
from lmd_worker.engine.static import StaticEngine
from lmd_worker.errors import BadRequestError
from lmd_worker.ranks import Group
from lmd_worker.strategies.reading import read_model

DEADLINE_SECONDS = 60
ALONE = Group(rank=0, size=1, device=torch.device("cpu"))
PROMPTS = [[5, 6, 7], list(range(20, 40)), [9], [300, 4, 77, 12, 500, 1]]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture
def make_engine():
    engines = []

    def make(model, **changes):
        options = {"context_tokens": 256, "vocabulary_size": 512, "concurrency": 4, "stall_timeout_seconds": 60.0, **changes}
        engine = StaticEngine(model, ALONE, **options)
        engines.append(engine)
        engine.start()
        return engine

    yield make
    for engine in engines:
        engine.stop()


@pytest.fixture(scope="module")
def reference(model):
    """Greedy tokens of transformers' own generate, one prompt alone."""

    def run(prompt, count):
        with torch.inference_mode():
            made = model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), max_new_tokens=count, do_sample=False
            )
        return made[0, len(prompt) :].tolist()

    return run


def collect(engine, *names):
    """Wait until all have ended; return each one's tokens and end."""
    tokens, ends = {name: [] for name in names}, {}
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(ends) < len(names):
        assert time.monotonic() < deadline, f"only {sorted(ends)} of {names} ended"
        open_names = [name for name in names if name not in ends]
        engine.wait(open_names, 1)
        for name in open_names:
            news = engine.progress(name)
            tokens[name] += news.tokens
            if news.finish_reason:
                ends[name] = news
    return tokens, ends


def until(condition):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return result


def test_a_mixed_batch_equals_generate_row_by_row(model, make_engine, reference):
    engine = make_engine(model)
    counts = [12, 5, 20, 1]
    for index, (prompt, count) in enumerate(zip(PROMPTS, counts, strict=True)):
        engine.submit(str(index), prompt, Sampling(max_tokens=count))
    tokens, ends = collect(engine, *map(str, range(4)))
    assert [tokens[str(index)] for index in range(4)] == [reference(prompt, count) for prompt, count in zip(PROMPTS, counts, strict=True)]
    assert {end.finish_reason for end in ends.values()} == {"length"}


def test_latecomers_and_more_requests_than_rows_are_all_served(model, make_engine, reference):
    engine = make_engine(model, concurrency=2)
    names = [str(index) for index in range(7)]
    for name in names:
        engine.submit(name, PROMPTS[int(name) % 4], Sampling(max_tokens=6))
    tokens, _ = collect(engine, *names)
    assert [tokens[name] for name in names] == [reference(PROMPTS[int(name) % 4], 6) for name in names]


def test_a_stop_token_ends_its_request_and_is_told(model, make_engine, reference):
    expected = reference(PROMPTS[0], 12)
    stop = next(token for index, token in enumerate(expected) if index and token not in expected[:index])
    engine = make_engine(model)
    engine.submit("a", PROMPTS[0], Sampling(max_tokens=12, stop_token_ids=frozenset({stop})))
    engine.submit("b", PROMPTS[1], Sampling(max_tokens=12))
    tokens, ends = collect(engine, "a", "b")
    assert tokens["a"] == expected[: expected.index(stop) + 1]
    assert ends["a"].finish_reason == "stop"
    assert tokens["b"] == reference(PROMPTS[1], 12)


def test_a_seed_reproduces_an_answer_whatever_its_neighbours(model, make_engine):
    engine = make_engine(model)
    seeded = Sampling(max_tokens=20, temperature=1.0, top_k=50, top_p=0.95, seed=3)
    engine.submit("alone", PROMPTS[0], seeded)
    alone, _ = collect(engine, "alone")
    engine.submit("long", PROMPTS[1], Sampling(max_tokens=30, temperature=1.0))
    engine.submit("again", PROMPTS[0], seeded)
    engine.submit("other", PROMPTS[0], Sampling(max_tokens=20, temperature=1.0, seed=4))
    among, _ = collect(engine, "again", "long", "other")
    assert among["again"] == alone["alone"]
    assert among["other"] != alone["alone"]


def test_a_batch_that_would_outgrow_the_context_goes_on_in_the_next(model, make_engine, reference):
    lengths = []
    engine = make_engine(model, context_tokens=48)
    generate = model.generate

    def spy(**arguments):
        made = generate(**arguments)
        lengths.append(made.shape[1])
        return made

    model.generate = spy
    try:
        engine.submit("wide", list(range(40)), Sampling(max_tokens=8))
        engine.submit("long", [9], Sampling(max_tokens=40))
        tokens, _ = collect(engine, "wide", "long")
    finally:
        del model.generate
    assert tokens["wide"] == reference(list(range(40)), 8)
    assert tokens["long"] == reference([9], 40)
    assert max(lengths) <= 48


def test_cancelling_a_running_request_leaves_its_neighbour_alone(model, make_engine, reference):
    engine = make_engine(model, context_tokens=4096)
    engine.submit("cancelled", PROMPTS[0], Sampling(max_tokens=4000))
    until(lambda: engine.progress("cancelled").tokens)
    engine.submit("neighbour", PROMPTS[1], Sampling(max_tokens=10))
    engine.cancel("cancelled")
    tokens, _ = collect(engine, "neighbour")
    assert tokens["neighbour"] == reference(PROMPTS[1], 10)
    assert engine.progress("cancelled").finish_reason == "cancelled"


def test_tokens_are_told_while_the_request_runs(model, make_engine):
    engine = make_engine(model, context_tokens=4096)
    engine.submit("a", PROMPTS[0], Sampling(max_tokens=4000))
    news = until(lambda: (found := engine.progress("a")).tokens and found)
    assert news.finish_reason is None
    engine.cancel("a")


def test_the_models_generation_config_does_not_leak(tiny_llama, tmp_path, make_engine, make_settings, reference):
    directory = tmp_path / "opinionated"
    shutil.copytree(tiny_llama, directory)
    expected = reference(PROMPTS[0], 12)
    opinion = {
        "do_sample": True,
        "temperature": 0.1,
        "top_k": 2,
        "suppress_tokens": expected[:3],
        "eos_token_id": expected[4],
        "max_length": 4,
    }
    (directory / "generation_config.json").write_text(json.dumps(opinion))
    engine = make_engine(read_model(make_settings(directory, strategy="None")))
    engine.submit("a", PROMPTS[0], Sampling(max_tokens=12))
    assert collect(engine, "a")[0]["a"] == expected


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "words"),
    [
        pytest.param([], 1, "at least one prompt token", id="empty prompt"),
        pytest.param([1], 0, "one token to generate", id="nothing to generate"),
        pytest.param([1] * 250, 7, "250 prompt tokens and 7 to generate are more than the context of 256", id="too long"),
        pytest.param([512], 1, "outside the vocabulary of 512", id="unknown token"),
        pytest.param([-1], 1, "outside the vocabulary of 512", id="negative token"),
    ],
)
def test_what_would_end_the_engine_is_refused_at_the_door(model, make_engine, prompt, max_tokens, words):
    engine = make_engine(model)
    with pytest.raises(BadRequestError, match=words):
        engine.submit("a", prompt, Sampling(max_tokens=max_tokens))
    assert engine.failure() is None


class BrokenModel:
    """Fails, or hangs until told, at the first batch."""

    def __init__(self, hold=None):
        self.hold = hold

    def generate(self, **_):
        if self.hold:
            self.hold.wait(DEADLINE_SECONDS)
        raise RuntimeError("Connection closed by peer.\nsecond line")


def test_an_exception_becomes_the_failure_and_ends_all_requests(make_engine):
    engine = make_engine(BrokenModel(), concurrency=1)
    engine.submit("running", [1], Sampling(max_tokens=5))
    engine.submit("waiting", [1], Sampling(max_tokens=5))
    sentence = "Rank 0: the engine failed: RuntimeError: Connection closed by peer. All ranks must restart."
    _, ends = collect(engine, "running", "waiting")
    assert [ends[name].finish_reason for name in ("running", "waiting")] == ["error", "error"]
    assert ends["waiting"].error == sentence
    assert until(engine.failure) == sentence
    engine.submit("late", [1], Sampling(max_tokens=5))
    assert engine.progress("late").error == sentence


def test_an_engine_that_takes_no_turn_is_reported_as_stalled(make_engine):
    hold = threading.Event()
    engine = make_engine(BrokenModel(hold), stall_timeout_seconds=0.2)
    engine.submit("a", [1], Sampling(max_tokens=5))
    assert "no turn of the engine for" in until(engine.failure)
    hold.set()


def test_an_idle_engine_is_not_stalled(make_engine):
    engine = make_engine(BrokenModel(), stall_timeout_seconds=2.0)
    beats = [engine._last_turn]
    until(lambda: engine._last_turn != beats[0])
    assert engine.failure() is None


def test_an_engine_that_has_not_started_has_not_failed(model):
    engine = StaticEngine(model, ALONE, context_tokens=256, vocabulary_size=512, concurrency=4, stall_timeout_seconds=0.0)
    assert engine.failure() is None


def test_stopping_ends_running_requests(model, make_engine):
    engine = make_engine(model, context_tokens=4096)
    engine.submit("a", PROMPTS[0], Sampling(max_tokens=4000))
    until(lambda: engine.progress("a").tokens)
    engine.stop()
    assert engine.failure() == "Rank 0: the engine was stopped."
    assert engine.progress("a").finish_reason == "error"
