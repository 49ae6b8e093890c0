"""Why weights are not there yet, and how far they are, from the pods that fetch them.

The fetch leaves one line as its last words: what it brought, as JSON, or `Reason: sentence` with the remedy in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from lmd_operator.api.status import WeightsStatus
from lmd_operator.observed import FetchState, PodState, Progress
from lmd_operator.status.refusals import clause

FETCHING = "FetchingWeights"
WAITING = "waiting for another fetch of the same model"
"""What a fetch says while another one holds the lock of its directory; the worker's own words."""
FAILED = "FetchFailed"
FAILURES = (
    "TokenMissing",
    "SourceForbidden",
    "SourceNotFound",
    "RevisionNotFound",
    "PickleRefused",
    "DigestMismatch",
    "WeightsTruncated",
    "SourceInvalid",
    "SourceChanged",
    "NoSpace",
    "CacheLocked",
    "CacheIncomplete",
    "EndpointUnreachable",
    FAILED,
)
"""Reasons of `lmd_worker.errors.FetchReason`, what only a person can mend first."""
_PERCENT = 100


def of_fetch(pod: str, fetch: FetchState, progress: Progress | None) -> tuple[str, str] | None:
    """Return reason and sentence of a fetch that is not done, or None when it has not begun and nothing is wrong."""
    if fetch.is_running:
        return FETCHING, _words(progress, fetch.restarts)
    if fetch.exit_code == 0:
        return None
    reason, separator, sentence = fetch.message.partition(": ")
    if separator and reason in FAILURES:
        return reason, f"the weights cannot be fetched: {clause(sentence, 800)}"
    said = f": {clause(fetch.message, 300)}" if fetch.message else f" with exit code {fetch.exit_code}"
    return FAILED, f"the fetch of the weights ended{said}; read `kubectl logs {pod} --container fetch --previous`"


def newest(pods: Sequence[PodState], revision: str) -> list[PodState]:
    """Return the pods that bring or verify what the spec asks for: of a Job, or of the newest revision."""
    return [pod for pod in pods if pod.fetch is not None and (pod.job or pod.revision == revision)]


def weights_status(
    pods: Sequence[PodState], revision: str, progress: Mapping[str, Progress], previous: WeightsStatus | None
) -> WeightsStatus | None:
    """Return how far the weights of the newest pods, or of a Job's, are; the one that has least is told of."""
    fetching = newest(pods, revision)
    if not fetching:
        return None
    moving = [told for pod in fetching if (told := progress.get(pod.name)) is not None and told.total]
    if moving:
        return _moving(min(moving, key=lambda told: told.bytes / told.total))
    if all(pod.fetch is not None and pod.fetch.is_done for pod in fetching):
        return _done(fetching[0])
    return previous


def _last_words(pod: PodState) -> dict[str, object]:
    try:
        document = json.loads(pod.fetch.message if pod.fetch is not None else "")
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _moving(told: Progress) -> WeightsStatus:
    return WeightsStatus(
        bytes=told.bytes,
        total_bytes=told.total,
        percent=min(_PERCENT * told.bytes // told.total, _PERCENT),
        bytes_per_second=told.bytes_per_second,
        remaining_seconds=told.remaining_seconds,
    )


def _done(pod: PodState) -> WeightsStatus:
    """Return what the fetch left as last words."""
    told = _last_words(pod)
    revision, count = told.get("revision"), told.get("bytes")
    if not isinstance(revision, str) or type(count) is not int or count < 0:
        return WeightsStatus(percent=_PERCENT)
    return WeightsStatus(revision=revision[:317], bytes=count, total_bytes=count, percent=_PERCENT)


def _words(progress: Progress | None, restarts: int) -> str:
    again = f" after {restarts} tries that failed" if restarts else ""
    if progress is not None and progress.state == WAITING:
        return f"they are being fetched into the shared claim for another object, whose end is awaited{again}"
    if progress is None or not progress.total:
        return f"the weights are being fetched{again}"
    percent = min(_PERCENT * progress.bytes // progress.total, _PERCENT)
    left = "" if progress.remaining_seconds is None else f", {_duration(progress.remaining_seconds)} left"
    speed = f"{_readable(progress.bytes_per_second)}/s" if progress.bytes_per_second else "nothing moves at the moment"
    return f"the weights are being fetched{again}: {percent}% of {_readable(progress.total)}, {speed}{left}"


def _readable(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def _duration(seconds: int) -> str:
    if seconds < 90:
        return f"{seconds} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
