"""A file agent that a tenant has taken over: its channel's other end is the server's, which serves everybody."""

import asyncio
import contextlib
import json
import socket
import threading
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from stockade.backends.native.files import NativeFiles
from stockade.errors import StockadeError
from stockade.warden import agent_channel as wire
from tests.fuzz.messages import EDGES, fast

FAST = fast(100)
values = st.sampled_from(EDGES) | st.integers() | st.text(max_size=8)
members = st.dictionaries(
    st.sampled_from(
        ["name", "kind", "size", "mode", "modified_at", "uid", "gid", "count", "message", "errno", "is_directory"]
    ),
    values,
    max_size=6,
)
bodies = members | st.lists(members, max_size=3) | values
kinds = st.sampled_from([wire.HEAD, wire.DATA, wire.ITEMS, wire.ALIVE, wire.END, wire.ERROR, wire.ABORT, b"?"])
frames = st.one_of(
    st.builds(
        lambda kind, body: (data := json.dumps(body).encode()) and wire.FRAME.pack(kind, len(data)) + data,
        kinds,
        bodies,
    ),
    st.builds(
        lambda kind, length, data: wire.FRAME.pack(kind, length) + data,
        kinds,
        st.integers(0, 2**32 - 1),
        st.binary(max_size=9),
    ),
    st.binary(max_size=20),
)
DEEP = json.dumps({"kind": EDGES[-1], "message": EDGES[-1], "errno": EDGES[-1]}).encode()


async def asked(what: str, files: NativeFiles) -> None:
    match what:
        case "stat":
            await files.stat("/a")
        case "list":
            await files.list("/a")
        case "read":
            _, data = await files.read("/a")
            async for _ in data:
                pass
        case "copy_out":
            _, data = await files.copy_out("/a")
            async for _ in data:
                pass
        case _:

            async def content() -> Any:
                yield b"x"

            await files.write("/a", content())


@given(st.sampled_from(["stat", "list", "read", "copy_out", "write"]), st.lists(frames, max_size=5))
@example("stat", [wire.FRAME.pack(wire.ERROR, len(DEEP)) + DEEP])
@example("read", [wire.FRAME.pack(wire.DATA, 0)] * 3)
@FAST
def test_whatever_an_agent_says_is_a_result_or_one_of_our_errors(what: str, said: list[bytes]) -> None:
    async def converse() -> None:
        ours, theirs = socket.socketpair()
        files = NativeFiles(ours, silence_s=5.0)
        theirs.sendall(b"".join(said))
        theirs.shutdown(socket.SHUT_WR)
        try:
            await asked(what, files)
        except StockadeError as error:
            str(error).encode()
        finally:
            files._channel.close()
            theirs.close()

    asyncio.run(converse())


def test_an_agent_that_says_nothing_for_ever_keeps_nobody_waiting() -> None:
    """What it sends without end fills no buffer so far that others would get a turn for that."""

    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def babble() -> None:
        with contextlib.suppress(OSError):
            while True:
                theirs.sendall(wire.FRAME.pack(wire.ALIVE, 0) * 400)

    async def converse() -> None:
        files = NativeFiles(ours, silence_s=5.0)
        listing = asyncio.create_task(files.list("/"))
        try:
            async with asyncio.timeout(30.0):
                for _ in range(50):
                    await asyncio.sleep(0)
        finally:
            files._channel.close()
            await asyncio.wait([listing])
            assert isinstance(listing.exception(), StockadeError)

    babbler = threading.Thread(target=babble, daemon=True)
    babbler.start()
    asyncio.run(converse())
    theirs.close()
    babbler.join(30.0)
    assert not babbler.is_alive()
