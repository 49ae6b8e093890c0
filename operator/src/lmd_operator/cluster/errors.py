"""Answers of the API server that are not success, as the rest of the program wants to know them."""

from __future__ import annotations

import json
from typing import Any

from lmd_operator.errors import LmdError


class ApiError(LmdError):
    """The API server said no. `status` is the HTTP code, 0 when it could not be reached at all.

    `retry_after_seconds` is what the server asked for, or None.
    """

    def __init__(self, doing: str, status: int, message: str, reason: str = "", retry_after_seconds: float | None = None) -> None:
        self.status = status
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        self.detail = message
        super().__init__(f"while {doing}: {message or reason or status}")

    @classmethod
    def from_answer(cls, doing: str, status: int, body: bytes, retry_after: str | None) -> ApiError:
        """Read a Kubernetes Status object, or whatever else a proxy in between said."""
        try:
            content: Any = json.loads(body)
        except ValueError:
            content = {"message": body[:200].decode(errors="replace")}
        if not isinstance(content, dict):
            content = {}
        delay = float(retry_after) if retry_after and retry_after.isdecimal() else None
        return cls(doing, status, str(content.get("message", "")), str(content.get("reason", "")), delay)

    @property
    def is_gone(self) -> bool:
        """Whether a resource version is too old to continue from."""
        return self.status == 410 or self.reason in ("Expired", "Gone")
