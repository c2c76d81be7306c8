"""The same for programs with an event loop."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from stockade import AsyncSandbox
from stockade.errors import Conflict
from stockade.model import BoxState
from tests.embedded.conftest import Where, freezes

WITHIN_S = 60.0

pytestmark = pytest.mark.anyio


@freezes
async def test_everything_is_there(where: Where, tmp_path: Path) -> None:
    async with AsyncSandbox(memory="256M", **where) as box:
        results = await asyncio.gather(*(box.run(f"print({number})") for number in range(3)))
        assert [one.stdout for one in results] == ["0\n", "1\n", "2\n"]
        await box.files.write("a", "b")
        assert await box.files.read_text("a") == "b"
        assert [one.name for one in await box.files.list()] == ["a"]
        await box.files.download("a", tmp_path / "a")
        assert (tmp_path / "a").read_text() == "b"
        snapshot = await box.snapshot()
        (fork,) = await snapshot.fork()
        async with fork:
            assert await fork.files.read_text("a") == "b"
        await box.pause()
        assert await box.state() is BoxState.PAUSED
        await box.resume()


async def test_a_process_is_followed_and_written_to(where: Where) -> None:
    async with await AsyncSandbox(**where) as box, await box.exec("cat", stdin=True) as process:
        await process.write("x")
        first = await process.read(timeout=WITHIN_S)
        assert first is not None
        assert first.text == "x"
        await process.close_stdin()
        assert [chunk async for chunk in process] == []
        assert process.exit_code == 0


async def test_who_stops_waiting_may_wait_again(where: Where) -> None:
    async with AsyncSandbox(**where) as box, await box.exec("cat", stdin=True) as process:
        waiting = asyncio.create_task(process.read())
        await asyncio.wait([waiting], timeout=0.1)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await process.write("x")
        chunk = await process.read(timeout=WITHIN_S)
        assert chunk is not None
        assert chunk.text == "x"


async def test_a_port_is_connected_to(where: Where) -> None:
    async with AsyncSandbox(**where) as box:
        await box.exec("python3", "-m", "http.server", "8000", "--bind", "127.0.0.1")
        reader, writer = await (await box.port(8000, wait=WITHIN_S)).connect()
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.0 200")
        writer.close()


async def test_one_that_is_not_made_yet_says_so(local: Where) -> None:
    box = AsyncSandbox()
    with pytest.raises(Conflict, match="await"):
        await box.run("print()")
