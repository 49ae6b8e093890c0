"""How one request's token is picked, whatever else is in the batch."""

import pytest
import torch

from lmd_worker.engine.protocol import Sampling
from lmd_worker.engine.sampling import Chooser, choose
from lmd_worker.errors import BadRequestError

CPU = torch.device("cpu")


def scores(rows, seed=0):
    return torch.randn(rows, 100, generator=torch.Generator().manual_seed(seed)) * 3


def chooser(**sampling):
    return Chooser(Sampling(max_tokens=9, **sampling), CPU)


def draws(row, count=200, **sampling):
    one = chooser(**sampling)
    return [int(one.draw(row)) for _ in range(count)]


def test_greedy_rows_get_their_best_token():
    some = scores(3)
    tokens, usable = choose(some, [chooser(), None, chooser(temperature=1.0, top_k=1)])
    assert tokens == some.argmax(dim=-1).tolist()
    assert usable == [True] * 3


def test_a_seed_gives_the_same_draws_alone_and_between_neighbours():
    row = scores(1)
    alone, among = chooser(temperature=1.0, seed=5), chooser(temperature=1.0, seed=5)
    batch = torch.cat([scores(1, seed=1), row, scores(1, seed=2)])
    others = [chooser(temperature=2.0, seed=9), among, chooser(temperature=0.5)]
    assert [choose(row, [alone])[0][0] for _ in range(50)] == [choose(batch, others)[0][1] for _ in range(50)]


def test_other_seeds_and_no_seed_give_other_draws():
    row = scores(1)
    runs = [
        draws(row, temperature=2.0, seed=1),
        draws(row, temperature=2.0, seed=2),
        draws(row, temperature=2.0),
        draws(row, temperature=2.0),
    ]
    assert len({tuple(run) for run in runs}) == 4


@pytest.mark.parametrize("seed", [-1, 0, 2**63, 2**70])
def test_any_integer_is_a_seed(seed):
    assert draws(scores(1), 5, temperature=1.0, seed=seed) == draws(scores(1), 5, temperature=1.0, seed=seed)


def test_top_k_keeps_the_k_best():
    row = scores(1)
    assert set(draws(row, temperature=5.0, top_k=3, seed=0)) == set(row.topk(3).indices[0].tolist())


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    row = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert set(draws(row, temperature=1.0, top_p=0.7, seed=0)) == {0, 1}
    assert set(draws(row, temperature=1.0, top_p=0.0, seed=0)) == {0}


def test_temperature_flattens():
    row = torch.tensor([[0.9, 0.1]]).log()
    assert sum(draws(row, temperature=0.2, seed=0)) < sum(draws(row, temperature=5.0, seed=0))


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e-4, 1e-3])
def test_tiny_temperatures_are_greedy_and_never_overflow(temperature):
    row = scores(1) * 1e4
    assert choose(row, [chooser(temperature=temperature, seed=0)])[0] == row.argmax(dim=-1).tolist()


def test_scores_that_are_no_numbers_concern_their_row_alone():
    some = scores(3)
    some[1, 4] = torch.nan
    tokens, usable = choose(some, [chooser(temperature=1.0)] * 3)
    assert usable == [True, False, True]
    assert all(0 <= token < 100 for token in tokens)


def test_infinite_scores_concern_their_row_alone_at_any_temperature():
    some = scores(2)
    some[1, 4] = torch.inf
    assert choose(some, [chooser(temperature=1e-3)] * 2)[1] == [True, False]


def test_choosing_leaves_the_scores_as_they_are():
    some = scores(2)
    before = some.clone()
    choose(some, [chooser(temperature=0.7, top_k=5, top_p=0.9)] * 2)
    assert torch.equal(some, before)


@pytest.mark.parametrize("sampling", [{"top_p": -0.1}, {"top_k": -1}])
def test_what_no_filter_takes_is_a_bad_request(sampling):
    with pytest.raises(BadRequestError, match="sampling"):
        chooser(temperature=1.0, **sampling)
