"""Weights and penalties change one request's scores and nobody else's."""

from __future__ import annotations

import torch

from lmd_worker.engine.weighing import Both, Weights


def test_weights_are_added_and_the_given_scores_stay() -> None:
    scores = torch.arange(4.0)[None]
    assert Weights({1: 5.0, 3: -100.0}).restrict(scores).tolist() == [[0.0, 6.0, 2.0, -97.0]]
    assert scores.tolist() == [[0.0, 1.0, 2.0, 3.0]]


def test_penalties_count_what_was_made() -> None:
    penalties = Weights({0: 1.0}, presence=0.5, frequency=0.25)
    scores = torch.zeros(1, 4)
    assert penalties.restrict(scores).tolist() == [[1.0, 0.0, 0.0, 0.0]]
    for token in (2, 2, 0):
        penalties.accept(token)
    assert penalties.restrict(scores).tolist() == [[0.25, 0.0, -1.0, 0.0]]


def test_a_token_that_may_not_come_stays_so() -> None:
    scores = torch.tensor([[0.0, float("-inf")]])
    assert Both([Weights({0: -1.0, 1: 100.0})]).restrict(scores).tolist() == [[-1.0, float("-inf")]]


def test_both_are_told_and_asked() -> None:
    one, other = Weights({}, presence=1.0), Weights({}, frequency=2.0)
    both = Both([one, other])
    both.accept(1)
    assert both.restrict(torch.zeros(1, 2)).tolist() == [[0.0, -3.0]]
