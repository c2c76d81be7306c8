"""A client of boxes, over their wire (docs/dialects/boxlite.md), as cheap as one in Python can be.

One connection that stays open, as `executor_client` has it. An execution is two requests, as the protocol has it: one
that starts it, and one for its output, which ends with its exit code. Content of archives is counted, not kept.
"""

import io
import os
import socket
import tarfile
import time
from typing import Any

from bench.executor_client import Executor
from bench.measure import BenchError
from bench.programs import TRUE

__all__ = ["Boxes", "archive"]

ANSWER_S = 60.0
BUFFER_BYTES = 1 << 20
_ROOT = "/v1/default/boxes"
_EXIT = b"event: exit\ndata: "
_OK = b'"exit_code":0'
_TAR_END = 1024
"""Of the least: two blocks of zeros."""


class Boxes:
    """One client with one key."""

    def __init__(self, url: str, key: str) -> None:
        self._http = Executor(url, key)
        self._head = f"Host: {url.removeprefix('http://')}\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._address = host, int(port)

    def close(self) -> None:
        self._http.close()

    # ── boxes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def create(self, image: str, **body: object) -> str:
        """A box that does not run yet; its id."""
        answer = self._http.ask("POST", _ROOT, {"image": image, "auto_remove": False, **body}, status=201)
        return str(answer.json()["box_id"])

    def exec(self, box: str, *argv: str) -> bytes:
        """Run a program to its exit code 0; what the server told of it. The box is started for it."""
        command, *args = argv
        started = self._http.ask("POST", f"{_ROOT}/{box}/exec", {"command": command, "args": args}, status=201)
        execution = started.json()["execution_id"]
        told = self._http.ask("GET", f"{_ROOT}/{box}/executions/{execution}/output").body
        if _OK not in told.rpartition(_EXIT)[2]:
            raise BenchError(f"{' '.join(argv)[:200]} ended so: {told[-500:]!r}")
        return told

    def true(self, box: str) -> float:
        """Seconds that `true` takes, with its exit code read."""
        began = time.perf_counter()
        self.exec(box, TRUE)
        return time.perf_counter() - began

    def timed(self, box: str, what: str) -> float:
        """Seconds that `start`, `stop`, `pause` or `resume` takes."""
        began = time.perf_counter()
        self._http.ask("POST", f"{_ROOT}/{box}/{what}", status=200)
        return time.perf_counter() - began

    def remove(self, box: str) -> None:
        """Remove it as it is, with its snapshots."""
        self._http.ask("DELETE", f"{_ROOT}/{box}?force=true", status=204)

    def boot_timing(self, box: str) -> dict[str, Any]:
        """What the server tells of its last start, in milliseconds."""
        return dict(self._http.ask("GET", f"{_ROOT}/{box}/metrics").json()["boot_timing"])

    # ── disks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def snapshot(self, box: str, name: str) -> float:
        """Seconds that a snapshot takes."""
        began = time.perf_counter()
        self._http.ask("POST", f"{_ROOT}/{box}/snapshots", {"name": name}, status=201)
        return time.perf_counter() - began

    def remove_snapshot(self, box: str, name: str) -> None:
        self._http.ask("DELETE", f"{_ROOT}/{box}/snapshots/{name}", status=204)

    def clone(self, box: str) -> tuple[float, str]:
        """Seconds that a clone takes; its id."""
        began = time.perf_counter()
        answer = self._http.ask("POST", f"{_ROOT}/{box}/clone", {}, status=201)
        return time.perf_counter() - began, str(answer.json()["box_id"])

    def fork(self, box: str, count: int, snapshot: str) -> list[str]:
        """So many copies of a snapshot, running; their ids."""
        body: dict[str, object] = {"count": count, "snapshot": snapshot}
        answer = self._http.ask("POST", f"{_ROOT}/{box}/fork", body, status=201)
        return [str(one["box_id"]) for one in answer.json()["boxes"]]

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────

    def upload(self, box: str, path: str, source: int, size: int) -> float:
        """Send a tar of *size* bytes, the content of descriptor *source*; seconds until it is unpacked."""
        began = time.perf_counter()
        with socket.create_connection(self._address, timeout=ANSWER_S) as connection:
            connection.sendall(
                f"PUT {_ROOT}/{box}/files?path={path} HTTP/1.1\r\n{self._head}Content-Type: application/x-tar\r\n"
                f"Content-Length: {size}\r\n\r\n".encode()
            )
            connection.setblocking(True)  # sendfile(2) knows no deadline
            sent = 0
            while sent < size:
                count = os.sendfile(connection.fileno(), source, sent, size - sent)
                if not count:
                    raise BenchError("the file to be sent is too short")
                sent += count
            connection.settimeout(ANSWER_S)
            answer = connection.recv(65536)
        if not answer.startswith(b"HTTP/1.1 204 "):
            raise BenchError(f"an upload is answered {answer[:500]!r}")
        return time.perf_counter() - began

    def download(self, box: str, path: str) -> tuple[float, int]:
        """Fetch a file as a tar: seconds, and how many bytes came on the wire."""
        view = memoryview(bytearray(BUFFER_BYTES))
        began = time.perf_counter()
        with socket.create_connection(self._address, timeout=ANSWER_S) as connection:
            connection.sendall(f"GET {_ROOT}/{box}/files?path={path} HTTP/1.1\r\n{self._head}\r\n".encode())
            count = connection.recv_into(view)
            if not bytes(view[:count]).startswith(b"HTTP/1.1 200 "):
                raise BenchError(f"a download is answered {bytes(view[:500])!r}")
            while part := connection.recv_into(view):
                count += part
        return time.perf_counter() - began, count


def archive(name: str, size: int) -> tuple[int, int]:
    """A tar of one file, in memory: its descriptor, and how long it is."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    head = entry.tobuf(tarfile.GNU_FORMAT)
    descriptor = os.memfd_create(name)
    with io.FileIO(descriptor, "w", closefd=False) as file:
        file.write(head)
        block = os.urandom(1 << 20)
        for at in range(0, size, len(block)):
            file.write(block[: size - at])
    total = len(head) + -(-size // 512) * 512 + _TAR_END
    os.ftruncate(descriptor, total)
    return descriptor, total
