"""The server ends, in good order or not: its sandboxes live on, and the next server has all of them."""

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.app.serving import Server
from tests.app.traces import children, until
from tests.dialects.execbox.serving import Client, Heard, client_of, rest, stdin, until_heard
from tests.faults.sessions import (
    LONG,
    becomes_so,
    end_process,
    hear_until_cut,
    nothing_left,
    processes_like,
    served,
    warden_of,
)

pytestmark = pytest.mark.anyio

SESSIONS = 50
ATTACHED = 20
LINES = 60
MARK = "restart-4211"
TALK = f'i=0; while [ $i -lt {LINES} ]; do echo "$1 line $i"; i=$((i+1)); sleep 0.1; done; read x; exit 7'


def said_by(name: str) -> bytes:
    """All that a talker prints."""
    return b"".join(f"{name} line {number}\n".encode() for number in range(LINES))


@dataclass(kw_only=True)
class Sessions:
    """What runs when the server is killed."""

    talkers: dict[str, str] = field(default_factory=dict)
    """Ids, with the name that each prints."""
    quiet: list[str] = field(default_factory=list)
    ending: list[str] = field(default_factory=list)
    """They end when their `sleep` does."""
    short: str = ""
    """Its life is 3 seconds."""

    @property
    def living(self) -> set[str]:
        return {*self.talkers, *self.quiet}

    @classmethod
    async def start(cls, client: Client) -> "Sessions":
        found = cls()
        for number in range(ATTACHED):
            found.talkers[await client.start(["sh", "-c", TALK, "sh", f"t{number}"])] = f"t{number}"
        for _ in range(SESSIONS - ATTACHED):
            found.quiet.append(await client.start(["cat"]))
        for number in range(5):
            found.ending.append(await client.start(f"sleep {MARK[-4:]}.5{number}; echo late; exit {number + 9}"))
        found.short = await client.start(["sleep", "100"], resources={"timeoutMs": 3000})
        return found


async def killed_with_clients(server: Server, sessions: Sessions, client: Client) -> dict[str, Heard]:
    """Kill the server while a client listens to each talker; what each has heard by then."""
    heard = {name: Heard() for name in sessions.talkers}
    async with contextlib.AsyncExitStack() as stack:
        connections = {
            name: await stack.enter_async_context(client.connect(name, "attach")) for name in sessions.talkers
        }
        for name, connection in connections.items():
            await until_heard(connection, heard[name], b"line 3\n")
        listening = [asyncio.create_task(hear_until_cut(connections[name], heard[name])) for name in connections]
        await asyncio.to_thread(end_process, server.process.pid)
        async with asyncio.timeout(20):
            await asyncio.gather(*listening)
    return heard


async def test_a_killed_server_s_sessions_are_all_there_again(tmp_path: Path) -> None:
    """50 run on, every client reads on from where it was, deadlines hold, and ends in between are recorded."""
    with nothing_left(tmp_path) as note, served(tmp_path) as before:
        async with client_of(before) as client:
            sessions = await Sessions.start(client)
            (warden,) = warden_of(tmp_path)
            heard = await killed_with_clients(before, sessions, client)
        sleeps = processes_like(f"sleep {MARK[-4:]}.5")
        assert len(sleeps) == len(sessions.ending)
        for pid in sleeps:
            os.kill(pid, signal.SIGKILL)
        with served(tmp_path) as after:
            note(after)
            assert warden_of(tmp_path) == [warden]
            assert not _children_of_the_keeper(after)
            async with client_of(after) as client:
                await _are_there(client, sessions)
                await asyncio.gather(*(_reads_on(client, name, heard[name], sessions) for name in heard))
                await _deadlines_and_ends(client, sessions)
                await _work_again(client, sessions)
            after.end(signal.SIGINT)


def _children_of_the_keeper(server: Server) -> list[int]:
    """The warden, where this server's keeper has started it."""
    return [one for child in children(server.process.pid) for one in children(child)]


async def _are_there(client: Client, sessions: Sessions) -> None:
    listed = (await client.get("/v1/sessions?status=running")).json()["sessions"]
    assert {one["id"] for one in listed} - {sessions.short} == sessions.living


async def _reads_on(client: Client, name: str, before: Heard, sessions: Sessions) -> None:
    """From where the client was, and from the very beginning, at the same time."""
    whole = said_by(sessions.talkers[name])
    assert before.stdout == whole[: len(before.stdout)]
    assert before.stdout
    async with (
        client.connect(name, f"attach?stdoutOffset={len(before.stdout)}") as connection,
        client.connect(name, "attach") as second,
    ):
        rest_of_it, all_of_it = Heard(), Heard()
        await until_heard(second, all_of_it, f"line {LINES - 1}\n".encode())
        await connection.send(stdin(b"go\n"))
        await rest(connection, rest_of_it)
        await rest(second, all_of_it)
    assert before.stdout + rest_of_it.stdout == whole
    assert all_of_it.stdout == whole
    assert rest_of_it.exits == all_of_it.exits == [7]
    assert not rest_of_it.errors
    assert not all_of_it.errors


async def _deadlines_and_ends(client: Client, sessions: Sessions) -> None:
    found = await becomes_so(client, sessions.short, "killed")
    assert found["exitCode"] == 137
    for number, name in enumerate(sessions.ending):
        ended = await becomes_so(client, name, "failed")
        assert ended["exitCode"] == number + 9
        heard = await client.hear(name)
        assert (heard.stdout, heard.exits) == (b"late\n", [number + 9])


async def _work_again(client: Client, sessions: Sessions) -> None:
    """The quiet ones take input and further processes."""
    for name in sessions.quiet[:5]:
        assert (await client.hear(name, "exec?cmd=echo&cmd=again")).stdout == b"again\n"
    name = sessions.quiet[0]
    heard = await client.hear(name, "attach", stdin(b"hello\n"), b"\x06")
    assert (heard.stdout, heard.exits) == (b"hello\n", [0])
    assert (await becomes_so(client, name, "stopped"))["exitCode"] == 0
    new = await client.start(["cat"])
    assert (await client.read(new))["status"] == "running"


async def test_a_server_that_is_told_to_stop_leaves_its_sessions(tmp_path: Path) -> None:
    with nothing_left(tmp_path) as note, served(tmp_path) as before:
        async with client_of(before) as client:
            names = [await client.start(["cat"]) for _ in range(5)]
            (warden,) = warden_of(tmp_path)
            async with client.connect(names[0], "attach") as connection:
                await connection.send(stdin(b"one\n"))
                await until_heard(connection, Heard(), b"one\n")
        assert before.end(signal.SIGTERM) == 0
        assert warden_of(tmp_path) == [warden]
        with served(tmp_path) as after:
            note(after)
            async with client_of(after) as client:
                listed = (await client.get("/v1/sessions?status=running")).json()["sessions"]
                assert {one["id"] for one in listed} == set(names)
                heard = await client.hear(names[0], "attach", stdin(b"two\n"), b"\x06")
                assert heard.stdout == b"one\ntwo\n"
            after.end(signal.SIGINT)


async def test_a_server_that_is_interrupted_by_hand_ends_its_sessions(tmp_path: Path) -> None:
    """Also those that will not end, and those whose output somebody reads; and nothing is left of any."""
    with nothing_left(tmp_path) as note, served(tmp_path) as server:
        async with client_of(server) as client:
            names = [await client.start("trap '' TERM INT; while :; do sleep 1; done") for _ in range(10)]
            await client.start(["cat"], network="outgoing")
            async with client.connect(names[0], "attach"), client.connect(names[1], "exec?cmd=cat"):
                note(server)
                assert await asyncio.to_thread(server.end, signal.SIGINT) == 0
        with served(tmp_path) as after:
            note(after)
            async with client_of(after) as client:
                found = (await client.get("/v1/sessions")).json()["sessions"]
                assert [one["status"] for one in found] == ["killed"] * 11
            after.end(signal.SIGINT)


async def test_a_server_that_is_killed_without_sessions_leaves_nothing(tmp_path: Path) -> None:
    with nothing_left(tmp_path) as note, served(tmp_path) as server:
        async with client_of(server) as client:
            await client.ended(await client.start("exit 3"))
        note(server)
        end_process(server.process.pid)
        until(lambda: not warden_of(tmp_path))


async def test_a_server_that_is_told_to_stop_lets_go_of_those_attached(tmp_path: Path) -> None:
    """It does not wait for streams that have no end; their sessions live on."""
    with nothing_left(tmp_path) as note, served(tmp_path) as before:
        async with client_of(before) as client:
            name = await client.start("while :; do echo on; sleep 0.1; done")
            async with client.connect(name, "attach") as attached, client.connect(name, "exec?cmd=cat") as other:
                heard = Heard()
                await until_heard(attached, heard, b"on\n")
                before.process.send_signal(signal.SIGTERM)
                for connection in (attached, other):
                    end = Heard()
                    await hear_until_cut(connection, end, within_s=60)
                    assert not end.exits, "nobody knows how it will end"
                    assert end.close_code in (1001, 1012), "a client that comes again is served"
            assert await asyncio.to_thread(before.process.wait, 60) == 0
        with served(tmp_path) as after:
            note(after)
            async with client_of(after) as client:
                assert (await client.read(name))["status"] == "running"
            after.end(signal.SIGINT)


@pytest.mark.parametrize("first", [1, 25] if not LONG else range(1, 60, 4))
async def test_a_server_that_is_killed_while_it_makes_sessions_half_makes_none(tmp_path: Path, first: int) -> None:
    """Each is recorded as one that runs, and does; or as one that failed, of which nothing is there."""
    with nothing_left(tmp_path) as note, served(tmp_path) as before:
        async with client_of(before) as client:
            (warden,) = warden_of(tmp_path)
            making = [asyncio.create_task(client.start(["sleep", "6217"])) for _ in range(60)]
            async with asyncio.timeout(20):
                await asyncio.gather(*making[:first])
            await asyncio.to_thread(end_process, before.process.pid)
            answers = await asyncio.gather(*making, return_exceptions=True)
        promised = {answer for answer in answers if isinstance(answer, str)}
        assert len(promised) >= first
        with served(tmp_path) as after:
            note(after)
            assert warden_of(tmp_path) == [warden]
            async with client_of(after) as client:
                found = (await client.get("/v1/sessions")).json()["sessions"]
                running = {one["id"] for one in found if one["status"] == "running"}
                assert {one["status"] for one in found} <= {"running", "failed"}
                assert promised <= running
                until(lambda: len(processes_like("sleep 6217")) == len(running))
                usage = (await client.get("/v1/account/usage")).json()
                assert usage["active_sessions"] == len(running)
            after.end(signal.SIGINT)
