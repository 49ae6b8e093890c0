"""Manifests as people write them: files, standard input, one or several YAML documents."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from lmd_operator.errors import UnreadableError

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document and where it stands, for messages: `file.yaml` or `file.yaml#2`."""

    origin: str
    content: object


def read(sources: list[str]) -> Iterator[Document]:
    """Yield every document that is not empty. Raises `UnreadableError` naming file and line."""
    for source in sources:
        origin = "standard input" if source == STDIN else source
        try:
            text = sys.stdin.read() if source == STDIN else Path(source).read_text(encoding="utf-8")
            contents = [content for content in yaml.load_all(text, Loader=_StrictLoader) if content is not None]
        except OSError as error:
            raise UnreadableError(f"{origin}: {error.strerror}: name an existing file, or - for standard input") from error
        except UnicodeDecodeError as error:
            raise UnreadableError(f"{origin}: it is not UTF-8 text: write the manifest as UTF-8") from error
        except yaml.MarkedYAMLError as error:
            line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UnreadableError(f"{origin}:{line} {error.problem}: the text is no valid YAML") from error
        except yaml.YAMLError as error:
            raise UnreadableError(f"{origin}: {error}: the text is no valid YAML") from error
        if not contents:
            raise UnreadableError(f"{origin}: it holds no document: write a LargeModelDeployment")
        for number, content in enumerate(contents, start=1):
            yield Document(origin if len(contents) == 1 else f"{origin}#{number}", content)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, which YAML parsers usually resolve by taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                raise yaml.MarkedYAMLError(problem="a mapping key must be text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key} is given twice in one mapping", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)
