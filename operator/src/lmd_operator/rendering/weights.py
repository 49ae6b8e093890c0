"""object -> what `lmd-worker fetch` is told, and where the model then lies. Pure; holds no secret.

A source that is fetched gets a directory named after it, so that a pod, a shared claim and `lmd serve` find what is there.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any
from urllib.parse import urlsplit

from lmd_operator.api.model import HuggingFaceSource, S3Source
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.rendering.layout import Layout

SOURCE = "source.json"
"""Its file name, in the ConfigMap and beside config.properties."""
PUBLIC_HUB = "https://huggingface.co"
HTTPS_PORT = 443


def remote_source(deployment: LargeModelDeployment) -> HuggingFaceSource | S3Source | None:
    """Return the source that has to be fetched, or None when the model is on a volume or in the image."""
    source = deployment.spec.model.source
    return source.hugging_face or source.s3


def needs_fetch(deployment: LargeModelDeployment) -> bool:
    """Whether a fetch runs before the worker: to bring the model, or only to verify it where it is."""
    return remote_source(deployment) is not None or deployment.spec.model.verify is not None


def model_path(deployment: LargeModelDeployment, layout: Layout) -> str:
    """Return the absolute directory of the weights as the worker sees it."""
    source = deployment.spec.model.source
    if source.path is not None:
        return layout.model_path(source.path.path)
    if source.persistent_volume_claim is not None:
        return f"{layout.models}/{source.persistent_volume_claim.path}".rstrip("/")
    if (remote := remote_source(deployment)) is not None:
        return f"{layout.models}/{directory(remote)}"
    if source.image is not None:
        return f"{layout.models}{source.image.path}".rstrip("/")
    raise TypeError("spec.model.source is not available in this version; parse the object first")


def directory(source: HuggingFaceSource | S3Source) -> str:
    """Return the name of a source's directory: readable, and different for different sources."""
    told = _told(source)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", source.repository if isinstance(source, HuggingFaceSource) else source.uri[5:]).strip("-.")
    return f"{readable[-80:].lstrip('-.')}-{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]}"


def order(deployment: LargeModelDeployment, layout: Layout) -> dict[str, Any]:
    """Return the content of source.json, as `lmd_worker.weights.source.Order` reads it."""
    told = {**_order(deployment, layout), "refresh": deployment.spec.model.cache is None}
    return told if deployment.spec.model.cache is None else {**told, "bring": False}


def inspect_order(deployment: LargeModelDeployment, layout: Layout) -> dict[str, Any]:
    """Return what the Job is told that says what the model is."""
    return {**_order(deployment, layout), "sha256": {}}


def cache_order(deployment: LargeModelDeployment, layout: Layout) -> dict[str, Any]:
    """Return what the Job is told that fills the cache, and the one that gives up what is in it."""
    user = f"{deployment.metadata.namespace}.{deployment.metadata.name}"
    return {**_order(deployment, layout), "refresh": False, "user": user}


def ports(deployment: LargeModelDeployment) -> list[int]:
    """Return the TCP ports that a fetch must reach: the endpoint's, and those of the proxies in the template's environment."""
    remote = remote_source(deployment)
    if remote is None:
        return []
    proxies = [
        variable.value for variable in deployment.spec.template.env if variable.name.lower() in ("http_proxy", "https_proxy", "all_proxy")
    ]
    return sorted({HTTPS_PORT, *(_port(address) for address in (remote.endpoint, *proxies) if address)})


def _order(deployment: LargeModelDeployment, layout: Layout) -> dict[str, Any]:
    remote = remote_source(deployment)
    into = model_path(deployment, layout)
    verify = deployment.spec.model.verify
    return {
        "source": {"kind": "directory", "path": into} if remote is None else _told(remote),
        "into": into,
        "sha256": dict(verify.sha256) if verify else {},
        "remote_code": deployment.spec.model.trust_remote_code,
    }


def _told(source: HuggingFaceSource | S3Source) -> dict[str, Any]:
    if isinstance(source, HuggingFaceSource):
        return {
            "kind": "huggingFace",
            "repository": source.repository,
            "revision": source.revision,
            "endpoint": source.endpoint or PUBLIC_HUB,
        }
    return {"kind": "s3", "uri": source.uri, "endpoint": source.endpoint, "region": source.region}


def _port(address: str) -> int:
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        return parts.port or (80 if parts.scheme == "http" else HTTPS_PORT)
    except ValueError:
        return HTTPS_PORT
