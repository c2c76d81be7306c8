"""Who only waits makes room for who asks."""

from dataclasses import dataclass

from stockade.app.room import Room

MIB = 1024 * 1024


@dataclass(eq=False)
class Kept:
    """A connection that keeps count."""

    size: int = 0
    is_cut: bool = False

    def unread(self) -> int:
        return self.size

    def cut(self) -> None:
        self.is_cut = True


def test_below_the_bound_everybody_stays() -> None:
    room, one = Room(most=2), Kept()
    room.waits(one)
    assert room.make(2)
    assert not one.is_cut


def test_beyond_the_bound_who_has_waited_longest_goes() -> None:
    room, first, second, third = Room(most=2), Kept(), Kept(), Kept()
    for one in (first, second, third):
        room.waits(one)
    room.waits(first)  # it has asked for something meanwhile
    assert room.make(3)
    assert (first.is_cut, second.is_cut, third.is_cut) == (False, True, False)
    assert room.make(3)
    assert third.is_cut


def test_who_asks_for_something_is_not_ended_for_others() -> None:
    room, busy, gone = Room(most=1), Kept(), Kept()
    for one in (busy, gone):
        room.waits(one)
    room.works(busy)
    room.leaves(gone)
    assert not room.make(2)
    assert not busy.is_cut
    assert not gone.is_cut


def test_answers_that_nobody_takes_are_bounded_together() -> None:
    room = Room(most=100, most_unread_bytes=10 * MIB)
    small, taken, slow, last = Kept(1000), Kept(6 * MIB), Kept(6 * MIB), Kept(6 * MIB)
    room.waits(small)
    room.waits(taken)
    taken.size = 0  # it has come through
    room.waits(slow)
    assert not slow.is_cut
    room.waits(last)
    assert (small.is_cut, taken.is_cut, slow.is_cut, last.is_cut) == (False, False, True, False)
