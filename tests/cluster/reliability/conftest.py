"""Operators on the real plane, the objects they look after, and quiet as the proof that they are done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from lmd_plane.audit import Entry
from lmd_plane.client import Api, eventually
from lmd_plane.faults import FaultProxy
from lmd_plane.objects import Objects
from lmd_plane.operators import Operator, enrol
from lmd_plane.plane import Plane

from lmd_operator.reconcile import FLIP_STATUS_SECONDS, PROGRESS_STATUS_SECONDS

SAMPLE = Path(__file__).parents[3] / "crds" / "examples" / "smollm2.yaml"
SETTLE_SECONDS = 2.5
"""What may still be written after everything looks settled: the last status waits for a second since the one before."""

EnrolOne = Callable[..., Operator]

IN_THE_CLUSTER_SUITE = frozenset(
    {
        "test_one_write_a_child_then_silence",
        "test_a_restart_writes_nothing[by SIGKILL]",
        "test_drift_is_repaired[deleted-while it runs]",
        "test_a_changed_spec_rolls_out_and_old_texts_are_pruned",
        "test_scale_budget_suspend_and_restart",
        "test_a_successor_of_the_same_name_gets_its_own_children",
        "test_a_child_that_ends_slowly_is_awaited_and_made_anew",
        "test_other_peoples_objects_are_not_touched[Service]",
        "test_a_bad_spec_disturbs_nothing_and_a_good_one_heals",
        "test_a_repeated_transition_is_one_event_with_a_series",
        "test_a_crash_at_any_write_leaves_no_trace[create-after]",
        "test_a_crash_around_a_deletion_leaves_nothing[while it is down]",
        "test_watches_fail_while_things_change[410 to the list]",
        "test_every_first_write_fails[500]",
        "test_an_edit_that_comes_late_is_not_lost",
        "test_a_standby_writes_nothing_and_takes_over",
        "test_a_refused_spec_and_a_stalled_object_have_an_alert_each",
        "test_progress_is_in_the_status_with_few_writes",
        "test_a_roll_out_surges_where_there_is_room_and_makes_room_where_not",
        "test_ranks_as_planned_are_verified_and_a_restart_writes_nothing",
        "test_a_replica_that_differs_is_told_until_it_is_put_right[degree]",
        "test_a_fault_in_the_last_words_is_told",
        "test_a_cache_is_filled_once_and_then_there_is_silence",
        "test_what_is_in_the_cache_is_given_up_after_the_last_pod[while it is down]",
    }
)
"""One test of each kind, which `make test-cluster` runs too; `make test-reliability` runs the rest, which takes much longer."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that the cluster suite runs too."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.name in IN_THE_CLUSTER_SUITE:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture
def make_operator(own_plane: Plane, namespace: str, crd: dict[str, Any], tmp_path: Path) -> Iterator[EnrolOne]:
    """Enrol operators for the test's namespace; they end with the test, and their logs are shown when it fails."""
    made: list[Operator] = []

    def make(name: str = "operator", proxy: FaultProxy | None = None) -> Operator:
        made.append(enrol(own_plane, name, namespace, tmp_path, proxy))
        return made[-1]

    yield make
    for operator in made:
        operator.kill()
        print(f"---- {operator.name}\n{operator.words()[-12000:]}")


@pytest.fixture
def operator(make_operator: EnrolOne) -> Operator:
    """An operator that runs and leads, on the direct way to the API server."""
    operator = make_operator()
    operator.start()
    operator.wait_leading()
    return operator


@pytest.fixture
def faulty(make_operator: EnrolOne, faults: FaultProxy) -> Operator:
    """An operator behind the fault proxy, not started yet."""
    return make_operator(proxy=faults)


@pytest.fixture
def objects(api: Api, namespace: str, crd: dict[str, Any]) -> Objects:
    """Our objects in the test's namespace."""
    return Objects(api, namespace, yaml.safe_load(SAMPLE.read_text()))


@pytest.fixture
def assert_quiet(own_plane: Plane) -> Callable[..., None]:
    """Fail when an operator writes anything for a while, after it has written what it still had to."""

    def check(operator: Operator, *, seconds: float = 6.0) -> None:
        eventually(lambda: not _writes_for(operator, SETTLE_SECONDS), "end of the last writes")
        written = _writes_for(operator, seconds)
        assert not written, [(entry.verb, entry.resource, entry.subresource, entry.name, entry.code) for entry in written]

    def _writes_for(operator: Operator, seconds: float) -> list[Entry]:
        mark = own_plane.audit.mark()
        time.sleep(seconds)
        return operator.writes(own_plane, mark)

    return check


@pytest.fixture
def assert_paced(own_plane: Plane) -> Callable[[Operator, int], None]:
    """Fail when an operator that was not restarted since a mark wrote statuses more often than it may, or to and fro.

    What flips a condition may be written a second after the write before, all else only ten seconds after it; how many
    writes that makes depends on the machine. An object whose spec is not changed has each state of its conditions once.
    """

    def check(operator: Operator, mark: int) -> None:
        statuses: dict[str, list[Entry]] = {}
        for entry in operator.writes(own_plane, mark):
            if (entry.resource, entry.subresource, entry.code) == ("largemodeldeployments", "status", 200):
                statuses.setdefault(entry.name, []).append(entry)
        for name, written in statuses.items():
            states = [_state_of(entry) for entry in written]
            print(f"statuses of {name}: {[(f'{entry.at:%X}', *state) for entry, state in zip(written, states, strict=True)]}")
            for (before, earlier), (after, later) in pairwise(zip(written, states, strict=True)):
                least = PROGRESS_STATUS_SECONDS if earlier == later else FLIP_STATUS_SECONDS
                apart = (after.at - before.at).total_seconds()
                assert apart > 0.9 * least, f"{name}: {apart:.1f} s from {earlier} to {later}"
            flips = [state for state, _ in groupby(states)]
            assert len(flips) == len(set(flips)), f"{name}: to and fro, {flips}"

    return check


def _state_of(entry: Entry) -> tuple[str, ...]:
    """Return what the written status answers: its generation, and what each condition says."""
    status = entry.body["status"]
    conditions = sorted(f"{each['type']}={each['status']}" for each in status.get("conditions", []))
    return (str(status.get("observedGeneration")), *conditions)


@pytest.fixture
def assert_within(request: pytest.FixtureRequest) -> Callable[[str, float, float], None]:
    """Tell how long something took, in seconds, and hold it against its bound; in the cluster suite only with LMD_LONG=1.

    That one runs on machines that do other things beside, where anything may take longer.
    """
    is_bound = request.node.get_closest_marker("cluster") is None or os.environ.get("LMD_LONG") == "1"

    def check(what: str, taken: float, bound: float) -> None:
        print(f"{what} after {taken:.1f} s")
        assert taken <= bound or not is_bound, what

    return check
