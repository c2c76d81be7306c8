"""Executions over WebSockets, as clients from 0.9.5 on use them: cases 35 to 42 of the protocol's list, and more."""

import asyncio
import json
import os
import time
from dataclasses import replace
from typing import Any

import pytest
import websockets

from stockade.dialects.boxlite import attach as attaching
from tests.dialects.boxlite.executing import WITHIN_S, Client, Heard, backend, client

__all__ = ["backend", "client"]

pytestmark = pytest.mark.anyio


class Pings:
    """Counts the pings that come over a connection: the library answers them and tells nobody."""

    def __init__(self, connection: Any) -> None:
        self.times: list[float] = []
        self.came = asyncio.Event()
        take = connection.protocol.recv_frame

        def recv_frame(frame: Any) -> None:
            if frame.opcode is websockets.Opcode.PING:
                self.times.append(time.monotonic())
                self.came.set()
            take(frame)

        connection.protocol.recv_frame = recv_frame

    async def next(self) -> float:
        async with asyncio.timeout(WITHIN_S):
            await self.came.wait()
        self.came.clear()
        return self.times[-1]


async def test_output_comes_in_frames_by_stream_and_then_the_end(client: Client) -> None:
    """Case 35."""
    id = await client.sh("echo o; echo e >&2; exit 3")
    async with client.attach(id) as socket:
        heard = await client.hear(socket)
    assert (heard.stdout, heard.stderr, heard.exits) == (b"o\n", b"e\n", [3])
    assert heard.close_code == 1000


async def test_a_ping_comes_at_once_and_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases 35 and 40: clients leave a connection on which nothing comes."""
    assert attaching.PING_S <= 15.0
    monkeypatch.setattr(attaching, "PING_S", 0.2)
    id = await client.exec("sleep", "60")
    began = time.monotonic()
    async with client.attach(id) as socket:
        pings = Pings(socket)
        assert await pings.next() - began < WITHIN_S
        await pings.next()
        await pings.next()
        assert pings.times[-1] - pings.times[0] >= 0.3
        assert (await client.post(id, "signal", json={"signal": 9})).status_code == 204
        assert (await client.hear(socket)).exits == [137]


@pytest.mark.skipif(not os.environ.get("STOCKADE_LONG_TESTS"), reason="takes 40 s: STOCKADE_LONG_TESTS=1")
async def test_a_silent_execution_is_heard_of_every_fifteen_seconds(client: Client) -> None:
    """Case 40, at its own pace."""
    id = await client.exec("sleep", "60")
    async with client.attach(id) as socket:
        pings = Pings(socket)
        for _ in range(4):
            await pings.next()
        assert max(b - a for a, b in zip(pings.times, pings.times[1:], strict=False)) < 15.5
    assert (await client.http.delete(f"{client.path}/executions/{id}")).status_code == 204


async def test_one_client_at_a_time_is_attached(client: Client) -> None:
    """Case 36."""
    id = await client.exec("cat")
    async with client.attach(id) as socket:
        assert (await client.status(id))["attached"] is True
        assert await client.refused(f"executions/{id}/attach") == (409, "already_exists")
        await socket.send(json.dumps({"type": "stdin_eof"}))
        assert (await client.hear(socket)).exits == [0]
    async with client.attach(id) as socket:
        assert (await client.hear(socket)).exits == [0]


async def test_what_is_not_known_is_refused_before_the_upgrade(client: Client) -> None:
    """Case 37; and a plain request for a WebSocket is none."""
    assert await client.refused("executions/exec-0123456789abcdef/attach") == (404, "not_found")
    response = await client.http.get(f"{client.path}/executions/x/attach")
    assert response.status_code == 400


async def test_input_goes_in_and_its_end_is_told(client: Client) -> None:
    """Case 38."""
    id = await client.exec("cat")
    async with client.attach(id) as socket:
        await socket.send(b"abc")
        await socket.send("\u00e9".encode())
        await socket.send(json.dumps({"type": "stdin_eof"}))
        heard = await client.hear(socket)
    assert (heard.stdout.decode(), heard.exits) == ("abcé", [0])


async def test_who_comes_again_goes_on_where_the_last_one_was(client: Client) -> None:
    """Case 39: the process survived, nothing is told twice, and nothing is missing."""
    id = await client.sh("echo first; read go; echo second >&2; echo third")
    async with client.attach(id) as socket:
        heard = await client.hear(socket, until=b"first\n")
        assert heard.stdout == b"first\n"
    assert (await client.status(id))["status"] == "running"
    assert (await client.write(id, b"\n")).status_code == 204
    await client.ended(id)
    async with await attached_again(client, id) as socket:
        heard = await client.hear(socket)
    assert (heard.stdout, heard.stderr, heard.exits) == (b"third\n", b"second\n", [0])
    told = await client.told(id)  # the events are for who has heard nothing yet
    assert told.stdout == "first\nthird\n"


async def attached_again(client: Client, id: str) -> Any:
    """A connection, once the server has seen that the last one is gone."""
    async with asyncio.timeout(WITHIN_S):
        while (await client.status(id))["attached"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return client.attach(id)


async def test_a_dropped_execution_tells_its_end_to_who_is_attached(client: Client) -> None:
    """Case 41."""
    id = await client.sh("echo begun; sleep 60")
    async with client.attach(id) as socket:
        await client.hear(socket, until=b"begun\n")
        assert (await client.http.delete(f"{client.path}/executions/{id}")).status_code == 204
        assert (await client.hear(socket)).exits == [137]
    async with asyncio.timeout(WITHIN_S):
        while (await client.http.get(f"{client.path}/executions/{id}")).status_code != 404:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_main_command_can_be_attached_to(client: Client) -> None:
    """Case 42; signals reach it by the id that the answer names."""
    script = "echo main; read line; echo got $line; sleep 60"
    response = await client.http.post("/v1/boxes", json={"image": "host", "entrypoint": ["sh", "-c"], "cmd": [script]})
    client = replace(client, box_id=response.json()["box_id"])
    async with client.connect("attach") as socket:
        id = socket.response.headers["x-boxlite-execution-id"]
        heard = await client.hear(socket, until=b"main\n")
        await socket.send(b"it\n")
        await client.hear(socket, heard, until=b"got it\n")
        assert (await client.post(id, "signal", json={"signal": 15})).status_code == 204
        await client.hear(socket, heard)
    assert heard.exits == [143]
    assert (await client.status(id))["status"] == "killed"
    assert (await client.http.delete(f"{client.path}/executions/{id}")).status_code == 204
    assert (await client.status(id))["exit_code"] == 143, "its box tells how it ended"
    assert (await client.http.delete(client.path, params={"force": "true"})).status_code == 204


async def test_a_box_without_a_main_command_has_nothing_to_attach_to(client: Client) -> None:
    assert await client.refused("attach") == (404, "not_found")


async def test_a_connection_that_only_reads_refuses_input(client: Client) -> None:
    id = await client.exec("cat")
    async with client.attach(id, "?stdin=0") as socket:
        await socket.send(b"abc")
        await socket.send(json.dumps({"type": "stdin_eof"}))
        heard = Heard()
        async with asyncio.timeout(WITHIN_S):
            while len(heard.errors) < 2:
                heard.hear(await socket.recv())
        await client.write(id, b"by post", close=True)
        await client.hear(socket, heard)
    assert heard.stdout == b"by post"
    assert all("read-only" in error for error in heard.errors)


async def test_size_and_signals_can_be_sent_over_the_socket(client: Client) -> None:
    id = await client.sh("trap 'stty size; exit 5' USR1; echo ready; while :; do sleep 0.05; done", tty=True)
    async with client.attach(id) as socket:
        heard = await client.hear(socket, until=b"ready")
        await socket.send(json.dumps({"type": "resize", "cols": 117, "rows": 43}))
        await socket.send(json.dumps({"type": "signal", "sig": 10}))
        await client.hear(socket, heard)
    assert b"43 117\r\n" in heard.stdout
    assert (heard.stderr, heard.exits, heard.errors) == (b"", [5], [])


@pytest.mark.parametrize(
    "text", ["nonsense", "[]", "{}", '{"type":"resize"}', '{"type":"signal","sig":99}', '{"type":"other"}', "[" * 9999]
)
async def test_a_message_that_is_none_is_refused_and_the_connection_goes_on(client: Client, text: str) -> None:
    id = await client.exec("cat")
    async with client.attach(id) as socket:
        await socket.send(text)
        heard = Heard()
        async with asyncio.timeout(WITHIN_S):
            while not heard.errors:
                heard.hear(await socket.recv())
        await socket.send(b"still here")
        await socket.send(json.dumps({"type": "stdin_eof"}))
        await client.hear(socket, heard)
    assert (heard.stdout, heard.exits, len(heard.errors)) == (b"still here", [0], 1)


async def test_frames_are_cut_between_characters_and_hold_what_was_printed(client: Client) -> None:
    id = await client.sh("printf '\\303'; sleep .2; printf '\\251\\377'")
    async with client.attach(id) as socket:
        frames = [message async for message in socket if isinstance(message, bytes)]
    assert b"".join(one[1:] for one in frames) == b"\xc3\xa9\xff"
    assert all(one[1:] != b"\xc3" for one in frames)


async def test_much_output_arrives_whole_and_slows_its_process_down(client: Client) -> None:
    id = await client.sh("head -c 20000000 /dev/zero")
    async with client.attach(id) as socket:
        await asyncio.sleep(0.3)  # nobody takes it: the process has to wait
        assert (await client.status(id))["status"] == "running"
        heard = await client.hear(socket)
    assert len(heard.stdout) == 20_000_000
    assert (heard.exits, heard.errors) == ([0], [])


async def test_who_is_attached_when_the_box_stops_is_told(client: Client) -> None:
    id = await client.sh("echo begun; sleep 60")
    async with client.attach(id) as socket:
        heard = await client.hear(socket, until=b"begun\n")
        await client.stop()
        await client.hear(socket, heard)
    assert heard.exits == [137]


async def test_a_client_that_leaves_while_its_input_is_not_taken_frees_its_place(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read from it then, so only the pings find out."""
    monkeypatch.setattr(attaching, "PING_S", 0.1)
    id = await client.exec("sleep", "60")
    socket = await client.attach(id)
    for _ in range(4):
        await socket.send(b"x" * (1 << 20))
    socket.transport.abort()
    async with await attached_again(client, id):
        pass
    assert (await client.http.delete(f"{client.path}/executions/{id}")).status_code == 204
