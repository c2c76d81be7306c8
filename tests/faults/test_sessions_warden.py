"""The processes behind a server die: what is lost is said to be lost, what is not goes on."""

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.app.traces import children, until
from tests.backends.sandboxes import mason_of
from tests.dialects.execbox.serving import Client, Heard, client_of, rest, stdin, until_heard
from tests.faults.sessions import (
    becomes_so,
    command_of,
    descriptors,
    end_process,
    groups_of,
    hear_until_cut,
    nothing_left,
    served,
    warden_of,
)

pytestmark = pytest.mark.anyio


async def new_one_works(client: Client, **members: Any) -> str:
    """A new session, once there can be one again."""
    async with asyncio.timeout(30):
        while True:
            response = await client.post("/v1/sessions", json={"image": "host", "command": ["cat"], **members})
            if response.status_code == 201:
                break
            assert (response.status_code, response.json()["code"]) == (503, "UNAVAILABLE"), response.text
            await asyncio.sleep(0.05)
    name: str = response.json()["id"]
    heard = await client.hear(name, "exec?cmd=echo&cmd=works")
    assert (heard.stdout, heard.exits) == (b"works\n", [0])
    return name


def connects(port: int) -> bool:
    """Whether anybody listens on a port of this host."""
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:
        pass  # nobody inside listens
    return True


async def test_the_sessions_of_a_warden_that_is_killed_are_reported_as_lost(tmp_path: Path) -> None:
    """Their ports are closed, those attached are told, nothing is left of them; and the server goes on."""
    with nothing_left(tmp_path) as note, served(tmp_path) as server:
        async with client_of(server) as client:
            names = [await client.start(["cat"]) for _ in range(20)]
            made = await client.create(["cat"], network="exposed", ports=[{"container": 8000}])
            names.append(made["id"])
            port = made["network"]["ports"]["8000"]["hostPort"]
            (warden,) = warden_of(tmp_path)
            opened = descriptors(server.process.pid)
            assert await asyncio.to_thread(connects, port)
            note(server)
            async with (
                client.connect(names[0], "attach") as attached,
                client.connect(names[1], "exec?cmd=cat") as executing,
            ):
                await attached.send(stdin(b"there\n"))
                await until_heard(attached, Heard(), b"there\n")
                await asyncio.to_thread(end_process, warden)
                for connection in (attached, executing):
                    heard = Heard()
                    await hear_until_cut(connection, heard)
                    assert heard.errors
                    assert not heard.exits
                    assert heard.close_code == 1011
            for name in names:
                found = await becomes_so(client, name, "failed")
                assert found["endedAt"]
                assert "exitCode" not in found
                assert (await client.refused(name, "attach"))[0] == 409
                assert (await client.refused(name, "exec?cmd=true"))[0] == 409
            assert not await asyncio.to_thread(connects, port)
            await new_one_works(client)
            assert warden not in warden_of(tmp_path)
            assert not groups_of(warden)
            async with asyncio.timeout(20):
                while descriptors(server.process.pid) > opened + 8:  # noqa: ASYNC110  # nothing tells us
                    await asyncio.sleep(0.05)
            note(server)
        server.end(signal.SIGINT)


async def test_a_warden_that_is_killed_again_and_again_is_started_again(tmp_path: Path) -> None:
    with nothing_left(tmp_path) as note, served(tmp_path) as server:
        async with client_of(server) as client:
            for _ in range(3):
                name = await new_one_works(client)
                note(server)
                (warden,) = warden_of(tmp_path)
                await asyncio.to_thread(end_process, warden)
                await becomes_so(client, name, "failed")
            await new_one_works(client)
            note(server)
        server.end(signal.SIGINT)


async def test_without_the_process_that_makes_sandboxes_all_begins_anew(tmp_path: Path) -> None:
    """The warden cannot go on without it: its sessions are lost, and the next one's work."""
    with nothing_left(tmp_path) as note, served(tmp_path) as server:
        async with client_of(server) as client:
            names = [await client.start(["cat"]) for _ in range(5)]
            (warden,) = warden_of(tmp_path)
            mason = mason_of(warden)
            assert mason is not None
            note(server)
            await asyncio.to_thread(end_process, mason)
            for name in names:
                await becomes_so(client, name, "failed")
            await new_one_works(client)
            assert warden not in warden_of(tmp_path)
            assert not groups_of(warden)
            note(server)
        server.end(signal.SIGINT)


async def test_server_and_warden_are_killed_at_once(tmp_path: Path) -> None:
    """The next server reports their sessions as lost, and clears up behind them."""
    with nothing_left(tmp_path) as note, served(tmp_path) as before:
        async with client_of(before) as client:
            names = [await client.start(["cat"]) for _ in range(10)]
        (warden,) = warden_of(tmp_path)
        note(before)
        end_process(before.process.pid)
        end_process(warden)
        with served(tmp_path) as after:
            note(after)
            async with client_of(after) as client:
                for name in names:
                    assert (await client.read(name))["status"] == "failed"
                assert not groups_of(warden)
                await new_one_works(client)
            after.end(signal.SIGINT)


async def test_without_its_keeper_a_server_goes_on(tmp_path: Path) -> None:
    """All that lives goes on, new sessions work, and the end is in good order."""
    with nothing_left(tmp_path) as note, served(tmp_path) as server:
        (keeper,) = [pid for pid in children(server.process.pid) if "keeper.py" in command_of(pid)]
        async with client_of(server) as client:
            name = await client.start(["cat"])
            note(server)
            await asyncio.to_thread(end_process, keeper)
            heard = await client.hear(name, "exec?cmd=echo&cmd=yet")
            assert heard.stdout == b"yet\n"
            await new_one_works(client)
            note(server)
        assert server.end(signal.SIGINT) == 0


async def test_without_its_keeper_a_server_that_is_killed_leaves_its_sessions_to_the_next(tmp_path: Path) -> None:
    with nothing_left(tmp_path) as note, served(tmp_path) as before:
        (keeper,) = [pid for pid in children(before.process.pid) if "keeper.py" in command_of(pid)]
        async with client_of(before) as client:
            name = await client.start(["cat"])
        end_process(keeper)
        end_process(before.process.pid)
        with served(tmp_path) as after:
            note(after)
            async with client_of(after) as client:
                assert (await client.read(name))["status"] == "running"
                heard = await client.hear(name, "attach", stdin(b"still\n"), b"\x06")
                assert (heard.stdout, heard.exits) == (b"still\n", [0])
            after.end(signal.SIGINT)


LISTEN = "import socket; s = socket.create_server(('0.0.0.0', 8000)); c, _ = s.accept(); c.sendall(b'inside')"
OUTSIDE = (
    "import socket, sys\n"
    "s = socket.socket()\n"
    "s.settimeout(20)\n"
    "try:\n"
    "    s.connect(('203.0.113.1', 80))\n"
    "except OSError as error:\n"
    "    print('refused', type(error).__name__)\n"
)


async def test_without_the_egress_process_the_rest_goes_on(tmp_path: Path) -> None:
    """Connections outside fail, exposed ports and all else work; once nothing lives, there is a way out again."""
    with nothing_left(tmp_path) as note, served(tmp_path) as server:
        async with client_of(server) as client:
            inside = await client.start(["cat"])
            made = await client.create(["python3", "-c", LISTEN], network="exposed", ports=[{"container": 8000}])
            outgoing = await client.start(["cat"], network="outgoing")
            (warden,) = warden_of(tmp_path)
            (egress,) = [pid for pid in children(warden) if command_of(pid).startswith("stockade-egress")]
            note(server)
            await asyncio.to_thread(end_process, egress)
            assert (await client.hear(inside, "exec?cmd=echo&cmd=on")).stdout == b"on\n"
            async with client.connect(outgoing, "exec?cmd=python3&cmd=-") as connection:
                await connection.send(stdin(OUTSIDE.encode()))
                await connection.send(b"\x06")
                heard = await rest(connection)
            assert heard.stdout.startswith(b"refused"), heard
            assert await asyncio.to_thread(_hello, made["network"]["ports"]["8000"]["hostPort"]) == b"inside"
            other = await new_one_works(client, network="none")
            refused = await client.post("/v1/sessions", json={"image": "host", "network": "outgoing"})
            assert (refused.status_code, refused.json()["code"]) == (503, "UNAVAILABLE")
            assert "sandbox without network" in refused.json()["error"]
            assert warden_of(tmp_path) == [warden]
            await client.drop(inside, made["id"], outgoing, other)  # what lives has precedence over a new warden
            await new_one_works(client, network="outgoing")
            assert warden not in warden_of(tmp_path)
            note(server)
        server.end(signal.SIGINT)


async def test_without_the_process_that_keeps_disks_there_are_disks_again_once_nothing_lives(tmp_path: Path) -> None:
    """Until then boxes are refused for now, and what needs no disk goes on."""
    with nothing_left(tmp_path) as note, served(tmp_path) as server:
        async with client_of(server) as client:
            living = await client.start(["cat"])
            (warden,) = warden_of(tmp_path)
            (disks,) = [pid for pid in children(warden) if command_of(pid).startswith("stockade-disks")]
            note(server)
            await asyncio.to_thread(end_process, disks)
            refused = await client.post(f"{server.url}/v1/default/boxes", json={"image": "host"})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
            assert (await client.hear(living, "exec?cmd=echo&cmd=on")).stdout == b"on\n"
            assert warden_of(tmp_path) == [warden]
            await client.drop(living)
            async with asyncio.timeout(60):
                while (
                    made := await client.post(f"{server.url}/v1/default/boxes", json={"image": "host"})
                ).status_code != 201:
                    assert made.status_code == 503, made.text
                    await asyncio.sleep(0.1)
            assert warden not in warden_of(tmp_path)
            note(server)
        server.end(signal.SIGINT)


REMOUNT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
namespace = os.open(f"/proc/{sys.argv[1]}/ns/mnt", os.O_RDONLY)
if libc.setns(namespace, 0x20000) or libc.mount(None, sys.argv[2].encode(), None, 0x20 | 0x1, None):
    sys.exit(os.strerror(ctypes.get_errno()))
"""


async def test_disks_that_take_no_changes_any_more_are_mounted_anew_once_nothing_lives(tmp_path: Path) -> None:
    """As after the host's disk was full: btrfs then stays read-only, whoever makes room."""
    with nothing_left(tmp_path) as note, served(tmp_path) as server:
        async with client_of(server) as client:
            boxes = f"{server.url}/v1/default/boxes"
            assert (await client.post(boxes, json={"image": "host"})).status_code == 201
            (warden,) = warden_of(tmp_path)
            (disks,) = [pid for pid in children(warden) if command_of(pid).startswith("stockade-disks")]
            mounts = Path(f"/proc/{disks}/mountinfo").read_text(encoding="utf-8").splitlines()
            places = [line.split()[4] for line in mounts if " - btrfs " in line]
            if not places:
                pytest.skip("disks are not on a btrfs of their own here")
            note(server)
            command = [sys.executable, "-c", REMOUNT, str(disks), places[0]]
            await asyncio.to_thread(subprocess.run, command, check=True, timeout=30)
            assert (await client.post(boxes, json={"image": "host"})).status_code == 503
            async with asyncio.timeout(60):
                while (made := await client.post(boxes, json={"image": "host"})).status_code != 201:
                    assert made.status_code == 503, made.text
                    await asyncio.sleep(0.1)
            assert warden not in warden_of(tmp_path)
            note(server)
        server.end(signal.SIGINT)


def _hello(port: int) -> bytes:
    found = b""

    def has_answered() -> bool:
        nonlocal found
        try:
            with socket.create_connection(("127.0.0.1", port), 10) as one:
                found = one.recv(100)
        except OSError:
            pass
        return bool(found)

    until(has_answered)
    return found
