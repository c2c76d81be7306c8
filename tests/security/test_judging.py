"""The corpus as a measuring instrument: is it whole, and can it tell an open system from a closed one?"""

import platform
import socket
import subprocess
import sys

import pytest

from stockade.attacks import Attack, Bait, Ending, Verdict, attacks, judge
from stockade.model import Outcome

CONTROLS = [attack for attack in attacks() if attack.control]


def ending(outcome: Outcome = Outcome.EXITED, stdout: bytes = b"", exit_code: int | None = 0) -> Ending:
    return Ending(outcome=outcome, exit_code=exit_code, stdout=stdout)


def named(name: str) -> Attack:
    return next(attack for attack in attacks() if attack.name == name)


def test_corpus_is_large_and_its_names_are_unique() -> None:
    names = [attack.name for attack in attacks()]
    assert len(names) == len(set(names)) >= 100


def test_every_attack_says_what_it_threatens() -> None:
    assert all(attack.threat and attack.steps and all(attack.steps) for attack in attacks())


@pytest.mark.parametrize("attack", [a for a in attacks() if a.language == "python"], ids=lambda attack: attack.name)
def test_python_programs_are_well_formed(attack: Attack) -> None:
    for step in attack.steps:
        compile(step, attack.name, "exec")


@pytest.mark.parametrize("attack", CONTROLS, ids=lambda attack: attack.name)
def test_without_a_sandbox_the_attack_escapes(attack: Attack, bait: Bait) -> None:
    if platform.system() != "Linux":
        pytest.skip("the corpus is for Linux")
    done = subprocess.run(
        [sys.executable, "-c", attack.steps[-1]], input=bait.stdin, capture_output=True, timeout=30, check=False
    )
    assert b"\nESCAPED" in done.stdout, done
    bait.visitors()  # forget who came


def test_an_escape_counts_wherever_it_is_said() -> None:
    said = b"ESCAPED read /etc/shadow\nCONTAINED honestly\n"
    assert judge(named("capabilities"), ending(stdout=said)).verdict is Verdict.ESCAPED


def test_an_escape_counts_when_a_limit_ends_the_run() -> None:
    said = b"noise\nESCAPED 3000 children"
    assert judge(named("fork-bomb"), ending(Outcome.PROCESSES, said, None)).verdict is Verdict.ESCAPED


def test_containment_needs_the_program_to_come_to_its_end() -> None:
    said = b"CONTAINED left a daemon\n"
    attack = named("orphan-holds-output")
    assert judge(attack, ending(stdout=said)).verdict is Verdict.CONTAINED
    assert judge(attack, ending(Outcome.WALL_TIME, said, None)).verdict is Verdict.UNCLEAR


def test_a_limit_contains_where_the_attack_allows_it() -> None:
    assert judge(named("memory-hog"), ending(Outcome.MEMORY, b"", None)).verdict is Verdict.CONTAINED
    assert judge(named("capabilities"), ending(Outcome.MEMORY, b"", None)).verdict is Verdict.UNCLEAR


def test_silence_is_not_containment() -> None:
    assert judge(named("capabilities"), ending()).verdict is Verdict.UNCLEAR


def test_a_forged_status_is_an_escape() -> None:
    said = b"CONTAINED no descriptor\n"
    assert judge(named("forged-result"), ending(stdout=said, exit_code=0)).verdict is Verdict.ESCAPED
    assert judge(named("forged-result"), ending(stdout=said, exit_code=37)).verdict is Verdict.CONTAINED
    assert judge(named("forged-result"), ending(Outcome.SIGNALED, said, None)).verdict is Verdict.UNCLEAR


def test_a_status_that_stands_for_an_accepted_signal_is_no_forgery() -> None:
    attack = named("template-kill-all")
    said = b"CONTAINED only this run\n"
    assert judge(attack, ending(Outcome.SIGNALED, said, 137)).verdict is Verdict.CONTAINED
    assert judge(attack, ending(Outcome.EXITED, said, 137)).verdict is Verdict.ESCAPED


def test_two_baits_may_be_out_at_once() -> None:
    with Bait() as one, Bait() as other:
        assert one.facts["busy"] != other.facts["busy"]


def test_bait_notices_who_comes() -> None:
    with Bait() as bait:
        assert bait.visitors() == ()
        with socket.create_connection(("127.0.0.1", bait.facts["tcp_port"]), timeout=5):
            assert bait.visitors() == ("tcp",)
        assert bait.visitors() == ()


def test_bait_is_taken_in() -> None:
    with Bait() as bait:
        facts = bait.facts
        with open(facts["file"], encoding="utf-8") as file:
            assert file.read() == facts["canary"]
    with pytest.raises(FileNotFoundError):
        open(facts["file"], encoding="utf-8").close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", facts["tcp_port"]), timeout=5)
