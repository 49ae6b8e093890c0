"""Kubernetes Events for transitions. An Event that cannot be written is passed over: it must not fail a reconcile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lmd_operator.cluster.api import Api
from lmd_operator.cluster.errors import ApiError
from lmd_operator.cluster.kinds import EVENT
from lmd_operator.cluster.parents import Parent
from lmd_operator.names import FIELD_MANAGER
from lmd_operator.transitions import Aggregator, Told, event_document

log = logging.getLogger(__name__)


class Announcer:
    """Tells people what changed, each thing once; repetitions count up one Event's series."""

    def __init__(self, api: Api, instance: str, now: Callable[[], str]) -> None:
        self._api = api
        self._instance = instance
        self._now = now
        self._aggregator = Aggregator()

    async def tell(self, parent: Parent, news: list[Told]) -> None:
        """Write one Event for each piece of news."""
        for told in news:
            now = self._now()
            occurrence = self._aggregator.count(parent.uid, told, now)
            document = event_document(parent, told, now, FIELD_MANAGER, self._instance, occurrence)
            try:
                await self._write(document)
            except ApiError as error:
                log.warning("An event could not be written: %s", error, extra={"object": f"{parent.namespace}/{parent.name}"})

    async def _write(self, document: dict[str, Any]) -> None:
        """Create the Event, or count up the one that is still there: Events live an hour."""
        metadata = document["metadata"]
        if "series" in document:
            try:
                await self._api.merge(EVENT, metadata["namespace"], metadata["name"], {"series": document["series"]})
            except ApiError as error:
                if error.status != 404:
                    raise
            else:
                return
        await self._api.create(EVENT, document)
