"""What a strategy may leave on one rank: the bound that the self-test holds every rank to. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """The most of a model that one rank may hold.

    `part` is the fullest rank's part of everything that is cut, at most 1. Weights that have one of `whole` in their names may be whole on
    every rank, and so may vectors, and tables of embeddings where `embeddings_are_whole`. `head_is_apart` says that an output head that is
    tied to the embeddings is held in addition to them, `is_offloaded` that parameters may be elsewhere than in this process's tensors.
    """

    part: float = 1.0
    whole: tuple[str, ...] = ()
    embeddings_are_whole: bool = True
    head_is_apart: bool = True
    is_offloaded: bool = False

    def leaves_whole(self, name: str) -> bool:
        """Whether a parameter of this name need not be cut."""
        return any(fragment in name for fragment in self.whole)
