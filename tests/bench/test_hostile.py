"""What the harness makes of attempts on others, and a few real ones on bubblewrap."""

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest
from bench.enclosure import Bounds, Enclosure
from bench.hostile import try_all
from bench.hostile_tables import markdown
from bench.hostile_verdicts import Kind, Reason, Tried, reason_of, reasons, settled, weigh
from bench.measure import BenchError
from bench.mixed_programs import honest_requests, hostile_bodies
from bench.peers import Launched, Peer, deadline_of, ending_of
from bench.peers_bubblewrap import bubblewrap
from bench.peers_launch import launch

from stockade.attacks import Attack, Bait, Ending, Verdict, attacks
from stockade.model import Outcome

DEADLINE_S = 30.0
KNOWN = {attack.name: attack for attack in attacks()}


def ended(code: int | None, stdout: bytes = b"\nCONTAINED it\n", **more: bool) -> Launched:
    return Launched(code=code, stdout=stdout, stderr=b"", **more)


def tried(verdict: Verdict = Verdict.ESCAPED, *, peer: str = "peer", attack: str = "attack") -> Tried:
    return Tried(peer=peer, group="group", attack=attack, verdict=verdict.value, evidence="it was seen")


class Fake:
    """A way in that contains everything, or runs nothing at all."""

    name = "fake"
    gives: frozenset[str] = frozenset()

    def __init__(self, *, honest: bool = True, seen: tuple[str, ...] = ()) -> None:
        self._honest = honest
        self._seen = seen

    def refuses(self, attack: Attack) -> str:
        return "not here" if attack.language == "c" and attack.group != "honest" else ""

    def found(self) -> tuple[str, ...]:
        return self._seen

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        stdout = b"45\n" if attack.language == "python" else b"42\n"
        if attack.group != "honest":
            stdout = b"\nCONTAINED it\n"
        return Ending(outcome=Outcome.EXITED, exit_code=0, stdout=stdout if self._honest else b"")


def peer(way: Fake) -> Peer:
    return Peer(way=way, version="1", flags="none")


@pytest.mark.parametrize(
    ("launched", "outcome"),
    [
        (ended(0), Outcome.EXITED),
        (ended(37), Outcome.EXITED),
        (ended(137), Outcome.SIGNALED),
        (ended(-9), Outcome.SIGNALED),
        (ended(152), Outcome.CPU_TIME),
        (ended(None, late=True), Outcome.WALL_TIME),
        (ended(None, flooded=True), Outcome.OUTPUT),
    ],
)
def test_an_ending_is_what_the_caller_saw(launched: Launched, outcome: Outcome) -> None:
    assert ending_of(KNOWN["capabilities"], launched).outcome is outcome


def test_a_limit_of_the_peer_is_believed() -> None:
    assert ending_of(KNOWN["memory-hog"], ended(137), limit=Outcome.MEMORY).outcome is Outcome.MEMORY


def test_a_death_by_signal_is_no_forged_status_where_the_signal_contains() -> None:
    attack = KNOWN["template-kill-all"]
    assert ending_of(attack, ended(137)).exit_code is None
    assert ending_of(KNOWN["kill-init"], ended(137)).exit_code == 137


def test_only_what_its_time_ends_has_little_of_it() -> None:
    assert deadline_of(KNOWN["sleep-for-ever"]) < 5 < deadline_of(KNOWN["inode-flood"])


def test_what_was_seen_from_outside_counts_whatever_the_program_said() -> None:
    ending = Ending(outcome=Outcome.EXITED, exit_code=0, stdout=b"\nCONTAINED it\n")
    assert weigh("peer", KNOWN["daemon"], ending, ()).verdict == Verdict.CONTAINED
    found = weigh("peer", KNOWN["daemon"], ending, ("it outlived the sandbox: sleep 60",))
    assert (found.verdict, found.evidence) == (Verdict.ESCAPED, "it outlived the sandbox: sleep 60")


def test_the_first_reason_that_covers_it_counts() -> None:
    known = (
        Reason(peer="docker", attacks=("memory-*",), kind=Kind.CHOICE, why="no limit"),
        Reason(peer="*", attacks=("*",), kind=Kind.OPEN, why="anything"),
    )
    assert reason_of(tried(peer="docker", attack="memory-hog"), known).why == "no limit"
    assert reason_of(tried(peer="docker, hardened", attack="memory-hog"), known).why == "anything"
    assert reason_of(tried(), ()).kind is Kind.UNEXPLAINED


def test_what_an_attack_misread_counts_as_held() -> None:
    known = (Reason(peer="peer", attacks=("misread",), kind=Kind.MISREAD, why="its own"),)
    found = settled([tried(attack="misread"), tried(attack="real")], known)
    assert [one.verdict for one in found] == [Verdict.CONTAINED, Verdict.ESCAPED]


def test_nothing_excuses_stockade() -> None:
    escaped = [tried(peer="Stockade", attack=name) for name in KNOWN]
    assert settled(escaped, reasons()) == escaped


def test_tables_name_every_escape_and_its_reason() -> None:
    found = [tried(peer="bubblewrap", attack="inode-flood"), tried(Verdict.CONTAINED, attack="fork-bomb")]
    text = markdown({"bubblewrap": {"version": "1", "flags": "--all"}, "peer": {"version": "2", "flags": ""}}, found)
    assert "| group | 1 of 1 | 0 of 1 |" in text
    assert "`inode-flood`: --size limits bytes" in text


@pytest.mark.anyio
async def test_a_peer_that_runs_no_honest_program_contains_nothing() -> None:
    with Bait() as bait, pytest.raises(BenchError, match="does not run an honest program"):
        await try_all(peer(Fake(honest=False)), [KNOWN["daemon"]], bait)


@pytest.mark.anyio
async def test_what_a_peer_cannot_run_is_not_tried_and_what_it_saw_counts() -> None:
    chosen = [KNOWN["compile-host-file"], KNOWN["daemon"]]
    with Bait() as bait:
        found = await try_all(peer(Fake(seen=("it took 1024 processes",))), chosen, bait)
    assert [(one.verdict, one.evidence) for one in found] == [
        ("not tried", "not here"),
        ("escaped", "it took 1024 processes"),
    ]


def test_honest_programs_differ_and_hostile_ones_come_from_every_group() -> None:
    requests = honest_requests()
    assert len({next(requests).body for _ in range(200)}) == 200
    bodies = hostile_bodies()
    first = b"".join(next(bodies) for _ in range(40))
    assert b"fork" in first
    assert b"unshare" in first or b"seccomp" in first.lower()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="control groups to hold others need root")


@needs_root
@pytest.mark.anyio
async def test_an_enclosure_tells_of_its_bounds_and_leaves_nothing() -> None:
    bomb = ("/bin/sh", "-c", "for i in $(seq 40); do sleep 60 & done; wait")
    with Enclosure(bounds=Bounds(memory_bytes=64 << 20, processes=16)) as enclosure:
        await launch(bomb, b"", deadline_s=DEADLINE_S, enclosure=enclosure)
        assert enclosure.reached() == ["16 processes"]
        assert await enclosure.left(within_s=0.1)
    assert enclosure.processes() == set()
    assert not any((top / enclosure.name).exists() for top in Path("/sys/fs/cgroup").iterdir())


@needs_root
@pytest.mark.anyio
async def test_what_prints_without_end_is_ended_and_what_holds_the_output_open_is_not_waited_for() -> None:
    with Enclosure() as enclosure:
        began = time.monotonic()
        flooded = await launch(("/usr/bin/yes",), b"", deadline_s=DEADLINE_S, enclosure=enclosure)
        left = await launch(("/bin/sh", "-c", "sleep 60 & echo x"), b"", deadline_s=DEADLINE_S, enclosure=enclosure)
        assert time.monotonic() - began < DEADLINE_S
    assert (flooded.code, flooded.flooded) == (None, True)
    assert (left.code, left.stdout) == (0, b"x\n")


@needs_root
@pytest.mark.anyio
async def test_bubblewrap_holds_some_attacks_and_lets_others_out(tmp_path: Path) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("needs the Debian package bubblewrap")
    tmp_path.chmod(0o755)
    names = ("daemon", "host-file", "fork-bomb", "secret-memory", "memory-by-children", "init-secrets")
    with Bait() as bait:
        async with asyncio.timeout(4 * DEADLINE_S), bubblewrap(tmp_path) as found:
            results = await try_all(found, [KNOWN[name] for name in names], bait)
    assert {one.attack: one.verdict for one in results} == {
        "daemon": "contained",
        "host-file": "contained",
        "fork-bomb": "contained",
        "secret-memory": "escaped",
        "memory-by-children": "escaped",
        "init-secrets": "escaped",
    }
