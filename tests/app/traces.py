"""What belongs to one server on this host, and raw HTTP for what a well-behaved client cannot do."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.app.serving import Server

__all__ = [
    "Answer",
    "children",
    "commands",
    "connect",
    "exchange",
    "remaining",
    "request",
    "traces",
    "until",
    "wardens",
]

Traces = frozenset[str]


def until(fact: Callable[[], object], within_s: float = 30.0) -> None:
    """Poll until *fact* holds."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes that *pid* is the parent of; none when it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def wardens(server: Server) -> list[int]:
    """Process ids of the wardens below a server."""
    return [pid for pid in _family(server.process.pid) if _command(pid).startswith("stockade-warden")]


def commands(server: Server) -> list[str]:
    """The command lines of all that runs below a server, inside sandboxes too."""
    return [_command(pid).strip() for pid in _family(server.process.pid)]


def traces(server: Server) -> Traces:
    """One line for each process, sandboxes' ones included, and each control group that *server* has made."""
    family = _family(server.process.pid)
    found = {f"process {pid} {start}" for pid in family if (start := _start(pid))}
    tags = {f"-{pid}-{_start(pid)}" for pid in wardens(server)}
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        found |= {
            f"control group {folder}/{name}"
            for name in names
            if name.startswith("stockade-") and any(name.endswith(tag) for tag in tags)
        }
    return frozenset(found)


def remaining(traces: Traces) -> list[str]:
    """Those of *traces* that are still there."""
    left = []
    for line in sorted(traces):
        kind, _, what = line.rpartition("control group ")
        if what.startswith("/"):
            if Path(what).exists():
                left.append(line)
            continue
        _, pid, start = (kind + what).split()
        if _start(int(pid)) == start:
            left.append(line)
    return left


def _family(pid: int) -> list[int]:
    found, left = [], [pid]
    while left:
        one = left.pop()
        found.append(one)
        left += children(one)
    return found


def _start(pid: int) -> str:
    """When *pid* started, in the kernel's ticks; empty when it is gone, also when only its parent does not know yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        document = json.loads(self.body)
        assert isinstance(document, dict)
        return document


def request(path: str, body: object, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """A POST as it goes over the wire; the connection is closed after it."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close"]
    lines += [f"Content-Length: {len(content)}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + content


def connect(url: str, **options: int) -> socket.socket:
    """A blocking connection with a deadline; *options*: of SOL_SOCKET, set before it connects."""
    parts = urlsplit(url)
    one = socket.socket()
    for name, value in options.items():
        one.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    one.settimeout(60)
    one.connect((parts.hostname, parts.port))
    return one


async def exchange(url: str, body: object, headers: Iterable[tuple[str, str]] = (), *, within_s: float = 100) -> Answer:
    """POST to /execute on a connection of its own."""
    parts = urlsplit(url)
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(request("/execute", body, headers))
            await writer.drain()
            head, _, content = (await reader.read(-1)).partition(b"\r\n\r\n")
        finally:
            writer.close()
    first, *rest = head.decode("latin-1").split("\r\n")
    named = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return Answer(status=int(first.split()[1]), headers=named, body=content)
