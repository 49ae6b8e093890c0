"""The API server's audit log, read piece by piece: who asked what, and what was answered."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lmd_plane.client import Api, eventually

_READER = "lmd-plane-audit"


@dataclass(frozen=True)
class Entry:
    """One request. A watch is told when it begins, everything else when it is answered.

    `at` is when the server received it; the body is kept of a written status only.
    """

    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    user: str
    user_agent: str
    code: int
    path: str
    at: datetime
    body: dict[str, Any] = field(default_factory=dict)


class AuditLog:
    """The log of one API server; a mark is a place in it."""

    def __init__(self, path: Path, api: Api) -> None:
        self._path = path
        self._api = api

    def mark(self) -> int:
        """Return the place up to which everything answered so far is written."""
        sentinel = f"{_READER}/{uuid.uuid4().hex}"
        begin = self._path.stat().st_size if self._path.exists() else 0
        self._api.request("GET", "/version", user_agent=sentinel)

        def written() -> int | None:
            offset = begin
            for line in self._lines(begin):
                offset += len(line)
                if sentinel.encode() in line:
                    return offset
            return None

        return eventually(written, "line of the audit log")

    def since(self, mark: int, *, user_agent: str = "") -> list[Entry]:
        """Return what was asked after a mark, by clients whose user agent contains these words."""
        end = self.mark()
        offset, found, seen = mark, [], set()
        for line in self._lines(mark):
            offset += len(line)
            if offset > end:
                break
            event = json.loads(line)
            agent = event.get("userAgent", "")
            if event["auditID"] not in seen and user_agent in agent and not agent.startswith(_READER):
                seen.add(event["auditID"])
                found.append(_entry(event))
        return found

    def _lines(self, offset: int) -> Iterator[bytes]:
        """Yield the complete lines from an offset on."""
        with self._path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if line.endswith(b"\n"):
                    yield line


def _entry(event: dict[str, object]) -> Entry:
    reference, user, status = (_mapping(event, key) for key in ("objectRef", "user", "responseStatus"))
    return Entry(
        verb=str(event["verb"]),
        group=str(reference.get("apiGroup", "")),
        resource=str(reference.get("resource", "")),
        subresource=str(reference.get("subresource", "")),
        namespace=str(reference.get("namespace", "")),
        name=str(reference.get("name", "")),
        user=str(user.get("username", "")),
        user_agent=str(event.get("userAgent", "")),
        code=int(str(status.get("code", 0))),
        path=str(event.get("requestURI", "")),
        at=datetime.fromisoformat(str(event["requestReceivedTimestamp"])),
        body=_mapping(event, "requestObject"),
    )


def _mapping(event: dict[str, object], key: str) -> dict[str, object]:
    value = event.get(key)
    return value if isinstance(value, dict) else {}
