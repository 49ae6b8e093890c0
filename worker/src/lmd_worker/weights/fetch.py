"""`lmd-worker fetch`: the weights, whole and verified, in their directory, or one sentence why not.

1. lock   2. what is there already   3. list   4. choose files   5. free space   6. fetch and hash   7. finish

Memory is bounded by connections and chunks, whatever the files' sizes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import queue
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from lmd_worker import lastwords
from lmd_worker.errors import FetchError, WorkerError
from lmd_worker.weights import listing, source
from lmd_worker.weights.arrival import Arrival
from lmd_worker.weights.ending import failed
from lmd_worker.weights.hub import Hub
from lmd_worker.weights.inspect import Directory, inspect
from lmd_worker.weights.listing import INDEX, Listing, RemoteFile
from lmd_worker.weights.objects import S3
from lmd_worker.weights.place import Marker, Place
from lmd_worker.weights.progress import PORT, Meter, readable, shown
from lmd_worker.weights.remote import InterruptedReadError, Patience, Remote, StoppedError, patiently, pause
from lmd_worker.weights.shared import require_whole
from lmd_worker.weights.source import HUB_TOKEN, DirectorySource, HubSource, Order, S3Source

CONNECTIONS = 8
WAITING = "waiting for another fetch of the same model"
"""What is said while another pod fills the same directory; the operator knows these words."""
SPACE_MARGIN_BYTES = 64 * 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What is in the directory now."""

    directory: Path
    revision: str
    total_bytes: int


def run(variables: Mapping[str, str], last_words: Path | None) -> int:
    """Carry out the order in source.json; 0 when the model is there. The last words say the revision, or the reason and the cause."""
    lastwords.clear(last_words)
    meter = Meter()
    try:
        order = source.read(source.file(variables))
        with shown(meter, _port(variables)):
            fetched = fetch(order, variables, meter)
    except FetchError as error:
        return failed(last_words, f"{error.reason}: {error}")
    except WorkerError as error:
        return failed(last_words, f"FetchFailed: {error}")
    told = {"revision": fetched.revision, "bytes": fetched.total_bytes, "model": _facts(fetched)}
    lastwords.write(last_words, json.dumps(told))
    log.info("the model is in %s: revision=%s bytes=%d", fetched.directory, fetched.revision, fetched.total_bytes)
    return 0


def _facts(fetched: Fetched) -> dict[str, object] | None:
    """Return what the model's files say of it; None when they do not say, which is the worker's to refuse."""
    try:
        return asdict(inspect(Directory(fetched.directory), str(fetched.directory)))
    except WorkerError as error:
        log.warning("the model that was fetched states no shape: %s", error)
        return None


def fetch(order: Order, variables: Mapping[str, str], meter: Meter, patience: Patience = Patience()) -> Fetched:  # noqa: B008 - frozen
    """Make the order's directory hold the whole, verified model. Raises `FetchError`."""
    if isinstance(order.source, DirectorySource):
        return _verified_in_place(order, order.source, meter)
    if not order.bring:
        return _fetched(Path(order.into), require_whole(order))
    remote = _remote(order.source, variables)
    place = Place(Path(order.into))
    try:
        with place.locked(lambda: meter.say(WAITING)):
            if order.user is not None:
                place.note_user(order.user)
            return _Fetch(order, remote, place, meter, patience).run()
    except OSError as error:
        raise _of_the_disk(error, Path(order.into).parent) from error


def _remote(wanted: HubSource | S3Source, variables: Mapping[str, str]) -> Remote:
    if isinstance(wanted, HubSource):
        return Hub(wanted, variables.get(HUB_TOKEN) or None)
    return S3(wanted, variables)


def _fetched(directory: Path, marker: Marker) -> Fetched:
    return Fetched(directory, marker.revision, sum(size for size, _ in marker.files.values()))


class _Fetch:
    """One fetch from a remote source, by the holder of the lock."""

    def __init__(self, order: Order, remote: Remote, place: Place, meter: Meter, patience: Patience) -> None:
        self._order = order
        self._remote = remote
        self._place = place
        self._meter = meter
        self._patience = patience
        self._origin = str(order.source)
        self._stop = threading.Event()

    def run(self) -> Fetched:
        self._place.clean()
        there = self._what_is_there()
        is_pinned = isinstance(self._order.source, HubSource) and there is not None and there.revision == self._order.source.revision
        if there is not None and (is_pinned or not self._order.refresh):
            return _fetched(self._place.target, there)
        try:
            found = patiently(self._remote.listing, self._patience, self._stop, self._origin)
        except FetchError as error:
            if there is None or error.reason != "EndpointUnreachable":
                raise
            log.warning("the source cannot be reached, so the model that is there is used: %s", error)
            return _fetched(self._place.target, there)
        files = self._chosen(found)
        if there is not None and there.revision == found.revision and there.files.keys() == {file.name for file in files}:
            return _fetched(self._place.target, there)
        return _fetched(self._place.target, self._bring(found, files))

    def _what_is_there(self) -> Marker | None:
        """Return the marker of a finished fetch of this source that satisfies the user's digests."""
        there = self._place.marker()
        if there is None or there.source != self._order.source.model_dump():
            return None
        return there if all(there.files.get(name, (0, ""))[1] == digest for name, digest in self._order.sha256.items()) else None

    def _chosen(self, found: Listing) -> tuple[RemoteFile, ...]:
        files = listing.candidates(found, self._origin, remote_code=self._order.remote_code)
        index = next((file for file in files if file.name == INDEX), None)
        text = patiently(lambda: self._read_small(index), self._patience, self._stop, INDEX) if index else None
        return listing.with_digests(listing.shards(files, text, self._origin), self._order.sha256, self._origin)

    def _read_small(self, file: RemoteFile) -> bytes:
        """Return a whole file of bounded size (`listing.LARGEST_TEXT_BYTES`)."""
        data = b"".join(bytes(chunk) for chunk in self._remote.read(file, 0, file.size)) if file.size else b""
        if len(data) != file.size:
            raise InterruptedReadError("it ended early")
        return data

    def _bring(self, found: Listing, files: Sequence[RemoteFile]) -> Marker:
        self._place.partial.mkdir(exist_ok=True)
        arrivals = [Arrival(file, self._place.partial, self._origin) for file in files]
        total = sum(file.size for file in files)
        self._meter.say("checking what an earlier fetch has left")
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            already = sum(pool.map(Arrival.open, arrivals))
        _require_space(self._place.partial, total - already, self._origin)
        self._meter.begin(total, already)
        log.info("fetching %s: revision=%s files=%d bytes=%d already=%d", self._origin, found.revision, len(files), total, already)
        self._fetch_all(arrivals)
        for arrival in arrivals:
            if not arrival.settle():
                log.warning("%s was spoilt since an earlier fetch; fetching it once more", arrival.file.name)
                self._again(arrival)
        marker = Marker(
            self._order.source.model_dump(),
            found.revision,
            {arrival.file.name: (arrival.file.size, arrival.sha256) for arrival in arrivals},
        )
        self._meter.say("writing everything to disk")
        for step in self._place.finish(marker):
            step()
        return marker

    def _again(self, arrival: Arrival) -> None:
        fresh = Arrival(arrival.file, self._place.partial, self._origin)
        fresh.open()
        self._meter.add(-arrival.file.size)
        self._fetch_all([fresh])
        fresh.settle()
        arrival.sha256 = fresh.sha256

    def _fetch_all(self, arrivals: Sequence[Arrival]) -> None:
        """Fetch every missing part by several connections; the first failure ends all."""
        parts: queue.SimpleQueue[tuple[Arrival, int]] = queue.SimpleQueue()
        for arrival in arrivals:
            for index in arrival.missing():
                parts.put((arrival, index))
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="fetch") as pool:
            workers = [pool.submit(self._work, parts) for _ in range(CONNECTIONS)]
        failures = [error for worker in workers if (error := worker.exception()) is not None]
        for error in failures:
            if not isinstance(error, StoppedError):
                raise error
        self._stop.clear()

    def _work(self, parts: queue.SimpleQueue[tuple[Arrival, int]]) -> None:
        try:
            while not self._stop.is_set():
                try:
                    arrival, index = parts.get_nowait()
                except queue.Empty:
                    return
                self._fetch_part(arrival, index)
        except BaseException:
            self._stop.set()
            raise

    def _fetch_part(self, arrival: Arrival, index: int) -> None:
        """Bring one part, from where it broke off as often as it must be; patience starts anew with every byte that comes."""
        position, end = arrival.span(index)
        failures = 0
        descriptor = arrival.writer()
        try:
            while position < end:
                before = position
                try:
                    for chunk in self._remote.read(arrival.file, position, end):
                        if self._stop.is_set():
                            raise StoppedError
                        position += self._write(descriptor, chunk, position, end)
                    cut = InterruptedReadError("the answer ended early") if position < end else None
                except InterruptedReadError as error:
                    cut = error
                if cut is not None:
                    failures = 1 if position > before else failures + 1
                    pause(failures, cut, self._patience, self._stop, f"{arrival.file.name} of {self._origin}")
        finally:
            os.close(descriptor)
        arrival.complete(index)

    def _write(self, descriptor: int, chunk: bytes | memoryview, position: int, end: int) -> int:
        """Write what belongs to the part; a server that sends more than was asked for is not followed."""
        data = memoryview(chunk)[: end - position]
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:], position + written)
        self._meter.add(written)
        return written


def _verified_in_place(order: Order, found: DirectorySource, meter: Meter) -> Fetched:
    """Check the digests of files that are there already. Raises `FetchError` naming the first file that differs."""
    root = Path(found.path)
    if not root.is_dir():
        raise FetchError("SourceNotFound", f"{root} does not exist; correct spec.model.source.")
    paths = {name: root / name for name in order.sha256}
    for name, path in paths.items():
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
            raise FetchError("SourceNotFound", f"{name!a} is no file inside {root}; correct spec.model.verify.sha256.")
    meter.begin(sum(path.stat().st_size for path in paths.values()), 0)
    meter.say("verifying")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        digests = pool.map(lambda path: _sha256(path, meter), paths.values())
    for name, digest in zip(paths, digests, strict=True):
        if digest != order.sha256[name]:
            raise FetchError(
                "DigestMismatch",
                f"{name} in {root} has the sha256 digest {digest} and must have {order.sha256[name]}; put the right file there.",
            )
    return Fetched(root, "", sum(file.stat().st_size for file in root.glob("*.safetensors")))


def _sha256(path: Path, meter: Meter) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            meter.add(len(chunk))
    return digest.hexdigest()


def _require_space(directory: Path, needed: int, origin: str) -> None:
    free = shutil.disk_usage(directory).free
    if needed + SPACE_MARGIN_BYTES > free:
        raise FetchError(
            "NoSpace",
            f"{origin} needs {readable(needed)} more and the volume at {directory.parent} has {readable(free)} free; give it more space.",
        )


def _of_the_disk(error: OSError, directory: Path) -> FetchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchError("NoSpace", f"the volume at {directory} is full; give it more space.")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return FetchError(
            "FetchFailed", f"{directory} cannot be written ({error.strerror}); mount a volume there that the worker's user may write."
        )
    return FetchError("FetchFailed", f"writing below {directory}: {error.strerror or type(error).__name__}.")


def _port(variables: Mapping[str, str]) -> int | None:
    text = variables.get(PORT, "")
    return int(text) if text.isdecimal() and int(text) < 2**16 else None
