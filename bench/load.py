"""The load generator, a process of its own: it must not take time from what it measures.

    python -m bench.load bare SECONDS                             two bare interpreters at a time
    python -m bench.load bubblewrap SECONDS                       two in bubblewrap at a time
    python -m bench.load http URL CLIENTS SECONDS [BODY EXPECTED [PATH [HEADER …]]]
                                                    as many clients, each with one connection kept alive
    python -m bench.load count URL CLIENTS RUNS                    the same, that many requests in all

    python -m bench.load open URL RATE SECONDS BODY EXPECTED [EVERY_S]
                                                    RATE a second, answered or not; tells of each EVERY_S seconds, too

The last line that it prints is one JSON object, the members of `generators.Load`.
"""

import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.measure import BenchError, Sample, Timing
from bench.programs import HELLO, PYTHON, bare, bubblewrap
from bench.server import BODY, EXPECTED, PATH

__all__ = ["main"]

AT_A_TIME = 2
SILENCE_S = 35.0
MOST_CONNECTIONS = 3000
BATCH = 16
_HELLO = (PYTHON, "-c", HELLO)
_USUAL = (BODY.decode(), EXPECTED.decode(), PATH)
"""What `http` sends, expects, and asks, where it is not told."""


@dataclass(eq=False)
class _Client:
    connection: socket.socket
    began: float = 0.0
    received: bytes = b""

    def send(self, request: bytes) -> None:
        self.received = b""
        self.began = time.perf_counter()
        self.connection.sendall(request)

    def finished(self, expected: bytes) -> bool | None:
        """Take what has come; whether that is the whole answer. `None`: it is, and a refusal."""
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
        if head.startswith((b"HTTP/1.1 429", b"HTTP/1.1 503")):
            return None
        if not head.startswith(b"HTTP/1.1 200") or expected not in body:
            raise BenchError(f"the server answered {self.received[:500]!r}")
        return True


def _prepare(url: str, body: bytes, path: str = PATH, headers: Sequence[str] = ()) -> tuple[tuple[str, int], bytes]:
    """Where to connect, and what to send."""
    parts = urlsplit(url)
    host, port = str(parts.hostname), int(parts.port or 80)
    more = "".join(f"{header}\r\n" for header in headers)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{more}\r\n"
    )
    return (host, port), head.encode() + body


def _connect(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=SILENCE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def http_load(
    url: str,
    clients: int,
    more: Callable[[int, float], bool],
    *,
    body: bytes = BODY,
    expected: bytes = EXPECTED,
    path: str = PATH,
    headers: Sequence[str] = (),
) -> dict[str, float]:
    """Keep *clients* requests under way for as long as `more(sent, seconds since the start)`."""
    address, request = _prepare(url, body, path, headers)
    selector = selectors.DefaultSelector()
    took: list[float] = []
    sent = refused = 0
    began = time.perf_counter()
    for _ in range(clients):
        client = _Client(_connect(address))
        selector.register(client.connection, selectors.EVENT_READ, client)
        client.send(request)
        sent += 1
    under_way = clients
    while under_way:
        ready = selector.select(SILENCE_S)
        if not ready:
            raise BenchError(f"no answer for {SILENCE_S:g} s")
        for key, _ in ready:
            client = key.data
            finished = client.finished(expected)
            if finished is False:
                continue
            now = time.perf_counter()
            if finished:
                took.append(now - client.began)
            else:
                refused += 1
            if more(sent, now - began):
                client.send(request)
                sent += 1
            else:
                under_way -= 1
                selector.unregister(client.connection)
                client.connection.close()
    return {**_summary(took, time.perf_counter() - began), "refused": refused}


class _Schedule:
    """Requests at a steady rate over as many connections as it takes, told of window by window."""

    def __init__(self, url: str, rate: float, body: bytes, expected: bytes) -> None:
        self._address, self._request = _prepare(url, body)
        self._rate = rate
        self._expected = expected
        self._selector = selectors.DefaultSelector()
        self._idle: list[_Client] = []
        self._connections = 0
        self.under_way = 0
        self.clear()

    def clear(self) -> None:
        """Begin another window."""
        self.took: list[float] = []
        self.refused = self.unsent = 0

    def begin(self, due: float) -> None:
        """Send a request, over a new connection where all others are busy."""
        if self._idle:
            client = self._idle.pop()
        elif self._connections < MOST_CONNECTIONS:
            client = _Client(_connect(self._address))
            self._selector.register(client.connection, selectors.EVENT_READ, client)
            self._connections += 1
        else:
            self.unsent += 1
            return
        client.send(self._request)
        client.began = due
        self.under_way += 1

    def attend(self, timeout_s: float) -> None:
        """Take what comes within that time; returns as soon as something came."""
        for key, _ in self._selector.select(max(0.0, timeout_s)):
            client = key.data
            finished = client.finished(self._expected)
            if finished is False:
                continue
            if finished:
                self.took.append(time.perf_counter() - client.began)
            else:
                self.refused += 1
            self.under_way -= 1
            self._idle.append(client)

    def tell(self, seconds: float) -> dict[str, float]:
        """The window's facts."""
        return {**_summary(self.took, seconds), "refused": self.refused, "unsent": self.unsent}


def open_load(
    url: str, rate: float, seconds: float, *, body: bytes, expected: bytes, every_s: float | None
) -> dict[str, float]:
    """Send *rate* requests a second, answered or not, and wait for what is left under way.

    Answers that come after the end are not counted as runs, but their times are part of the quantiles.
    """
    schedule = _Schedule(url, rate, body, expected)
    began = now = time.perf_counter()
    told = began
    count = 0
    while now < began + seconds:
        due = began + count / rate
        if now >= due:
            schedule.begin(due)
            count += 1
        else:
            schedule.attend(min(due, began + seconds) - now)
        if count % BATCH == 0:
            schedule.attend(0)  # late as we may be, answers are taken
        now = time.perf_counter()
        if every_s is not None and now - told >= every_s:
            print(json.dumps(schedule.tell(now - told)), flush=True)
            schedule.clear()
            told = now
    in_time = len(schedule.took)
    deadline = now + SILENCE_S
    while schedule.under_way and time.perf_counter() < deadline:
        schedule.attend(0.1)
    if schedule.under_way:
        raise BenchError(f"{schedule.under_way} requests have had no answer for {SILENCE_S:g} s")
    if every_s is not None:
        return {}
    return {**schedule.tell(seconds), "runs": in_time}


def bare_load(seconds: float, samples: Sequence[Sample]) -> dict[str, float]:
    """As many threads, each starting one program after the other."""
    took: list[float] = []
    failures: list[BenchError] = []
    began = time.perf_counter()

    def work(sample: Sample) -> None:
        try:
            while time.perf_counter() - began < seconds and not failures:
                took.append(sample())
        except BenchError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(sample,)) for sample in samples]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return _summary(took, time.perf_counter() - began)


def _summary(took: list[float], seconds: float) -> dict[str, float]:
    if not took:
        raise BenchError("not a single answer was as it should be")
    timing = Timing(name="", seconds=tuple(took))
    return {
        "runs": len(took),
        "seconds": seconds,
        "p50_s": timing.median,
        "p95_s": timing.quantile(0.95),
        "p99_s": timing.quantile(0.99),
        "min_s": min(took),
        "max_s": max(took),
    }


def main(arguments: list[str]) -> int:
    """Returns the exit status; failures are told on standard error."""
    kind, *rest = arguments
    try:
        if kind == "bare":
            result = bare_load(float(rest[0]), [bare(_HELLO, b"hello\n")] * AT_A_TIME)
        elif kind == "bubblewrap":
            # One each: they share an open file with the system call filter, and where it is read.
            samples = [sample for _ in range(AT_A_TIME) if (sample := bubblewrap(_HELLO, b"hello\n")) is not None]
            if not samples:
                raise BenchError("bubblewrap is not installed")
            result = bare_load(float(rest[0]), samples)
        elif kind == "open":
            url, rate, seconds, body, expected, *every = rest
            result = open_load(
                url,
                float(rate),
                float(seconds),
                body=body.encode(),
                expected=expected.encode(),
                every_s=float(every[0]) if every else None,
            )
        elif kind == "http":
            url, clients, limit_s, body, expected, path, *headers = [*rest, *_USUAL[len(rest) - 3 :]]
            limit = float(limit_s)
            result = http_load(
                url,
                int(clients),
                lambda sent, seconds: seconds < limit,
                body=body.encode(),
                expected=expected.encode(),
                path=path,
                headers=headers,
            )
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
