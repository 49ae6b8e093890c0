"""Requests between the transport's thread and the engine's."""

import threading

import pytest

from lmd_worker.engine.ledger import Ledger, News, Ticket
from lmd_worker.engine.protocol import Progress, Sampling
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
