"""Requests to the API server: every one counted, timed out and turned into data or an `ApiError`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
from pydantic_core import from_json, to_json

from lmd_operator.cluster.connection import Connection
from lmd_operator.cluster.errors import ApiError
from lmd_operator.cluster.kinds import LEASE, Kind
from lmd_operator.names import FIELD_MANAGER

Document = dict[str, Any]
Count = Callable[[str, str, int], None]
"""Told verb, resource and status code of every finished request."""

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
METADATA_FIRST = b'{"metadata":{'
NOBODYS_VERSION = b"1"
"""The resource version of an empty store; the first object has 2."""
_CHANGE = re.compile(rb'\{"type":"(?:ADDED|MODIFIED)".*?"resourceVersion":"([0-9]+)"')
"""News of an object that is there. The first version in it is the object's own; in a string the quotation marks would be escaped."""
LIST_CHUNK = 500
WATCH_TIMEOUT_SECONDS = 300
WATCH_SILENCE_SECONDS = 150.0
"""Bookmarks come every minute; a watch silent for longer than this is dead, however open its connection looks."""


class Api:
    """One API server, spoken to over a session for requests and, as watches keep their connections, another one for those."""

    def __init__(
        self,
        connection: Connection,
        session: aiohttp.ClientSession,
        count: Count,
        may_write: Callable[[], bool] = lambda: True,
        watches: aiohttp.ClientSession | None = None,
    ) -> None:
        """`watches` is the session of watches, by default the same.

        `may_write` is asked before each write but those of the lease: a process that was paused must not go on as if it led.
        """
        self._connection = connection
        self._session = session
        self._watches = watches or session
        self._count = count
        self._may_write = may_write

    async def get(self, kind: Kind, namespace: str, name: str) -> Document | None:
        """Return an object, or None when there is none."""
        try:
            return await self._request("get", kind, "GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def apply(self, kind: Kind, document: Document, *, manager: str = FIELD_MANAGER, subresource: str | None = None) -> Document:
        """Server-side apply a whole document with force: fields we send are ours, others stay. Return what is stored.

        Force is right for a controller: it is the one source of its fields, and a conflict would only be retried.
        """
        metadata = document["metadata"]
        content = to_json(document)
        return await self.apply_content(kind, metadata["namespace"], metadata["name"], content, manager=manager, subresource=subresource)

    async def apply_content(
        self, kind: Kind, namespace: str, name: str, content: bytes, *, manager: str = FIELD_MANAGER, subresource: str | None = None
    ) -> Document:
        """Do the same with a document that is JSON already."""
        parameters = {"fieldManager": manager, "force": "true"}
        return await self._request("apply", kind, "PATCH", kind.path(namespace, name, subresource), parameters, content, APPLY)

    async def apply_new(self, kind: Kind, namespace: str, name: str, content: bytes) -> Document:
        """Apply a document if no object has its name, in one request. Raises `ApiError` 409 when one has.

        The text must begin with the document's metadata. The server compares a resource version with that of the object it
        finds, and with nothing where it finds none (k8s.io/apiserver 0.36, registry/generic/registry/store.go, `Update`).
        """
        if not content.startswith(METADATA_FIRST):
            raise ValueError(f"{kind.name} {name}: the text to apply does not begin with its metadata")
        versioned = b'%b"resourceVersion":"%b",%b' % (METADATA_FIRST, NOBODYS_VERSION, content[len(METADATA_FIRST) :])
        return await self.apply_content(kind, namespace, name, versioned)

    async def merge(self, kind: Kind, namespace: str, name: str, change: Document) -> Document:
        """Merge a change into an object that exists. Raises `ApiError` 404 when it does not."""
        return await self._request("patch", kind, "PATCH", kind.path(namespace, name), body=change, content_type=MERGE)

    async def create(self, kind: Kind, document: Document) -> Document:
        """Create an object. Raises `ApiError` 409 when it exists."""
        return await self._request("create", kind, "POST", kind.path(document["metadata"]["namespace"]), body=document)

    async def replace(self, kind: Kind, document: Document) -> Document:
        """Replace an object whose resourceVersion is still the one in the document. Raises `ApiError` 409 otherwise."""
        metadata = document["metadata"]
        return await self._request("update", kind, "PUT", kind.path(metadata["namespace"], metadata["name"]), body=document)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str, resource_version: str) -> None:
        """Delete exactly the object that was seen: another one of the same name, or a changed one, stays. Gone is fine."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid, "resourceVersion": resource_version},
            "propagationPolicy": "Background",
        }
        try:
            await self._request("delete", kind, "DELETE", kind.path(namespace, name), body=options)
        except ApiError as error:
            if error.status != 404:
                raise

    async def list(self, kind: Kind, namespace: str | None, selector: str = "", *, name: str = "") -> tuple[list[Document], str]:
        """Return all objects, or those of one name, read in chunks, and the resource version to watch from."""
        items: list[Document] = []
        parameters = {
            "limit": str(LIST_CHUNK),
            **({"labelSelector": selector} if selector else {}),
            **({"fieldSelector": f"metadata.name={name}"} if name else {}),
        }
        while True:
            page = await self._request("list", kind, "GET", kind.path(namespace), parameters)
            items += page.get("items") or []
            metadata = page.get("metadata", {})
            if not metadata.get("continue"):
                return items, str(metadata.get("resourceVersion", ""))
            parameters = {**parameters, "continue": metadata["continue"]}

    async def watch(
        self, kind: Kind, namespace: str | None, selector: str, since: str, is_echo: Callable[[int], bool] = lambda _: False
    ) -> AsyncIterator[tuple[str, Document]]:
        """Yield (type, object) until the server ends the watch; bookmarks too, but no change to a version that is an echo.

        Raises `ApiError` when the server reports an error, also inside the stream, or is silent for too long.
        """
        doing = f"watching {kind.plural}"
        parameters = {
            "watch": "true",
            "resourceVersion": since,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_TIMEOUT_SECONDS),
            **({"labelSelector": selector} if selector else {}),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=WATCH_SILENCE_SECONDS)
        try:
            async with self._watches.get(
                kind.path(namespace), params=parameters, timeout=timeout, headers=self._connection.headers()
            ) as response:
                self._count("watch", kind.plural, response.status)
                if response.status != 200:
                    raise ApiError.from_answer(doing, response.status, await response.read(), response.headers.get("Retry-After"))
                async for line in _lines(response.content):
                    version = changed_version(line)
                    if version is not None and is_echo(version):
                        continue
                    event = from_json(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(doing, int(status.get("code", 500)), status.get("message", ""), status.get("reason", ""))
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(doing, 0, _words(error)) from error

    async def _request(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        body: Document | bytes | None = None,
        content_type: str = "application/json",
    ) -> Document:
        doing = f"{verb} of {path}"
        data = None
        if method != "GET" and kind is not LEASE and not self._may_write():
            raise ApiError(doing, 0, "this process is not the leader")
        try:
            headers = self._connection.headers()
            if body is not None:
                data = body if isinstance(body, bytes) else to_json(body)
                headers["Content-Type"] = content_type
            async with self._session.request(method, path, params=parameters, data=data, headers=headers) as response:
                content = await response.read()
                self._count(verb, kind.plural, response.status)
                if response.status >= 300:
                    raise ApiError.from_answer(doing, response.status, content, response.headers.get("Retry-After"))
                answer: Document = from_json(content)
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._count(verb, kind.plural, 0)
            raise ApiError(doing, 0, _words(error)) from error


def changed_version(line: bytes) -> int | None:
    """Return the version of an object that an event tells of, None for bookmarks, errors and what is gone.

    The event is not parsed: that is most of what it costs.
    """
    change = _CHANGE.match(line)
    return None if change is None else int(change[1])


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole lines of any length: one event may be longer than the stream's own line limit."""
    buffer = bytearray()
    while chunk := await stream.readany():
        buffer += chunk
        *lines, rest = buffer.split(b"\n")
        buffer = bytearray(rest)
        for line in lines:
            if line:
                yield bytes(line)
        await asyncio.sleep(0)  # a flood of events must not starve the probes
