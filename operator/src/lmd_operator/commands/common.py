"""What the commands share: reading manifests, and ending in words."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from lmd_operator import documents
from lmd_operator.api.availability import unavailable
from lmd_operator.api.parse import parse
from lmd_operator.api.v1alpha1 import LargeModelDeployment, Spec
from lmd_operator.errors import InvalidSpecError, LmdError, Problem, UnreadableError
from lmd_operator.inspection import is_needed
from lmd_operator.planning.shapes import ModelShape

Sources = Annotated[
    list[str], typer.Argument(metavar="FILE...", help="Manifests; - reads standard input. A file may hold several documents.")
]
Shape = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="A config.json, the output of `lmd inspect --outline` or a model directory to plan with."),
]
Claim = Annotated[list[str] | None, typer.Option(metavar="NAME=DIRECTORY", help="A local directory for a claim.")]
Models = Annotated[Path | None, typer.Option(help="Directory that stands for /models of the worker image.")]


def load(
    sources: Sequence[str], not_built: Callable[[Spec], list[Problem]] = unavailable
) -> tuple[list[tuple[str, LargeModelDeployment]], list[str]]:
    """Return the valid objects with their origins, and a line for each problem of the others."""
    valid: list[tuple[str, LargeModelDeployment]] = []
    problems: list[str] = []
    try:
        for entry in documents.read(list(sources)):
            try:
                valid.append((entry.origin, parse(entry.content, not_built=not_built)))
            except InvalidSpecError as error:
                problems += [f"{entry.origin}: {problem}" for problem in error.problems]
            except UnreadableError as error:
                problems.append(f"{entry.origin}: {error}")
    except UnreadableError as error:
        problems.append(str(error))
    return valid, problems


def find_shape(
    deployment: LargeModelDeployment, given: Path | None = None, models: Path | None = None, claims: Sequence[str] = ()
) -> ModelShape:
    """Return the shape of an object's model. Raises `LmdError` where it cannot be found out from here, with what would help."""
    from lmd_operator.local.models import cache_directory
    from lmd_operator.local.shapes import shape_of_file, shape_of_model

    if given is not None:
        return shape_of_file(given)
    places = named(claims, "--claim")
    try:
        return shape_of_model(
            deployment, models or cache_directory() / "models", places, lambda line: print(f"lmd: {line}", file=sys.stderr)
        )
    except LmdError as error:
        raise LmdError(f"the model's shape is not known: {error}; or give --shape") from error


def settled_shape(
    deployment: LargeModelDeployment, given: Path | None = None, models: Path | None = None, claims: Sequence[str] = ()
) -> ModelShape | None:
    """Return the shape where the spec leaves the degree to the planner, else None: then nothing is looked up."""
    return find_shape(deployment, given, models, claims) if is_needed(deployment) else None


def named(given: Sequence[str], option: str) -> dict[str, Path]:
    """Return directories by the names that an option gave them."""
    directories = {}
    for text in given:
        name, separator, directory = text.partition("=")
        if not (name and separator and directory):
            raise typer.BadParameter(f"{text}: write {option} NAME=DIRECTORY")
        directories[name] = Path(directory).absolute()
    return directories


def stop_on(problems: Sequence[str]) -> None:
    """End with status 1 when there is any problem."""
    for problem in problems:
        print(f"lmd: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)


def fail(problem: str) -> NoReturn:
    """End with status 1 and this problem."""
    stop_on([problem])
    raise AssertionError
