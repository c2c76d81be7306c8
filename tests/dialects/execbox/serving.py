"""A whole server in a process of its own, and a client that speaks execbox to it."""

import asyncio
import contextlib
import itertools
import json
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import websockets

from stockade.wire.frames import Frame, FrameType, decode, encode
from tests.app.serving import Server, serving

__all__ = ["KEY", "Client", "Heard", "client_of", "platform", "stdin"]

KEY = "sk_" + "a1" * 32
"""The operator's: tier enterprise."""
WITHIN_S = 20.0
_numbers = itertools.count()


@contextlib.contextmanager
def platform(folder: Path, **variables: str) -> Iterator[Server]:
    """A server that speaks execbox on an address of its own, too. What lives in it ends with the block, unless a test
    has ended the server itself.
    """
    settings = {
        "STOCKADE_API_KEY": KEY,
        "STOCKADE_ACCOUNTS_WAITLIST": "true",
        "STOCKADE_DIALECTS_EXECBOX_PUBLIC_RATE_PER_S": "1000",
        **variables,
    }
    with serving(folder, "--dialect", "execbox=127.0.0.1:0", **settings) as server:
        try:
            yield server
        finally:
            if server.process.poll() is None:
                # As by Ctrl-C: sandboxes, which outlive every other end of the server, are ended too.
                server.end(signal.SIGINT)


@dataclass(kw_only=True)
class Heard:
    """What came over a connection."""

    stdout: bytes = b""
    stderr: bytes = b""
    errors: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    last: Frame | None = None
    close_code: int | None = None

    def hear(self, message: Any) -> Frame:
        assert isinstance(message, bytes), "binary messages only"
        if message[0] in (FrameType.STDOUT, FrameType.STDERR, FrameType.ERROR):
            assert int.from_bytes(message[1:5], "big") == len(message) - 5
        frame = self.last = decode(message)
        match frame.type:
            case FrameType.STDOUT:
                self.stdout += frame.data
            case FrameType.STDERR:
                self.stderr += frame.data
            case FrameType.ERROR:
                assert len(frame.data) <= 1024
                self.errors.append(frame.data.decode())
            case FrameType.EXIT:
                self.exits.append(frame.exit_code)
        return frame


def stdin(data: bytes) -> bytes:
    return encode(Frame(type=FrameType.STDIN, data=data))


@dataclass(kw_only=True)
class Client:
    """Asks with one key."""

    http: httpx.AsyncClient
    base: str
    key: str

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        return await self.http.request(method, path, headers=headers, **options)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        return await self.ask("POST", path, **options)

    async def create(self, command: list[str] | str | None = None, **members: Any) -> dict[str, Any]:
        """A new session; text is a command for the shell."""
        argv = ["sh", "-c", command] if isinstance(command, str) else command
        body = {"image": "host", "network": "none", **({"command": argv} if argv is not None else {}), **members}
        response = await self.post("/v1/sessions", json=body)
        assert response.status_code == 201, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def start(self, command: list[str] | str | None = None, **members: Any) -> str:
        """The id of a new session."""
        name: str = (await self.create(command, **members))["id"]
        return name

    async def read(self, session: str) -> dict[str, Any]:
        response = await self.get(f"/v1/sessions/{session}")
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def ended(self, session: str, within_s: float = WITHIN_S) -> dict[str, Any]:
        """The session once it has ended."""
        async with asyncio.timeout(within_s):
            while (found := await self.read(session))["status"] in ("pending", "running", "stopping"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return found

    async def drop(self, *sessions: str) -> None:
        for session in sessions:
            assert (await self.ask("DELETE", f"/v1/sessions/{session}")).status_code == 200

    def connect(self, session: str, what: str, *, key: str | None = None) -> Any:
        """A WebSocket connection; *what* is `attach` or `exec?…`."""
        return websockets.connect(
            f"{self.base.replace('http', 'ws', 1)}/v1/sessions/{session}/{what}",
            additional_headers={"Authorization": f"Bearer {self.key if key is None else key}"},
            compression=None,
            proxy=None,
            max_size=1 << 25,
        )

    async def hear(self, session: str, what: str = "attach", *send: bytes) -> Heard:
        """All that comes over a connection until the server closes it; *send* goes out first."""
        async with self.connect(session, what) as connection:
            for message in send:
                await connection.send(message)
            return await rest(connection)

    async def refused(self, session: str, what: str, *, key: str | None = None) -> tuple[int, str]:
        """Status and code of a connection that is refused before the upgrade."""
        try:
            async with self.connect(session, what, key=key):
                raise AssertionError("the connection was accepted")
        except websockets.InvalidStatus as error:
            return error.response.status_code, json.loads(error.response.body)["code"]

    async def stranger(self) -> "Client":
        """A client with the key of a new account, tier free."""
        body = {"email": f"dev{next(_numbers)}@example.org"}
        response = await self.http.post("/v1/waitlist", json=body)
        assert response.status_code == 201, response.text
        return Client(http=self.http, base=self.base, key=response.json()["key"])


async def rest(connection: Any, heard: Heard | None = None) -> Heard:
    """What comes until the server closes."""
    heard = heard or Heard()
    async with asyncio.timeout(WITHIN_S):
        async for message in connection:
            heard.hear(message)
    heard.close_code = connection.close_code
    return heard


async def until_heard(connection: Any, heard: Heard, text: bytes) -> None:
    """Listen until standard output holds *text*."""
    async with asyncio.timeout(WITHIN_S):
        while text not in heard.stdout:
            heard.hear(await connection.recv())


@contextlib.asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[Client]:
    base = server.address("execbox")
    async with httpx.AsyncClient(base_url=base, timeout=60, trust_env=False) as http:
        yield Client(http=http, base=base, key=KEY)
