"""Real servers that speak the executor protocol, in processes of their own, and raw HTTP to them."""

import contextlib
import http.client
import json
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from tests.app.serving import Server, command, environment, serving
from tests.app.traces import until

__all__ = [
    "KEY",
    "PREFIX",
    "WITHIN_S",
    "Event",
    "Executor",
    "IdleConnection",
    "Stream",
    "drop_in",
    "free_port",
    "is_text",
    "outputs",
    "own_address",
    "platform",
    "platform_sandbox",
]

KEY = "sk_" + "b7" * 32
"""The operator's, of the platform."""
PREFIX = "/koyeb-sandbox"
WITHIN_S = 30.0
LIFE_MS = 3_600_000


@dataclass(frozen=True, kw_only=True)
class Event:
    """One of a stream of events."""

    name: str
    data: dict[str, Any]
    at: float
    """When it came, by the monotonic clock."""


@dataclass(frozen=True, kw_only=True)
class Executor:
    """A sandbox behind the executor protocol."""

    url: str
    """Where the paths begin, without the prefix."""
    secret: str
    proxy_port: int
    server: Server
    """What serves it."""
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60, trust_env=False))

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Whatever is answered; `headers=` replaces those with the secret."""
        return self.http.request(method, self.url + path, **{"headers": self.headers, **options})

    def post(self, path: str, body: object = None, **options: Any) -> httpx.Response:
        return self.ask("POST", path, json=body, **options)

    def reply(self, path: str, body: object = None) -> Any:
        """The JSON of an answer 200."""
        response = self.post(path, body)
        assert response.status_code == 200, (response.status_code, response.text)
        assert response.headers["content-type"].startswith("application/json")
        assert response.content.isascii()
        assert response.content.endswith(b"\n")
        return response.json()

    def run(self, cmd: str, **members: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.reply("/run", {"cmd": cmd, **members})
        return answer

    def stdout(self, cmd: str) -> str:
        """What a command prints that succeeds."""
        done = self.run(cmd)
        assert done["code"] == 0, done
        text: str = done["stdout"]
        return text

    def stream(self, method: str, path: str, body: object = None, **options: Any) -> "Stream":
        return Stream(self, method, path, body, **options)

    def streamed(self, cmd: str, **members: Any) -> list[Event]:
        """All events of a streamed command."""
        with self.stream("POST", "/run_streaming", {"cmd": cmd, **members}) as stream:
            return list(stream)

    def start(self, cmd: str, **members: Any) -> str:
        """The id of a new background process."""
        response = self.post("/start_process", {"cmd": cmd, **members})
        assert response.status_code == 201, (response.status_code, response.text)
        name: str = response.json()["id"]
        return name

    def processes(self) -> dict[str, dict[str, Any]]:
        """Background processes by their ids, in the order of the list."""
        response = self.ask("GET", "/list_processes")
        assert response.status_code == 200, response.text
        return {process["id"]: process for process in response.json()["processes"]}

    def status(self, process: str) -> str:
        text: str = self.processes()[process]["status"]
        return text

    def ended(self, process: str) -> str:
        """The status of a background process once it has ended."""
        until(lambda: self.status(process) != "running", WITHIN_S)
        return self.status(process)

    def kill(self, process: str) -> httpx.Response:
        return self.post("/kill_process", {"id": process})

    def logs(self, process: str, more: str = "") -> "Stream":
        return self.stream("GET", f"/process_logs_streaming?id={process}{more}")

    def logged(self, process: str) -> list[Event]:
        """All events of a log, to its end."""
        with self.logs(process) as stream:
            return list(stream)

    def commands(self) -> list[str]:
        """Command lines of all that runs in the sandbox."""
        script = "for one in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $one; echo; done 2>/dev/null"
        return [line.strip() for line in self.run(script)["stdout"].splitlines() if line.strip()]

    def runs(self, words: str) -> bool:
        """Whether a process whose command line begins with *words* is alive in the sandbox."""
        return any(line.startswith(words) for line in self.commands())

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A connection to the HTTP port."""
        parts = urlsplit(self.url)
        return _connect((parts.hostname or "", parts.port or 80), receive_buffer)

    def proxied(self, receive_buffer: int | None = None) -> socket.socket:
        """A connection to the proxy port."""
        return _connect(("127.0.0.1", self.proxy_port), receive_buffer)

    def unbound(self) -> Self:
        """After whatever port was bound no longer is."""
        self.reply("/unbind_port")
        return self

    def request(self, method: str, path: str, body: object = None) -> bytes:
        """A request as it goes over the wire."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}", f"Authorization: Bearer {self.secret}"]
        lines += [f"Content-Length: {len(content)}"] if content else []
        return "\r\n".join([*lines, "", ""]).encode() + content


class IdleConnection:
    """Has been used once, and waits since then: nobody has to wait for it later."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._socket = executor.connect()
        self.ask()
        self.since = time.monotonic()

    def ask(self) -> bytes:
        """One more request over the same connection; the head of its answer."""
        self._socket.sendall(self._executor.request("POST", "/run", {"cmd": "echo kept"}))
        answer = b""
        while b"kept" not in answer:
            piece = self._socket.recv(1 << 16)
            assert piece, "the server has closed the connection"
            answer += piece
        return answer.partition(b"\r\n")[0]

    def close(self) -> None:
        self._socket.close()


def _connect(address: tuple[str, int], receive_buffer: int | None) -> socket.socket:
    one = socket.socket()
    if receive_buffer is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    one.settimeout(WITHIN_S)
    one.connect(address)
    return one


class Stream:
    """A stream of events over a connection of its own, which is closed at the end of the block."""

    def __init__(self, executor: Executor, method: str, path: str, body: object = None, timeout_s: float = 30) -> None:
        self.connection = http.client.HTTPConnection(executor.host, timeout=timeout_s)
        content = None if body is None else json.dumps(body).encode()
        self.connection.request(method, path, content, executor.headers)
        self.response = self.connection.getresponse()
        self._rest: list[bytes] = []

    def __enter__(self) -> Self:
        assert self.response.status == 200, (self.response.status, self.response.read())
        assert self.response.headers["content-type"].startswith("text/event-stream")
        assert self.response.headers["cache-control"] == "no-cache"
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self.connection.close()

    def __iter__(self) -> Iterator[Event]:
        while piece := self.response.read1(1 << 18):
            at = time.monotonic()
            if b"\n" not in piece:  # within a very long event: what came is not looked through again and again
                self._rest.append(piece)
                continue
            *whole, rest = b"".join([*self._rest, piece]).split(b"\n\n")
            self._rest = [rest]
            for text in whole:
                yield _event(text, at)
        assert not b"".join(self._rest), "the stream ended within an event"


def _event(text: bytes, at: float) -> Event:
    """As strict as the most limited client: two lines, LF, ASCII, JSON on one line."""
    first, second = text.split(b"\n")
    assert text.isascii(), text
    assert b"\r" not in text, text
    assert first.startswith(b"event: "), text
    assert second.startswith(b"data: "), text
    return Event(name=first[7:].decode(), data=json.loads(second[6:]), at=at)


def is_text(response: httpx.Response, status: int, text: str) -> bool:
    """Whether it is a plain error as the contract words it."""
    assert (response.status_code, response.text) == (status, f"{text}\n")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    return True


def outputs(events: list[Event]) -> list[tuple[str, str]]:
    """What was said, after which the stream completed, once."""
    *said, last = events
    assert last.name == "complete", last
    assert {event.name for event in said} <= {"output"}
    assert all(event.data.keys() == {"stream", "data"} for event in said)
    return [(event.data["stream"], event.data["data"]) for event in said]


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def drop_in(folder: Path, *arguments: str, secret: str | None = None, **variables: str) -> Iterator[Executor]:
    """`stockade executor` with a secret; ended at the end of the block, in good order, where it still runs."""
    secret = secret or secrets.token_urlsafe(24)
    port, proxy_port = free_port(), free_port()
    settings = {"SANDBOX_SECRET": secret, "PORT": str(port), "PROXY_PORT": str(proxy_port), **variables}
    process = subprocess.Popen(
        command("executor", "--host", "127.0.0.1", "--data-dir", str(folder), *arguments),
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    server = Server(process=process, data_dir=folder)
    reader = threading.Thread(target=server.log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    executor = Executor(url=f"http://127.0.0.1:{port}", secret=secret, proxy_port=proxy_port, server=server)
    try:
        until(lambda: _answers(executor) or process.poll() is not None, 60)
        assert process.poll() is None, "".join(server.log)
        yield executor
    finally:
        executor.http.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def _answers(executor: Executor) -> bool:
    try:
        return executor.ask("GET", "/health").status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def platform(folder: Path, *arguments: str, **variables: str) -> Iterator[Server]:
    """`stockade serve`, which speaks the protocol beside others, and alone on an address of its own. What lives in it
    ends with the block, unless a test has ended the server itself.
    """
    settings = {"STOCKADE_API_KEY": KEY, **variables}
    with serving(folder, "--dialect", "executor=127.0.0.1:0", *arguments, **settings) as server:
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.end(signal.SIGINT)


def platform_sandbox(server: Server, **members: Any) -> Executor:
    """A new sandbox of the platform, with a secret and a proxy port."""
    body = {
        "image": "host",
        "command": ["sleep", "infinity"],
        "network": "exposed",
        "executor": True,
        "resources": {"memoryMB": 1024},
        **members,
    }
    key = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=key, timeout=60, trust_env=False) as client:
        response = client.post("/v1/sessions", json=body)
        assert response.status_code == 201, response.text
        session = response.json()
        if "timeoutMs" not in body["resources"]:
            extended = client.post(f"/v1/sessions/{session['id']}/extend", json={"timeoutMs": LIFE_MS})
            assert extended.status_code == 200, extended.text
    given = session["executor"]
    assert given["url"] == server.url + PREFIX
    return Executor(url=server.url, secret=given["secret"], proxy_port=given["proxyPort"] or 0, server=server)


def own_address(of: Executor) -> Executor:
    """The same sandbox by the address at which the platform speaks nothing but this protocol."""
    url = of.server.address("executor").rstrip("/")
    return Executor(url=url, secret=of.secret, proxy_port=of.proxy_port, server=of.server)
