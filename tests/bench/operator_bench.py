"""What the operator costs: `python tests/bench/operator_bench.py --objects 100 1000`, against a control plane of its own.

Every request is counted from the API server's audit log, by user agent, never from what the operator says of itself; times
of creation are the audit log's too. CPU and memory are the process' own. Each count of objects gets a fresh namespace and
a fresh operator. The bare writer is the floor: the same client code sends the same children, with nothing to decide. It goes
before the operator and once more after it, as all that is there already makes the control plane slower.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "cluster" / "src"))

from lmd_plane.binaries import build  # noqa: E402 - lmd_plane is no installed package
from lmd_plane.plane import Plane, owned  # noqa: E402
from lmd_plane.processes import MARK  # noqa: E402

from lmd_operator.api.parse import parse  # noqa: E402
from lmd_operator.cluster.api import Api  # noqa: E402
from lmd_operator.cluster.connection import Connection  # noqa: E402
from lmd_operator.cluster.kinds import BY_NAME, CHILDREN, LARGE_MODEL_DEPLOYMENT, POD, SERVICE, Kind  # noqa: E402
from lmd_operator.local.ports import free_ports  # noqa: E402
from lmd_operator.names import ANNOTATION_APPLIED  # noqa: E402
from lmd_operator.resources.desired import desired, document  # noqa: E402
from lmd_operator.settings import Settings  # noqa: E402

EXAMPLE = REPOSITORY / "crds" / "examples" / "smollm2.yaml"
CRD = REPOSITORY / "crds" / "largemodel.dev_largemodeldeployments.yaml"
RESULTS = Path(__file__).parent / "results" / "operator.json"
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
READS = frozenset({"get", "list"})
OPERATOR_AGENTS = ("lmd-operator/", "kopf/")
BARE_AGENT = "bench-bare/"
PARENTS_AGENT = "bench-parents/"
CONCURRENCY = 32
"""Requests in flight of whoever creates parents, and, apart from those, of whoever applies children: the operator's default."""
PODS_PER_NODE = 90
"""A fake node has 96 cores, and a pod of the example asks for one."""
IDLE_SECONDS = 60.0
QUIET_SECONDS = 12.0
"""Longer than the operator waits before it writes a status that only tells of progress."""
AFTER_RESTART_SECONDS = 20.0
EDITS = 50
OVERDUE_SECONDS = 1200.0
EDITED_PORT = 9000
PLACEHOLDER_UID = "00000000-0000-0000-0000-000000000000"

Document = dict[str, Any]
Row = dict[str, float]


class AuditTail:
    """Requests of some user agents, read as the audit log grows. Leases and watches are left out."""

    def __init__(self, path: Path, agents: Iterable[str]) -> None:
        self._path = path
        self._agents = tuple(agents)
        self._offset = path.stat().st_size

    def read(self) -> list[Document]:
        """Return what is new."""
        found = []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                if any(f'"userAgent":"{agent}'.encode() in line for agent in self._agents):
                    event = json.loads(line)
                    if event["verb"] != "watch" and event.get("objectRef", {}).get("resource") != "leases":
                        found.append(event)
        return found


def count(events: Iterable[Document], verbs: frozenset[str]) -> int:
    return sum(event["verb"] in verbs for event in events)


def span(events: Iterable[Document], kinds: Iterable[Kind], wanted: int) -> float | None:
    """Return seconds from the first creation of a parent to the last first write of a child, None before all are there."""
    plurals = {kind.plural for kind in kinds}
    begins: list[str] = []
    children: dict[tuple[str, str], str] = {}
    for event in events:
        reference, code = event.get("objectRef", {}), event.get("responseStatus", {}).get("code")
        if reference.get("resource") == LARGE_MODEL_DEPLOYMENT.plural and event["verb"] == "create":
            begins.append(event["requestReceivedTimestamp"])
        elif reference.get("resource") in plurals and event["verb"] in ("create", "patch") and code == 201:
            children.setdefault((reference["resource"], reference.get("name", "")), event["stageTimestamp"])
    if len(children) < wanted:
        return None
    return (moment(max(children.values())) - moment(min(begins))).total_seconds()


def moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that at least this share of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def parent(namespace: str, index: int) -> Document:
    content: Document = yaml.safe_load(EXAMPLE.read_text())
    content["metadata"] = {"name": f"model-{index}", "namespace": namespace}
    return content


def children_of(owner: Document) -> list[Document]:
    """Return what the operator would apply for an object, with a place for its uid."""
    owned_by = {**owner, "metadata": {**owner["metadata"], "uid": PLACEHOLDER_UID}}
    rendered = [document(resource) for resource in desired(parse(owned_by), Settings()).resources]
    for child in rendered:
        child["metadata"].setdefault("annotations", {})[ANNOTATION_APPLIED] = "0" * 24
    return rendered


class Operator:
    """One operator process, in a session of the plane: it ends with it."""

    def __init__(self, plane: Plane, namespace: str, log: Path) -> None:
        self._port = free_ports(1)[0]
        settings = {"NAMESPACES": namespace, "LEASE_NAMESPACE": namespace, "HOST": "127.0.0.1", "PORT": str(self._port)}
        environment = os.environ | {f"LMD_OPERATOR_{name}": value for name, value in settings.items()}
        environment |= {"KUBECONFIG": str(plane.kubeconfig), MARK: str(plane.site.folder)}
        with log.open("ab") as words:
            self._process = subprocess.Popen([sys.executable, "-m", "lmd_operator"], env=environment, stderr=words)
        self.process = psutil.Process(self._process.pid)

    async def ready(self) -> None:
        """Wait until its caches are filled and it leads."""
        deadline = time.monotonic() + 120
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self._port}") as session:
            while time.monotonic() < deadline:
                with suppress(aiohttp.ClientError):
                    is_ready = (await session.get("/readyz")).status == 200
                    if is_ready and "lmd_operator_leader 1.0" in await (await session.get("/metrics")).text():
                        return
                await asyncio.sleep(0.1)
        raise TimeoutError("the operator did not become ready")

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system

    def rss_kib(self) -> float:
        return float(self.process.memory_info().rss) / 1024

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def running(plane: Plane, namespace: str, log: Path) -> Iterator[Operator]:
    operator = Operator(plane, namespace, log)
    try:
        yield operator
    finally:
        operator.stop()


def administrator(plane: Plane) -> Connection:
    pki = plane.site.pki
    certificate, key = str(pki / "admin.crt"), str(pki / "admin.key")
    return Connection(plane.site.api_url, ca_file=str(pki / "ca.crt"), certificate_file=certificate, key_file=key)


async def at_once(works: Iterable[Callable[[], Awaitable[None]]], concurrency: int = CONCURRENCY) -> None:
    """Do all of these, so many at a time."""
    pending = iter(works)

    async def worker() -> None:
        for work in pending:
            await work()

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def create_parents(api: Api, parents: list[Document], seen: Callable[[Document], None] = lambda _: None) -> None:
    async def create(owner: Document) -> None:
        seen(await api.create(LARGE_MODEL_DEPLOYMENT, owner))

    await at_once([lambda owner=owner: create(owner) for owner in parents])  # type: ignore[misc]


async def bare(plane: Plane, connection: Connection, namespace: str, number: int) -> tuple[float, float]:
    """Create parents, and, as fast as they are there, their children.

    Return the seconds by the audit log, and the milliseconds of this process's CPU that a write took.
    """
    parents = [parent(namespace, index) for index in range(number)]
    rendered = {owner["metadata"]["name"]: children_of(owner) for owner in parents}
    wanted = sum(map(len, rendered.values()))
    tail = AuditTail(plane.site.audit_log, [BARE_AGENT, PARENTS_AGENT])
    created: asyncio.Queue[Document | None] = asyncio.Queue()
    cpu = time.process_time()

    async with connection.session(f"{PARENTS_AGENT}1") as first, connection.session(f"{BARE_AGENT}1") as second:
        api = Api(connection, second, lambda *_: None)

        async def applier() -> None:
            while (owner := await created.get()) is not None:
                for child in rendered[owner["metadata"]["name"]]:
                    child["metadata"]["ownerReferences"][0]["uid"] = owner["metadata"]["uid"]
                    await api.apply(BY_NAME[child["kind"]], child)

        appliers = [asyncio.create_task(applier()) for _ in range(CONCURRENCY)]
        await create_parents(Api(connection, first, lambda *_: None), parents, created.put_nowait)
        for _ in appliers:
            created.put_nowait(None)
        await asyncio.gather(*appliers)
    milliseconds = 1000 * (time.process_time() - cpu) / (number + wanted)
    return await until_all_exist(tail, [], wanted), milliseconds


async def until_all_exist(tail: AuditTail, events: list[Document], wanted: int) -> float:
    deadline = time.monotonic() + OVERDUE_SECONDS
    while time.monotonic() < deadline:
        events += tail.read()
        if (seconds := span(events, CHILDREN, wanted)) is not None:
            return seconds
        await asyncio.sleep(1)
    raise TimeoutError("not all children were made")


async def until_quiet(tail: AuditTail, events: list[Document]) -> None:
    """Wait until the operator has asked for nothing for a while."""
    last = time.monotonic()
    while time.monotonic() - last < QUIET_SECONDS:
        await asyncio.sleep(0.5)
        if new := tail.read():
            events += new
            last = time.monotonic()


async def until_pods_ready(api: Api, namespace: str, number: int) -> None:
    """Wait until the plane's own controllers have made every pod Ready, so that they do not work beside what comes next."""
    deadline = time.monotonic() + OVERDUE_SECONDS
    while time.monotonic() < deadline:
        pods, _ = await api.list(POD, namespace, "")
        conditions = [each for pod in pods for each in pod["status"].get("conditions") or []]
        if sum(each["type"] == "Ready" and each["status"] == "True" for each in conditions) >= number:
            return
        await asyncio.sleep(2)
    raise TimeoutError("not all pods became Ready")


async def edits(api: Api, namespace: str, number: int) -> list[float]:
    """Edit objects one after the other; return the seconds from sending an edit until a watch shows it in the Service."""
    _, since = await api.list(SERVICE, namespace, "")
    shown: dict[str, asyncio.Future[float]] = {}

    async def watch() -> None:
        async for _, service in api.watch(SERVICE, namespace, "", since):
            waiting = shown.get(service.get("metadata", {}).get("labels", {}).get("largemodel.dev/deployment", ""))
            if waiting and not waiting.done() and EDITED_PORT in [port["port"] for port in service["spec"]["ports"]]:
                waiting.set_result(time.monotonic())

    watching = asyncio.create_task(watch())
    try:
        taken = []
        for index in random.Random(number).sample(range(number), min(EDITS, number)):
            name = f"model-{index}"
            shown[name] = asyncio.get_running_loop().create_future()
            began = time.monotonic()
            await api.merge(LARGE_MODEL_DEPLOYMENT, namespace, name, {"spec": {"endpoint": {"port": EDITED_PORT}}})
            taken.append(await asyncio.wait_for(shown[name], 60) - began)
        return taken
    finally:
        watching.cancel()


async def measure(plane: Plane, number: int, before: int, say: Callable[[str], None]) -> Row:
    """Measure with so many objects beside those of earlier measurements, whose pods stay."""
    namespace, bare_namespaces = f"bench-{number}", [f"bare-{number}-{when}" for when in ("before", "after")]
    for name in (namespace, *bare_namespaces):
        plane.api.create_namespace(name)
    plane.add_nodes(math.ceil(3 * (before + number) / PODS_PER_NODE))
    connection = administrator(plane)
    log = plane.site.folder / "operator.log"
    async with connection.session("bench/1") as session:
        api = Api(connection, session, lambda *_: None)

        async def floor(where: str) -> tuple[float, float]:
            seconds, milliseconds = await bare(plane, connection, where, number)
            say(f"{number}: bare writer {seconds:.1f} s, {milliseconds:.2f} ms of CPU a write")
            await until_pods_ready(api, where, number)
            return seconds, milliseconds

        floors = [await floor(bare_namespaces[0])]
        parents = [parent(namespace, index) for index in range(number)]
        wanted = sum(len(children_of(owner)) for owner in parents)
        with running(plane, namespace, log) as operator:
            await operator.ready()
            await asyncio.sleep(3)
            tail = AuditTail(plane.site.audit_log, OPERATOR_AGENTS)
            creation = AuditTail(plane.site.audit_log, [PARENTS_AGENT, *OPERATOR_AGENTS])
            cpu, rss = operator.cpu_seconds(), operator.rss_kib()
            async with connection.session(f"{PARENTS_AGENT}1") as first:
                await create_parents(Api(connection, first, lambda *_: None), parents)
            seconds = await until_all_exist(creation, [], wanted)
            say(f"{number}: operator {seconds:.1f} s")
            await until_pods_ready(api, namespace, number)
            events: list[Document] = []
            await until_quiet(tail, events)
            row: Row = {
                "n": number,
                "seconds": round(seconds, 2),
                "writes_per_object": round(count(events, WRITES) / number, 2),
                "reads_per_object": round(count(events, READS) / number, 2),
                "cpu_ms_per_object": round(1000 * (operator.cpu_seconds() - cpu) / number, 2),
            }
            busy = (operator.rss_kib() - rss) / number
            await asyncio.sleep(IDLE_SECONDS)
            row["kib_per_object"] = round((operator.rss_kib() - rss) / number, 1)
            row["idle_writes_60s"] = count(tail.read(), WRITES)
            say(f"{number}: {row} {dict(tally(events))}; {busy:.1f} KiB an object before the minute of rest")
            taken = await edits(api, namespace, number)
            row |= {"edit_p50_seconds": round(statistics.median(taken), 3), "edit_p99_seconds": round(percentile(taken, 0.99), 3)}
            await until_quiet(tail, events)
        tail.read()
        with running(plane, namespace, log) as operator:
            await operator.ready()
            await asyncio.sleep(AFTER_RESTART_SECONDS)
            row["restart_writes"] = count(tail.read(), WRITES)
        floors.append(await floor(bare_namespaces[1]))
    bare_seconds, bare_milliseconds = (statistics.mean(column) for column in zip(*floors, strict=True))
    row |= {"bare_writer_seconds": round(bare_seconds, 2), "ratio": round(seconds / bare_seconds, 2)}
    row["bare_cpu_ms_per_write"] = round(bare_milliseconds, 2)
    return {column: row[column] for column in COLUMNS}


def tally(events: Iterable[Document]) -> list[tuple[str, int]]:
    """Count requests by verb, resource, subresource and answer."""
    counts: dict[str, int] = {}
    for event in events:
        reference = event.get("objectRef", {})
        words = [event["verb"], reference.get("resource", ""), reference.get("subresource", ""), str(event["responseStatus"].get("code"))]
        counts[" ".join(filter(None, words))] = counts.get(" ".join(filter(None, words)), 0) + 1
    return sorted(counts.items())


COLUMNS = (
    "n",
    "seconds",
    "bare_writer_seconds",
    "ratio",
    "writes_per_object",
    "reads_per_object",
    "bare_cpu_ms_per_write",
    "cpu_ms_per_object",
    "kib_per_object",
    "idle_writes_60s",
    "restart_writes",
    "edit_p50_seconds",
    "edit_p99_seconds",
)


def table(rows: list[Row], caption: str) -> str:
    lines = [
        " | ".join(COLUMNS),
        " | ".join("---:" for _ in COLUMNS),
        *(" | ".join(f"{row[column]:g}" for column in COLUMNS) for row in rows),
    ]
    return "\n".join([caption, "", *(f"| {line} |" for line in lines)])


def caption_of(loads: list[float]) -> str:
    children = ", ".join(child["kind"] for child in children_of(parent("any", 0)))
    return (
        f"N copies of {EXAMPLE.relative_to(REPOSITORY)} with one replica each, whose pods run on fake nodes (KWOK); children: {children}. "
        f"Own control plane (etcd, API server, controllers, scheduler, KWOK) and operator on one machine of {os.cpu_count()} cores; "
        f"load average when each measurement began and at the end: {', '.join(f'{load:.1f}' for load in loads)}. "
        f"Both sides: {CONCURRENCY} parents created at a time and {CONCURRENCY} objects' children applied at a time; seconds run from the "
        "first parent's request to the last child's answer, by the API server's audit log. The bare writer goes before the operator and "
        "after it, and what is told is the mean. It and the creator of parents are one process, and the pods stay; its CPU per write "
        "tells how much dearer CPU was beside the control plane than on an idle machine (0.7 ms). The operator's CPU is counted from "
        "the first parent until the operator was quiet "
        f"for {QUIET_SECONDS:.0f} s, with every pod Ready; its memory is what has grown, after {IDLE_SECONDS:.0f} s more at rest. "
        "Requests leave out Leases and watches."
    )


async def bench(objects: list[int], output: Path, say: Callable[[str], None]) -> tuple[list[Row], list[float]]:
    rows: list[Row] = []
    loads: list[float] = []
    output.parent.mkdir(parents=True, exist_ok=True)
    with owned(build(say=say)) as plane:
        plane.api.define(yaml.safe_load(CRD.read_text()))
        for number in objects:
            loads.append(os.getloadavg()[0])
            rows.append(await measure(plane, number, sum(objects[: len(rows)]), say))
            output.write_text(json.dumps(rows, indent=2) + "\n")
        loads.append(os.getloadavg()[0])
    return rows, loads


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what the operator costs.")
    parser.add_argument("--objects", type=int, nargs="+", default=[100, 1000], metavar="N", help="counts of objects (default: 100 1000)")
    parser.add_argument("--large", action="store_true", help="measure 5000 objects as well: half an hour or more")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the numbers go (default: %(default)s)")
    options = parser.parse_args()
    began = time.monotonic()

    def say(words: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {words}", file=sys.stderr, flush=True)

    rows, loads = asyncio.run(bench([*options.objects, *([5000] if options.large else [])], options.output, say))
    print(table(rows, caption_of(loads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
