"""The corpus over the wire: by every protocol, into a server of its own, as `stockade doctor --attack` has it."""

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from stockade.attacks import Attack, Bait, Ending, Way, attacks
from stockade.attacks.given import GIVEN
from stockade.attacks.trials import HONEST, Finding, Trial, is_honest, try_honest, try_one, try_out
from stockade.attacks.wire_ways import NAMES, WireServer, wire_ways
from stockade.cli.attack_server import OwnServer, own_server
from stockade.config import load
from stockade.errors import Unsupported
from stockade.model import Outcome

pytestmark = pytest.mark.anyio
IS_LONG = bool(os.environ.get("STOCKADE_LONG_TESTS"))
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden has one user id and few limits")


@pytest.fixture(scope="module")
def left() -> list[str]:
    """What the server has left on the host, once it has ended."""
    return []


@pytest.fixture(scope="module")
async def server(
    bait: Bait, tmp_path_factory: pytest.TempPathFactory, left: list[str], anyio_backend: str
) -> AsyncIterator[OwnServer]:
    """Started after the bait was set out. It has to go without leaving anything, whatever was tried."""
    config = load(environ={}, options={"data_dir": tmp_path_factory.mktemp("attack")})
    async with own_server(config, left=left) as server:
        yield server
    assert left == []


@pytest.fixture(scope="module")
async def ways(server: OwnServer) -> AsyncIterator[dict[str, Way]]:
    async with WireServer(server.url, server.key) as wire:
        yield {way.name: way for way in wire_ways(wire, ordinary=os.geteuid() != 0)}


def spread(name: str) -> list[Attack]:
    """Every attack is tried by some way in each default run, by all of them in a long one."""
    corpus = attacks()
    if IS_LONG:
        return list(corpus)
    number = NAMES.index(name)
    python = [one for one in corpus if one.language == "python"]
    others = [one for one in corpus if one.language != "python"]
    # The runs take what is not Python's: templates are, and a compiler is slow in a sandbox's own files.
    return python[number :: len(NAMES)] + (others[::2] if name == "run" else others[1::2] if name == "job" else [])


def told(trials: Sequence[Trial]) -> list[str]:
    return [f"{one.way}: {one.attack.group}:{one.attack.name}: {one.finding}: {one.evidence}" for one in trials]


@root_only
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
async def test_attacks_are_contained(name: str, ways: dict[str, Way], bait: Bait) -> None:
    trials = await try_out(ways[name], spread(name), bait.stdin)
    assert told([one for one in trials if one.failed]) == []
    assert any(one.finding is Finding.CONTAINED for one in trials)
    assert bait.visitors() == ()


@root_only
@pytest.mark.parametrize("name", NAMES)
async def test_an_honest_program_runs_after_all_that(name: str, ways: dict[str, Way]) -> None:
    trial = await try_honest(ways[name])
    assert trial.finding is Finding.CONTAINED, trial.evidence


def test_every_attack_is_in_the_spread() -> None:
    tried = {one.name for name in NAMES for one in spread(name)}
    assert tried == {one.name for one in attacks()}


def test_what_is_given_is_of_attacks_that_there_are() -> None:
    names = {one.name for one in attacks()}
    assert {name for given in GIVEN.values() for name in given} <= names


class Fixed:
    """A way that ends as it is told to."""

    def __init__(self, ending: Ending | Exception, gives: frozenset[str] = frozenset()) -> None:
        self.name, self.gives, self._ending = "fixed", gives, ending

    def refuses(self, attack: Attack) -> str:
        return "" if attack.language == "python" else "only Python"

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        if isinstance(self._ending, Exception):
            raise self._ending
        return self._ending


def named(name: str) -> Attack:
    return next(one for one in attacks() if one.name == name)


def said(text: bytes) -> Ending:
    return Ending(outcome=Outcome.EXITED, exit_code=0, stdout=text)


async def test_what_a_way_is_meant_to_give_is_no_escape_there_and_one_elsewhere() -> None:
    ending = said(b"ESCAPED variables ['TERM']\n")
    on_a_terminal = await try_one(Fixed(ending, frozenset({"terminal"})), named("environment"), b"")
    elsewhere = await try_one(Fixed(ending), named("environment"), b"")
    assert (on_a_terminal.finding, elsewhere.finding) == (Finding.CONTAINED, Finding.ESCAPED)


async def test_what_is_given_is_given_word_by_word() -> None:
    more = said(b"ESCAPED variables ['TERM', 'STOCKADE_SERVER_API_KEY']\n")
    trial = await try_one(Fixed(more, frozenset({"terminal"})), named("environment"), b"")
    assert trial.finding is Finding.ESCAPED


async def test_what_could_not_be_tried_is_not_contained() -> None:
    refused = await try_one(Fixed(said(b"")), named("fork-bomb-shell"), b"")
    unsupported = await try_one(Fixed(Unsupported("no such thing here")), named("capabilities"), b"")
    broken = await try_one(Fixed(OSError("no route")), named("capabilities"), b"")
    assert [refused.finding, unsupported.finding, broken.finding] == [
        Finding.NOT_TRIED,
        Finding.NOT_TRIED,
        Finding.UNCLEAR,
    ]
    assert (refused.failed, unsupported.failed, broken.failed) == (False, False, True)


def test_an_honest_program_must_have_done_all_of_it() -> None:
    whole = Ending(
        outcome=Outcome.EXITED, exit_code=3, stdout=b"42 threadchild 423b68ab\n", stderr=b"to the other stream"
    )
    assert is_honest(whole)
    assert not is_honest(replace(whole, exit_code=0))
    assert not is_honest(replace(whole, stdout=b""))
    assert not is_honest(replace(whole, stderr=b""))
    assert HONEST.language == "python"
