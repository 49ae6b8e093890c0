"""How far fetches are, asked of the pods themselves: no token for the pod, no permission and no write for us.

A pod that cannot be reached, or answers something else, has told nothing; the status then says less and nothing else changes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

from lmd_operator.names import PORT_PROGRESS, PROGRESS_PATH
from lmd_operator.observed import PodState, Progress, progress
from lmd_operator.runtime.pods import PodClient

TIMEOUT_SECONDS = 2.0
MOST_PODS = 16
"""Asked for one object at one time; of a hundred replicas the first ones tell enough."""
LARGEST_ANSWER_BYTES = 4096


class ProgressReader:
    """Asks pods that fetch."""

    def __init__(self, port: int = PORT_PROGRESS) -> None:
        self._client = PodClient(port, PROGRESS_PATH, most_bytes=LARGEST_ANSWER_BYTES, seconds=TIMEOUT_SECONDS)

    async def read(self, pods: Iterable[PodState]) -> dict[str, Progress]:
        """Return what the pods that fetch say, by name."""
        asked = [pod for pod in pods if pod.fetch is not None and pod.fetch.is_running and pod.address][:MOST_PODS]
        answers = await asyncio.gather(*(self._ask(pod.address) for pod in asked))
        return {pod.name: answer for pod, answer in zip(asked, answers, strict=True) if answer is not None}

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, address: str) -> Progress | None:
        _, body = await self._client.get(address)
        try:
            return progress(json.loads(body or b""))
        except (ValueError, RecursionError):
            return None
