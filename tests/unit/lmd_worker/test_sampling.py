"""How one request's token is picked, whatever else is in the batch."""

import pytest
import torch

from lmd_worker.engine.protocol import Sampling
from lmd_worker.engine.sampling import NONE_ALLOWED, NOT_NUMBERS, Chooser, choose
from lmd_worker.errors import BadRequestError

CPU = torch.device("cpu")


def scores(rows, seed=0):
    return torch.randn(rows, 100, generator=torch.Generator().manual_seed(seed)) * 3


def chooser(**sampling):
    return Chooser(Sampling(max_tokens=9, **sampling), CPU)


def tokens(made):
    return [choice.token for choice in made]


def draws(row, count=200, **sampling):
    one = chooser(**sampling)
    return [int(one.draw(row)) for _ in range(count)]


def test_greedy_rows_get_their_best_token():
    some = scores(3)
    made = choose(some, [chooser(), None, chooser(temperature=1.0, top_k=1)])
    assert tokens(made) == some.argmax(dim=-1).tolist()
    assert {(choice.error, choice.logprobs) for choice in made} == {(None, None)}


def test_a_seed_gives_the_same_draws_alone_and_between_neighbours():
    row = scores(1)
    alone, among = chooser(temperature=1.0, seed=5), chooser(temperature=1.0, seed=5)
    batch = torch.cat([scores(1, seed=1), row, scores(1, seed=2)])
    others = [chooser(temperature=2.0, seed=9), among, chooser(temperature=0.5)]
    assert [choose(row, [alone])[0].token for _ in range(50)] == [choose(batch, others)[1].token for _ in range(50)]


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
    assert tokens(choose(row, [chooser(temperature=temperature, seed=0)])) == row.argmax(dim=-1).tolist()


def test_scores_that_are_no_numbers_concern_their_row_alone():
    some = scores(3)
    some[1, 4] = torch.nan
    made = choose(some, [chooser(temperature=1.0)] * 3)
    assert [choice.error for choice in made] == [None, NOT_NUMBERS, None]
    assert all(0 <= token < 100 for token in tokens(made))


def test_infinite_scores_concern_their_row_alone_at_any_temperature():
    some = scores(2)
    some[1, 4] = torch.inf
    assert [choice.error for choice in choose(some, [chooser(temperature=1e-3)] * 2)] == [None, NOT_NUMBERS]


def test_choosing_leaves_the_scores_as_they_are():
    some = scores(2)
    before = some.clone()
    choose(some, [chooser(temperature=0.7, top_k=5, top_p=0.9)] * 2)
    assert torch.equal(some, before)


@pytest.mark.parametrize("sampling", [{"top_p": -0.1}, {"top_k": -1}])
def test_what_no_filter_takes_is_a_bad_request(sampling):
    with pytest.raises(BadRequestError, match="sampling"):
        chooser(temperature=1.0, **sampling)


def test_log_probabilities_are_of_the_models_own_scores_whatever_the_sampling():
    some = scores(4)
    wants = [chooser(logprobs=0), chooser(), chooser(logprobs=3, temperature=3.0, top_k=2, seed=1), chooser(logprobs=1, top_p=0.1)]
    made = choose(some, wants)
    every = some.log_softmax(dim=-1)
    assert made[1].logprobs is None
    for row, count in ((0, 0), (2, 3), (3, 1)):
        told = made[row].logprobs
        best = every[row].topk(count)
        assert told.logprob == pytest.approx(every[row, made[row].token].item())
        assert [token for token, _ in told.top] == best.indices.tolist()
        assert [value for _, value in told.top] == pytest.approx(best.values.tolist())


class Only:
    """Allows some tokens, and notes which came; fails where told."""

    def __init__(self, *allowed, fails=""):
        self.allowed, self.fails, self.came = list(allowed), fails, []

    def restrict(self, row):
        if self.fails == "restrict":
            raise ValueError("secret grammar")
        kept = torch.full_like(row, -torch.inf)
        kept[:, self.allowed] = row[:, self.allowed]
        return kept

    def accept(self, token):
        if self.fails == "accept":
            raise KeyError("secret token")
        self.came.append(token)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "top_p": 0.9, "seed": 2}, {"temperature": 1.0, "top_k": 50}])
def test_a_constraint_decides_what_may_come_and_hears_what_came(sampling):
    some, only = scores(2), Only(17, 42)
    made = choose(some, [chooser(constraint=only, **sampling), chooser()])
    assert made[0].token in {17, 42}
    assert only.came == [made[0].token]
    assert made[1].token == some[1].argmax()


def test_log_probabilities_do_not_know_of_the_constraint():
    some = scores(1)
    (made,) = choose(some, [chooser(constraint=Only(5), logprobs=1)])
    assert made.token == 5
    assert made.logprobs.logprob == pytest.approx(some.log_softmax(dim=-1)[0, 5].item())
    assert made.logprobs.top[0][0] == some.argmax()


@pytest.mark.parametrize(
    ("constraint", "sentence"),
    [
        (Only(), NONE_ALLOWED),
        (Only(1, fails="restrict"), "The constraint of this request failed: ValueError."),
        (Only(1, fails="accept"), "The constraint of this request failed: KeyError."),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_constraint_does_wrong_is_its_own_requests_error(constraint, sentence, temperature):
    some = scores(2)
    made = choose(some, [chooser(constraint=constraint, temperature=temperature), chooser()])
    assert made[0].error == sentence
    assert (made[1].token, made[1].error) == (some[1].argmax(), None)
