"""Tools a model may call: what clients offer, and calls read out of an answer's text.

Only one way of writing calls is understood, Hermes': `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, which many families
use (Qwen 2.5, Hermes, SmolLM3). What is not such a call, or not well formed, stays text.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmd_worker.api import documents
from lmd_worker.api.documents import Document, wrong
from lmd_worker.assembly import StopStrings

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MOST_TOOLS = 128


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call in an answer; `arguments` is JSON text, as OpenAI has it."""

    name: str
    arguments: str
    identifier: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex}")


def definitions(document: Document) -> tuple[Mapping[str, Any], ...]:
    """Return `tools` as templates take them, none where `tool_choice` is none; raises `BadRequestError`."""
    choice = document.get("tool_choice", "auto")
    offered = document.get("tools", [])
    if not isinstance(offered, list):
        raise wrong("tools", f"must be a list of tools, got {documents.kind(offered)}.")
    if len(offered) > MOST_TOOLS:
        raise wrong("tools", f"at most {MOST_TOOLS}, got {len(offered)}.")
    tools = tuple(_definition(tool, f"tools[{index}]") for index, tool in enumerate(offered))
    if choice not in ("auto", "none"):
        raise wrong("tool_choice", "must be auto or none; a call cannot be forced here.")
    if "tool_choice" in document and not tools and choice == "auto":
        raise wrong("tool_choice", "only together with tools.")
    return tools if choice == "auto" else ()


class ToolCallReader:
    """Takes one answer's text as it comes and parts it into text and calls; holds back what may become a call."""

    def __init__(self) -> None:
        self._outside = StopStrings([OPEN])
        self._inside: StopStrings | None = None
        self._call = ""

    def feed(self, text: str) -> list[str | ToolCall]:
        """Take more text and return what is certain now, in order."""
        found: list[str | ToolCall] = []
        for character in text:
            self._push(character, found)
        return _joined(found)

    def finish(self) -> list[str | ToolCall]:
        """Return what was held back, as no more text follows: half a call is text."""
        if self._inside is None:
            return _joined([self._outside.release()])
        return [OPEN + self._call + self._inside.release()]

    def _push(self, character: str, found: list[str | ToolCall]) -> None:
        if self._inside is None:
            found.append(self._outside.pass_on(character))
            if self._outside.stopped:
                self._inside, self._call = StopStrings([CLOSE]), ""
            return
        self._call += self._inside.pass_on(character)
        if self._inside.stopped:
            found.append(_parsed(self._call) or OPEN + self._call + CLOSE)
            self._outside, self._inside = StopStrings([OPEN]), None


def _joined(found: list[str | ToolCall]) -> list[str | ToolCall]:
    """Return the same with neighbouring texts as one and empty ones left out."""
    joined: list[str | ToolCall] = []
    for item in found:
        if isinstance(item, str) and joined and isinstance(joined[-1], str):
            joined[-1] += item
        elif item:
            joined.append(item)
    return joined


def _parsed(text: str) -> ToolCall | None:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not isinstance(call.get("arguments", {}), dict):
        return None
    return ToolCall(call["name"], json.dumps(call.get("arguments", {}), ensure_ascii=False))


def _definition(value: Any, where: str) -> Mapping[str, Any]:
    tool = documents.members(value, where, "an object with type and function")
    if tool.get("type") != "function":
        raise wrong(f"{where}.type", "must be function; other tools are not supported.")
    documents.refuse_unknown(tool, ("type", "function"), f"{where}.")
    function = documents.members(tool.get("function"), f"{where}.function", "an object with a name")
    documents.refuse_unknown(function, ("name", "description", "parameters", "strict"), f"{where}.function.")
    if not documents.text(function.get("name"), f"{where}.function.name"):
        raise wrong(f"{where}.function.name", "must not be empty.")
    if function.get("strict"):
        raise wrong(f"{where}.function.strict", "arguments are not constrained to the schema here; leave it out.")
    documents.portable(function, f"{where}.function")
    known = {name: member for name, member in function.items() if name != "strict" and member is not None}
    if "description" in known:
        documents.text(known["description"], f"{where}.function.description")
    if "parameters" in known:
        documents.members(known["parameters"], f"{where}.function.parameters", "a JSON schema")
    return {"type": "function", "function": known}
