"""A maker of cells that lies: whatever a template says, the warden neither believes it nor falls over it."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stockade.warden import protocol
from stockade.warden.cell import Cell, Host, IdRanges
from stockade.warden.cgroups import Cgroups
from stockade.warden.fields import Refused
from stockade.warden.maker import Maker
from stockade.warden.mounts import Stage
from tests.warden.raw import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making control groups takes root here")


@pytest.fixture
def host() -> Iterator[Host]:
    cgroups = Cgroups()
    null = os.open("/dev/null", os.O_WRONLY)
    yield Host(
        stage=Stage(images={}, masked=()),
        cgroups=cgroups,
        seccomp=b"",
        seccomp_of_wall=b"",
        own_ids=False,
        null=null,
        title=(0, 0, 0, 0),
        processors=1,
        template_files=-1,
    )
    os.close(null)
    cgroups.close()


@pytest.fixture
def news() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def liar(host: Host, news: list[dict[str, Any]]) -> Iterator[tuple[Maker, socket.socket]]:
    """A maker, and the other end of its channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ids = IdRanges(0, 4)
    maker = Maker(host, ours, ids, on_news=news.append)
    before = len(os.listdir("/proc/self/fd"))
    yield maker, theirs
    maker.abandon()
    host.cgroups.drain()
    assert len(os.listdir("/proc/self/fd")) == before, "a lie has cost a descriptor"
    assert [ids.take() for _ in range(4)], "a lie has cost a range of ids"
    theirs.close()
    ours.close()


def take_order(theirs: socket.socket) -> None:
    received = protocol.receive(theirs)
    assert received is not None
    for fd in received[1]:
        os.close(fd)


def answers(liar: tuple[Maker, socket.socket], answer: dict[str, Any]) -> list[tuple[Cell, Refused | None]]:
    maker, theirs = liar
    maker.order("purpose")
    take_order(theirs)
    protocol.send(theirs, answer)
    return list(maker.delivered())


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"pid": None},
        {"pid": 0},
        {"pid": -1},
        {"pid": True},
        {"pid": 1.5},
        {"pid": "1"},
        {"pid": [1]},
        {"pid": 1 << 40},
        {"pid": 10**30},
        {"pid": 1},
        pytest.param({"pid": os.getpid()}, id="ours"),
        pytest.param({"pid": os.getppid()}, id="our parent's"),
        {"error": {"deep": [None] * 100}, "kind": ["x"]},
        {"error": "x" * 100_000, "kind": "invalid"},
        {"error": None},
        {"ready": True, "path": ["/"]},
    ],
    ids=lambda answer: str(answer)[:40],
)
def test_a_cell_without_a_process_of_ours_is_refused(liar: tuple[Maker, socket.socket], answer: dict[str, Any]) -> None:
    """Process 1, the warden itself, its parent, no process, nonsense: nothing is signalled and nothing is lost."""
    [(_, refusal)] = answers(liar, answer)
    assert refusal is not None
    assert refusal.kind in ("fault", "unavailable")


def test_a_process_that_is_another_cells_is_refused(host: Host, liar: tuple[Maker, socket.socket]) -> None:
    with subprocess.Popen(["/bin/sleep", "1000"]) as other:
        host.children.add(other.pid)
        [(_, refusal)] = answers(liar, {"pid": other.pid})
        assert refusal is not None
        assert other.poll() is None
        assert other.pid in host.children
        other.kill()


def test_a_process_that_is_dead_already_is_a_cell_that_dies(host: Host, liar: tuple[Maker, socket.socket]) -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        until(lambda: Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        [(cell, refusal)] = answers(liar, {"pid": child.pid})
        assert refusal is None
        cell.discard()
        child.returncode = 0
    assert not host.children


def test_a_child_that_it_says_is_in_error_is_ended(liar: tuple[Maker, socket.socket]) -> None:
    with subprocess.Popen(["/bin/sleep", "1000"]) as child:
        [(_, refusal)] = answers(liar, {"pid": child.pid, "error": "half made", "kind": "unavailable"})
        assert refusal is not None
        assert (refusal.kind, "half made" in str(refusal)) == ("unavailable", True)
        assert not Path(f"/proc/{child.pid}").exists()
        child.returncode = -signal.SIGKILL


@pytest.mark.parametrize("data", [b"hello?", b"[1]", b'{"pid":', b"\xff", b"[" * 5000, b"x" * 150_000])
def test_garbage_ends_the_maker(liar: tuple[Maker, socket.socket], data: bytes) -> None:
    maker, theirs = liar
    maker.order("purpose")
    take_order(theirs)
    theirs.send(data)
    with pytest.raises(EOFError):
        list(maker.delivered())


def test_a_flood_of_descriptors_stays_nowhere(liar: tuple[Maker, socket.socket]) -> None:
    maker, theirs = liar
    before = len(os.listdir("/proc/self/fd"))
    for number in (1, protocol.MOST_DESCRIPTORS):
        maker.order("purpose")
        take_order(theirs)
        protocol.send(theirs, {"pid": 0}, (0,) * number)
        list(maker.delivered())
    maker.order("purpose")
    take_order(theirs)
    socket.send_fds(theirs, [b"{}"], [0] * 100)
    with pytest.raises(EOFError):
        list(maker.delivered())
    maker.abandon()
    maker.host.cgroups.drain()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_what_it_says_unasked_is_news_and_no_cell(
    liar: tuple[Maker, socket.socket], news: list[dict[str, Any]]
) -> None:
    maker, theirs = liar
    protocol.send(theirs, {"ready": True, "path": ["/usr"]})
    protocol.send(theirs, {"pid": os.getpid()})
    assert list(maker.delivered()) == []
    assert news == [{"ready": True, "path": ["/usr"]}, {"pid": os.getpid()}]


def test_one_that_hangs_up_is_told(liar: tuple[Maker, socket.socket]) -> None:
    maker, theirs = liar
    maker.order("purpose")
    theirs.shutdown(socket.SHUT_RDWR)
    with pytest.raises(EOFError):
        list(maker.delivered())


def test_one_that_reads_nothing_keeps_nobody_waiting(liar: tuple[Maker, socket.socket]) -> None:
    maker, _ = liar
    maker._id_ranges = IdRanges(0, 10_000)
    full = False
    for _ in range(10_000):
        try:
            maker.order("purpose")
        except BlockingIOError:
            full = True
            break
    assert full
    maker.abandon()
    maker._id_ranges = IdRanges(0, 4)


# ── ranges of ids ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ranges_do_not_overlap_and_are_used_in_turn() -> None:
    ranges = IdRanges(1000, 8, size=10)
    taken = [ranges.take() for _ in range(8)]
    assert sorted(taken) == list(range(1000, 1080, 10))
    with pytest.raises(Refused) as refused:
        ranges.take()
    assert refused.value.kind == "unavailable"
    ranges.give_back(taken[3])
    assert ranges.take() == taken[3]


def test_a_range_that_is_given_back_rests_longest() -> None:
    ranges = IdRanges(0, 100, size=1)
    first = ranges.take()
    ranges.give_back(first)
    assert first not in [ranges.take() for _ in range(99)]


def test_the_hosts_shares_do_not_overlap_and_lie_above_peoples() -> None:
    shares = [IdRanges.of_host(share=0, of=2), IdRanges.of_host(share=1, of=2, size=1 << 24)]
    bounds = []
    for each in shares:
        assert each._first >= 0x7000_0000
        bounds.append((each._first, each._first + each._slots * each.size))
    assert bounds[0][1] <= bounds[1][0]
    assert bounds[1][1] <= 0xFFFE_0000
