"""Asking a pod something over HTTP, believing nothing: no token, no proxy, no cookies, no way elsewhere, and a bounded answer."""

from __future__ import annotations

import aiohttp


class PodClient:
    """GETs from pods. Has a session of its own: the one for the API server would give them our token."""

    def __init__(self, port: int, path: str, *, most_bytes: int, seconds: float, connect_seconds: float | None = None) -> None:
        """`seconds` is how long a whole answer may take, `connect_seconds` how long a connection."""
        self._port = port
        self._path = path
        self._most_bytes = most_bytes
        self._timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=connect_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def get(self, address: str) -> tuple[int, bytes | None]:
        """Return status and body; 0 when nobody answers, None for a body that is too large."""
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._opened().get(f"http://{host}:{self._port}{self._path}", allow_redirects=False) as answer:
                body = b""
                async for piece in answer.content.iter_chunked(self._most_bytes):
                    body += piece
                    if len(body) > self._most_bytes:
                        return answer.status, None
                return answer.status, body
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return 0, None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        """Return the session: nothing unpacked, no connection kept; how many there are is the caller's affair."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._session
