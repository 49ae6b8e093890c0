"""A hub for tests: speaks the protocol of the Hugging Face hub over a folder, on loopback if not told where, and misbehaves as told.

    python hub_server.py FOLDER [--token TOKEN] [--host ADDRESS]

FOLDER/<organisation>/<name>/ holds a repository. Large files are redirected to `/cdn/`, with a signature, as the hub does.
It prints its port, then counts. Faults are posted as JSON to `/faults`; what was asked is read at `/seen`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import secrets
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

LARGE_BYTES = 100_000
COMMIT = "c0ffee" * 6 + "abcd"


class Hub:
    """The repositories of one folder."""

    def __init__(self, folder: Path, token: str | None) -> None:
        self._folder = folder
        self._token = token
        self._signature = secrets.token_hex(8)
        self._faults: dict[str, Any] = {}
        self._digests: dict[tuple[str, int, int], str] = {}
        self.seen: list[dict[str, Any]] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/{repository:[^/]+/[^/]+}/revision/{revision}", self.listing)
        app.router.add_get("/{repository:[^/]+/[^/]+}/resolve/{revision}/{file:.+}", self.resolve)
        app.router.add_get("/cdn/{repository:[^/]+/[^/]+}/{file:.+}", self.cdn)
        app.router.add_post("/faults", self.set_faults)
        app.router.add_get("/seen", self.tell)
        return app

    async def set_faults(self, request: web.Request) -> web.Response:
        """Take {"fail": [[status, times, retry_after]], "cut_after": bytes, "cuts": times, "slow": seconds, "flip": file, ...}."""
        self._faults = await request.json()
        self.seen.clear()
        return web.Response()

    async def tell(self, request: web.Request) -> web.Response:
        return web.json_response(self.seen)

    async def listing(self, request: web.Request) -> web.Response:
        self._note(request)
        if (refused := self._failing()) is not None or (refused := self._refused(request)) is not None:
            return refused
        if "answer" in self._faults:
            return web.json_response(self._faults["answer"])
        folder = self._folder / request.match_info["repository"]
        if not folder.is_dir():
            return web.json_response({"error": "?"}, status=404, headers={"X-Error-Code": "RepoNotFound"})
        if request.match_info["revision"] not in ("main", COMMIT, self._faults.get("commit", COMMIT)):
            return web.json_response({"error": "?"}, status=404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [self._sibling(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        return web.json_response({"sha": self._faults.get("commit", COMMIT), "siblings": siblings + self._faults.get("more", [])})

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        if (refused := self._failing()) is not None or (refused := self._refused(request)) is not None:
            return refused
        repository, file = request.match_info["repository"], request.match_info["file"]
        path = self._folder / repository / file
        if not path.is_file():
            return web.json_response({}, status=404, headers={"X-Error-Code": "EntryNotFound"})
        if path.stat().st_size >= LARGE_BYTES:
            host = request.host.replace("127.0.0.1", "localhost")  # another host, as the hub's store is
            raise web.HTTPFound(f"http://{host}/cdn/{repository}/{file}?signature={self._signature}")
        return await self._bytes(request, path)

    async def cdn(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        if "Authorization" in request.headers and request.host.startswith("localhost"):  # elsewhere the store is the hub itself
            return web.Response(status=400, text="a token must not reach the store")
        if self._faults.pop("expire", False):
            self._signature = secrets.token_hex(8)
        if request.query.get("signature") != self._signature:
            return web.Response(status=403)
        if (refused := self._failing()) is not None:
            return refused
        return await self._bytes(request, self._folder / request.match_info["repository"] / request.match_info["file"])

    async def _bytes(self, request: web.Request, path: Path) -> web.StreamResponse:
        """Send a range; whole files at full speed by the kernel, unless a fault is asked for."""
        if self._faults.get("no_ranges"):
            return web.Response(body=path.read_bytes())
        if not ({"cut_after", "slow", "flip"} & self._faults.keys()):
            return web.FileResponse(path, chunk_size=2**20)
        size = path.stat().st_size
        asked = request.http_range
        start, stop = asked.start or 0, min(asked.stop or size, size)
        data = bytearray(path.read_bytes()[start:stop])
        if self._faults.get("flip") == path.name and start <= size // 2 < stop:
            data[size // 2 - start] ^= 1
        answer = web.StreamResponse(
            status=206, headers={"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Content-Length": str(len(data))}
        )
        await answer.prepare(request)
        cut_after = self._faults.get("cut_after", len(data)) if self._faults.get("cuts", 0) > 0 else len(data)
        for begin in range(0, min(len(data), cut_after), 65536):
            await answer.write(bytes(data[begin : min(begin + 65536, cut_after)]))
            await asyncio.sleep(self._faults.get("slow", 0))
        if cut_after < len(data):
            self._faults["cuts"] -= 1
            assert request.transport is not None
            request.transport.abort()
        return answer

    def _note(self, request: web.Request) -> None:
        self.seen.append({"path": request.path, "range": request.headers.get("Range"), "token": "Authorization" in request.headers})

    def _failing(self) -> web.Response | None:
        for entry in self._faults.get("fail", []):
            if entry[1] > 0:
                entry[1] -= 1
                headers = {"Retry-After": str(entry[2])} if len(entry) > 2 else {}
                return web.Response(status=entry[0], headers=headers)
        return None

    def _refused(self, request: web.Request) -> web.Response | None:
        if self._token is None or request.headers.get("Authorization") == f"Bearer {self._token}":
            return None
        given = "Authorization" in request.headers
        return web.json_response(
            {"error": "?"}, status=403 if given else 401, headers={"X-Error-Code": "GatedRepo" if given else "RepoNotFound"}
        )

    def _sibling(self, path: Path, folder: Path) -> dict[str, Any]:
        size = path.stat().st_size
        entry: dict[str, Any] = {"rfilename": str(path.relative_to(folder)), "size": size}
        if size >= LARGE_BYTES:
            return {**entry, "blobId": "0" * 40, "lfs": {"sha256": self._sha256(path), "size": size, "pointerSize": 134}}
        data = path.read_bytes()
        return {**entry, "blobId": hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()}

    def _sha256(self, path: Path) -> str:
        state = path.stat()
        key = (str(path), state.st_size, state.st_mtime_ns)
        if key not in self._digests:
            with path.open("rb") as file:
                self._digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._digests[key]


async def main() -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--token")
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    runner = web.AppRunner(Hub(options.folder, options.token).app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, options.host, 0)
    await site.start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
