"""`response_format`: which JSON schema an answer keeps to, if any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmd_worker.api import documents
from lmd_worker.api.documents import Document, wrong

KINDS = ("text", "json_object", "json_schema")
WHAT = "an object with a type"


def answer_schema(document: Document) -> Mapping[str, Any] | None:
    """Return the schema, None for free text; raises `BadRequestError`."""
    if "response_format" not in document:
        return None
    given = documents.members(document["response_format"], "response_format", WHAT)
    kind = given.get("type")
    if kind not in KINDS:
        raise wrong("response_format.type", f"must be one of {', '.join(KINDS)}.")
    documents.refuse_unknown(given, ("type", *(("json_schema",) if kind == "json_schema" else ())), "response_format.")
    if kind == "json_schema":
        return _schema(given.get("json_schema"))
    return None if kind == "text" else {"type": "object"}


def _schema(value: Any) -> Mapping[str, Any]:
    """Return the schema of OpenAI's wrapping; it is kept to whether or not `strict` is set."""
    where = "response_format.json_schema"
    given = documents.members(value, where, "an object with name and schema")
    documents.refuse_unknown(given, ("name", "description", "schema", "strict"), f"{where}.")
    documents.text(given.get("name"), f"{where}.name")
    schema = documents.members(given.get("schema", {"type": "object"}), f"{where}.schema", "a JSON schema as an object")
    documents.portable(schema, f"{where}.schema")
    return schema
