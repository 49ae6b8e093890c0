"""How long the next turn waits for those who speak with clients."""

from lmd_worker.engine.patience import IMPATIENT_TURNS, MOST, Patience


def test_turns_on_a_device_of_its_own_wait_for_nobody():
    assert Patience(shares_cores=False).seconds(1.0) == 0.0


def test_on_shared_cores_a_turn_waits_for_a_part_of_its_own_time():
    patience = Patience(shares_cores=True)
    for _ in range(3):
        assert patience.seconds(0.5) == MOST * 0.5
        patience.learn(were_back=True)


def test_who_was_not_back_in_time_is_not_waited_for_until_some_turns_later():
    patience = Patience(shares_cores=True)
    assert patience.seconds(0.5)
    patience.learn(were_back=False)
    assert [patience.seconds(0.5) for _ in range(IMPATIENT_TURNS)] == [0.0] * IMPATIENT_TURNS
    assert patience.seconds(0.5) == MOST * 0.5
