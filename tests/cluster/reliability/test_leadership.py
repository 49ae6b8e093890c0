"""Two operators, one lease: who writes, who takes over, and what a leader does that has been asleep."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from lmd_plane.client import eventually
from lmd_plane.objects import Objects
from lmd_plane.operators import Operator
from lmd_plane.plane import Plane

pytestmark = pytest.mark.reliability
IS_LONG = os.environ.get("LMD_LONG") == "1"
"""Only then are times bounds: a machine that runs other tests beside may take longer for anything."""
TAKEOVER_SECONDS = 20.0
AssertQuiet = Callable[..., None]


@pytest.fixture
def pair(make_operator: Callable[..., Operator], objects: Objects) -> tuple[Operator, Operator]:
    """A leader and a standby, and one object that is settled."""
    leader, standby = make_operator("leader"), make_operator("standby")
    leader.start()
    leader.wait_leading()
    standby.start()
    objects.create("small")
    objects.wait_settled("small")
    return leader, standby


def test_a_standby_writes_nothing_and_takes_over(
    own_plane: Plane, pair: tuple[Operator, Operator], objects: Objects, assert_quiet: AssertQuiet
) -> None:
    leader, standby = pair
    mark = own_plane.audit.mark()
    objects.change("small", {"replicas": 2})
    objects.wait_settled("small")
    assert not standby.leads()
    assert standby.writes(own_plane, mark) == []
    leader.kill()
    objects.change("small", {"replicas": 1})
    taken = standby.wait_leading()
    print(f"takeover after {taken:.1f} s")
    assert taken <= TAKEOVER_SECONDS or not IS_LONG
    objects.wait_settled("small")
    assert_quiet(standby, seconds=2)


def test_a_leader_that_ends_hands_over_at_once(pair: tuple[Operator, Operator]) -> None:
    leader, standby = pair
    leader.terminate()
    taken = standby.wait_leading()
    print(f"handover after {taken:.1f} s")
    assert taken < 6 or not IS_LONG


def test_a_leader_that_was_asleep_stands_by(
    own_plane: Plane, pair: tuple[Operator, Operator], objects: Objects, assert_quiet: AssertQuiet
) -> None:
    leader, standby = pair
    with leader.paused():
        began = time.monotonic()
        standby.wait_leading()
        objects.change("small", {"replicas": 2})
        objects.wait_settled("small")
        time.sleep(max(0.0, 20 - (time.monotonic() - began)))
        mark = own_plane.audit.mark()
    eventually(lambda: not leader.leads(), "end of the old leadership", seconds=15)
    objects.change("small", {"replicas": 1})
    objects.wait_settled("small")
    assert_quiet(standby, seconds=2)
    assert leader.writes(own_plane, mark) == []
    assert standby.leads()
    assert not leader.leads()


@pytest.mark.parametrize("harm", ["deleted", "emptied", "taken"])
def test_a_harmed_lease_ends_with_one_leader(
    own_plane: Plane, pair: tuple[Operator, Operator], objects: Objects, assert_quiet: AssertQuiet, harm: str
) -> None:
    path = objects.path("Lease", "lmd-operator")
    match harm:
        case "deleted":
            objects.api.delete(path)
        case "emptied":
            objects.api.patch(path, {"spec": None})
        case "taken":
            objects.api.patch(path, {"spec": {"holderIdentity": "nobody", "renewTime": None, "leaseDurationSeconds": 3}})
            eventually(lambda: not any(operator.leads() for operator in pair), "end of the leadership", seconds=8)
    time.sleep(3)
    eventually(lambda: [operator.leads() for operator in pair].count(True) == 1, "one leader", seconds=TAKEOVER_SECONDS)
    objects.change("small", {"replicas": 2})
    objects.wait_settled("small")
    for operator in pair:
        assert operator.pid
        assert_quiet(operator, seconds=1)
