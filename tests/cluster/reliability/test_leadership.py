"""Two operators, one lease: who writes, who takes over, and what a leader does that has been asleep."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from lmd_plane.client import eventually
from lmd_plane.objects import Objects
from lmd_plane.operators import Operator
from lmd_plane.plane import Plane

pytestmark = pytest.mark.reliability
TAKEOVER_SECONDS = 20.0
HANDOVER_SECONDS = 6.0
AssertQuiet = Callable[..., None]
AssertWithin = Callable[[str, float, float], None]


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
    standby.wait_leading()
    objects.wait_settled("small")
    assert_quiet(standby, seconds=2)


@pytest.mark.parametrize(
    ("end", "bound"), [(Operator.terminate, HANDOVER_SECONDS), (Operator.kill, TAKEOVER_SECONDS)], ids=["ends", "dies"]
)
def test_a_standby_leads_soon_when_the_leader(
    pair: tuple[Operator, Operator], assert_within: AssertWithin, end: Callable[[Operator], object], bound: float
) -> None:
    leader, standby = pair
    end(leader)
    assert_within("takeover", standby.wait_leading(), bound)


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
