"""The queue, the matching, the caches and the lease, without a cluster and on a clock of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd_operator.app import App
from lmd_operator.cluster.api import changed_version
from lmd_operator.cluster.cache import Cache
from lmd_operator.cluster.connection import Connection
from lmd_operator.cluster.door import Child, Door
from lmd_operator.cluster.errors import ApiError
from lmd_operator.cluster.kinds import SERVICE
from lmd_operator.cluster.matching import covers
from lmd_operator.cluster.packing import LEAST_SAMPLE_BYTES, Packer
from lmd_operator.cluster.parents import Parents
from lmd_operator.cluster.records import Record, record
from lmd_operator.memory import MADE_KEPT, MADE_KEPT_SECONDS, Lately, Made, Memory, Result
from lmd_operator.resources.desired import Desired
from lmd_operator.runtime.leadership import LEASE_SECONDS, RENEW_DEADLINE_SECONDS, RETRY_SECONDS, Leadership
from lmd_operator.runtime.queue import LONGEST_BACKOFF_SECONDS, STALE_DATES, WorkQueue
from lmd_operator.settings import Settings


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _ready(queue: WorkQueue[str]) -> list[str]:
    """Take everything that is ready, in order."""
    taken = []

    async def take() -> None:
        queue._wake = asyncio.Event()  # it belongs to one event loop, and here each look has its own
        while True:
            taken.append(await asyncio.wait_for(queue.get(), 0.01))

    with pytest.raises(TimeoutError):
        asyncio.run(take())
    return taken


def test_keys_come_once_in_the_order_in_which_they_were_added() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    for key in ("a", "b", "a", "c", "b"):
        queue.add(key)
    assert _ready(queue) == ["a", "b", "c"]


def test_a_key_that_is_worked_on_comes_again_afterwards_and_not_before() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add("a")
    assert _ready(queue) == ["a"]
    queue.add("a")
    assert _ready(queue) == []
    queue.done("a")
    assert _ready(queue) == ["a"]


def test_the_earliest_date_counts() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add_after("a", 50)
    queue.add_after("a", 10)
    queue.add_after("a", 30)
    clock.now += 9
    assert _ready(queue) == []
    clock.now += 2
    assert _ready(queue) == ["a"]
    queue.done("a")
    clock.now += 100
    assert _ready(queue) == []


def test_failures_back_off_up_to_a_minute_and_for_ever() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock(), jitter=lambda: 1.0)
    delays = [queue.failed("a") for _ in range(5000)]
    assert delays[:4] == [0.05, 0.1, 0.2, 0.4]
    assert delays[-1] == LONGEST_BACKOFF_SECONDS
    assert queue.failed("b", 7.0) == 7.0
    queue.succeeded("a")
    assert queue.failed("a") == 0.05


def test_dates_that_hold_no_more_are_cleared_away() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    for _ in range(10 * STALE_DATES):
        clock.now += 0.1
        queue.add_after("a", 36000)
        queue.add("a")
        assert queue.depth() == 1
        queue._ready.clear()
    assert len(queue._delayed) <= STALE_DATES + 3


@given(st.lists(st.tuples(st.sampled_from(["add", "get", "done", "forget"]), st.sampled_from("abc")), max_size=40))
def test_no_key_is_worked_on_twice_at_a_time_and_none_is_lost(steps: list[tuple[str, str]]) -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    active: set[str] = set()
    owed: set[str] = set()
    for step, key in steps:
        match step:
            case "add":
                queue.add(key)
                owed.add(key)
            case "get" if queue.depth():
                got = asyncio.run(queue.get())
                assert got not in active
                active.add(got)
                owed.discard(got)
            case "done" if key in active:
                active.discard(key)
                queue.done(key)
            case "forget":
                queue.forget(key)
                owed.discard(key)
    for key in active:
        queue.done(key)
    assert set(_ready(queue)) == owed


@pytest.mark.parametrize(
    ("live", "sent", "expected"),
    [
        pytest.param({"a": 1, "b": 2}, {"a": 1}, True, id="what others add is theirs"),
        pytest.param({"b": 2}, {"a": 1}, False, id="a field of ours is missing"),
        pytest.param({"a": [1, 2]}, {"a": [1]}, False, id="a list of ours is longer"),
        pytest.param({"memory": "1Gi"}, {"memory": "1024Mi"}, True, id="the same quantity"),
        pytest.param({"memory": "1Gi"}, {"memory": "1025Mi"}, False, id="another quantity"),
        pytest.param({}, {"a": {}}, True, id="an empty mapping is stored as nothing"),
        pytest.param({}, {"a": []}, True, id="an empty list is stored as nothing"),
        pytest.param({"a": [1]}, {"a": []}, False, id="a list that should be empty"),
        pytest.param({"a": "1"}, {"a": "2"}, False, id="another text"),
    ],
)
def test_what_counts_as_drift(live: dict[str, Any], sent: dict[str, Any], expected: bool) -> None:
    assert covers(live, sent) is expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)


@given(st.dictionaries(st.text(max_size=3), VALUES, min_size=1, max_size=4), st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
def test_everything_covers_itself_and_what_is_added_changes_nothing(sent: dict[str, Any], added: dict[str, Any]) -> None:
    assert covers(sent, sent)
    assert covers(added | sent, sent)


def _service(name: str, version: int, *, uid: str = "u", owner: str = "small", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "n", "uid": uid, "resourceVersion": str(version), "labels": {"largemodel.dev/deployment": owner}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _cache() -> tuple[Cache, list[tuple[str, bool]]]:
    heard: list[tuple[str, bool]] = []
    return Cache(SERVICE, lambda changed, is_gone: heard.append((changed.name, is_gone))), heard


def test_a_relist_reports_what_vanished_and_keeps_what_is_newer() -> None:
    cache, heard = _cache()
    for name, version in (("old", 5), ("kept", 6), ("newer", 20)):
        cache.put(_service(name, version))
    heard.clear()
    cache.replace("n", [_service("kept", 6), _service("new", 9)], 10)
    assert sorted(heard) == [("new", False), ("old", True)]
    assert sorted(each.name for each in cache) == ["kept", "new", "newer"]
    assert [each.name for each in cache.of("n", "small")] == ["kept", "new", "newer"]


def test_a_relist_of_one_namespace_says_nothing_of_another() -> None:
    cache, _ = _cache()
    cache.put(_service("a", 1))
    cache.replace("elsewhere", [], 10)
    assert len(cache) == 1


def test_older_news_change_nothing_and_a_late_end_spares_the_successor() -> None:
    cache, heard = _cache()
    cache.put(_service("a", 10, uid="second"))
    heard.clear()
    cache.put(_service("a", 9, uid="first"))
    cache.remove("n", "a", "first")
    known = cache.get("n", "a")
    assert known is not None
    assert (known.uid, heard) == ("second", [])


@pytest.mark.parametrize("namespace", ["n", None], ids=["of one namespace", "of all"])
def test_an_answer_that_comes_after_the_end_of_its_object_is_not_kept(namespace: str | None) -> None:
    """A child of a deleted object, removed within milliseconds, stayed in the cache for ever and kept its successor's from being made."""
    cache, heard = _cache()
    cache.put(_service("a", 5, uid="first"))
    cache.remove("n", "a", "first")
    cache.put(_service("a", 7, uid="second"))
    cache.remove("n", "a", "second")
    cache.hear(namespace, 8)
    heard.clear()
    cache.put(_service("a", 7, uid="second"), is_own=True)
    assert cache.get("n", "a") is None
    assert (cache.of("n", "small"), heard) == ([], [("a", True)])
    cache.put(_service("a", 9, uid="third"), is_own=True)
    assert cache.get("n", "a") is not None


def test_an_answer_of_which_a_relist_knows_nothing_is_not_kept() -> None:
    cache, _ = _cache()
    cache.replace("n", [], 8)
    cache.put(_service("a", 7), is_own=True)
    assert cache.get("n", "a") is None


def test_a_watch_of_another_namespace_says_nothing_of_an_answer() -> None:
    cache, _ = _cache()
    cache.replace("elsewhere", [], 8)
    cache.put(_service("a", 7), is_own=True)
    assert cache.get("n", "a") is not None


def test_a_changed_owner_moves_the_index() -> None:
    cache, _ = _cache()
    cache.put(_service("a", 1))
    cache.put(_service("a", 2, owner="large"))
    assert (cache.of("n", "small"), len(cache.of("n", "large"))) == ([], 1)


def _parent(uid: str, version: int, generation: int = 1, **status: Any) -> dict[str, Any]:
    metadata = {"name": "small", "namespace": "n", "uid": uid, "resourceVersion": str(version), "generation": generation}
    return {"apiVersion": "largemodel.dev/v1alpha1", "kind": "LargeModelDeployment", "metadata": metadata, "spec": {}, "status": status}


def test_late_news_of_a_predecessor_do_not_replace_an_object() -> None:
    heard: list[tuple[str, str]] = []
    parents = Parents(heard.append)
    parents.put(_parent("second", 10))
    assert heard == [("n", "small")]
    parents.put(_parent("first", 9))
    parents.remove("n", "small", "first")
    assert len(heard) == 1
    found = parents.get(("n", "small"))
    assert found is not None
    assert found.uid == "second"


@pytest.mark.parametrize(
    ("answer", "is_news"),
    [
        pytest.param(_parent("u", 12, replicas=1), False, id="the status that was written"),
        pytest.param(_parent("u", 12, generation=2, replicas=1), True, id="a spec that was changed meanwhile"),
        pytest.param(_parent("v", 12, replicas=1), True, id="a successor"),
    ],
)
def test_an_answer_to_an_own_write_may_be_the_first_to_tell_of_a_change(answer: dict[str, Any], is_news: bool) -> None:
    """The watch tells of such a change with an older version, which is ignored: an edit was lost that way."""
    heard: list[tuple[str, str]] = []
    parents = Parents(heard.append)
    parents.put(_parent("u", 10))
    heard.clear()
    parents.put(answer, is_own=True)
    assert bool(heard) is is_news
    parents.put(_parent("u", 11, generation=2))
    assert bool(heard) is is_news


def test_the_end_of_an_object_and_a_foreign_status_are_told_once() -> None:
    heard: list[tuple[str, str]] = []
    parents = Parents(heard.append)
    parents.put(_parent("u", 10))
    parents.put(_parent("u", 11, replicas=7))
    parents.put(_parent("u", 11, replicas=7))
    assert len(heard) == 2
    parents.remove("n", "small", "u")
    parents.remove("n", "small", "u")
    assert len(heard) == 3
    assert parents.get(("n", "small")) is None


@pytest.mark.parametrize(
    ("event", "version"),
    [
        pytest.param({"type": "ADDED", "object": _service("a", 7)}, 7, id="new"),
        pytest.param({"type": "MODIFIED", "object": _service("a", 7, selector={"resourceVersion": "9"})}, 7, id="changed"),
        pytest.param({"type": "MODIFIED", "object": _service('"resourceVersion":"9"', 7)}, 7, id="a name in quotation marks"),
        pytest.param({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}, None, id="bookmark"),
        pytest.param({"type": "DELETED", "object": _service("a", 7)}, None, id="gone"),
        pytest.param({"type": "ERROR", "object": {"code": 410}}, None, id="error"),
    ],
)
def test_an_event_tells_the_version_of_its_object_before_it_is_read(event: dict[str, Any], version: int | None) -> None:
    """A bookmark of an own write's version was nearly passed over, and the watch would have seemed stuck."""
    assert changed_version(json.dumps(event, separators=(",", ":")).encode()) == version


def test_only_the_version_of_an_own_write_is_an_echo() -> None:
    cache, _ = _cache()
    cache.put(_service("a", 7), is_own=True)
    cache.put(_service("b", 8))
    cache.put(_service("b", 6), is_own=True)
    assert [version for version in range(6, 10) if cache.is_echo(version)] == [7]


class ApplyApi:
    """Answers each apply with the next of the documents, after the watch has told of something else."""

    def __init__(self, answers: list[dict[str, Any]], meanwhile: Callable[[], object]) -> None:
        self._answers = iter(answers)
        self._meanwhile = meanwhile

    async def apply_new(self, *_: object) -> dict[str, Any]:
        self._meanwhile()
        return next(self._answers)

    apply_content = apply_new


CHILD = Child.of(_service("a", 0, ports=[80]))


def _live(version: int, port: int = 80) -> dict[str, Any]:
    """The child as the API server has it."""
    document = json.loads(CHILD.content) | {"spec": {"ports": [port]}}
    owner = {"kind": "LargeModelDeployment", "name": "small", "uid": "p", "controller": True}
    return document | {"metadata": document["metadata"] | {"resourceVersion": str(version), "ownerReferences": [owner]}}


@pytest.mark.parametrize("is_overtaken", [False, True])
def test_a_change_that_overtakes_the_answer_to_a_write_is_drift(is_overtaken: bool) -> None:
    cache, _ = _cache()
    api = ApplyApi([_live(5), _live(5)], lambda: cache.put(_live(6, port=81)) if is_overtaken else None)
    door = Door(api, {SERVICE: cache})  # type: ignore[arg-type]
    assert asyncio.run(door.apply(CHILD, "p")) == "created"
    assert asyncio.run(door.apply(CHILD, "p")) == ("changed" if is_overtaken else "unchanged")


def test_a_child_that_is_deleted_before_the_answer_is_read_is_made_again() -> None:
    cache, heard = _cache()
    door = Door(ApplyApi([_live(5), _live(9)], lambda: cache.hear("n", 6)), {SERVICE: cache})  # type: ignore[arg-type]
    assert asyncio.run(door.apply(CHILD, "p")) == "created"
    assert heard == [("a", True)], "a reconcile is asked for"
    assert asyncio.run(door.apply(CHILD, "p")) == "created"
    assert asyncio.run(door.apply(CHILD, "p")) == "unchanged"


class TakenApi:
    """Has an object of the name that is asked for, or had one a moment ago."""

    def __init__(self, found: list[dict[str, Any]], answer: dict[str, Any]) -> None:
        self.applied = 0
        self._found = found
        self._answer = answer

    async def apply_new(self, *_: object) -> dict[str, Any]:
        raise ApiError("applying", 409, "the object has been modified", "Conflict")

    async def list(self, *_: object, name: str) -> tuple[list[dict[str, Any]], str]:
        return [each for each in self._found if each["metadata"]["name"] == name], "7"

    async def apply_content(self, *_: object) -> dict[str, Any]:
        self.applied += 1
        return self._answer


@pytest.mark.parametrize(
    ("owner", "raised", "applied"),
    [
        pytest.param("p", None, 1, id="ours, which the watch has not told of"),
        pytest.param("", None, 1, id="ours without its owner"),
        pytest.param("q", "is left of a deleted object", 0, id="of an object of the same name before"),
        pytest.param(None, "the object has been modified", 0, id="gone again"),
    ],
)
def test_a_name_that_turns_out_to_be_taken_is_looked_at_before_it_is_written(owner: str | None, raised: str | None, applied: int) -> None:
    cache, _ = _cache()
    child = Child.of(_service("a", 0, ports=[80]))
    live = json.loads(child.content)
    live["metadata"] |= {"resourceVersion": "5", "labels": {} if owner else live["metadata"]["labels"]}
    if owner:
        live["metadata"]["ownerReferences"] = [{"kind": "LargeModelDeployment", "name": "small", "uid": owner, "controller": True}]
    api = TakenApi([] if owner is None else [live], live | {"metadata": live["metadata"] | {"resourceVersion": "6"}})
    door = Door(api, {SERVICE: cache})  # type: ignore[arg-type]
    with pytest.raises(ApiError, match=raised) if raised else contextlib.nullcontext():
        assert asyncio.run(door.apply(child, "p")) == "created"
    assert api.applied == applied


@given(st.lists(st.binary(max_size=3 * LEAST_SAMPLE_BYTES)))
def test_what_is_packed_is_read_as_it_was(texts: list[bytes]) -> None:
    packer = Packer()
    packed = [packer.pack(text) for text in texts]
    assert [each.text() for each in packed] == texts


def test_what_resembles_the_first_text_is_kept_small() -> None:
    packer, random = Packer(), Random(1)
    packer.pack(b"{}")
    first = random.randbytes(2000)
    packer.pack(first)
    assert len(packer.pack(first.replace(first[:9], b"another")).content) < 50 < len(packer.pack(random.randbytes(2000)).content)


def test_a_record_knows_its_controller_and_ignores_the_servers_bookkeeping() -> None:
    document = _service("a", 1, ports=[])
    document["metadata"]["ownerReferences"] = [
        {"kind": "Other", "name": "other", "uid": "o"},
        {"kind": "LargeModelDeployment", "name": "small", "uid": "p", "controller": True},
    ]
    first: Record = record(SERVICE, document, Packer())
    later = record(
        SERVICE, {**document, "status": {"x": 1}, "metadata": {**document["metadata"], "managedFields": [], "generation": 7}}, Packer()
    )
    assert (first.owner, first.owner_uid, first.controller) == ("small", "p", "LargeModelDeployment small")
    assert first.digest == later.digest


class LeaseApi:
    """One lease in memory; `is_down` refuses everything."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.is_down = False

    async def get(self, *_: object) -> dict[str, Any] | None:
        if self.is_down:
            raise ApiError("getting", 503, "down")
        return None if self.lease is None else {**self.lease, "spec": dict(self.lease["spec"])}

    async def create(self, _: object, document: dict[str, Any]) -> None:
        self.lease = document

    async def replace(self, _: object, document: dict[str, Any]) -> None:
        self.lease = document


def _claim(api: LeaseApi, name: str, clock: Clock) -> Leadership:
    return Leadership(api, "n", "lease", name, clock)  # type: ignore[arg-type]


def _turn(claim: Leadership) -> bool:
    """Run one round of the claim, to its first sleep; return whether it leads then."""

    async def run() -> None:
        task = asyncio.create_task(claim.run())
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert claim.acquired.is_set() != claim.lost.is_set()
    return claim.acquired.is_set()


def test_a_lease_is_taken_when_its_holder_has_been_silent_for_its_duration() -> None:
    clock, api = Clock(), LeaseApi()
    first, second = _claim(api, "first", clock), _claim(api, "second", clock)
    assert _turn(first)
    assert not _turn(second)
    clock.now += LEASE_SECONDS - 1
    assert not _turn(second)
    clock.now += 2
    assert _turn(second)
    assert not _turn(first), "the first sees the second"


def test_a_standby_looks_again_as_soon_as_the_holders_time_is_up() -> None:
    clock, api = Clock(), LeaseApi()
    first, second = _claim(api, "first", clock), _claim(api, "second", clock)
    assert _turn(first)
    assert first._pause_seconds() == RETRY_SECONDS
    assert not _turn(second)
    assert second._pause_seconds() == RETRY_SECONDS
    clock.now += LEASE_SECONDS - 0.5
    assert not _turn(second)
    assert 0.5 < second._pause_seconds() < 0.6
    clock.now += second._pause_seconds()
    assert _turn(second)


def test_a_leader_that_cannot_renew_stands_by_and_leads_again() -> None:
    clock, api = Clock(), LeaseApi()
    claim = _claim(api, "first", clock)
    assert _turn(claim)
    api.is_down = True
    clock.now += RENEW_DEADLINE_SECONDS - 1
    assert _turn(claim)
    clock.now += 2
    assert not claim.is_leader
    assert not _turn(claim)
    api.is_down = False
    assert _turn(claim)


def test_a_released_lease_is_free_at_once_and_counts_a_transition() -> None:
    clock, api = Clock(), LeaseApi()
    first, second = _claim(api, "first", clock), _claim(api, "second", clock)
    assert _turn(first)
    asyncio.run(first.release())
    assert _turn(second)
    assert api.lease is not None
    assert (api.lease["spec"]["holderIdentity"], api.lease["spec"]["leaseTransitions"]) == ("second", 1)


@pytest.mark.parametrize("spec", [{}, {"holderIdentity": ""}, {"holderIdentity": None, "leaseTransitions": None}])
def test_a_lease_without_a_holder_is_taken(spec: dict[str, Any]) -> None:
    api = LeaseApi()
    api.lease = {"metadata": {}, "spec": spec}
    assert _turn(_claim(api, "first", Clock()))


class StubReconciler:
    """Says what it was told to say."""

    def __init__(self, result: Result) -> None:
        self._result = result

    async def reconcile(self, _: object) -> Result:
        return self._result


def test_a_date_for_the_status_is_kept_while_something_else_is_retried() -> None:
    """A child that is refused for minutes must not hold back what is told of the others."""

    async def look_again() -> None:
        app = App(Connection("http://127.0.0.1:9"), Settings())
        app._reconciler = StubReconciler(Result(again_seconds=1.0, retry=ApiError("applying", 422, "no")))  # type: ignore[assignment]
        for _ in range(12):  # by now a retry is a minute away
            await app._reconcile(("n", "small"))
            assert app.queue._due.pop(("n", "small")) <= time.monotonic() + 1.0
        await app.stop()

    asyncio.run(look_again())


def made_memory() -> Memory:
    return Memory(generation=3, status_at=5.0, made=Made(cast(Desired, None), ()))


def test_no_more_objects_than_there_is_room_for_keep_what_is_large() -> None:
    lately, memories = Lately(lambda: 0.0), [made_memory() for _ in range(MADE_KEPT + 2)]
    for number, memory in enumerate(memories):
        lately.add(("n", f"model-{number}"), memory)
        lately.add(("n", "model-0"), memories[0])
    assert [number for number, memory in enumerate(memories) if memory.made is None] == [1, 2]
    assert {(memory.generation, memory.status_at) for memory in memories} == {(3, 5.0)}, "what is small stays"
    lately.remove(("n", "model-0"))
    lately.add(("n", "other"), Memory())
    assert memories[3].made is not None, "there was room"


def test_objects_nobody_worked_on_for_a_while_lose_what_is_large() -> None:
    now = [0.0]
    lately, early, late = Lately(lambda: now[0]), made_memory(), made_memory()
    lately.add(("n", "early"), early)
    now[0] = MADE_KEPT_SECONDS - 1
    lately.add(("n", "late"), late)
    assert early.made is not None
    now[0] = MADE_KEPT_SECONDS
    lately.tidy()
    assert (early.made, late.made is None, lately.is_empty) == (None, False, False)
    now[0] = 2 * MADE_KEPT_SECONDS
    lately.tidy()
    assert (late.made, lately.is_empty) == (None, True)
