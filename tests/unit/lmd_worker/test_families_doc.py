"""docs/families.md says what the worker does."""

import families_table
import pytest

from lmd_worker.strategies import families


@pytest.fixture(scope="module")
def written():
    return families_table.read(families_table.FILE.read_text())


def test_the_table_has_every_strategy_and_every_family(written):
    assert {strategy for _, strategy in written} == {*families.COLUMNS, "Accelerate"}
    assert {family.partition(",")[0] for family, _ in written} == set(families_table.known())


@pytest.mark.parametrize("strategy", families.COLUMNS)
def test_a_family_is_served_exactly_when_the_table_says_equal(written, strategy):
    said = {family for family, name in written if name == strategy and "," not in family and written[family, name]}
    assert said == families.COLUMNS[strategy].right
