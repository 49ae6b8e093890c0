"""A model directory that several objects share: whether it is whole, and its end with its last user.

Who uses it is written down beside it, under the lock of the one writer, so that no removal comes between another object's look
and its start, whichever operator or cluster that object is of.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from lmd_worker import lastwords
from lmd_worker.errors import FetchError, SettingsError, WorkerError
from lmd_worker.weights import source
from lmd_worker.weights.ending import failed
from lmd_worker.weights.place import Marker, Place
from lmd_worker.weights.source import Order

log = logging.getLogger(__name__)


def require_whole(order: Order) -> Marker:
    """Return what a finished fetch left in the order's directory, which is only read. Raises `FetchError` when it is not whole."""
    there = Place(Path(order.into)).marker()
    if there is None or there.source != order.source.model_dump():
        raise FetchError(
            "CacheIncomplete",
            f"{order.into} holds no whole copy of {order.source}; delete the object's Job with the label largemodel.dev/task=fetch, "
            "and the cache is filled anew.",
        )
    for name, digest in order.sha256.items():
        found = there.files.get(name, (0, ""))[1]
        if found != digest:
            raise FetchError(
                "DigestMismatch",
                f"{name} in {order.into} has the sha256 digest {found or 'of no file'} and must have {digest}; correct "
                "spec.model.verify.sha256.",
            )
    return there


def remove(order: Order) -> tuple[bool, int]:
    """Strike the order's user out, and remove the directory with the last one; return whether it was, and how many users are left."""
    if order.user is None:
        raise SettingsError("an order to remove names no user. The operator and the worker image are of different versions.")
    place = Place(Path(order.into))
    with place.locked(lambda: log.info("waiting for a fetch of the same model")):
        left = place.forget_user(order.user)
        if left:
            return False, left
        for step in place.remove():
            step()
    return True, 0


def run(variables: Mapping[str, str], last_words: Path | None) -> int:
    """Carry out the order in source.json; 0 when nothing of this user is left."""
    lastwords.clear(last_words)
    try:
        order = source.read(source.file(variables))
        is_gone, left = remove(order)
    except WorkerError as error:
        return failed(last_words, str(error))
    except OSError as error:
        return failed(last_words, f"removing from the cache: {error.strerror or type(error).__name__}; repair the claim.")
    lastwords.write(last_words, json.dumps({"removed": is_gone, "users": left}))
    log.info("%s: removed=%s users=%d", order.into, is_gone, left)
    return 0
