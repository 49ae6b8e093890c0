"""Everything the operator and the command line raise on purpose.

LmdError
├── InvalidSpecError   the object can never work as written; carries every problem found
├── UnreadableError    a document is no YAML, or no object of ours
└── LocalRunError      `lmd serve` cannot go on; carries the remedy in its message

Every message is one sentence or two: what was wrong, where, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LmdError(Exception):
    """Anything we say in words instead of a traceback."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong with a document: the JSON path of the field, and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path} {self.message}" if self.path else self.message


class InvalidSpecError(LmdError):
    """An object that can never work as it is written."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(map(str, self.problems)))


class UnreadableError(LmdError):
    """Text that is not a LargeModelDeployment at all."""


class LocalRunError(LmdError):
    """The local run cannot start or go on."""
