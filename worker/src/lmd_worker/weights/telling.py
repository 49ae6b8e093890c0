"""`lmd-worker inspect` in a Job: what the model of source.json is, in last words that Kubernetes keeps whole.

    {"model": {what people want to know}, "outline": "configuration and kinds of tensors, for the planner"}

The outline is JSON, deflated and in Base64: 4096 bytes of last words then hold any model that is known. What a plan has no use
for is left out of the configuration.
"""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from lmd_worker import lastwords
from lmd_worker.errors import FetchError, ModelRefusedError, WorkerError
from lmd_worker.weights import source
from lmd_worker.weights.ending import failed
from lmd_worker.weights.hub import Hub
from lmd_worker.weights.inspect import Directory, Read, facts_of, read
from lmd_worker.weights.objects import S3
from lmd_worker.weights.outline import outline
from lmd_worker.weights.remote import Remote
from lmd_worker.weights.source import HUB_TOKEN, DirectorySource, HubSource, Order

LONGEST_TEXT = 64
LONGEST_LIST = 512
"""Of what is kept of a configuration: kinds of layers are a list of short words."""
DEEPEST, LARGEST_PART = 3, 200
"""Of its parts: the language model's own configuration is one, and labels of classes another."""

log = logging.getLogger(__name__)


def run(variables: Mapping[str, str], last_words: Path | None) -> int:
    """Carry out the order in source.json; 0 when the model could be told of."""
    lastwords.clear(last_words)
    try:
        order = source.read(source.file(variables))
        words = told(read(_remote(order, variables), str(order.source)), str(order.source))
    except FetchError as error:
        return failed(last_words, f"{error.reason}: {error}")
    except ModelRefusedError as error:
        return failed(last_words, f"SourceInvalid: {error}")
    except WorkerError as error:
        return failed(last_words, f"FetchFailed: {error}")
    lastwords.write(last_words, words)
    log.info("%s was inspected: bytes=%d", order.source, len(words))
    return 0


def told(made: Read, origin: str) -> str:
    """Return the last words. Raises `ModelRefusedError` when they would not be kept whole."""
    model = facts_of(made, origin)
    document = {"config": kept(made.config), "tensors": outline(made.tensors, model.layers)}
    packed = base64.b64encode(zlib.compress(json.dumps(document, separators=(",", ":")).encode(), 9)).decode()
    words = json.dumps({"model": asdict(model), "outline": packed})
    if len(words) >= lastwords.LIMIT_BYTES:
        raise ModelRefusedError(f"what {origin} says of itself is too long for a plan; write spec.parallelism.tensor as a number.")
    return words


def kept(config: Mapping[str, object], depth: int = DEEPEST) -> dict[str, object]:
    """Return the numbers and short words of a configuration, and those of its parts."""
    found: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and depth > 1 and len(value) <= LARGEST_PART:
            found[key] = kept(value, depth - 1)
        elif _is_short(value) or (isinstance(value, list) and len(value) <= LONGEST_LIST and all(map(_is_short, value))):
            found[key] = value
    return found


def _is_short(value: object) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= LONGEST_TEXT)


def _remote(order: Order, variables: Mapping[str, str]) -> Remote:
    if isinstance(order.source, DirectorySource):
        return Directory(Path(order.source.path))
    if isinstance(order.source, HubSource):
        return Hub(order.source, variables.get(HUB_TOKEN) or None)
    return S3(order.source, variables)
