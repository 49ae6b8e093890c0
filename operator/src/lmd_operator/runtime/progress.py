"""How far fetches are, asked of the pods themselves: no token for the pod, no permission and no write for us.

A pod that cannot be reached, or answers something else, has told nothing; the status then says less and nothing else changes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import aiohttp

from lmd_operator.names import PORT_PROGRESS, PROGRESS_PATH
from lmd_operator.observed import PodState, Progress, progress

TIMEOUT_SECONDS = 2.0
MOST_PODS = 16
"""Asked for one object at one time; of a hundred replicas the first ones tell enough."""
LARGEST_ANSWER_BYTES = 4096


class ProgressReader:
    """Asks pods. Has a session of its own: the one for the API server would give them our token."""

    def __init__(self, port: int = PORT_PROGRESS) -> None:
        self._port = port
        self._session: aiohttp.ClientSession | None = None

    async def read(self, pods: Iterable[PodState]) -> dict[str, Progress]:
        """Return what the pods that fetch say, by name."""
        asked = [pod for pod in pods if pod.fetch is not None and pod.fetch.is_running and pod.address][:MOST_PODS]
        answers = await asyncio.gather(*(self._ask(pod.address) for pod in asked))
        return {pod.name: answer for pod, answer in zip(asked, answers, strict=True) if answer is not None}

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, address: str) -> Progress | None:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS))
        host = f"[{address}]" if ":" in address else address
        try:
            async with self._session.get(f"http://{host}:{self._port}{PROGRESS_PATH}", allow_redirects=False) as answer:
                return progress(json.loads(await answer.content.read(LARGEST_ANSWER_BYTES)))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError):
            return None
