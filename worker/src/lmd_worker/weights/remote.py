"""Where bytes come from: one interface over the hub and over object stores, and how long a fetch keeps trying."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lmd_worker.errors import FetchError
from lmd_worker.weights.listing import Listing, RemoteFile

Result = TypeVar("Result")


class InterruptedReadError(Exception):
    """A read that may work if tried again; `cause` says what happened, without addresses or headers that could hold secrets."""

    def __init__(self, cause: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(cause)
        self.retry_after_seconds = retry_after_seconds


class StoppedError(Exception):
    """Another part of the same fetch has failed; this one ends without a word of its own."""


class Remote(Protocol):
    """A source of files. Used by several threads at once."""

    def listing(self) -> Listing:
        """Return what is there now. Raises `FetchError`, or `InterruptedReadError` where another try may help."""

    def read(self, file: RemoteFile, start: int, end: int) -> Iterator[bytes | memoryview]:
        """Yield the bytes from `start` up to `end` of one file, in order. May yield less and end; raises as `listing`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a read is tried without a new byte, and how long is waited between: doubling, or as the server asks."""

    tries: int = 9
    first_seconds: float = 0.5
    longest_seconds: float = 30.0
    longest_asked_seconds: float = 120.0

    def wait_seconds(self, failures: int, asked_seconds: float) -> float:
        """Return the pause after this many failures in a row."""
        own = min(self.first_seconds * 2.0 ** (failures - 1), self.longest_seconds)
        return max(own, min(asked_seconds, self.longest_asked_seconds))


def patiently(call: Callable[[], Result], patience: Patience, stop: threading.Event, what: str) -> Result:
    """Return what `call` returns, trying again after interruptions. Raises `FetchError` when patience ends."""
    failures = 0
    while True:
        try:
            return call()
        except InterruptedReadError as error:
            failures += 1
            pause(failures, error, patience, stop, what)


def pause(failures: int, error: InterruptedReadError, patience: Patience, stop: threading.Event, what: str) -> None:
    """Wait before the next try. Raises `FetchError` when there is none, `StoppedError` when the whole fetch ends."""
    if failures >= patience.tries:
        raise FetchError(
            "EndpointUnreachable",
            f"{what} could not be read in {failures} tries: {error}; check the endpoint, the proxy variables and the egress of the pod.",
        ) from error
    if stop.wait(patience.wait_seconds(failures, error.retry_after_seconds)):
        raise StoppedError
