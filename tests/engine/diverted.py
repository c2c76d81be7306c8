"""What stands in for the egress process: connections that are announced to the listener as that would."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from stockade.engine.diversions import Admission

__all__ = ["Answer", "Connection", "connected", "trusting"]

WITHIN_S = 60.0


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def told(self) -> dict[str, Any]:
        """What the host says it was sent."""
        assert self.status == 200, (self.status, self.body)
        found: dict[str, Any] = json.loads(self.body)
        return found


class Connection:
    """A program's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: str | bytes) -> Answer:
        """Send what is given as it is, and read one answer."""
        self.writer.write(request.encode() if isinstance(request, str) else request)
        await self.writer.drain()
        return await self.answer()

    async def answer(self) -> Answer:
        async with asyncio.timeout(WITHIN_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(first.split()[1]), headers, body)

    async def rest(self) -> bytes:
        """All up to the end, a reset being one."""
        try:
            async with asyncio.timeout(WITHIN_S):
                return await self.reader.read()
        except ConnectionError:
            return b""


def trusting(certificate: str) -> ssl.SSLContext:
    """As a program in the sandbox: it trusts the sandbox's authority, and offers HTTP/2 as well."""
    context = ssl.create_default_context(cadata=certificate)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@asynccontextmanager
async def connected(
    admission: Admission,
    port: int,
    *,
    name: str = "api.example.test",
    tls: ssl.SSLContext | None = None,
    address: str = "127.0.0.1",
    names: list[str] | None = None,
    token: str | None = None,
) -> AsyncIterator[Connection]:
    """Connected to *port*, in TLS as *name* where a context is given.

    Args:
        names: by which the sandbox knows the address; *name* when it is not given.
    """
    said = {
        "token": admission.diversion.token if token is None else token,
        "address": address,
        "port": port,
        "names": [name] if names is None else names,
    }
    reader, writer = await asyncio.open_connection("127.0.0.1", admission.diversion.port)
    try:
        writer.write(json.dumps(said).encode() + b"\n")
        if tls is not None:
            async with asyncio.timeout(WITHIN_S):
                await writer.start_tls(tls, server_hostname=name)
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()
