"""Clients of queued jobs over HTTP.

As a program, the load generator for them, which must not take time from what it measures:

    python -m bench.jobs_client URL CLIENTS SECONDS

Each client submits a hello, waits for its end (`?wait=`), checks what it printed, and begins anew. The last line that
it prints is one JSON object, the members of `generators.Load`.
"""

import http.client
import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.measure import BenchError, Timing
from bench.programs import HELLO

__all__ = ["BODY", "Client", "Done", "main"]

ANSWER_S = 30.0
EXECUTE = "/v1/execute"
BODY = json.dumps({"language": "python", "code": HELLO}).encode()
EXPECTED = b'"stdout":"hello\\n"'
WAIT = "?wait=9s"
POLL_S = 0.002
"""Between two looks of a client that does not wait on the server."""
_ENDED = b'"result":'


@dataclass(frozen=True, kw_only=True)
class Done:
    """A job that has ended as it should."""

    accepted_s: float
    """Until the answer to its submission was read."""
    readable_s: float
    """Until its result was read; both since the submission was begun."""
    run_s: float
    """What the program took by itself: the result's `duration`."""

    @property
    def overhead_s(self) -> float:
        return self.readable_s - self.run_s


class Client:
    """One connection, kept alive."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=ANSWER_S)

    def close(self) -> None:
        self._connection.close()

    def ask(self, method: str, path: str, body: bytes | None = None, *, expected: int = 200) -> bytes:
        """Raises BenchError when the answer's status is another one than *expected*."""
        self._connection.request(method, path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != expected:
            raise BenchError(f"{method} {path}: the server answered {response.status}: {answer[:500]!r}")
        return answer

    def submit(self) -> float:
        """Queue a hello; the seconds until it was accepted."""
        began = time.perf_counter()
        self.ask("POST", EXECUTE, BODY, expected=202)
        return time.perf_counter() - began

    def job(self, *, polls: bool = False) -> Done:
        """Queue a hello and read its result, over and over where *polls*, else once it is there.

        Raises:
            BenchError: it did not print what it should.
        """
        began = time.perf_counter()
        accepted = self.ask("POST", EXECUTE, BODY, expected=202)
        accepted_at = time.perf_counter()
        path = f"{EXECUTE}/{json.loads(accepted)['id']}"
        if polls:
            while _ENDED not in (answer := self.ask("GET", path)):
                time.sleep(POLL_S)
        else:
            answer = self.ask("GET", path + WAIT)
        readable_at = time.perf_counter()
        job = json.loads(answer)
        if EXPECTED not in answer:
            raise BenchError(f"a job ended otherwise than it should: {answer[:500]!r}")
        return Done(
            accepted_s=accepted_at - began, readable_s=readable_at - began, run_s=job["result"]["duration"] / 1e9
        )


@dataclass(eq=False)
class _Worker:
    """A client of the load generator: a connection and the job that it has under way."""

    connection: socket.socket
    host: str
    began: float = 0.0
    job_id: bytes = b""
    received: bytes = b""

    def submit(self) -> None:
        self.began, self.job_id = time.perf_counter(), b""
        self._send(b"POST " + EXECUTE.encode(), BODY)

    def attend(self) -> bool:
        """Take what has come, and go on from there; whether the job has ended, as it should have."""
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
        if not self.job_id:
            if not head.startswith(b"HTTP/1.1 202"):
                raise BenchError(f"the server answered {self.received[:500]!r}")
            self.job_id = json.loads(body)["id"].encode()
        elif not head.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"the server answered {self.received[:500]!r}")
        elif EXPECTED in body:
            return True
        elif _ENDED in body:
            raise BenchError(f"a job ended otherwise than it should: {body[:500]!r}")
        # Also where the server waited no longer.
        self._send(b"GET " + EXECUTE.encode() + b"/" + self.job_id + WAIT.encode(), b"")
        return False

    def _send(self, request: bytes, body: bytes) -> None:
        self.received = b""
        head = (
            f" HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.connection.sendall(request + head.encode() + body)


def _load(url: str, clients: int, seconds: float) -> dict[str, float]:
    """Keep *clients* busy for so long; what ends later is not counted."""
    parts = urlsplit(url)
    selector = selectors.DefaultSelector()
    for _ in range(clients):
        connection = socket.create_connection((str(parts.hostname), parts.port), timeout=ANSWER_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        worker = _Worker(connection, host=parts.netloc)
        selector.register(connection, selectors.EVENT_READ, worker)
        worker.submit()
    took: list[float] = []
    began = now = time.perf_counter()
    while now - began < seconds:
        ready = selector.select(ANSWER_S)
        if not ready:
            raise BenchError(f"no answer for {ANSWER_S:g} s")
        now = time.perf_counter()
        for key, _ in ready:
            if key.data.attend():
                took.append(now - key.data.began)
                key.data.submit()
    if not took:
        raise BenchError("not a single job has ended")
    timing = Timing(name="", seconds=tuple(took))
    return {
        "runs": len(took),
        "seconds": now - began,
        "p50_s": timing.median,
        "p95_s": timing.quantile(0.95),
        "p99_s": timing.quantile(0.99),
        "min_s": min(took),
        "max_s": max(took),
    }


def main(arguments: list[str]) -> int:
    """Returns the exit status; failures are told on standard error."""
    url, clients, seconds = arguments
    try:
        result = _load(url, int(clients), float(seconds))
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
