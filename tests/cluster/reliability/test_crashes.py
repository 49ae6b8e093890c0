"""The operator dies around each of its writes; whoever comes after it ends where an undisturbed run ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from lmd_plane.client import eventually
from lmd_plane.faults import Drop, Exchange, FaultProxy, Match
from lmd_plane.objects import Objects
from lmd_plane.operators import Operator
from lmd_plane.plane import Plane

pytestmark = pytest.mark.reliability
AssertQuiet = Callable[..., None]

CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "create": ({"replicas": 2}, None),
    "degree": ({}, {"parallelism": {"tensor": 2}}),
    "scale up": ({}, {"replicas": 2}),
    "scale down": ({"replicas": 2}, {"replicas": 1}),
}
"""What the object is created with, and what is changed while the operator dies; None: it dies while it creates."""


def _writes(faults: FaultProxy) -> list[Exchange]:
    found = faults.exchanges(Match(verb="write", user_agent="lmd-operator"))
    return [exchange for exchange in found if exchange.request.resource not in ("leases", "events")]


def _ours(exchange: Exchange) -> bool:
    return exchange.request.user_agent.startswith("lmd-operator") and exchange.request.resource not in ("leases", "events")


@pytest.mark.parametrize("moment", ["after", "before"])
@pytest.mark.parametrize("workload", CHANGES)
def test_a_crash_at_any_write_leaves_no_trace(
    own_plane: Plane, faulty: Operator, faults: FaultProxy, objects: Objects, assert_quiet: AssertQuiet, workload: str, moment: str
) -> None:
    first, change = CHANGES[workload]
    name = "small"  # names are part of the rendered files, so every run has the same one

    def begin() -> None:
        if change is not None:
            objects.create(name, first)
            objects.wait_settled(name)

    def act() -> None:
        if change is None:
            objects.create(name, first)
        else:
            objects.change(name, change)

    def clean() -> None:
        objects.delete(name)
        objects.wait_gone(name)

    faulty.start()
    faulty.wait_leading()
    begin()
    assert_quiet(faulty, seconds=0.2)
    faults.forget()
    act()
    objects.wait_settled(name)
    assert_quiet(faulty, seconds=0.5)
    learned = _writes(faults)
    expected = objects.image(name)
    clean()
    print(f"{workload}: {len(learned)} writes: {[exchange.request.resource for exchange in learned]}")
    # how often the status tells of progress is a matter of timing; that it is told is not
    count = [exchange.request.resource for exchange in learned].index("largemodeldeployments") + 1
    for number in range(1, count + 1):
        begin()
        crashes = _crash_at(faulty, faults, number, moment)
        act()
        eventually(lambda: not _runs(faulty), f"crash {moment} write {number}")
        faults.clear()
        assert crashes
        faulty.start()
        faulty.wait_leading()
        objects.wait_settled(name)
        objects.wait_image(name, expected)
        clean()
    objects.create(name, first)
    objects.wait_settled(name)
    assert_quiet(faulty, seconds=1)


def _crash_at(operator: Operator, faults: FaultProxy, number: int, moment: str) -> list[Exchange]:
    """Have the operator die at its n-th write from now on; the list is filled when it has."""
    crashed: list[Exchange] = []
    seen: list[Exchange] = []
    if moment == "after":

        def on_write(exchange: Exchange) -> None:
            if _ours(exchange) and not crashed:
                seen.append(exchange)
                if len(seen) == number:
                    crashed.append(exchange)
                    operator.kill()

        faults.after_write(on_write)
        return crashed

    def on_earlier_write(exchange: Exchange) -> None:
        if _ours(exchange) and not crashed:
            seen.append(exchange)
            if len(seen) == number - 1:
                _die_unheard()

    def _die_unheard() -> None:
        # from now on nothing reaches the server; the next write is on its way when the process dies
        faults.add(Match(verb="write", user_agent="lmd-operator"), Drop())
        crashed.append(seen[-1] if seen else Exchange(request=None))  # type: ignore[arg-type]

        def later() -> None:
            eventually(lambda: any(exchange.fault == "Drop" and _ours(exchange) for exchange in faults.exchanges()), "dropped write")
            operator.kill()

        threading.Thread(target=later, daemon=True).start()

    faults.forget()
    faults.after_write(on_earlier_write)
    if number == 1:
        _die_unheard()
    return crashed


def _runs(operator: Operator) -> bool:
    try:
        return bool(operator.pid)
    except Exception:
        return False


@pytest.mark.parametrize("when", ["at once", "while it is down"])
def test_a_crash_around_a_deletion_leaves_nothing(
    own_plane: Plane, faulty: Operator, objects: Objects, assert_quiet: AssertQuiet, when: str
) -> None:
    faulty.start()
    faulty.wait_leading()
    objects.create("small", {"replicas": 2})
    objects.create("other")
    objects.wait_settled("small", "other")
    if when == "while it is down":
        faulty.kill()
    objects.delete("small")
    faulty.kill()
    faulty.start()
    faulty.wait_leading()
    objects.wait_gone("small")
    objects.wait_settled("other")
    assert_quiet(faulty, seconds=2)


@pytest.mark.parametrize("number", [1, 3, 5])
def test_what_was_half_made_goes_with_its_object(
    own_plane: Plane, faulty: Operator, faults: FaultProxy, objects: Objects, assert_quiet: AssertQuiet, number: int
) -> None:
    """The operator dies while it creates, and the object is deleted before it is back."""
    faulty.start()
    faulty.wait_leading()
    crashes = _crash_at(faulty, faults, number, "after")
    objects.create("small", {"replicas": 2})
    eventually(lambda: crashes and not _runs(faulty), f"crash after write {number}")
    faults.clear()
    assert len(objects.children("small")) == number
    objects.delete("small")
    faulty.start()
    faulty.wait_leading()
    objects.wait_gone("small")
    assert_quiet(faulty, seconds=2)
    assert objects.children("small") == {}
