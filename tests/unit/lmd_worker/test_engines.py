"""Both engines over a tiny random model, in one process without a group: what every engine does, and what each does its own way."""

import json
import random
import shutil
import threading
import time

import pytest
import torch
import transformers

from lmd_worker import loading
from lmd_worker.engine.continuous import ContinuousEngine, Core
from lmd_worker.engine.pages import PAGE_TOKENS, CacheShape, Pages
from lmd_worker.engine.protocol import Sampling
from lmd_worker.engine.static import StaticEngine
from lmd_worker.errors import BadRequestError
from lmd_worker.ranks import Group
from lmd_worker.strategies.reading import read_model

DEADLINE_SECONDS = 60
ALONE = Group(rank=0, size=1, device=torch.device("cpu"))
PROMPTS = [[5, 6, 7], list(range(20, 40)), [9], [300, 4, 77, 12, 500, 1]]
LIMITS = {"context_tokens": 256, "vocabulary_size": 512, "concurrency": 4, "stall_timeout_seconds": 60.0}


def static(model, **limits):
    return StaticEngine(model, ALONE, **limits)


def continuous(model, *, shares_prefixes=True, **limits):
    shape = CacheShape(2, 6, 3, 32, torch.float32, limits["context_tokens"], limits["concurrency"], shares_prefixes=shares_prefixes)
    return ContinuousEngine(model, ALONE, Pages(shape, ALONE.device), **limits)


@pytest.fixture(params=[static, continuous], ids=lambda build: build.__name__)
def build(request):
    return request.param


@pytest.fixture(scope="module")
def read(tiny_llama):
    return lambda: transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def plain_model(read):
    return read()


@pytest.fixture(scope="module")
def models(read):
    """One model an engine, as the continuous engine changes how its model computes attention."""
    return {static: read(), continuous: read()}


@pytest.fixture
def model(models, build):
    return models[build]


@pytest.fixture
def start():
    engines = []

    def begin(engine):
        engines.append(engine)
        engine.start()
        return engine

    yield begin
    for engine in engines:
        engine.stop()


@pytest.fixture
def make_engine(build, start):
    return lambda model, **changes: start(build(model, **{**LIMITS, **changes}))


@pytest.fixture(scope="module")
def reference(plain_model):
    """Greedy tokens of transformers' own generate, one prompt alone."""

    def run(prompt, count):
        with torch.inference_mode():
            made = plain_model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), max_new_tokens=count, do_sample=False
            )
        return made[0, len(prompt) :].tolist()

    return run


def collect(engine, *names, logprobs=None):
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
            if logprobs is not None:
                logprobs.setdefault(name, []).extend(news.logprobs)
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


def test_a_static_batch_that_would_outgrow_the_context_goes_on_in_the_next(models, start, reference):
    lengths = []
    model = models[static]
    engine = start(static(model, **{**LIMITS, "context_tokens": 48}))
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

    def set_attn_implementation(self, name): ...

    def _supports_logits_to_keep(self):
        return True

    def generate(self, **_):
        if self.hold:
            self.hold.wait(DEADLINE_SECONDS)
        raise RuntimeError("Connection closed by peer.\nsecond line")

    __call__ = generate


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


def test_an_engine_that_has_not_started_has_not_failed(build):
    assert build(BrokenModel(), **{**LIMITS, "stall_timeout_seconds": 0.0}).failure() is None


def test_a_thread_that_is_gone_without_a_word_is_a_failure(make_engine, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    class Exits(BrokenModel):
        def generate(self, **_):
            raise SystemExit

        __call__ = generate

    engine = make_engine(Exits())
    engine.submit("a", [1], Sampling(max_tokens=5))
    assert until(engine.failure) == "Rank 0: the engine's thread is gone. All ranks must restart."


def test_stopping_ends_running_requests(model, make_engine):
    engine = make_engine(model, context_tokens=4096)
    engine.submit("a", PROMPTS[0], Sampling(max_tokens=4000))
    until(lambda: engine.progress("a").tokens)
    engine.stop()
    assert engine.failure() == "Rank 0: the engine was stopped."
    assert engine.progress("a").finish_reason == "error"


def test_log_probabilities_equal_those_of_a_direct_forward(model, plain_model, make_engine):
    engine = make_engine(model)
    told = {}
    engine.submit("greedy", PROMPTS[1], Sampling(max_tokens=8, logprobs=3))
    engine.submit("drawn", PROMPTS[3], Sampling(max_tokens=8, temperature=2.0, top_k=20, seed=1, logprobs=0))
    engine.submit("none", PROMPTS[0], Sampling(max_tokens=8))
    tokens, _ = collect(engine, "greedy", "drawn", "none", logprobs=told)
    assert told["none"] == []
    for name, prompt, count in (("greedy", PROMPTS[1], 3), ("drawn", PROMPTS[3], 0)):
        with torch.inference_mode():
            logits = plain_model(torch.tensor([[*prompt, *tokens[name]]])).logits[0, len(prompt) - 1 : -1]
        every = logits.log_softmax(dim=-1)
        assert [item.logprob for item in told[name]] == pytest.approx(
            every.gather(1, torch.tensor(tokens[name])[:, None])[:, 0].tolist(), abs=1e-4
        )
        for item, row in zip(told[name], every, strict=True):
            assert [token for token, _ in item.top] == row.topk(count).indices.tolist()


class Even:
    """Only even tokens; fails at the token `fails_at`, counted from 0."""

    def __init__(self, fails_at=None):
        self.came, self.fails_at = [], fails_at

    def restrict(self, scores):
        if len(self.came) == self.fails_at:
            raise RuntimeError("on purpose")
        return scores.masked_fill(torch.arange(scores.shape[1]) % 2 == 1, -torch.inf)

    def accept(self, token):
        self.came.append(token)


def test_a_constraint_binds_its_request_and_no_other(model, make_engine, reference):
    engine = make_engine(model)
    even, broken = Even(), Even(fails_at=2)
    engine.submit("even", PROMPTS[0], Sampling(max_tokens=10, constraint=even))
    engine.submit("broken", PROMPTS[1], Sampling(max_tokens=10, constraint=broken))
    engine.submit("free", PROMPTS[0], Sampling(max_tokens=10))
    tokens, ends = collect(engine, "even", "broken", "free")
    assert all(token % 2 == 0 for token in tokens["even"])
    assert even.came == tokens["even"] != tokens["free"] == reference(PROMPTS[0], 10)
    assert (ends["broken"].finish_reason, ends["broken"].error) == ("error", "The constraint of this request failed: RuntimeError.")
    assert len(tokens["broken"]) == 2


def test_a_full_queue_refuses_and_takes_again_later(model, make_engine):
    engine = make_engine(model, context_tokens=4096, concurrency=1, queue_size=1)
    engine.submit("running", PROMPTS[0], Sampling(max_tokens=4000))
    engine.submit("waiting", PROMPTS[0], Sampling(max_tokens=2))
    with pytest.raises(BadRequestError) as refusal:
        engine.submit("refused", PROMPTS[0], Sampling(max_tokens=2))
    assert refusal.value.status == 429
    engine.cancel("running")
    collect(engine, "waiting")
    engine.submit("refused", PROMPTS[0], Sampling(max_tokens=2))


def test_stats_tell_what_runs_waits_and_was_done(model, make_engine):
    engine = make_engine(model, context_tokens=4096, concurrency=1)
    engine.submit("a", PROMPTS[1], Sampling(max_tokens=3000))
    engine.submit("b", PROMPTS[0], Sampling(max_tokens=3))
    until(lambda: engine.progress("a").tokens)
    busy = engine.stats()
    assert (busy.running, busy.waiting, busy.prompt_tokens_total) == (1, 1, 20)
    engine.cancel("a")
    collect(engine, "b")
    done = engine.stats()
    assert (done.running, done.waiting, done.prompt_tokens_total) == (0, 0, 23)
    assert done.generation_tokens_total >= busy.generation_tokens_total + 3
    assert done.turns_total > busy.turns_total > 0
    assert done.turn_seconds_total > busy.turn_seconds_total > 0
    timings = engine.drain_timings()
    assert len(timings) == 2
    assert len(timings[1].between_tokens_seconds) == 2
    assert 0 < timings[1].queue_seconds <= timings[1].first_token_seconds
    assert engine.drain_timings() == []


def test_a_request_joins_while_another_runs(models, start, reference):
    engine = start(continuous(models[continuous], **{**LIMITS, "context_tokens": 4096}))
    engine.submit("long", PROMPTS[0], Sampling(max_tokens=4000))
    until(lambda: engine.progress("long").tokens)
    engine.submit("joins", PROMPTS[1], Sampling(max_tokens=5))
    tokens, _ = collect(engine, "joins")
    assert tokens["joins"] == reference(PROMPTS[1], 5)
    assert engine.stats().running == 1


def test_prompts_in_chunks_over_many_pages_equal_generate(models, start, reference, monkeypatch):
    monkeypatch.setattr("lmd_worker.engine.pace.LARGEST_CHUNK", 7)
    monkeypatch.setattr("lmd_worker.engine.pace.FIRST_CHUNK", 7)
    engine = start(continuous(models[continuous], **LIMITS))
    prompts = [[(index * 37 + length) % 512 for index in range(length)] for length in (130, 64, 65, 31, 33, 7, 1, 200)]
    for index, prompt in enumerate(prompts):
        engine.submit(str(index), prompt, Sampling(max_tokens=40))
    tokens, _ = collect(engine, *map(str, range(len(prompts))))
    assert [tokens[str(index)] for index in range(len(prompts))] == [reference(prompt, 40) for prompt in prompts]


def test_a_burst_of_random_requests_and_cancels_leaves_no_page_behind(models, start, reference):
    chance = random.Random(7)
    engine = start(continuous(models[continuous], **LIMITS))
    open_names = {}
    for index in range(150):
        prompt = PROMPTS[chance.randrange(4)] if chance.random() < 0.5 else [chance.randrange(512) for _ in range(chance.randrange(1, 200))]
        count, temperature = chance.randrange(1, 20), chance.choice([0.0, 1.0, 1.0])
        engine.submit(str(index), prompt, Sampling(max_tokens=count, temperature=temperature, seed=index))
        open_names[str(index)] = (prompt, count, temperature)
        with pytest.raises(BadRequestError):
            engine.submit(f"bad {index}", chance.choice([[], [512], [1] * 300]), Sampling(max_tokens=1))
        if chance.random() < 0.4:
            name = chance.choice(list(open_names))
            engine.cancel(name)
            del open_names[name]
        engine.wait(list(open_names), chance.choice([0.0, 0.0, 0.01]))
    tokens, ends = collect(engine, *open_names)
    for name, (prompt, count, temperature) in open_names.items():
        assert (len(tokens[name]), ends[name].finish_reason) == (count, "length")
        assert temperature or tokens[name] == reference(prompt, count)
    until(lambda: engine.stats().cache_blocks_used == 0)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.cache_blocks_total) == (0, 0, 32)
    assert engine.failure() is None
    engine.submit("after", PROMPTS[1], Sampling(max_tokens=6))
    assert collect(engine, "after")[0]["after"] == reference(PROMPTS[1], 6)


@pytest.fixture
def read_tokens(monkeypatch):
    """The tokens of prompts that turns have read."""
    read, scores = [], Core.scores

    def spy(self, batch):
        read.append(batch.prompt_tokens)
        return scores(self, batch)

    monkeypatch.setattr(Core, "scores", spy)
    return read


def answer(engine, read, name, prompt, count):
    """The tokens of one request alone, and how many of its prompt were read for it."""
    read.clear()
    engine.submit(name, prompt, Sampling(max_tokens=count))
    tokens = collect(engine, name)[0][name]
    return tokens, sum(read)


def test_a_prompt_is_read_from_where_it_differs_from_an_earlier_one(models, start, reference, read_tokens):
    engine = start(continuous(models[continuous], **LIMITS))
    first = [(index * 37) % 512 for index in range(130)]
    other = first[:100] + [7] * 30
    assert answer(engine, read_tokens, "first", first, 40) == (reference(first, 40), 130)
    assert answer(engine, read_tokens, "again", first, 40) == (reference(first, 40), 130 - 4 * PAGE_TOKENS)
    assert answer(engine, read_tokens, "other", other, 5) == (reference(other, 5), 130 - 3 * PAGE_TOKENS)
    longer = [*first, *reference(first, 40), 9, 9]
    assert answer(engine, read_tokens, "goes on", longer, 5) == (reference(longer, 5), len(longer) - 5 * PAGE_TOKENS)
    until(lambda: engine.stats().cache_blocks_used == 0)


def test_requests_side_by_side_share_their_beginning(models, start, reference, read_tokens):
    engine = start(continuous(models[continuous], **LIMITS))
    common = [(index * 11) % 512 for index in range(96)]
    answer(engine, read_tokens, "before", common, 1)
    prompts = {str(index): [*common, index] for index in range(4)}
    for name, prompt in prompts.items():
        engine.submit(name, prompt, Sampling(max_tokens=30))
    tokens, _ = collect(engine, *prompts)
    assert tokens == {name: reference(prompt, 30) for name, prompt in prompts.items()}
    until(lambda: engine.stats().cache_blocks_used == 0)


def test_what_is_kept_gives_way_the_longest_unused_first(models, start, reference, read_tokens):
    engine = start(continuous(models[continuous], **LIMITS))
    prompts = [[(index * 37 + number) % 512 for index in range(200)] for number in range(12)]
    for number, prompt in enumerate(prompts):
        assert answer(engine, read_tokens, f"new {number}", prompt, 3) == (reference(prompt, 3), 200)
    assert answer(engine, read_tokens, "kept", prompts[-1], 3)[1] < 200
    assert answer(engine, read_tokens, "given up", prompts[0], 3) == (reference(prompts[0], 3), 200)
    until(lambda: engine.stats().cache_blocks_used == 0)


def test_without_prefix_caching_every_prompt_is_read_whole(models, start, reference, read_tokens):
    engine = start(continuous(models[continuous], shares_prefixes=False, **LIMITS))
    prompt = [(index * 37) % 512 for index in range(130)]
    for name in "ab":
        assert answer(engine, read_tokens, name, prompt, 5) == (reference(prompt, 5), 130)


def test_a_loaded_engine_can_be_stopped_as_soon_as_it_is_handed_over(build, model, monkeypatch):
    """A rank that ended at once once joined a thread that had not begun, and aborted its whole group."""
    engine = build(model, **LIMITS)
    monkeypatch.setattr(loading, "_load", lambda settings, group: (engine, engine))
    loading.load(None).stop(DEADLINE_SECONDS)
    assert engine.failure() == "Rank 0: the engine was stopped."
