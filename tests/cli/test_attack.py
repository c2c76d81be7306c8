"""`stockade doctor --attack`: what it prints, and that it fails loudly."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stockade.attacks import Attack, Bait, Ending, Way, attacks
from stockade.attacks.trials import Finding
from stockade.cli.attack import Outcomes, attack, chosen_attacks, tried
from stockade.cli.attack_options import Asked, asked_for
from stockade.cli.attack_server import settings_of, toml_document
from stockade.cli.attack_table import print_json, print_outcomes
from stockade.config import load
from stockade.errors import Invalid
from stockade.model import Outcome
from tests.app.serving import command, environment

NAMES = ("seccomp-mode", "no-new-privileges", "host-file", "environment", "file-locks")
CONTROLS = tuple(one for one in attacks() if one.control and one.name in NAMES)
"""Harmless on a bare host, where they say ESCAPED."""


class NoSandbox:
    """A way that runs programs on the host, as a broken sandbox would: only such as do no harm there."""

    name = "none at all"
    gives: frozenset[str] = frozenset()

    def refuses(self, attack: Attack) -> str:
        return "" if attack.control or attack.name == "honest" else "it would harm this host"

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", attack.steps[-1]],
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Ending(outcome=Outcome.EXITED, exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr)


class Silent(NoSandbox):
    """A way that refuses everything: nothing gets out, and nothing runs."""

    name = "silent"

    async def attempt(self, attack: Attack, stdin: bytes) -> Ending:
        return Ending(outcome=Outcome.EXITED, exit_code=1, stdout=b"CONTAINED\n")


async def outcomes_of(*ways: Way, chosen: tuple[Attack, ...] = CONTROLS) -> Outcomes:
    outcomes = Outcomes(target="a test")
    with Bait() as bait:
        await tried(ways, chosen, bait.stdin, outcomes)
        bait.visitors()
    return outcomes


@pytest.mark.anyio
async def test_a_sandbox_that_is_none_is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = await outcomes_of(NoSandbox())
    assert {one.finding for one in outcomes.trials} == {Finding.ESCAPED}
    assert not outcomes.ok
    print_outcomes(outcomes, each=False)
    shown = capsys.readouterr().out
    assert "Not contained." in shown
    assert all(one.name in shown for one in CONTROLS)
    assert "ESCAPED" in shown


@pytest.mark.anyio
async def test_a_sandbox_in_which_nothing_runs_is_found_out() -> None:
    outcomes = await outcomes_of(Silent(), chosen=CONTROLS[:1])
    assert [one.finding for one in outcomes.trials] == [Finding.CONTAINED]
    assert [one.finding for one in outcomes.honest] == [Finding.UNCLEAR]
    assert not outcomes.ok


def test_nothing_tried_is_nothing_proven() -> None:
    assert not Outcomes(target="a test").ok


@pytest.mark.anyio
async def test_what_is_left_or_visited_counts_as_much_as_an_escape(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = await outcomes_of(Silent(), chosen=CONTROLS[:1])
    outcomes.honest.clear()
    assert outcomes.ok
    assert not replace(outcomes, visitors=("tcp",)).ok
    left = replace(outcomes, left=["process 4711: sleep"])
    assert not left.ok
    print_outcomes(left, each=True)
    assert "process 4711" in capsys.readouterr().out


@pytest.mark.anyio
async def test_json_has_every_trial(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = await outcomes_of(Silent(), chosen=CONTROLS[:2])
    print_json(outcomes)
    document = json.loads(capsys.readouterr().out)
    assert [one["attack"] for one in document["trials"]] == [one.name for one in CONTROLS[:2]]
    assert document["ways"] == [{"name": "silent", "contained": 2, "escaped": 0, "unclear": 0, "not_tried": 0}]
    assert document["ok"] is False


def test_attacks_are_chosen_by_group_and_by_name() -> None:
    assert chosen_attacks(Asked()) == attacks()
    names = {one.name for one in chosen_attacks(Asked(groups=("forgery",), only=("zombies",)))}
    assert "zombies" in names
    assert names >= {one.name for one in attacks() if one.group == "forgery"}
    with pytest.raises(Invalid, match="zombie:"):
        chosen_attacks(Asked(only=("zombie",)))


def test_the_server_to_be_attacked_has_the_configuration_of_sandboxes_and_nothing_of_others(tmp_path: Path) -> None:
    written = tmp_path / "stockade.toml"
    written.write_text(
        '[sandbox]\nhost_paths = ["/opt/it\\"s"]\nallow_unenforced = ["swap"]\n[server]\nport = 1\n'
        '[database]\nurl = "postgres://u:p@db/x"\n[network]\nrefuse = ["192.0.2.0/24"]\n'
    )
    config = load(file=written, environ={}, options={"data_dir": tmp_path / "data"})
    again = tmp_path / "attack.toml"
    again.write_text(toml_document(settings_of(config, "other")))
    attacked = load(file=again, environ={}, options={"data_dir": tmp_path / "data"})
    assert attacked.sandbox.host_paths == ('/opt/it"s',)
    assert attacked.sandbox.allow_unenforced == ("swap",)
    assert attacked.network.refuse == ("192.0.2.0/24",)
    assert attacked.sandbox.backend == "other"
    assert attacked.database.url == ""
    assert attacked.server.port != 1
    assert attacked.sandbox.defaults.processes == 32


def test_what_outlives_a_server_is_seen_and_what_is_not_of_it_is_not(tmp_path: Path) -> None:
    looks = """
import subprocess, sys, pathlib
from stockade.attacks import Bait
from stockade.attacks.remains import Remains
with Bait():
    before = subprocess.Popen(["sh", "-c", "while read line; do sleep 48 & echo $!; done"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0)
    remains = Remains(pathlib.Path(sys.argv[1]))
    before.stdin.write(b"begin\\n")
    started = int(before.stdout.readline())
    during = subprocess.Popen(["sleep", "49"])
    server = ["sh", "-c", "setsid sleep 47 >/dev/null 2>&1 & exit"]
    subprocess.run(server, check=True, start_new_session=True)
    with Bait():
        print(remains.left())
    during.kill()
    during.wait()
    import os
    os.kill(started, 9)
    before.kill()
    before.wait()
    remains.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", looks, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        start_new_session=True,
    )
    assert "sleep 47" in done.stdout
    assert done.stdout.count("process") == 1
    os.kill(int(done.stdout.split("process ")[1].split(":")[0]), signal.SIGKILL)


def test_who_has_looked_for_remains_has_no_orphans_any_more(tmp_path: Path) -> None:
    """They would be left to wait for it, as zombies."""
    looks = """
import os, subprocess, sys, pathlib
from stockade.attacks.remains import Remains
Remains(pathlib.Path(sys.argv[1])).close()
orphan = subprocess.run(["sh", "-c", "sleep 50 >/dev/null & echo $!"], check=True, capture_output=True).stdout
status = pathlib.Path(f"/proc/{int(orphan)}/status").read_text()
os.kill(int(orphan), 9)
assert f"PPid:\\t{os.getpid()}\\n" not in status, status
"""
    subprocess.run([sys.executable, "-c", looks, str(tmp_path)], timeout=60, check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden has few limits")
def test_the_command_attacks_this_host(tmp_path: Path) -> None:
    arguments = [
        "doctor",
        "--attack",
        "--only",
        "capabilities",
        "--only",
        "kill-init",
        "--way",
        "run",
        "--way",
        "box root",
    ]
    done = subprocess.run(
        command(*arguments, "--data-dir", str(tmp_path / "data")),
        env=environment(COLUMNS="120"),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done
    assert "Contained. 2 hostile programs, 2 ways in, this host, backend native" in done.stdout
    assert "Nothing is left on the host." in done.stdout
    assert not list((tmp_path / "data").glob("attack-*"))


OPTIONS: dict[str, Any] = {
    "attack": True, "way": None, "group": None, "only": None, "backend": None, "url": None, "api_key": None,
    "as_json": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"attack": False, "way": ["run"]}, "--way: only with --attack"),
        ({"url": "http://127.0.0.1:9", "api_key": "sk_x", "backend": "docker"}, "--backend"),
        ({"api_key": "sk_x"}, "--key: only with --url"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(Invalid, match=complaint):
        asked_for(**OPTIONS | options)


def test_ways_are_chosen_by_name(tmp_path: Path) -> None:
    config = load(environ={}, options={"data_dir": tmp_path})
    with pytest.raises(Invalid, match="--way window: there are run, template"):
        attack(config, Asked(ways=("window",)))
