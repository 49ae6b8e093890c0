"""How much of a prompt a turn may hold, on devices of any speed."""

import pytest

from lmd_worker.engine.pace import FIRST_CHUNK, LARGEST_CHUNK, SMALLEST_CHUNK, STRETCH, Pace


def learned(answers_seconds, seconds_a_prompt_token, chunk=64):
    pace = Pace()
    for _ in range(20):
        pace.learn(answers_seconds, 8, 0)
        pace.learn(answers_seconds + chunk * seconds_a_prompt_token, 8, chunk)
    return pace


def test_where_nobody_waits_the_chunk_is_as_large_as_it_gets():
    assert Pace().chunk(0) == learned(0.01, 1.0).chunk(0) == LARGEST_CHUNK


def test_before_anything_was_measured_the_chunk_is_careful():
    assert Pace().chunk(3) == FIRST_CHUNK


@pytest.mark.parametrize(("answers_seconds", "seconds_a_prompt_token"), [(0.1, 0.002), (0.01, 0.0001), (0.3, 0.004)])
def test_a_turn_with_a_chunk_takes_as_long_as_wanted_on_any_device(answers_seconds, seconds_a_prompt_token):
    chunk = learned(answers_seconds, seconds_a_prompt_token).chunk(8)
    turn = answers_seconds + chunk * seconds_a_prompt_token
    assert turn / answers_seconds == pytest.approx(STRETCH, rel=0.05)


@pytest.mark.parametrize(("seconds_a_prompt_token", "expected"), [(1.0, SMALLEST_CHUNK), (1e-9, LARGEST_CHUNK)])
def test_prompts_go_on_and_turns_stay_bounded(seconds_a_prompt_token, expected):
    assert learned(0.01, seconds_a_prompt_token).chunk(1) == expected


def test_prompts_read_alone_teach_their_price_too():
    pace = Pace()
    pace.learn(0.512, 0, 512)
    pace.learn(0.01, 1, 0)
    assert pace.chunk(1) == pytest.approx((STRETCH - 1) * 0.01 / 0.001, abs=1)


def test_a_mixed_turn_teaches_nothing_before_the_answers_alone_are_known():
    pace = Pace()
    pace.learn(5.0, 1, 10)
    assert pace.chunk(1) == FIRST_CHUNK


def test_a_prompt_that_becomes_dearer_is_cut_smaller_at_once_and_larger_only_slowly():
    pace = learned(0.1, 0.001)
    usual = pace.chunk(4)
    pace.learn(0.1 + 64 * 0.002, 4, 64)
    assert pace.chunk(4) <= usual * 0.7
    pace = learned(0.1, 0.001)
    pace.learn(0.1 + 64 * 0.0005, 4, 64)
    assert usual < pace.chunk(4) < usual * 1.25
