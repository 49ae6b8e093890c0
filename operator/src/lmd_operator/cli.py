"""`lmd`: validate, plan, render and serve a LargeModelDeployment without a cluster; `kubectl lmd` is the same program.

Exit status: 0 when all is well, 1 when a document is wrong or a run fails, 2 when the command line is.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.commands.common import Claim, Models, Shape, Sources, fail, load, named, settled_shape, stop_on
from lmd_operator.commands.plan import plan
from lmd_operator.commands.why import why
from lmd_operator.errors import LmdError
from lmd_operator.resources.desired import Desired, desired, document
from lmd_operator.settings import Settings
from lmd_operator.version import VERSION

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(plan)
app.command()(why)


class Output(StrEnum):
    """Where `render` writes."""

    YAML = "yaml"
    DIRECTORY = "dir"


@app.callback()
def lmd() -> None:
    """Work with LargeModelDeployment manifests on this machine."""


@app.command()
def version() -> None:
    """Print the version."""
    print(VERSION)


@app.command()
def validate(sources: Sources, shape: Shape = None, models: Models = None, claim: Claim = None) -> None:
    """Check manifests: every problem with its field, its rule and its remedy. A degree of Auto is planned, and the plan printed."""
    valid, problems = load(sources)
    for origin, deployment in valid:
        try:
            settled = desired(deployment, Settings(), shape=settled_shape(deployment, shape, models, claim or [])).plan
        except LmdError as error:
            problems.append(f"{origin}: {error}")
            continue
        print(f"{origin}: {deployment.metadata.name} is valid")
        if deployment.spec.parallelism.tensor == "Auto":
            stages = f" in {settled.pipeline} stages" if settled.pipeline > 1 else ""
            what = f"{settled.strategy} at tensor degree {settled.tensor}{stages}"
            print(f"{origin}: {deployment.metadata.name} runs {what} ({settled.reason})")
    stop_on(problems)


@app.command()
def render(
    sources: Sources,
    files: Annotated[bool, typer.Option("--files", help="The files the worker reads instead of the Kubernetes objects.")] = False,
    output: Annotated[Output, typer.Option("-o", "--output", help="yaml: to standard output; dir: one file each.")] = Output.YAML,
    directory: Annotated[Path, typer.Option("-d", "--directory", help="Where `-o dir` writes.")] = Path("rendered"),
    shape: Shape = None,
    models: Models = None,
    claim: Claim = None,
) -> None:
    """Print what the operator would create for manifests, byte for byte; with --files, archives at hand are merged as a pod does it."""
    claims = named(claim or [], "--claim")
    valid, problems = load(sources)
    stop_on(problems)
    for origin, deployment in valid:
        try:
            built = desired(deployment, Settings(), shape=settled_shape(deployment, shape, models, claim or []))
        except LmdError as error:
            fail(f"{origin}: {error}")
        texts = _rendered(built, files=files)
        if files:
            texts |= _merged(deployment, texts, claims)
        if output is Output.DIRECTORY:
            _write(directory / deployment.metadata.name, texts)
        elif files:
            print(yaml.dump({deployment.metadata.name: texts}, Dumper=_Literal, sort_keys=False), end="")
        else:
            print("".join(f"---\n{text}" for text in texts.values()), end="")


@app.command()
def serve(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A manifest; - reads standard input.")],
    name: Annotated[str | None, typer.Option(help="Which object, when the file holds several.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")] = 8080,
    ask: Annotated[str | None, typer.Option(help="A question to ask once the model is ready.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop after the start (and the answer) instead of serving on.")] = False,
    models: Models = None,
    with_parent: Annotated[bool, typer.Option("--end-with-parent", help="Stop when the program that started this one dies.")] = False,
    claim: Claim = None,
    config_map: Annotated[list[str] | None, typer.Option(metavar="NAME=DIRECTORY", help="One for a handler's ConfigMap.")] = None,
) -> None:
    """Run an object on this machine: the same files and command as in a pod, until Ctrl-C."""
    from lmd_operator.local.display import Display
    from lmd_operator.local.models import cache_directory
    from lmd_operator.local.parent import end_with_parent
    from lmd_operator.local.serve import Options, Stopped
    from lmd_operator.local.serve import serve as serve_locally

    if with_parent:
        end_with_parent()
    valid, problems = load([source])
    stop_on(problems)
    options = Options(
        port, models or cache_directory() / "models", named(claim or [], "--claim"), named(config_map or [], "--config-map"), ask, once
    )
    display = Display(Console(stderr=False))
    try:
        chosen = _select(valid, name)
        serve_locally(chosen, options, display, settled_shape(chosen, None, models, claim or []))
    except Stopped as signal:
        display.phase(f"stopped by {signal}; every process it started has ended")
    except LmdError as error:
        display.end_progress()
        fail(str(error))
    finally:
        display.end_progress()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def inspect(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="hf:ORGANISATION/NAME[@REVISION], s3://BUCKET/PREFIX or a directory.")],
) -> None:
    """Say what a model is, from its configuration and headers: no weights are fetched. Takes --endpoint, --region, --json and --outline."""
    done = subprocess.run([sys.executable, "-m", "lmd_worker", "inspect", source, *context.args], check=False)
    raise typer.Exit(done.returncode)


def _select(valid: Sequence[tuple[str, LargeModelDeployment]], name: str | None) -> LargeModelDeployment:
    chosen = [deployment for _, deployment in valid if name in (None, deployment.metadata.name)]
    if len(chosen) != 1:
        names = ", ".join(deployment.metadata.name for _, deployment in valid)
        fail(f"--name must choose one object; the file holds {names}")
    return chosen[0]


def _rendered(built: Desired, *, files: bool) -> dict[str, str]:
    if files:
        return dict(built.files.texts)
    contents = [document(resource) for resource in built.resources]
    return {f"{content['kind'].lower()}.yaml": yaml.dump(content, Dumper=_Literal, sort_keys=False) for content in contents}


def _merged(deployment: LargeModelDeployment, texts: Mapping[str, str], claims: Mapping[str, Path]) -> dict[str, str]:
    """Return what a pod makes of the object's archive, where the archive is at hand; where it is not, say how to see it."""
    from lmd_operator.local.archive import local_archive, merged_files, missing_claim

    if (claim := missing_claim(deployment, claims)) is not None:
        print(
            f"lmd: {deployment.metadata.name}: its archive is on the claim {claim}; --claim {claim}=DIRECTORY shows what a pod merges",
            file=sys.stderr,
        )
    archive = local_archive(deployment, claims)
    if archive is None:
        return {}
    try:
        return merged_files(texts, archive)
    except LmdError as error:
        fail(f"{deployment.metadata.name}: {error}")


def _write(directory: Path, texts: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (directory / name).write_text(text)
        print(directory / name)


class _Literal(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that a rendered file can be read inside a ConfigMap."""


def _text(dumper: yaml.SafeDumper, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Literal.add_representer(str, _text)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
