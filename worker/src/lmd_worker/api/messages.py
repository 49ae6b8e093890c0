"""A chat's messages as clients send them, for the routes that take any: roles, text in parts, tool calls and their results."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from lmd_worker.api import documents
from lmd_worker.api.documents import Document, wrong
from lmd_worker.api.prompts import Message

WHAT = "an object with role and content"
CHAT_ROLES = ("system", "developer", "user", "assistant", "tool")


def read(value: Any, roles: Collection[str]) -> tuple[Message, ...]:
    """Return messages of role and text, and nothing else; raises `BadRequestError`."""
    return tuple(_plain(item, f"messages[{index}]", roles) for index, item in enumerate(_all(value)))


def read_chat(value: Any) -> tuple[Message, ...]:
    """Return messages with everything that OpenAI's have; raises `BadRequestError` for what is no text."""
    return tuple(_rich(item, f"messages[{index}]") for index, item in enumerate(_all(value)))


def _all(value: Any) -> list[Any]:
    return documents.items(value, "messages", "a list of messages")


def _plain(value: Any, where: str, roles: Collection[str]) -> Message:
    message = documents.members(value, where, WHAT)
    documents.refuse_unknown(message, ("role", "content"), f"{where}.")
    for name in ("role", "content"):
        if name not in message:
            raise wrong(f"{where}.{name}", "missing.")
    return Message(_role(message, where, roles), documents.text(message["content"], f"{where}.content"))


def _rich(value: Any, where: str) -> Message:
    message = {name: member for name, member in documents.members(value, where, WHAT).items() if member is not None}
    role = _role(message, where, CHAT_ROLES)
    known = {"assistant": ("tool_calls", "refusal"), "tool": ("tool_call_id",)}.get(role, ())
    documents.refuse_unknown(message, ("role", "content", "name", *known), f"{where}.")
    more: dict[str, Any] = {
        name: documents.text(message[name], f"{where}.{name}") for name in ("name", "tool_call_id", "refusal") if name in message
    }
    if "tool_calls" in message:
        more["tool_calls"] = [
            _tool_call(item, f"{where}.tool_calls[{index}]")
            for index, item in enumerate(documents.items(message["tool_calls"], f"{where}.tool_calls", "a list of tool calls"))
        ]
    if "content" not in message and not more.keys() & {"tool_calls", "refusal"}:
        raise wrong(f"{where}.content", "missing.")
    content = _content(message.get("content", more.pop("refusal", None)), f"{where}.content")
    return Message("system" if role == "developer" else role, content, more)


def _role(message: Document, where: str, roles: Collection[str]) -> str:
    if "role" not in message:
        raise wrong(f"{where}.role", "missing.")
    role = documents.text(message["role"], f"{where}.role")
    if role not in roles:
        raise wrong(f"{where}.role", f"must be one of {', '.join(roles)}, got {documents.shown(role)}.")
    return role


def _content(value: Any, where: str) -> str:
    """Return text, given as it is or in parts; parts are lines, as in vLLM. Nothing is the empty text, which every template takes."""
    if value is None or isinstance(value, str):
        return documents.text(value or "", where)
    parts = documents.items(value, where, "a string or a list of text parts")
    return "\n".join(_part(part, f"{where}[{index}]") for index, part in enumerate(parts))


def _part(value: Any, where: str) -> str:
    part = documents.members(value, where, 'an object such as {"type": "text", "text": "..."}')
    kind = part.get("type")
    if kind != "text":
        shown = documents.shown(kind) if isinstance(kind, str) else documents.kind(kind)
        raise wrong(f"{where}.type", f"this server answers text only; parts must be of type text, got {shown}.")
    documents.refuse_unknown(part, ("type", "text"), f"{where}.")
    return documents.text(part.get("text"), f"{where}.text")


def _tool_call(value: Any, where: str) -> Mapping[str, Any]:
    """Return a call as templates want it, its arguments an object; OpenAI's clients send them as a string that holds one."""
    call = documents.members(value, where, "an object with id, type and function")
    documents.refuse_unknown(call, ("id", "type", "function"), f"{where}.")
    if call.get("type", "function") != "function":
        raise wrong(f"{where}.type", "must be function.")
    function = documents.members(call.get("function"), f"{where}.function", "an object with name and arguments")
    documents.refuse_unknown(function, ("name", "arguments"), f"{where}.function.")
    name = documents.text(function.get("name"), f"{where}.function.name")
    written = documents.text(function.get("arguments", "{}"), f"{where}.function.arguments")
    try:
        arguments = json.loads(written or "{}")
    except (ValueError, RecursionError) as error:
        raise wrong(f"{where}.function.arguments", "must be a string that holds a JSON object.") from error
    if not isinstance(arguments, dict):
        raise wrong(f"{where}.function.arguments", "must be a string that holds a JSON object.")
    documents.portable(arguments, f"{where}.function.arguments")
    identifier = {"id": documents.text(call["id"], f"{where}.id")} if "id" in call else {}
    return {**identifier, "type": "function", "function": {"name": name, "arguments": arguments}}
