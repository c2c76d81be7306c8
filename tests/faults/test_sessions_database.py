"""The database is away, or shared with another server: sessions live on, and nobody is told what is not so."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dialects.execbox.serving import Client, Heard, client_of, rest, stdin, until_heard
from tests.faults.sessions import (
    LONG,
    becomes_so,
    end_process,
    nothing_left,
    processes_like,
    served,
    warden_of,
)
from tests.postgres import Postgres

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of our own, which tests stop."""
    binaries = Postgres.find()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    server = Postgres(binaries)
    try:
        server.make()
        yield server
    finally:
        server.remove()


def is_unavailable(response: httpx.Response) -> bool:
    """Whether that is a clear refusal for now."""
    assert response.status_code == 503, response.text
    body = response.json()
    assert body["code"] == "UNAVAILABLE"
    assert body["error"]
    assert int(response.headers["Retry-After"]) >= 1
    return True


async def answers_again(client: Client) -> None:
    """Until requests that need the database are answered."""
    async with asyncio.timeout(30):
        while (await client.get("/v1/sessions")).status_code != 200:  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["gone", "silent"] if LONG else ["gone"])
async def test_while_the_database_is_away_sessions_live_on(tmp_path: Path, postgres: Postgres, how: str) -> None:
    """Who needs it is told 503; who has a session can use it; ends are recorded afterwards; nothing is restarted."""
    variables = {"DATABASE_URL": postgres.new_database(), "STOCKADE_DATABASE_TIMEOUT_S": "1"}
    away, back = (postgres.stop, postgres.start) if how == "gone" else (postgres.freeze, postgres.thaw)
    with nothing_left(tmp_path) as note, served(tmp_path, **variables) as server:
        async with client_of(server) as client:
            names = [await client.start(["cat"]) for _ in range(10)]
            ending = await client.start("sleep 7461.5; echo ended; exit 5")
            async with client.connect(names[0], "attach") as attached:
                await attached.send(stdin(b"before\n"))
                heard = Heard()
                await until_heard(attached, heard, b"before\n")
                await asyncio.to_thread(away)
                try:
                    await _refused_for_now(client)
                    await attached.send(stdin(b"while it is away\n"))
                    await until_heard(attached, heard, b"while it is away\n")
                    done = await client.hear(names[1], "exec?cmd=echo&cmd=works")
                    assert (done.stdout, done.exits) == (b"works\n", [0])
                    for pid in processes_like("sleep 7461.5"):
                        os.kill(pid, signal.SIGKILL)
                    assert is_unavailable(await client.get("/v1/sessions"))
                finally:
                    await asyncio.to_thread(back)
                await answers_again(client)
                found = await becomes_so(client, ending, "failed")
                assert found["exitCode"] == 5
                assert (await client.hear(ending)).stdout == b"ended\n"
                listed = (await client.get("/v1/sessions?status=running")).json()["sessions"]
                assert {one["id"] for one in listed} == set(names), "none is lost, and none was half made"
                await attached.send(b"\x06")
                await rest(attached, heard)
                assert (heard.stdout, heard.exits) == (b"before\nwhile it is away\n", [0])
            new = await client.start(["cat"])
            assert (await client.read(new))["status"] == "running"
            assert server.process.poll() is None
            note(server)
        server.end(signal.SIGINT)


async def _refused_for_now(client: Client) -> None:
    body = {"image": "host", "command": ["cat"]}
    assert is_unavailable(await client.post("/v1/sessions", json=body))
    assert is_unavailable(await client.get("/v1/sessions"))
    assert is_unavailable(await client.get("/v1/account/usage"))
    assert is_unavailable(await client.http.get("/health"))


async def test_a_server_that_is_killed_while_the_database_is_away_finds_its_sessions_again(
    tmp_path: Path, postgres: Postgres
) -> None:
    """Also what ended before the end could be recorded."""
    variables = {"DATABASE_URL": postgres.new_database(), "STOCKADE_DATABASE_TIMEOUT_S": "1"}
    with nothing_left(tmp_path) as note, served(tmp_path, **variables) as before:
        async with client_of(before) as client:
            living = await client.start(["cat"])
            ending = await client.start("sleep 7462.5; exit 6")
            postgres.stop()
            try:
                for pid in processes_like("sleep 7462.5"):
                    os.kill(pid, signal.SIGKILL)
                assert is_unavailable(await client.get("/v1/sessions"))
                await asyncio.to_thread(end_process, before.process.pid)
            finally:
                postgres.start()
        with served(tmp_path, **variables) as after:
            note(after)
            async with client_of(after) as client:
                assert (await client.read(living))["status"] == "running"
                assert (await becomes_so(client, ending, "failed"))["exitCode"] == 6
            after.end(signal.SIGINT)


QUOTAS = {"STOCKADE_ACCOUNTS_TIERS_FREE_RATE_LIMIT_RPS": "1000"}


@contextlib.asynccontextmanager
async def two_servers(folder: Path, postgres: Postgres) -> AsyncIterator[tuple[Any, Any, Client, Client]]:
    """Two servers on one database, with a client of each that has the operator's key."""
    variables = {"DATABASE_URL": postgres.new_database(), **QUOTAS}
    for name in ("one", "two"):
        (folder / name).mkdir()
    with (
        nothing_left(folder / "one") as note_one,
        nothing_left(folder / "two") as note_two,
        served(folder / "one", **variables) as one,
        served(folder / "two", **variables) as two,
    ):
        async with client_of(one) as first, client_of(two) as second:
            yield one, two, first, second
        for server, note in ((one, note_one), (two, note_two)):
            if server.process.poll() is None:
                note(server)
                server.end(signal.SIGINT)


async def test_two_servers_of_one_database_know_each_other_s_sessions(tmp_path: Path, postgres: Postgres) -> None:
    """Each lists both; only the one that has it can use it, and the other says so."""
    async with two_servers(tmp_path, postgres) as (_one, _two, first, second):
        here, there = await first.start(["cat"]), await second.start(["cat"])
        for client in (first, second):
            listed = (await client.get("/v1/sessions?status=running")).json()["sessions"]
            assert [one["id"] for one in listed] == [there, here]
        assert (await first.read(there))["status"] == "running"
        for what in ("attach", "exec?cmd=true"):
            status, code = await first.refused(there, what)
            assert (status, code) == (503, "UNAVAILABLE")
        response = await first.post(f"/v1/sessions/{there}/stop")
        assert is_unavailable(response)
        assert "another server" in response.json()["error"]
        assert is_unavailable(await first.ask("DELETE", f"/v1/sessions/{there}"))
        assert is_unavailable(await first.get(f"/v1/sessions/{there}/files?path=/tmp&list=true"))
        heard = await second.hear(there, "attach", stdin(b"unharmed\n"), b"\x06")
        assert (heard.stdout, heard.exits) == (b"unharmed\n", [0])
        assert (await becomes_so(first, there, "stopped"))["exitCode"] == 0


async def test_quotas_hold_over_two_servers(tmp_path: Path, postgres: Postgres) -> None:
    """Fifty creations at once over both: five may live at a time, and ten may be made in a day."""
    async with two_servers(tmp_path, postgres) as (_one, _two, first, second):
        stranger = await first.stranger()
        clients = (stranger, Client(http=second.http, base=second.base, key=stranger.key))
        for made_so_far in (0, 5):
            made = await _fifty(clients)
            assert len(made) == 5
            used = (await clients[1].get("/v1/account/usage")).json()
            assert (used["sessions_today"], used["active_sessions"]) == (made_so_far + 5, 5)
            for client, name in made:
                await client.drop(name)
        assert not await _fifty(clients)


async def _fifty(clients: tuple[Client, Client]) -> list[tuple[Client, str]]:
    """What came of fifty creations at once: the sessions. All others were refused for the quota."""

    async def one(client: Client) -> tuple[Client, str] | None:
        response = await client.post("/v1/sessions", json={"image": "host", "command": ["cat"]})
        if response.status_code == 201:
            return client, response.json()["id"]
        assert (response.status_code, response.json()["code"]) == (429, "QUOTA_EXCEEDED"), response.text
        return None

    answers = await asyncio.gather(*(one(clients[number % 2]) for number in range(50)))
    return [answer for answer in answers if answer is not None]


async def test_each_of_two_servers_brings_its_own_sessions_together(tmp_path: Path, postgres: Postgres) -> None:
    """One is killed with its warden and started again: its sessions are lost, the other's are untouched."""
    variables = {"DATABASE_URL": postgres.new_database(), **QUOTAS}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        nothing_left(tmp_path / "one") as note_one,
        nothing_left(tmp_path / "two") as note_two,
        served(tmp_path / "one", **variables) as one,
    ):
        with served(tmp_path / "two", **variables) as two:
            async with client_of(one) as first, client_of(two) as second:
                here, there = await first.start(["cat"]), await second.start(["cat"])
                (warden,) = warden_of(tmp_path / "two")
                note_two(two)
                end_process(two.process.pid)
                end_process(warden)
                with served(tmp_path / "two", **variables) as again:
                    note_two(again)
                    assert (await first.read(here))["status"] == "running"
                    assert (await first.read(there))["status"] == "failed"
                    heard = await first.hear(here, "attach", stdin(b"mine\n"), b"\x06")
                    assert heard.stdout == b"mine\n"
                    again.end(signal.SIGINT)
        note_one(one)
        one.end(signal.SIGINT)


DISK = 24 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    if os.geteuid():
        pytest.skip("only root can mount a file system")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "small", str(place)], check=True, timeout=20)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=20)


def fill(disk: Path) -> Path:
    """Leave no room on it; the file to be removed."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return filler


async def test_on_a_full_disk_sessions_go_on_and_new_ones_are_refused(small_disk: Path) -> None:
    """No session is half made; what ends is recorded once there is room; nothing is restarted."""
    folder = small_disk / "data"
    folder.mkdir()
    with nothing_left(folder) as note, served(folder) as server:
        async with client_of(server) as client:
            living = await client.start(["cat"])
            ending = await client.start("sleep 7463.5; exit 8")
            filler = await asyncio.to_thread(fill, small_disk)
            made = await _until_refused(client)
            assert is_unavailable(await client.post("/v1/sessions", json={"image": "host", "command": ["cat"]}))
            assert (await client.hear(living, "exec?cmd=echo&cmd=works")).stdout == b"works\n"
            async with client.connect(living, "attach") as connection:
                await connection.send(stdin(b"as ever\n"))
                await until_heard(connection, Heard(), b"as ever\n")
            for pid in processes_like("sleep 7463.5"):
                os.kill(pid, signal.SIGKILL)
            filler.unlink()
            assert (await becomes_so(client, ending, "failed"))["exitCode"] == 8
            new = await client.start(["cat"])
            listed = (await client.get("/v1/sessions?status=running")).json()["sessions"]
            assert {one["id"] for one in listed} == {living, new, *made}
            note(server)
        server.end(signal.SIGINT)


async def _until_refused(client: Client) -> list[str]:
    """Sessions that were made before the database needed room that there is not."""
    made = []
    while len(made) < 500:
        response = await client.post("/v1/sessions", json={"image": "host", "command": ["cat"], "network": "none"})
        if response.status_code != 201:
            assert is_unavailable(response)
            return made
        made.append(response.json()["id"])
    raise AssertionError("the disk is full, and sessions are made all the same")


async def test_a_sandbox_s_full_disk_refuses_an_upload_and_keeps_no_half_of_it(tmp_path: Path) -> None:
    limit = 4 << 20
    variables = {"STOCKADE_DIALECTS_EXECBOX_DEFAULT_DISK_BYTES": str(limit)}
    with nothing_left(tmp_path) as note, served(tmp_path, **variables) as server:
        async with client_of(server) as client:
            session = await client.start(["cat"])
            path = f"/v1/sessions/{session}/files?path=/home/user"
            small = await client.post(f"{path}/kept", content=b"kept")
            assert small.status_code == 201
            for _ in range(3):
                refused = await client.post(f"{path}/large", content=b"x" * (2 * limit))
                assert refused.status_code == 413, refused.text
                assert refused.json()["code"] == "PAYLOAD_TOO_LARGE"
                replaced = await client.post(f"{path}/kept", content=b"x" * (2 * limit))
                assert replaced.status_code == 413
            listed = (await client.get(f"{path}&list=true")).json()["entries"]
            assert [one["name"] for one in listed if not one["isDir"]] == ["kept"]
            assert (await client.get(f"{path}/kept")).content == b"kept"
            again = await client.post(f"{path}/fits", content=b"x" * (limit // 2))
            assert again.status_code == 201, "nothing of what was refused takes room"
            note(server)
        server.end(signal.SIGINT)
