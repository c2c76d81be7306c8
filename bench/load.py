"""The load generator, a process of its own: it must not take time from what it measures.

    python -m bench.load bare SECONDS             two bare interpreters at a time
    python -m bench.load http URL CLIENTS SECONDS  as many clients, each with one connection kept alive
    python -m bench.load count URL CLIENTS RUNS    the same, that many requests in all

Prints one JSON object: runs, seconds, and how long each run took.
"""

import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.measure import BenchError
from bench.programs import HELLO, PYTHON, spawn
from bench.server import BODY, EXPECTED

__all__ = ["main"]

AT_A_TIME = 2
SILENCE_S = 30.0


@dataclass(eq=False)
class _Client:
    connection: socket.socket
    began: float = 0.0
    received: bytes = b""

    def send(self, request: bytes) -> None:
        self.received = b""
        self.began = time.perf_counter()
        self.connection.sendall(request)

    def finished(self) -> bool:
        """Take what has come; whether that is the whole answer."""
        chunk = self.connection.recv(65536)
        if not chunk:
            raise BenchError(f"the server hung up after {self.received[:500]!r}")
        self.received += chunk
        head, blank, body = self.received.partition(b"\r\n\r\n")
        if not blank:
            return False
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) < length:
            return False
        if not head.startswith(b"HTTP/1.1 200") or EXPECTED not in body:
            raise BenchError(f"the server answered {self.received[:500]!r}")
        return True


def http_load(url: str, clients: int, more: Callable[[int, float], bool]) -> dict[str, object]:
    """Keep *clients* requests under way for as long as `more(sent, seconds since the start)`."""
    address = urlsplit(url)
    host, port = str(address.hostname), int(address.port or 80)
    request = (
        f"POST /execute HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    selector = selectors.DefaultSelector()
    took: list[float] = []
    sent = 0
    began = time.perf_counter()
    for _ in range(clients):
        connection = socket.create_connection((host, port), timeout=SILENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = _Client(connection)
        selector.register(connection, selectors.EVENT_READ, client)
        client.send(request)
        sent += 1
    under_way = clients
    while under_way:
        ready = selector.select(SILENCE_S)
        if not ready:
            raise BenchError(f"no answer for {SILENCE_S:g} s")
        for key, _ in ready:
            client = key.data
            if not client.finished():
                continue
            now = time.perf_counter()
            took.append(now - client.began)
            if more(sent, now - began):
                client.send(request)
                sent += 1
            else:
                under_way -= 1
                selector.unregister(client.connection)
                client.connection.close()
    return _summary(took, time.perf_counter() - began)


def bare_load(seconds: float) -> dict[str, object]:
    """Two threads, each starting one interpreter after the other."""
    took: list[float] = []
    failures: list[BenchError] = []
    began = time.perf_counter()

    def work() -> None:
        try:
            while time.perf_counter() - began < seconds and not failures:
                took.append(spawn([PYTHON, "-c", HELLO], b"hello\n"))
        except BenchError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(AT_A_TIME)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return _summary(took, time.perf_counter() - began)


def _summary(took: list[float], seconds: float) -> dict[str, object]:
    return {"runs": len(took), "seconds": seconds, "took": took}


def main(arguments: list[str]) -> int:
    """Returns the exit status; failures are told on standard error."""
    kind, *rest = arguments
    try:
        if kind == "bare":
            result = bare_load(float(rest[0]))
        elif kind == "http":
            limit = float(rest[2])
            result = http_load(rest[0], int(rest[1]), lambda sent, seconds: seconds < limit)
        else:
            most = int(rest[2])
            result = http_load(rest[0], min(int(rest[1]), most), lambda sent, seconds: sent < most)
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
