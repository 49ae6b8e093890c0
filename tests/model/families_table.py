"""docs/families.md: the results of the matrix as a table, and what can be read off it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tiny_families import FAMILIES

from lmd_worker.strategies import families

FILE = Path(__file__).parents[2] / "docs" / "families.md"
_LIBRARIES = ("torch", "transformers", "deepspeed", "accelerate")
_INTRODUCTION = """# Model families and strategies

Which strategy computes which family right. Every cell is a run: a tiny random model of the family, loaded as the worker loads it, three
prompts of different lengths decoded together, compared token by token and score by score with plain `generate` of one process for each
prompt alone. `make matrix` runs all of them again and writes this file.

- **equal**: the same tokens, scores within {tolerance}; the number is the largest part of the weights that one of the ranks holds.
- *static*: equal, but decoded in static batches, as the continuous engine would compute something else; the rank report says why.
- refused: the object is refused before any weight is read, for the reason below the table.

Accelerate is one process that may have 0.6 of the weights in memory, room for the layer that comes from disk included; the number is what
stays there. Strategy None runs one process and serves every family that transformers serves, and so does Accelerate. A family in no row
is refused by the strategies that cut: engines guess the layout of what they do not know, and some go on with a warning or none.

Run with {libraries}; {ranks}.
"""

Results = Mapping[tuple[str, str], Mapping[str, Any]]


def known() -> list[str]:
    """Every family of which something is known."""
    return sorted({family for column in families.COLUMNS.values() for family in (*column.right, *column.wrong)})


def text(results: Results, tolerance: float = 1e-3) -> str:
    """Return the file."""
    strategies = [*families.COLUMNS, "Accelerate"]
    reasons: dict[str, int] = {}
    rows = [
        f"| {family} | " + " | ".join(_cell(results[family, strategy], reasons) for strategy in strategies) + " |"
        for family in sorted(FAMILIES)
    ]
    libraries = ", ".join(f"{name} {metadata.version(name).partition('+')[0]}" for name in _LIBRARIES)
    introduction = _INTRODUCTION.format(
        tolerance=tolerance, libraries=libraries, ranks="2 ranks, 4 under PipelineTensor, on CPUs (gloo), float32"
    )
    head = ["| family | " + " | ".join(strategies) + " |", "|---" * (len(strategies) + 1) + "|"]
    notes = [f"{number}. {reason}" for reason, number in reasons.items()]
    return "\n".join([introduction, *head, *rows, "", "## Reasons", "", *notes, ""])


def read(table: str) -> dict[tuple[str, str], bool]:
    """Return which cells of the file's table say that a family is served, by family and strategy."""
    lines = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in table.splitlines() if line.startswith("| ")]
    (_, *strategies), *rows = lines
    return {(family, name): "refused" not in cell for family, *cells in rows for name, cell in zip(strategies, cells, strict=True)}


def _cell(result: Mapping[str, Any], reasons: dict[str, int]) -> str:
    if "refused" in result:
        sentence = result["refused"].partition(": ")[2].partition(". Use ")[0]
        sentence = sentence.removeprefix(f"{result['family'].partition(',')[0]} ")  # many families share a reason
        return f"refused ({reasons.setdefault(sentence, len(reasons) + 1)})"
    word = "**equal**" if result["scheduler"] == "Continuous" else "**equal**, *static*"
    return f"{word} {max(result['held']):.2f}"
