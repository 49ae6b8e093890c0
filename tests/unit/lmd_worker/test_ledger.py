"""Requests between the transport's thread and the engine's."""

import threading

import pytest

from lmd_worker.engine.ledger import KEPT_TIMINGS, Ledger, News, Ticket, Totals
from lmd_worker.engine.protocol import Progress, RequestTiming, Sampling, TokenLogprobs
from lmd_worker.errors import BadRequestError


def make_ticket(name, max_tokens=4):
    return Ticket(name, (1, 2), Sampling(max_tokens=max_tokens), chooser=None)


def taken(ledger, *names):
    tickets = [make_ticket(name) for name in names]
    for ticket in tickets:
        ledger.add(ticket)
    return ledger.take(len(names), 0)


def test_requests_are_taken_in_order_of_arrival_and_up_to_the_limit():
    ledger = Ledger()
    for name in "abc":
        ledger.add(make_ticket(name))
    assert [ticket.request_id for ticket in ledger.take(2, 0)] == ["a", "b"]
    assert [ticket.request_id for ticket in ledger.take(2, 0)] == ["c"]
    assert ledger.take(2, 0) == []


def test_news_are_told_once_and_the_id_is_forgotten_after_the_end():
    ledger = Ledger()
    (ticket,) = taken(ledger, "a")
    ledger.publish([News(ticket, 7)])
    ledger.publish([News(ticket, 8, "stop")])
    assert ledger.progress("a") == Progress((7, 8), "stop")
    assert ledger.progress("a") == Progress(finish_reason="cancelled")
    ledger.add(make_ticket("a"))


def test_a_used_id_is_refused_and_the_first_request_goes_on():
    ledger = Ledger()
    (ticket,) = taken(ledger, "a")
    with pytest.raises(BadRequestError, match="is in use"):
        ledger.add(make_ticket("a"))
    ledger.publish([News(ticket, 7)])
    assert ledger.progress("a") == Progress((7,))


def test_cancelling_removes_a_waiting_request_and_marks_a_running_one():
    ledger = Ledger()
    (running,) = taken(ledger, "a")
    ledger.add(make_ticket("b"))
    ledger.cancel("a")
    ledger.cancel("b")
    ledger.cancel("unknown")
    assert running.over
    assert ledger.take(2, 0) == []
    ledger.publish([News(running, 7)])
    assert running.produced == []


def test_unfinished_requests_wait_before_newer_ones():
    ledger = Ledger()
    first, second, third = taken(ledger, "a", "b", "c")
    ledger.add(make_ticket("d"))
    ledger.publish([News(second, 7, "stop")])
    ledger.cancel("third")
    ledger.put_back([first, second, third])
    assert [ticket.request_id for ticket in ledger.take(9, 0)] == ["a", "c", "d"]


def test_closing_ends_waiting_running_and_later_requests_with_the_first_sentence():
    ledger = Ledger()
    taken(ledger, "running")
    ledger.add(make_ticket("waiting"))
    ledger.close("it broke")
    ledger.close("a consequence")
    ledger.add(make_ticket("late"))
    for name in ("running", "waiting", "late"):
        assert ledger.progress(name) == Progress((), "error", "it broke")


def test_wait_ends_with_the_first_news():
    ledger = Ledger()
    (ticket,) = taken(ledger, "a")
    woken = threading.Event()

    def wait():
        ledger.wait(["a"], 60)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not woken.wait(0.05)
    ledger.publish([News(ticket, 7)])
    assert woken.wait(30)
    thread.join()


def test_log_probabilities_are_told_with_their_tokens():
    ledger = Ledger()
    (ticket,) = taken(ledger, "a")
    first, second = TokenLogprobs(-0.1), TokenLogprobs(-0.2, ((3, -0.1),))
    ledger.publish([News(ticket, 7, logprobs=first)])
    assert ledger.progress("a") == Progress((7,), logprobs=(first,))
    ledger.publish([News(ticket, 8, "length", logprobs=second)])
    assert ledger.progress("a") == Progress((8,), "length", logprobs=(second,))


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_more_requests_than_may_be_open_are_refused_until_one_ends():
    ledger = Ledger(limit=2)
    (running,) = taken(ledger, "a")
    ledger.add(make_ticket("b"))
    with pytest.raises(BadRequestError, match="2 requests are open") as refusal:
        ledger.add(make_ticket("c"))
    assert (refusal.value.status, refusal.value.retry_after_seconds) == (429, 1)
    ledger.publish([News(running, 7, "stop")])
    ledger.add(make_ticket("c"))
    with pytest.raises(BadRequestError):
        ledger.add(make_ticket("d"))
    ledger.cancel("b")
    ledger.add(make_ticket("d"))


def test_a_refusal_says_when_the_next_request_should_end_at_the_pace_of_late():
    clock = Clock()
    ledger = Ledger(limit=1, clock=clock)
    for index in range(50):
        (ticket,) = taken(ledger, str(index))
        clock.now += 7.5
        ledger.publish([News(ticket, 7, "stop")])
    ledger.add(make_ticket("last"))
    with pytest.raises(BadRequestError) as refusal:
        ledger.add(make_ticket("refused"))
    assert refusal.value.retry_after_seconds == 8


def test_totals_count_what_was_begun_and_made_once():
    ledger = Ledger()
    first, second = taken(ledger, "a", "b")
    ledger.add(make_ticket("c"))
    ledger.publish([News(first, 7), News(second, 7)])
    ledger.put_back([first, second])
    assert ledger.totals() == Totals(running=0, waiting=3, prompt_tokens=4, generation_tokens=2)
    ledger.take(2, 0)
    ledger.publish([News(first, 7, "stop")])
    ledger.publish([News(first, 7)])
    assert ledger.totals() == Totals(running=1, waiting=1, prompt_tokens=4, generation_tokens=3)
    ledger.cancel("b")
    ledger.cancel("c")
    assert ledger.totals() == Totals(0, 0, 4, 3)


def test_timings_are_of_requests_that_were_begun_and_are_drained_once():
    clock = Clock()
    ledger = Ledger(clock=clock)
    ledger.add(make_ticket("a"))
    ledger.add(make_ticket("never begun"))
    clock.now += 1
    (ticket,) = ledger.take(1, 0)
    for step in (2, 4, 8):
        clock.now += step
        ledger.publish([News(ticket, 7)])
    ledger.cancel("a")
    ledger.cancel("never begun")
    assert ledger.drain_timings() == [RequestTiming(1.0, 3.0, (4.0, 8.0))]
    assert ledger.drain_timings() == []


def test_timings_that_nobody_drains_do_not_pile_up():
    ledger = Ledger()
    for index in range(KEPT_TIMINGS + 5):
        taken(ledger, str(index))
        ledger.cancel(str(index))
    assert len(ledger.drain_timings()) == KEPT_TIMINGS
