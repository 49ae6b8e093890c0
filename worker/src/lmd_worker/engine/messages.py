"""What rank 0 tells the others each turn: one small tensor, and a second one in the turns in which requests begin.

All in int64, so that nothing is pickled. The first tensor has one length whatever happens, so that it is one broadcast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lmd_worker.engine.schedule import Arrival

_FIXED = 4  # stop, length of the second tensor, prompt tokens, width of the batch


@dataclass(frozen=True, slots=True)
class Turn:
    """The end of the last turn and the plan of the next.

    `chosen` is the last turn's token by place, `leaving` the places whose requests have ended. Then up to `prompt_tokens` tokens of
    prompts are planned, and all ranks must come to a batch of `width` tokens; 0 is none. `stop` ends the loop instead.
    """

    chosen: Mapping[int, int]
    leaving: Sequence[int]
    arrivals: Sequence[Arrival] = ()
    prompt_tokens: int = 0
    width: int = 0
    stop: bool = False


def head_length(concurrency: int) -> int:
    """Return the length of the first tensor."""
    return _FIXED + 2 * concurrency


def pack(turn: Turn, concurrency: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both tensors, one-dimensional; the second is empty when nothing begins."""
    tail = [number for arrival in turn.arrivals for number in (arrival.place, len(arrival.tokens), *arrival.tokens)]
    head = torch.zeros(head_length(concurrency), dtype=torch.int64)
    head[:_FIXED] = torch.tensor([int(turn.stop), len(tail), turn.prompt_tokens, turn.width])
    chosen, leaving = head[_FIXED : _FIXED + concurrency], head[_FIXED + concurrency :]
    chosen.fill_(-1)
    if turn.chosen:
        chosen[list(turn.chosen)] = torch.tensor(list(turn.chosen.values()))
    if turn.leaving:
        leaving[list(turn.leaving)] = 1
    return head, torch.tensor(tail, dtype=torch.int64)


def tail_length(head: torch.Tensor) -> int:
    """Return the length of the second tensor, which the first one says."""
    return int(head[1])


def unpack(head: torch.Tensor, tail: torch.Tensor, concurrency: int) -> Turn:
    """Return what was packed."""
    stop, _, prompt_tokens, width = head[:_FIXED].tolist()
    chosen, leaving = head[_FIXED : _FIXED + concurrency].tolist(), head[_FIXED + concurrency :].tolist()
    return Turn(
        chosen={place: token for place, token in enumerate(chosen) if token >= 0},
        leaving=[place for place, leaves in enumerate(leaving) if leaves],
        arrivals=_arrivals(tail.tolist()),
        prompt_tokens=prompt_tokens,
        width=width,
        stop=bool(stop),
    )


def _arrivals(numbers: Sequence[int]) -> list[Arrival]:
    arrivals, at = [], 0
    while at < len(numbers):
        place, length = numbers[at : at + 2]
        arrivals.append(Arrival(place, numbers[at + 2 : at + 2 + length]))
        at += 2 + length
    return arrivals
