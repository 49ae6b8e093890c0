"""One step that all ranks take alike: the verdict of rank 0 is what `generate` sees everywhere."""

import torch

from lmd_worker.engine.turns import Done, Verdict


class Follower:
    """A group whose rank 0 has chosen tokens 3 and 1 and says that the second row is done."""

    def broadcast(self, tensor):
        tensor.copy_(torch.tensor([[3, 1], [0, 1]]))


class Alone:
    def broadcast(self, tensor):
        pass


def test_a_follower_takes_rank_0s_tokens_whatever_its_own_scores_are():
    scores = torch.randn(2, 5)
    scores[:, 0] = torch.nan
    verdict = Verdict(Follower(), 2, None, lambda: None)
    forced = verdict(None, scores)
    assert forced.argmax(dim=-1).tolist() == [3, 1]
    assert forced.softmax(dim=-1).max(dim=-1).values.tolist() == [1.0, 1.0]
    assert Done(verdict)(torch.zeros(2, 9), None).tolist() == [False, True]


def test_the_leader_decides_on_the_models_own_scores_and_every_step_is_a_beat():
    seen, beats = [], []

    def decide(scores):
        seen.append(scores.clone())
        return torch.tensor([[4], [1]])

    scores = torch.randn(1, 5)
    before = scores.clone()
    verdict = Verdict(Alone(), 1, decide, lambda: beats.append(1))
    assert verdict(None, scores).argmax().item() == 4
    assert torch.equal(seen[0], before)
    assert beats == [1]
