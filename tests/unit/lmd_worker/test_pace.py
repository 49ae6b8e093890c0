"""How much of a prompt a turn may hold, on devices of any speed."""

import pytest

from lmd_worker.engine.pace import FIRST_CHUNK, LARGEST_CHUNK, MIXED_TURNS, SMALLEST_CHUNK, STRETCH, Pace


def learned(answers_seconds, seconds_a_prompt_token, chunk=64):
    pace = Pace()
    for _ in range(20):
        pace.learn(answers_seconds, 8, 0)
        pace.learn(answers_seconds + chunk * seconds_a_prompt_token, 8, chunk)
    return pace


def test_where_nobody_waits_the_chunk_is_as_large_as_it_gets():
    assert Pace().chunk(0, 1) == learned(0.01, 1.0).chunk(0, 1) == LARGEST_CHUNK


def test_answers_are_timed_alone_first_and_then_the_chunk_is_careful():
    pace = Pace()
    assert pace.chunk(3, 1) == 0
    pace.learn(0.1, 3, 0)
    assert pace.chunk(3, 1) == FIRST_CHUNK


def test_where_prompts_never_pause_answers_are_timed_alone_now_and_then():
    """A time of one answer alone stood for eight, and the chunks of a busy service became ever smaller."""
    pace = learned(0.1, 0.002)
    turns = []
    for _ in range(3 * (MIXED_TURNS + 1)):
        chunk = pace.chunk(8, 1)
        turns.append(chunk)
        pace.learn(0.3 + chunk * 0.002, 8, chunk)
    assert turns.count(0) == 3
    assert pace.chunk(8, 1) == pytest.approx((STRETCH - 1) * 0.3 / 0.002, rel=0.2)


def test_one_slow_turn_of_many_does_not_double_the_chunk():
    """It did, when the last turn before a prompt came happened to be a slow one; the answers then waited five times as long as usual."""
    pace = learned(0.1, 0.002)
    usual = pace.chunk(8, 1)
    pace.learn(0.2, 8, 0)
    assert usual < pace.chunk(8, 1) < 1.3 * usual


def test_how_many_answer_is_told_apart():
    pace = learned(0.1, 0.002)
    assert pace.chunk(15, 0) > 0
    assert pace.chunk(16, 0) == 0
    pace.learn(0.2, 16, 0)
    assert pace.chunk(16, 0) == pytest.approx(2 * pace.chunk(15, 0), abs=2)


def test_a_crowd_that_comes_at_once_is_let_in_as_fast_as_all_its_answers_will_bear():
    """The first of sixteen had to be read by the measure of the one who was answered already, and twice as long."""
    pace = Pace()
    pace.learn(0.08, 1, 0)
    pace.learn(0.08 + 0.2, 1, 50)
    assert pace.chunk(1, 15) == pytest.approx((STRETCH - 1) * 0.08 / 0.004, abs=1)
    pace.learn(0.2, 16, 0)
    assert pace.chunk(1, 15) == pytest.approx((STRETCH * 0.2 - 0.08) / 0.004, abs=1)
    assert pace.chunk(1, 1) == pytest.approx((STRETCH - 1) * 0.08 / 0.004, abs=1)


def test_what_a_crowd_will_bear_is_known_before_it_was_answered_by_turns_of_as_many_tokens():
    """Turns of sixteen took 0.2 s, which was not known until sixteen were answered; the slow first turn of a process says nothing."""
    pace = Pace()
    pace.learn(3.0, 0, 3)
    pace.learn(0.08, 1, 0)
    pace.learn(0.2, 1, 15)
    turn = STRETCH * 0.2
    assert 0.08 + pace.chunk(1, 15) * (0.2 - 0.08) / 15 == pytest.approx(turn, rel=0.05)


def test_a_large_piece_is_not_judged_by_the_price_of_a_small_one():
    """A piece of eight cost 100 ms, of which 70 are the turn's; by that price no piece became larger than eight."""
    pace = Pace()
    pace.learn(0.085, 1, 0)
    pace.learn(0.25, 16, 0)
    chunks = []
    for _ in range(4):
        chunks.append(pace.chunk(1, 15))
        pace.learn(0.085 + 0.07 + chunks[-1] * 0.0035, 1, chunks[-1])
    assert chunks[0] == FIRST_CHUNK
    assert chunks[-1] == pytest.approx((STRETCH * 0.25 - 0.085 - 0.07) / 0.0035, rel=0.05)


@pytest.mark.parametrize(("answers_seconds", "seconds_a_prompt_token"), [(0.1, 0.002), (0.01, 0.0001), (0.3, 0.004)])
def test_a_turn_with_a_chunk_takes_as_long_as_wanted_on_any_device(answers_seconds, seconds_a_prompt_token):
    chunk = learned(answers_seconds, seconds_a_prompt_token).chunk(8, 1)
    turn = answers_seconds + chunk * seconds_a_prompt_token
    assert turn / answers_seconds == pytest.approx(STRETCH, rel=0.05)


@pytest.mark.parametrize(("seconds_a_prompt_token", "expected"), [(1.0, SMALLEST_CHUNK), (1e-9, LARGEST_CHUNK)])
def test_prompts_go_on_and_turns_stay_bounded(seconds_a_prompt_token, expected):
    assert learned(0.01, seconds_a_prompt_token).chunk(8, 1) == expected


def test_prompts_read_alone_teach_their_price_too():
    pace = Pace()
    pace.learn(0.512, 0, 512)
    assert pace.chunk(1, 1) == 0
    pace.learn(0.01, 1, 0)
    assert pace.chunk(1, 1) == pytest.approx((STRETCH - 1) * 0.01 / 0.001, abs=1)


def test_a_prompt_that_becomes_dearer_is_cut_smaller_at_once_and_larger_only_slowly():
    pace = learned(0.1, 0.001)
    usual = pace.chunk(8, 1)
    pace.learn(0.1 + 64 * 0.002, 8, 64)
    assert pace.chunk(8, 1) <= usual * 0.7
    pace = learned(0.1, 0.001)
    pace.learn(0.1 + 64 * 0.0005, 8, 64)
    assert usual < pace.chunk(8, 1) < usual * 1.25
