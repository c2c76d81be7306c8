"""Moments at which the warden looks at its sandboxes."""

import math

from hypothesis import given
from hypothesis import strategies as st

from stockade.warden.agenda import Agenda


def test_the_earliest_moment_counts_and_each_thing_comes_once() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.put("a", 9.0)
    agenda.put("b", 5.0)
    agenda.put("a", 3.0)
    agenda.put("a", 7.0)
    assert agenda.next == 3.0
    assert list(agenda.take(6.0)) == ["a", "b"]
    assert list(agenda.take(100.0)) == []
    assert agenda.next == math.inf


def test_never_is_no_moment_and_what_is_dropped_does_not_come() -> None:
    agenda: Agenda[str] = Agenda()
    agenda.put("a", math.inf)
    agenda.put("b", 1.0)
    agenda.drop("b")
    agenda.drop("c")
    assert list(agenda.take(2.0)) == []


def test_what_is_put_down_again_and_again_takes_no_more_room() -> None:
    """A stream whose reader holds its process back puts its sandbox down thousands of times a second."""
    agenda: Agenda[str] = Agenda()
    for moment in range(100_000):
        agenda.put("stream", moment + 5.0)
        for thing in agenda.take(float(moment)):
            agenda.put(thing, 1e9)
    assert len(agenda) <= 70


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100)), max_size=300), st.floats(0, 100))
def test_what_has_come_due_is_taken_and_nothing_else(put: list[tuple[int, float]], now: float) -> None:
    agenda: Agenda[int] = Agenda()
    earliest: dict[int, float] = {}
    for thing, when in put:
        agenda.put(thing, when)
        earliest[thing] = min(when, earliest.get(thing, math.inf))
    assert sorted(agenda.take(now)) == sorted(thing for thing, when in earliest.items() if when <= now)
