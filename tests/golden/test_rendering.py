"""What the worker reads, as one readable file per object; a change of behaviour is a change of these files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lmd_operator.api.parse import parse
from lmd_operator.resources.desired import desired
from lmd_operator.settings import Settings

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "crds" / "examples").glob("*.yaml"))
SCENARIOS = [
    ROOT / "tests" / "scenarios" / f"{name}.yaml"
    for name in (
        "one-rank-on-cpu",
        "template-with-everything",
        "tensor",
        "expert",
        "accelerate",
        "pipeline",
        "pipeline-tensor",
        "zero-inference",
        "zero-inference-on-disk",
    )
]


class Readable(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


Readable.add_representer(str, _text)


@pytest.mark.parametrize("manifest", [*EXAMPLES, *SCENARIOS], ids=lambda path: path.stem)
def test_the_files_of_an_object_are_those_reviewed(golden, manifest: Path) -> None:
    texts = desired(parse(yaml.safe_load(manifest.read_text())), Settings()).files.texts
    written = yaml.dump(dict(texts), Dumper=Readable, sort_keys=True)
    assert yaml.safe_load(written) == dict(texts), "the golden file says exactly what the worker reads"
    golden(f"rendering/{manifest.stem}.yaml", written)


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"llama-70b", "mistral-7b", "qwen3-moe", "smollm2"}
