"""A second rank of the continuous engine, in the same process: both compute the whole model, and the messages are the real ones."""

import copy
import queue

import pytest
import torch

from lmd_worker.engine.continuous import ContinuousEngine
from lmd_worker.engine.messages import Turn, head_length, pack, tail_length, unpack
from lmd_worker.engine.pages import CacheShape, Pages
from lmd_worker.engine.protocol import Sampling
from lmd_worker.engine.schedule import Arrival

CPU = torch.device("cpu")
DEADLINE_SECONDS = 60
LIMITS = {"context_tokens": 256, "vocabulary_size": 512, "concurrency": 3, "stall_timeout_seconds": 60.0}


class Link:
    """One end of a group of two: rank 0's broadcasts are what rank 1's overwrite with."""

    device = CPU

    def __init__(self, rank, messages, spoil=lambda tensor: tensor):
        self.rank, self._messages, self._spoil = rank, messages, spoil

    def broadcast(self, tensor):
        if self.rank == 0:
            self._messages.put(tensor.clone())
        else:
            tensor.copy_(self._spoil(self._messages.get(timeout=DEADLINE_SECONDS)))


@pytest.fixture
def pair(model):
    started = []

    def start(spoil=lambda tensor: tensor):
        messages = queue.Queue()
        for rank in (0, 1):
            pages = Pages(CacheShape(2, 6, 3, 32, torch.float32, 256, 3), CPU)
            started.append(ContinuousEngine(copy.deepcopy(model), Link(rank, messages, spoil), pages, **LIMITS))
            started[-1].start()
        return started

    yield start
    for engine in started:
        engine.stop()


def test_a_follower_goes_through_the_same_turns_and_stops_with_the_leader(finish, pair):
    leader, follower = pair()
    for index in range(8):
        leader.submit(str(index), list(range(1, 10 * index + 2)), Sampling(max_tokens=5 + index, temperature=1.0, seed=index))
    leader.cancel("3")
    finish(leader, *(str(index) for index in range(8) if index != 3))
    leader.stop()
    follower._thread.join(DEADLINE_SECONDS)
    assert follower.failure() == "Rank 1: the engine was stopped."
    assert follower.stats().cache_blocks_used == leader.stats().cache_blocks_used == 0
    written = [engine._pages.cache.cache_tensor for engine in (leader, follower)]
    assert torch.equal(*written)


def test_a_rank_that_comes_to_another_batch_says_so(finish, pair):
    def spoil(tensor):
        if tensor.shape[0] == head_length(3) and tensor[3] > 0:
            tensor[3] += 1
        return tensor

    leader, follower = pair(spoil)
    leader.submit("a", [1, 2, 3], Sampling(max_tokens=2))
    finish(leader, "a")
    follower._thread.join(DEADLINE_SECONDS)
    assert "RuntimeError: this rank planned 3 tokens and rank 0 4" in follower.failure()


@pytest.mark.parametrize(
    "turn",
    [
        Turn({}, []),
        Turn({}, [], stop=True),
        Turn({0: 0, 2: 511}, [1], [Arrival(1, [7, 8, 9]), Arrival(3, [1])], prompt_tokens=64, width=6),
        Turn({}, [0, 1, 2, 3]),
    ],
)
def test_a_turn_arrives_as_it_was_sent(turn):
    head, tail = pack(turn, 4)
    assert (head.shape[0], tail.shape[0]) == (head_length(4), tail_length(head))
    assert unpack(head, tail, 4) == Turn(turn.chosen, list(turn.leaving), list(turn.arrivals), turn.prompt_tokens, turn.width, turn.stop)
