"""The bound port: what one connection carries, and a thousand of them."""

import contextlib
import selectors
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from bench.context import Bench
from bench.executor_client import Executor
from bench.measure import BenchError, Figure, Timing
from bench.sessions_client import Client

__all__ = ["proxy"]

CONNECTIONS = 1000
CARRIED_BYTES = 512 << 20
TURNS = 3
UP_S = 10.0
ANSWER_S = 30.0
PORT = 8080
_BUFFER_BYTES = 1 << 20
CARRIED, OPENED = "512 MiB through the bound port", f"{CONNECTIONS:,} connections to the bound port"
# Sends all the bytes when it is told `s`, and anything else back.
_SERVICE = f"""
import asyncio
async def answer(reader, writer):
    while data := await reader.read(65536):
        if data == b"s":
            block = bytes(1 << 18)
            for _ in range({CARRIED_BYTES} >> 18):
                writer.write(block)
                await writer.drain()
        else:
            writer.write(data)
            await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", {PORT}, backlog=1024)
    await server.serve_forever()
asyncio.run(main())
"""


def proxy(bench: Bench, client: Client, url: str) -> None:
    """Both figures, in a sandbox with a service of its own, behind the server at *url*."""
    session = client.made(network="exposed", executor=True)
    opened = session["executor"]
    address = (str(urlsplit(url).hostname), int(opened["proxyPort"]))
    try:
        with contextlib.closing(Executor(url, opened["secret"])) as commands:
            commands.ask("POST", "/write_file", {"path": "/tmp/service.py", "content": _SERVICE})
            commands.ask("POST", "/bind_port", {"port": str(PORT)})
            commands.ask("POST", "/start_process", {"cmd": "exec python3 /tmp/service.py"}, status=201)
            _await_service(address)
            _measure(bench, address)
    finally:
        client.kill(session["id"])


def _measure(bench: Bench, address: tuple[str, int]) -> None:
    results = bench.results
    carried = tuple(_carry(address) for _ in range(TURNS))
    opened = tuple(_open_many(address) for _ in range(TURNS))
    results.add({name: Timing(name=name, seconds=taken) for name, taken in ((CARRIED, carried), (OPENED, opened))})
    results.figures += [
        Figure(
            name="one connection to the bound port",
            value=CARRIED_BYTES / results.timings[CARRIED].median / 1e6,
            unit="MB/s",
            note="from an asyncio service in the sandbox to a client that counts",
        ),
        Figure(
            name=f"{OPENED}, opened",
            value=CONNECTIONS / results.timings[OPENED].median,
            unit="/s",
            note="all open at once, each with a byte there and back; the service's accepting included",
        ),
    ]


def _await_service(address: tuple[str, int]) -> None:
    deadline = time.monotonic() + UP_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=ANSWER_S) as connection:
            connection.sendall(b"?")
            if connection.recv(1) == b"?":
                return
        time.sleep(0.02)
    raise BenchError(f"the service behind the bound port does not answer within {UP_S:g} s")


def _carry(address: tuple[str, int]) -> float:
    """Seconds that all the bytes take over one connection."""
    view = memoryview(bytearray(_BUFFER_BYTES))
    with socket.create_connection(address, timeout=ANSWER_S) as connection:
        began = time.perf_counter()
        connection.sendall(b"s")
        count = 0
        while count < CARRIED_BYTES:
            size = connection.recv_into(view)
            if not size:
                raise BenchError(f"the bound port's connection ended after {count} bytes")
            count += size
        return time.perf_counter() - began


@contextlib.contextmanager
def _connections(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(address, timeout=ANSWER_S)) for _ in range(count)]


def _open_many(address: tuple[str, int]) -> float:
    """Seconds until every one of many connections has had its byte back, all of them open."""
    began = time.perf_counter()
    with _connections(address, CONNECTIONS) as connections, selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.sendall(b"!")
            selector.register(connection, selectors.EVENT_READ, connection)
        left = len(connections)
        while left:
            ready = selector.select(ANSWER_S)
            if not ready:
                raise BenchError(f"{left} of {CONNECTIONS} connections had no answer for {ANSWER_S:g} s")
            for key, _ in ready:
                if key.data.recv(1) != b"!":
                    raise BenchError("a connection to the bound port ended before it was answered")
                selector.unregister(key.data)
                left -= 1
        return time.perf_counter() - began
