"""A batch whose rows are dealt out over ranks, two of them in one process: all take the same steps, and rank 0 decides for all rows."""

import copy
import queue

import pytest
import torch

from lmd_worker.engine.protocol import Sampling
from lmd_worker.engine.static import StaticEngine, _own_rows

CPU = torch.device("cpu")
DEADLINE_SECONDS = 60
SIZE = 2
LIMITS = {"context_tokens": 256, "vocabulary_size": 512, "concurrency": 5, "stall_timeout_seconds": 60.0}
PROMPTS = {"a": [5, 6, 7], "b": list(range(20, 40)), "c": [9], "d": [300, 4, 77], "e": [1, 2]}


class Link:
    """One end of a group of two."""

    device = CPU
    size = SIZE

    def __init__(self, rank, messages, collected):
        self.rank, self._messages, self._collected = rank, messages, collected

    def broadcast(self, tensor):
        if self.rank == 0:
            self._messages.put(tensor.clone())
        else:
            tensor.copy_(self._messages.get(timeout=DEADLINE_SECONDS))

    def collect(self, tensor):
        if self.rank != 0:
            self._collected.put(tensor.clone())
            return []
        return [tensor, self._collected.get(timeout=DEADLINE_SECONDS)]


@pytest.fixture
def pair(model):
    """Two engines, and the shapes of the tokens of every forward of each."""
    messages, collected = queue.Queue(), queue.Queue()
    engines, forwards = [], [[] for _ in range(SIZE)]
    for rank in range(SIZE):
        own = copy.deepcopy(model)
        own.register_forward_pre_hook(
            lambda module, given, named, rank=rank: forwards[rank].append(tuple(named["input_ids"].shape)), with_kwargs=True
        )
        engines.append(StaticEngine(own, Link(rank, messages, collected), deals=True, **LIMITS))
    yield engines, forwards
    for engine in engines:
        engine.stop()


@pytest.fixture(scope="module")
def expected(model):
    def answer(prompt, steps):
        tokens = torch.tensor([prompt])
        with torch.inference_mode():
            made = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=steps, pad_token_id=0)
        return made[0, len(prompt) :].tolist()

    return answer


def test_ranks_that_are_done_early_go_on_until_all_are(finish, pair, expected):
    """Rank 0's rows need 2 steps and rank 1's up to 9; none of them ever takes a step alone."""
    (leader, follower), forwards = pair
    steps = {"a": 1, "b": 2, "c": 1, "d": 9, "e": 4}
    for name, prompt in PROMPTS.items():
        leader.submit(name, prompt, Sampling(max_tokens=steps[name]))
    leader.start()
    follower.start()
    assert finish(leader, *steps) == {name: expected(PROMPTS[name], count) for name, count in steps.items()}
    assert forwards[0] == forwards[1]
    assert forwards[0][0] == (3, 20), "half of five rows, and one that fills up"
    assert len(forwards[0]) == 9


def test_a_rank_without_a_request_takes_every_step_too(finish, pair, expected):
    (leader, follower), forwards = pair
    leader.submit("a", PROMPTS["a"], Sampling(max_tokens=4))
    leader.start()
    follower.start()
    assert finish(leader, "a") == {"a": expected(PROMPTS["a"], 4)}
    assert forwards[0] == forwards[1]
    assert len(forwards[1]) == 4


def test_the_rows_of_all_ranks_are_those_of_the_batch():
    rows = torch.arange(10).reshape(5, 2)
    dealt = torch.cat([_own_rows(rows, 2, rank) for rank in range(4)])
    assert torch.equal(dealt[:5], rows)
    assert torch.equal(dealt[5:], rows[:1].expand(3, -1))
