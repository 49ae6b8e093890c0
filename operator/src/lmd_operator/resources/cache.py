"""The Jobs of a shared claim: one fills it before replicas start, one waits to give up what is in it when the object is gone."""

from __future__ import annotations

import hashlib
import json

from kubernetes.client.models.v1_job import V1Job

from lmd_operator.api.model import ModelCache
from lmd_operator.api.v1alpha1 import LargeModelDeployment
from lmd_operator.names import TASK_FETCH, TASK_REMOVE
from lmd_operator.rendering.layout import POD
from lmd_operator.rendering.weights import cache_order
from lmd_operator.resources.fetch import own_variables, secrets
from lmd_operator.resources.job import Work, job
from lmd_operator.resources.volumes import cache_volume
from lmd_operator.settings import Settings

REMOVAL_SECONDS = 86400
"""Longest wait for the claim, which may have been deleted with the object."""
KEPT_SECONDS = 600
"""How long a removal that is done can be looked at."""


def fill_job(owner: LargeModelDeployment, settings: Settings) -> V1Job | None:
    """Return the Job that fills the cache, or None without one. It stays when it is done: that it did its work is read from it."""
    cache = owner.spec.model.cache
    if cache is None:
        return None
    variables = [*secrets(owner), *own_variables(owner)]
    work = Work(
        TASK_FETCH, cache_order(owner, POD), _about(owner, cache), cache_volume(cache.claim_name), is_writable=True, variables=variables
    )
    return job(owner, settings, work, is_suspended=owner.spec.suspend)


def removal_job(owner: LargeModelDeployment, settings: Settings) -> V1Job | None:
    """Return the Job that is let go when the object is gone, or None where files are retained.

    It is made with the object and waits suspended, so that all it takes is known when nothing else of the object is left; no
    finalizer has to hold the object, or its namespace, back.
    """
    cache = owner.spec.model.cache
    if cache is None or cache.on_delete != "Delete":
        return None
    work = Work(
        TASK_REMOVE,
        cache_order(owner, POD),
        _about(owner, cache),
        cache_volume(cache.claim_name),
        is_writable=True,
        seconds=REMOVAL_SECONDS,
        kept_seconds=KEPT_SECONDS,
    )
    return job(owner, settings, work, is_suspended=True, outlives=True)


def _about(owner: LargeModelDeployment, cache: ModelCache) -> str:
    """Return a name of one directory of one claim."""
    told = [cache.claim_name, cache_order(owner, POD)["into"]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:10]
