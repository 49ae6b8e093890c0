"""Reading a live cluster for a command: one connection, a few reads, no writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.cluster.api import Api
from lmd_operator.cluster.connection import connect
from lmd_operator.cluster.kinds import BY_NAME, LARGE_MODEL_DEPLOYMENT
from lmd_operator.cluster.matching import covers
from lmd_operator.names import CONTAINER
from lmd_operator.planning.shapes import ModelShape
from lmd_operator.resources.desired import desired, document
from lmd_operator.settings import Settings
from lmd_operator.version import VERSION

Document = dict[str, Any]
Answer = TypeVar("Answer")


def read_object(namespace: str, name: str) -> Document | None:
    """Return one of our objects as it is in the cluster. Raises `LmdError` when the cluster cannot be asked."""
    return _ask(lambda api: api.get(LARGE_MODEL_DEPLOYMENT, namespace, name))


def differences(deployment: LargeModelDeployment, shape: ModelShape | None) -> str:
    """Return, a line a child, what applying an object would change. Raises `LmdError` when the cluster cannot be asked."""
    return _ask(lambda api: _differences(api, deployment, shape))


def changes(live: Any, sent: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of what we would send and the live object does not have."""
    if isinstance(live, dict) and isinstance(sent, dict):
        for key, value in sent.items():
            yield from changes(live.get(key), value, f"{path}.{key}" if path else key)
    elif isinstance(live, list) and isinstance(sent, list) and len(live) == len(sent):
        for index, (had, wanted) in enumerate(zip(live, sent, strict=True)):
            yield from changes(had, wanted, f"{path}[{index}]")
    elif not covers(live, sent):
        yield path


async def _differences(api: Api, deployment: LargeModelDeployment, shape: ModelShape | None) -> str:
    namespace, name = deployment.metadata.namespace, deployment.metadata.name
    parent = await api.get(LARGE_MODEL_DEPLOYMENT, namespace, name)
    identity = {"uid": parent["metadata"]["uid"]} if parent is not None else {}
    owner = deployment.model_copy(update={"metadata": deployment.metadata.model_copy(update=identity)})
    lines = []
    for resource in desired(owner, await _settings(api, namespace, name), shape=shape).resources:
        sent = document(resource)
        live = await api.get(BY_NAME[sent["kind"]], namespace, sent["metadata"]["name"])
        lines.append(f"  {_told(sent, live)}\n")
    return "in the cluster\n" + "".join(lines)


async def _settings(api: Api, namespace: str, name: str) -> Settings:
    """Return settings with the worker image that runs, as the installation chose it."""
    live = await api.get(BY_NAME["Deployment"], namespace, name)
    containers = live["spec"]["template"]["spec"]["containers"] if live is not None else []
    image = next((container["image"] for container in containers if container["name"] == CONTAINER), None)
    return Settings() if image is None else replace(Settings(), worker_image=image)


def _told(sent: Document, live: Document | None) -> str:
    what = f"{sent['kind']} {sent['metadata']['name']}"
    if live is None:
        return f"{what} is created"
    found = list(changes(live, sent))
    return f"{what} changes in {', '.join(found)}" if found else f"{what} stays as it is"


def _ask(question: Callable[[Api], Awaitable[Answer]]) -> Answer:
    async def asked() -> Answer:
        connection = connect()
        async with connection.session(f"lmd/{VERSION}") as session:
            return await question(Api(connection, session, lambda verb, resource, status: None, lambda: False))

    return asyncio.run(asked())
