"""The wire contract's cases about executions and files, by their numbers, where a whole server and its disks count."""

import asyncio
import json
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import websockets

from tests.app.serving import Server
from tests.dialects.boxlite.platform import KEY, Client

pytestmark = pytest.mark.anyio
MB = 1 << 20
WITHIN_S = 60.0


async def test_case_27_a_time_limit_holds_though_nobody_reads(real: Client) -> None:
    box = await real.create()
    made = await real.post(box, "exec", {"command": "sleep", "args": ["30"], "timeout_seconds": 0.5}, status=201)
    path = real.box(box, f"executions/{made['execution_id']}")
    async with asyncio.timeout(WITHIN_S):
        while (found := (await real.http.get(path)).json())["status"] == "running":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (found["status"], found["exit_code"]) == ("timed_out", 137)
    assert found["duration_ms"] >= 500
    await real.drop(box)


async def test_case_32_a_box_that_was_stopped_runs_again_for_a_command(real: Client) -> None:
    box = await real.create(auto_remove=False)
    assert await real.run(box, "echo kept > /var/tmp/f") == ""
    await real.post(box, "stop")
    assert await real.status(box) == "stopped"
    assert await real.run(box, "cat /var/tmp/f") == "kept\n"
    assert await real.status(box) == "running"
    await real.drop(box)


async def test_case_42_the_main_command_is_attached_to(real: Client) -> None:
    box = await real.create(entrypoint=["sh", "-c"], cmd=["echo main; read line; echo got $line; exit 6"])
    url = f"{real.base.replace('http', 'ws', 1)}/v1/boxes/{box}/attach"
    headers = {"Authorization": f"Bearer {KEY}"}
    async with asyncio.timeout(WITHIN_S), websockets.connect(url, additional_headers=headers, proxy=None) as socket:
        assert socket.response is not None
        id = socket.response.headers["x-boxlite-execution-id"]
        await socket.send(b"it\n")
        heard = [message async for message in socket]
    assert b"".join(one[1:] for one in heard if isinstance(one, bytes)) == b"main\ngot it\n"
    assert json.loads(heard[-1]) == {"type": "exit", "exit_code": 6}
    assert (await real.http.get(real.box(box, f"executions/{id}"))).json()["exit_code"] == 6
    await real.drop(box)


async def test_case_48_an_upload_of_200_mb_passes_through_without_being_kept(real: Client, server: Server) -> None:
    size, piece = 200 * MB, bytes(range(256)) * 4096
    info = tarfile.TarInfo("large")
    info.size = size

    async def chunks() -> AsyncIterator[bytes]:
        yield info.tobuf(tarfile.PAX_FORMAT)
        for _ in range(size // MB):
            yield piece
        yield b"\0" * 1024

    box = await real.create()
    await real.run(box, "true")
    before, began = most_resident(server), time.monotonic()
    response = await real.http.put(real.box(box, "files"), params={"path": "/var/tmp/large"}, content=chunks())
    assert response.status_code == 204, response.text
    took_s = time.monotonic() - began
    received = 0
    async with real.http.stream("GET", real.box(box, "files"), params={"path": "/var/tmp/large"}) as download:
        assert download.headers["x-boxlite-source-is-dir"] == "false"
        async for part in download.aiter_raw():
            received += len(part)
    assert received > size
    assert most_resident(server) - before < 48 * MB, f"it is passed on as it comes ({took_s:.1f} s)"
    assert await real.run(box, "stat -c %s /var/tmp/large") == f"{size}\n"
    await real.drop(box)


def most_resident(server: Server) -> int:
    """The most memory that the server has ever had, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
