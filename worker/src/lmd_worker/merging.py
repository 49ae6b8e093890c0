"""`lmd-worker merge ARCHIVE`: what a pod makes of an archive and of the rendered files, and who wins where; for `lmd render`.

Standard input holds the rendered files by name as JSON, standard output the merged ones, and a table. The table is read off
the result, not off the rules.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmd_worker import archives
from lmd_worker.errors import SettingsError

TABLE = "who-wins.txt"
_FILES = {"MANIFEST.json": archives.MANIFEST, "model-config.yaml": archives.MODEL_CONFIG, "ds-config.json": archives.DS_CONFIG}
"""Name among the rendered files -> place in a model directory."""
_ABSENT = object()
_LONGEST = 60


def main(arguments: Sequence[str], given: str) -> int:
    """Run the command line: 0 when they were merged, 1 with a sentence when not, 2 for a wrong command line."""
    if len(arguments) != 1:
        print("usage: lmd-worker merge ARCHIVE", file=sys.stderr)
        return 2
    try:
        print(json.dumps(merged(json.loads(given), Path(arguments[0]))))
    except SettingsError as error:
        print(f"lmd: {error}", file=sys.stderr)
        return 1
    return 0


def merged(texts: Mapping[str, str], archive: Path) -> dict[str, str]:
    """Return the merged files and the table. Raises `SettingsError` as the pod would refuse the archive."""
    with tempfile.TemporaryDirectory() as scratch:
        rendered, target = Path(scratch, "rendered"), Path(scratch, "target")
        for name, place in _FILES.items():
            path = rendered / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[name])
        target.mkdir()
        archives.take(archive, target)
        config = archives.their_config(target)
        theirs = {"model-config.yaml": config, "ds-config.json": archives.their_deepspeed(target, config)}
        archives.overlay(rendered, yaml.safe_load(texts["model-config.yaml"]), target)
        result = {name: (target / place).read_text() for name, place in _FILES.items()}
    rows = [row for name, own in theirs.items() for row in compared(name, own, _read(texts[name]), _read(result[name]))]
    return {**result, TABLE: _table(rows)}


def compared(
    file: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], result: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str, str, str]]:
    """Yield file, key, who wins and a remark, for every key of either; keys of sections that both have are told one by one."""
    for key in dict.fromkeys([*ours, *theirs]):
        own, mine, found = theirs.get(key, _ABSENT), ours.get(key, _ABSENT), result.get(key, _ABSENT)
        name = f"{prefix}{key}"
        if isinstance(found, dict) and isinstance(own, dict) and isinstance(mine, dict):
            yield from compared(file, own, mine, found, f"{name}.")
        elif found is _ABSENT:
            yield file, name, "operator", f"left out; the archive has {_short(own)}"
        elif own == mine:
            yield file, name, "both", _short(found)
        elif found == own:
            yield file, name, "archive", _short(found) if mine is _ABSENT else f"{_short(found)}; the operator has {_short(mine)}"
        else:
            yield file, name, "operator", _short(found) if own is _ABSENT else f"{_short(found)}; the archive has {_short(own)}"


def _read(text: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _table(rows: Sequence[tuple[str, str, str, str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "".join("  ".join([*(row[column].ljust(widths[column]) for column in range(3)), row[3]]) + "\n" for row in rows)
