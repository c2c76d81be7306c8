"""The hostile corpus through others and through Stockade, side by side.

    python -m bench.hostile                             all of it, some ten minutes; needs root
    python -m bench.hostile --peer bubblewrap --group floods
    python -m bench.hostile --into results.json         keeps what was found before and is not tried again
    python -m bench.hostile --show results.json --markdown      the tables of docs/peers.md

Each attempt is made in an enclosure with bounds of ours (`bench.enclosure`), so that the machine survives those that
contain nothing. Exit status: 1 when something came out of Stockade, or could not be judged there.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress

from bench import hostile_tables
from bench.hostile_verdicts import Tried, untried, weigh
from bench.measure import BenchError
from bench.peers import HONEST, Making, Peer
from bench.peers_bubblewrap import bubblewrap, bubblewrap_filtered
from bench.peers_docker import docker_default, docker_hardened
from bench.peers_gvisor import gvisor
from bench.peers_stockade import of_backend
from stockade.attacks import Attack, Bait, Verdict, attacks
from stockade.errors import StockadeError
from stockade.model import Outcome

__all__ = ["PEERS", "Found", "main", "try_all"]

PEERS: Final[Mapping[str, Making]] = {
    "stockade": of_backend("native"),
    "bubblewrap": bubblewrap,
    "bubblewrap-filtered": bubblewrap_filtered,
    "docker": docker_default,
    "docker-hardened": docker_hardened,
    "gvisor": gvisor,
}
"""By the name that `--peer` takes, in the order of the table."""

_STUCK_S: Final = 240.0
_OURS: Final = "Stockade"


@dataclass(kw_only=True)
class Found:
    """Everything that was tried, and who was."""

    peers: dict[str, dict[str, str]]
    """Version and flags by name."""
    tried: list[Tried]
    missing: dict[str, str]
    """Who could not be had, and why."""

    def to_json(self) -> str:
        facts = {"peers": self.peers, "missing": self.missing, "tried": [one.facts() for one in self.tried]}
        return json.dumps(facts, indent=1)

    def merge(self, facts: Mapping[str, Any]) -> None:
        """Take what was found earlier and not now."""
        now = {(one.peer, one.attack) for one in self.tried}
        earlier = [Tried.of(one) for one in facts["tried"]]
        self.tried = [one for one in earlier if (one.peer, one.attack) not in now] + self.tried
        self.peers = {**facts["peers"], **self.peers}


async def try_all(peer: Peer, chosen: Iterable[Attack], bait: Bait) -> list[Tried]:
    """Every attack on one peer, one after the other.

    Raises:
        BenchError: it does not run honest programs, or what it was given does not end.
    """
    await _demand_honesty(peer)
    return [await _try(peer, attack, bait) for attack in chosen]


async def _try(peer: Peer, attack: Attack, bait: Bait) -> Tried:
    why = peer.way.refuses(attack)
    if why:
        return untried(peer.way.name, attack, why)
    stdin = b"x" * attack.stdin_bytes or bait.stdin
    name = socket.gethostname()
    try:
        async with asyncio.timeout(_STUCK_S):
            ending = await peer.way.attempt(attack, stdin)
    except TimeoutError as error:
        raise BenchError(f"{peer.way.name}: attack {attack.name} does not end") from error
    except (StockadeError, OSError) as error:
        return untried(peer.way.name, attack, str(error))
    seen = [*peer.way.found(), *(f"somebody came to the bait: {visitor}" for visitor in bait.visitors())]
    if socket.gethostname() != name:
        socket.sethostname(name)
        seen.append("the host's name was changed")
    return weigh(peer.way.name, attack, ending, seen)


async def _demand_honesty(peer: Peer) -> None:
    for language, (code, expected) in HONEST.items():
        program = Attack(
            name=f"honest-{language}", group="honest", threat="", language=language, steps=(code,),
            accept=frozenset(), exit_code=0, stdin_bytes=0, control=False,
        )  # fmt: skip
        async with asyncio.timeout(_STUCK_S):
            ending = await peer.way.attempt(program, b"")
        if (ending.outcome, ending.exit_code, ending.stdout) != (Outcome.EXITED, 0, expected):
            raise BenchError(f"{peer.way.name} does not run an honest program in {language}: {ending}")


async def _run(names: Sequence[str], chosen: Sequence[Attack], progress: Progress) -> Found:
    found = Found(peers={}, tried=[], missing={})
    task = progress.add_task("", total=len(names) * len(chosen))
    for name in names:
        with tempfile.TemporaryDirectory(prefix="stockade-peers-", dir="/var/tmp") as directory, Bait() as bait:
            Path(directory).chmod(0o755)  # others run it by accounts of their own
            try:
                async with PEERS[name](Path(directory)) as peer:
                    found.peers[peer.way.name] = {"version": peer.version, "flags": peer.flags}
                    await _demand_honesty(peer)
                    for attack in chosen:
                        progress.update(task, description=f"{name}: {attack.name}")
                        found.tried.append(await _try(peer, attack, bait))
                        progress.advance(task)
            except (BenchError, subprocess.SubprocessError) as error:
                found.missing[name] = str(error)
            finally:
                await asyncio.to_thread(_empty, directory)
    return found


def _empty(directory: str) -> None:
    """Remove what is in it, deep trees included, which Python's own removal cannot descend."""
    command = ["find", directory, "-mindepth", "1", "-xdev", "-delete"]
    subprocess.run(command, capture_output=True, timeout=_STUCK_S, check=False)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    given = _options(arguments)
    console = Console(stderr=True)
    if given.show is not None:
        found = Found(peers={}, tried=[], missing={})
        found.merge(json.loads(given.show.read_text()))
    else:
        chosen = [
            attack
            for attack in attacks()
            if (not given.group or attack.group in given.group) and (not given.only or attack.name in given.only)
        ]
        if not chosen:
            console.print("hostile: no attack of that name", style="red")
            return 2
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            found = asyncio.run(_run(given.peer or list(PEERS), chosen, progress))
        if given.into is not None:
            if given.into.exists():
                found.merge(json.loads(given.into.read_text()))
            given.into.write_text(found.to_json())
    for name, why in found.missing.items():
        console.print(f"hostile: not tried: {name}: {why}", style="yellow", markup=False, highlight=False)
    if given.form == "json":
        print(found.to_json())
    elif given.form == "markdown":
        print(hostile_tables.markdown(found.peers, found.tried), end="")
    else:
        hostile_tables.show(found.peers, found.tried, Console(width=max(120, console.width)))
    bad = (Verdict.ESCAPED.value, Verdict.UNCLEAR.value)
    return int(any(one.peer.startswith(_OURS) and one.verdict in bad for one in found.tried))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    names = ", ".join(PEERS)
    parser = argparse.ArgumentParser(
        prog="bench.hostile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", action="append", choices=PEERS, metavar="NAME", help=f"only this one: {names}")
    parser.add_argument("--group", action="append", metavar="GROUP", help="only attacks of this group")
    parser.add_argument("--only", action="append", metavar="ATTACK", help="only this attack")
    parser.add_argument("--into", type=Path, metavar="FILE", help="add what is found to what this file has")
    parser.add_argument("--show", type=Path, metavar="FILE", help="try nothing, show what this file has")
    forms = parser.add_mutually_exclusive_group()
    for form, text in (("json", "print JSON"), ("markdown", "print the tables of docs/peers.md")):
        forms.add_argument(f"--{form}", action="store_const", dest="form", const=form, default="table", help=text)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
