"""attach and exec over real WebSocket connections, to processes whose output the tests write."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import websockets

from stockade.model import EndedBy, SandboxState, TerminalSize
from stockade.wire.frames import Frame, FrameType, decode, encode
from tests.dialects.execbox.conftest import serving
from tests.dialects.execbox.fakes import Echo, Process

pytestmark = pytest.mark.anyio

WITHIN_S = 30.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.01)


async def frames(connection: Any) -> list[Frame]:
    """All that comes until the server closes."""
    found = []
    async with asyncio.timeout(WITHIN_S):
        async for message in connection:
            assert isinstance(message, bytes)
            found.append(decode(message))
    return found


async def next_frame(connection: Any) -> Frame:
    async with asyncio.timeout(WITHIN_S):
        return decode(await connection.recv())


def text(found: list[Frame], kind: FrameType = FrameType.STDOUT) -> bytes:
    return b"".join(one.data for one in found if one.type is kind)


def stdin(data: bytes) -> bytes:
    return encode(Frame(type=FrameType.STDIN, data=data))


async def refused(connecting: Any) -> tuple[int, dict[str, Any]]:
    """Status and body of a connection that is refused before the upgrade."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with connecting:
            pass
    response = caught.value.response
    assert response.headers["content-type"] == "application/json"
    return response.status_code, json.loads(response.body)


async def test_all_output_comes_before_one_exit_and_a_normal_close(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    async with execbox.connect(f"/v1/sessions/{session}/attach?protocol=binary") as connection:
        await process.print(b"out\n")
        await process.print(b"err\n", to="stderr")
        await process.exit(5)
        found = await frames(connection)
        assert connection.close_code == 1000
    assert (text(found), text(found, FrameType.STDERR)) == (b"out\n", b"err\n")
    assert found[-1] == Frame(type=FrameType.EXIT, exit_code=5)
    assert sum(one.type is FrameType.EXIT for one in found) == 1
    await until(lambda: process.readers == 0)


async def test_who_comes_late_gets_everything(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    await process.print(b"hello world\n")
    await process.exit(0)
    execbox.sandboxes.change(session, state=SandboxState.ENDED, ended_by=EndedBy.ITSELF, exit_code=0)
    for _ in range(2):
        async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
            found = await frames(connection)
            assert text(found) == b"hello world\n"
            assert found[-1].exit_code == 0


async def test_who_comes_back_gets_the_rest(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    await process.print(b"0123456789")
    await process.print(b"abcdef", to="stderr")
    await process.exit(0)
    path = f"/v1/sessions/{session}/attach?stdoutOffset=4&stderrOffset=6"
    async with execbox.connect(path) as connection:
        found = await frames(connection)
    assert (text(found), text(found, FrameType.STDERR)) == (b"456789", b"")


async def test_every_client_gets_everything(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    path = f"/v1/sessions/{session}/attach"
    async with execbox.connect(path) as one, execbox.connect(path) as other:
        await process.print(b"x" * 100_000)
        await process.exit(3)
        for found in await asyncio.gather(frames(one), frames(other)):
            assert text(found) == b"x" * 100_000
            assert found[-1].exit_code == 3


async def test_input_reaches_the_process_and_its_end_too(execbox: Any) -> None:
    execbox.sandboxes.make = Echo
    session = await execbox.create()
    async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
        await connection.send(bytes.fromhex("01000000036f6b0a"))
        assert await next_frame(connection) == Frame(type=FrameType.STDOUT, data=b"ok\n")
        await connection.send(b"\x06")
        assert await next_frame(connection) == Frame(type=FrameType.EXIT)


async def test_every_byte_comes_back(execbox: Any) -> None:
    execbox.sandboxes.make = Echo
    session = await execbox.create()
    data = bytes(range(256)) * 300
    async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
        await connection.send(stdin(data))
        await connection.send(b"\x06")
        assert text(await frames(connection)) == data


async def test_what_is_no_frame_is_told_and_the_connection_stays(execbox: Any) -> None:
    execbox.sandboxes.make = Echo
    session = await execbox.create()
    async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
        for message in (b"", b"\x07", bytes.fromhex("01000000056f6b"), b"\x06\x00", "text"):
            await connection.send(message)
            raw = await connection.recv()
            assert raw[0] == 5
            assert int.from_bytes(raw[1:5], "big") == len(raw) - 5 <= 1024
            assert decode(raw).data.startswith(b"invalid binary message: ")
        await connection.send(stdin(b"still here\n"))
        assert text([await next_frame(connection)]) == b"still here\n"


async def test_empty_input_and_frames_for_clients_have_no_effect(execbox: Any) -> None:
    execbox.sandboxes.make = Echo
    session = await execbox.create()
    async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
        await connection.send(stdin(b""))
        await connection.send(bytes.fromhex("0200000001 78"))
        await connection.send(bytes.fromhex("0400000000"))
        await connection.send(stdin(b"!"))
        assert await next_frame(connection) == Frame(type=FrameType.STDOUT, data=b"!")


async def test_input_after_its_end_has_no_effect(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
        await connection.send(b"\x06")
        await connection.send(stdin(b"late"))
        await until(lambda: not process.is_open)
        await process.exit(0)
        assert (await frames(connection))[-1].type is FrameType.EXIT
    assert process.input == b""


async def test_a_client_that_leaves_ends_nothing_and_closes_no_input(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
        await connection.send(stdin(b"a"))
        await until(lambda: process.input == b"a")
    await until(lambda: process.readers == 0)
    assert process.is_open
    assert process.end is None
    async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
        await connection.send(stdin(b"b"))
        await until(lambda: process.input == b"ab")


async def test_a_lost_backend_is_told_and_there_is_no_exit(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
        await process.print(b"x")
        assert text([await next_frame(connection)]) == b"x"
        await process.lose()
        found = await frames_until_closed(connection)
        assert [one.type for one in found] == [FrameType.ERROR]
        assert connection.close_code == 1011


async def frames_until_closed(connection: Any) -> list[Frame]:
    found = []
    try:
        while True:
            found.append(await next_frame(connection))
    except websockets.ConnectionClosed:
        return found


async def test_lost_output_is_told_once(execbox: Any) -> None:
    execbox.sandboxes.make = lambda: Process(kept=1000)
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    await process.print(bytes(5000))
    await process.exit(0)
    async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
        found = await frames(connection)
    assert [one.type for one in found] == [FrameType.ERROR, FrameType.STDOUT, FrameType.EXIT]
    assert b"4000 bytes of stdout" in found[0].data


async def test_an_exec_is_a_process_of_its_own_and_is_dismissed(execbox: Any) -> None:
    session = await execbox.create()
    path = f"/v1/sessions/{session}/exec?cmd=sh&cmd=-c&cmd=exit%207&workdir=sub&env=A%3D1&protocol=binary"
    async with execbox.connect(path) as connection:
        await until(lambda: bool(execbox.sandboxes.executions))
        spec, process, execution = execbox.sandboxes.executions[0]
        assert spec.argv == ("sh", "-c", "exit 7")
        assert (spec.cwd, spec.env) == ("/home/user/sub", {"A": "1"})
        await process.print(b"out")
        await process.exit(7)
        assert (await frames(connection))[-1] == Frame(type=FrameType.EXIT, exit_code=7)
    await until(lambda: execution.killed and process.readers == 0)
    assert execbox.sandboxes.rows[session].state is SandboxState.RUNNING


async def test_an_exec_is_killed_when_its_client_goes(execbox: Any) -> None:
    session = await execbox.create()
    for how in ("close", "abort"):
        async with execbox.connect(f"/v1/sessions/{session}/exec?cmd=cat") as connection:
            await connection.send(stdin(b"x"))
            if how == "abort":
                connection.transport.abort()
        await until(lambda: execbox.sandboxes.executions[-1][2].killed)


async def test_a_program_that_cannot_be_started_is_an_error_before_its_exit(execbox: Any) -> None:
    session = await execbox.create()
    async with execbox.connect(f"/v1/sessions/{session}/exec?cmd=nothere") as connection:
        await until(lambda: bool(execbox.sandboxes.executions))
        process = execbox.sandboxes.executions[0][1]
        await process.print(b"cannot start nothere: No such file or directory\n", to="stderr")
        await process.exit(127)
        found = await frames(connection)
    assert [one.type for one in found[-2:]] == [FrameType.ERROR, FrameType.EXIT]
    assert found[-2].data == b"cannot start nothere: No such file or directory"
    assert found[-1].exit_code == 127


async def test_a_program_that_exits_with_127_itself_is_no_error(execbox: Any) -> None:
    session = await execbox.create()
    async with execbox.connect(f"/v1/sessions/{session}/exec?cmd=sh") as connection:
        await until(lambda: bool(execbox.sandboxes.executions))
        process = execbox.sandboxes.executions[0][1]
        await process.print(b"sh: nothere: not found\n", to="stderr")
        await process.exit(127)
        assert [one.type for one in await frames(connection)] == [FrameType.STDERR, FrameType.EXIT]


async def test_a_terminal_can_be_resized_and_others_cannot(execbox: Any) -> None:
    session = await execbox.create()
    resize = encode(Frame(type=FrameType.RESIZE, rows=50, columns=132))
    async with execbox.connect(f"/v1/sessions/{session}/exec?cmd=sh&tty=true&rows=24&cols=80") as connection:
        await connection.send(resize)
        await until(lambda: bool(execbox.sandboxes.executions and execbox.sandboxes.executions[0][1].sizes))
        assert execbox.sandboxes.executions[0][0].terminal == TerminalSize(rows=24, columns=80)
        assert execbox.sandboxes.executions[0][1].sizes == [TerminalSize(rows=50, columns=132)]
    async with execbox.connect(f"/v1/sessions/{session}/exec?cmd=sh") as connection:
        await connection.send(resize)
        assert (await next_frame(connection)).type is FrameType.ERROR


async def test_refusals_come_before_the_upgrade_with_status_and_body(execbox: Any) -> None:
    session = await execbox.create()
    attach = f"/v1/sessions/{session}/attach"
    unknown = "/v1/sessions/sess_000000000000"
    for connecting, status, code in (
        (execbox.connect(attach, key=""), 401, "UNAUTHORIZED"),
        (execbox.connect(attach, key="nobody's"), 401, "UNAUTHORIZED"),
        (execbox.connect(attach, key="key-b"), 404, "NOT_FOUND"),
        (execbox.connect(f"{unknown}/attach"), 404, "NOT_FOUND"),
        (execbox.connect(f"{unknown}/exec?cmd=id"), 404, "NOT_FOUND"),
        (execbox.connect("/v1/sessions/../../etc/attach"), 404, "NOT_FOUND"),
        (execbox.connect(f"{attach}?protocol=json"), 400, "BAD_REQUEST"),
        (execbox.connect(f"{attach}?stdoutOffset=-1"), 400, "BAD_REQUEST"),
        (execbox.connect(f"/v1/sessions/{session}/exec"), 400, "BAD_REQUEST"),
        (execbox.connect(f"/v1/sessions/{session}/watch"), 404, "NOT_FOUND"),
    ):
        found, body = await refused(connecting)
        assert (found, body["code"]) == (status, code)
        assert body["error"]
        assert body["detail"] == body["error"]
    await execbox.client.post(f"/v1/sessions/{session}/stop")
    assert (await refused(execbox.connect(attach)))[0] == 409
    assert (await refused(execbox.connect(f"/v1/sessions/{session}/exec?cmd=id")))[0] == 409
    assert not execbox.sandboxes.executions


async def test_without_an_upgrade_it_is_a_bad_request(execbox: Any) -> None:
    session = await execbox.create()
    for path in ("attach", "exec?cmd=id"):
        response = await execbox.client.get(f"/v1/sessions/{session}/{path}")
        assert (response.status_code, response.json()["code"]) == (400, "BAD_REQUEST")
    response = await execbox.client.get(f"/v1/sessions/{session}/attach", headers={"Authorization": ""})
    assert response.status_code == 401


async def test_a_key_has_only_so_many_connections() -> None:
    async with serving(streams_per_key=2) as execbox:
        session = await execbox.create()
        path = f"/v1/sessions/{session}/attach"
        async with execbox.connect(path), execbox.connect(path):
            status, body = await refused(execbox.connect(path))
            assert (status, body["code"]) == (429, "RATE_LIMIT_EXCEEDED")
        await until(lambda: not execbox.tasks)
        async with execbox.connect(path):
            pass


async def settled(value: Callable[[], int]) -> int:
    """*value* once it has stayed the same for a while."""
    seen, same = value(), 0
    async with asyncio.timeout(WITHIN_S):
        while same < 30:
            await asyncio.sleep(0.01)
            same = same + 1 if value() == seen else 0
            seen = value()
    return seen


async def test_output_waits_for_a_client_that_takes_none(execbox: Any) -> None:
    """What was sent is what fits into the sockets' buffers; the rest stays where it is."""
    execbox.sandboxes.make = lambda: Process(kept=1 << 30)
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    process.printed["stdout"] = bytes(64 << 20)
    before = resident()
    async with execbox.connect(f"/v1/sessions/{session}/attach", max_queue=1) as connection:
        assert await settled(lambda: process.asked) < 32 << 20
        assert resident() - before < 40 << 20
        await process.exit(0)
        sizes = [len(message) async for message in connection]
    assert max(sizes) == 5 + (256 << 10)
    assert sum(sizes) == (64 << 20) + 5 * len(sizes)


async def test_input_waits_for_a_process_that_reads_none(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    process.reads_input.clear()
    chunk = stdin(bytes(1 << 20))
    async with execbox.connect(f"/v1/sessions/{session}/attach") as connection:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < 1 << 30:
                await connection.send(chunk)
                sent += 1 << 20

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(), 1.0)
        assert sent < 64 << 20
        await process.print(b"output goes on")
        assert text([await next_frame(connection)]) == b"output goes on"
        process.reads_input.set()
        await until(lambda: len(process.input) >= sent)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_connections_that_come_and_go_leave_nothing(execbox: Any) -> None:
    session = await execbox.create()
    process = execbox.sandboxes.processes[session]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        connections = [await execbox.connect(f"/v1/sessions/{session}/attach") for _ in range(10)]
        for one in connections:
            one.transport.abort()
    await until(lambda: process.readers == 0 and not execbox.tasks)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)
