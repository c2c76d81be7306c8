"""Secrets that a sandbox uses and never sees: its connections to their hosts are diverted to a listener of ours.

    program ── https ──▶ egress (decides, as ever) ──▶ this listener ── https, the real certificate ──▶ host
       sees: the placeholder        sees: bytes           puts the value in

The egress process hands over a connection with one line of JSON: the sandbox's token, the address that it has decided
on, and by which names the sandbox knows it (`warden.egress_divert`). From there:

- TLS: the name that the client asks for (SNI) decides. One without a secret is passed on untouched, end to end. For the
  others we are the host, with a certificate that this sandbox alone trusts, and the other side must be it by the
  system's trust store: whatever address the program called, the value goes to the host or nowhere.
- plain HTTP: `Host` decides. Nothing proves who is there but the address, so that must be one that the name led to.
- anything else is passed on untouched.

| threat | mechanism |
|---|---|
| a program of the host speaks to the listener | a token of each sandbox's own, 256 bits, before anything else |
| a sandbox gets another's secret | the token says whose connection it is; no tenant ever sees one |
| … sends a value elsewhere: SNI, `Host`, an address of its own, its own name server | above; `Host` is the SNI's name |
| … smuggles a second request past us | h11 reads it, and it is written anew (`diversion_http`) |
| … gets at what only the server reaches | we connect to the address that the egress process has decided on |
| … reads the value in an error or a log | our texts are fixed; failures are logged by their kind only |
| … fills the server's memory or descriptors | bounds for each sandbox and for all |
| who else trusts the authority | its key is in no file, it is one sandbox's, and goes with it |
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import random
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from stockade.backends.sandboxing import FileAccess
from stockade.engine import diversion_trust
from stockade.engine.diversion_hosts import Misdirected, Rules
from stockade.engine.diversion_streams import READ_BYTES, Bare, Secured, Stream, relay
from stockade.engine.diversion_texts import Replacement
from stockade.engine.tasks import Tasks
from stockade.errors import Unavailable
from stockade.model import Diversion, SecretRule

if TYPE_CHECKING:  # loaded with the first sandbox that has secrets
    from stockade.engine.diversion_certificates import Authority

__all__ = ["FIRST_PORT", "LAST_PORT", "MOST_CONNECTIONS", "MOST_OF_ALL", "Admission", "Certified", "Diversions"]

log = structlog.get_logger()

FIRST_PORT, LAST_PORT = 30000, 32767
"""Below those that outgoing connections of this host are given, above those of `ports`: nobody takes it while the
server is down, and sandboxes live on."""
MOST_CONNECTIONS = 64
"""Of one sandbox at once: as many times what `diversion_http` keeps of a request is the server's memory."""
MOST_OF_ALL = 2048
_HELLO_S = 5.0
_FIRST_BYTE_S = 600.0  # clients connect before they need it
_HANDSHAKE_S = 10.0
_CONNECT_S = 10.0
_PAUSE_S = 0.5
_BACKLOG = 512
_MOST_LINE = 8192
_TLS_HANDSHAKE = 0x16
_METHOD = re.compile(rb"[A-Z]")
_ADDRESS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
_HIGHEST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What a sandbox is made with to use its secrets."""

    diversion: Diversion
    certificate: str
    """Of the authority that the sandbox is to trust, as PEM."""
    env: Mapping[str, str]
    """For the sandbox: the placeholders under their names, and where `Diversions.install` puts the certificate."""


class Certified(Protocol):
    """What a sandbox is to trust: an `Admission`, for one."""

    @property
    def certificate(self) -> str: ...


@dataclass(frozen=True)
class _Admitted:
    """A sandbox whose connections may come."""

    sandbox_id: str
    token: str = field(repr=False)
    rules: Rules = field(repr=False)
    authority: "Authority" = field(repr=False)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Diversions:
    """The listener, and the sandboxes that have secrets. Nothing is opened before the first of them."""

    def __init__(self, *, key: str, port_file: Path | None = None, trusted: Path | None = None) -> None:
        """Nothing is opened yet.

        Args:
            key: a secret of the server's (`store.secret_file.kept_secret`). With the same one, sandboxes that a server
                before has admitted can be admitted again, and notice nothing.
            port_file: remembers the listener's port for the same purpose.
            trusted: certificates in PEM that hosts may have beside the system's.
        """
        self._key = bytes.fromhex(key)
        self._port_file = port_file
        self._trusted = trusted
        self._admitted: dict[str, _Admitted] = {}
        self._tokens: dict[bytes, _Admitted] = {}
        self._tasks = Tasks()
        self._is_running = False
        self._listener: socket.socket | None = None
        self._context: ssl.SSLContext | None = None
        self._connections = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve during the block; at its end all connections are broken off."""
        try:
            async with self._tasks.running():
                self._is_running = True
                try:
                    yield
                finally:
                    self._is_running = False
        finally:
            if self._listener is not None:
                self._listener.close()
                self._listener = None

    def admit(self, sandbox_id: str, rules: Sequence[SecretRule]) -> Admission:
        """Serve a sandbox from now on. One that is served already gets the same again, with these rules.

        Raises:
            Invalid: a rule cannot be meant.
            Unavailable: no port can be had for the listener.
        """
        from stockade.engine.diversion_certificates import Authority

        known = Rules(rules)
        port = self._listen()
        secret = hmac.digest(self._key, f"sandbox {sandbox_id}".encode(), "sha256")
        token = hmac.digest(secret, b"token", "sha256").hex()
        admitted = _Admitted(sandbox_id, token, known, Authority(secret))
        self.forget(sandbox_id)
        self._admitted[sandbox_id] = self._tokens[_index(token)] = admitted
        return Admission(
            diversion=Diversion(port=port, token=token, hosts=known.hosts),
            certificate=admitted.authority.certificate(),
            env={**diversion_trust.ENV, **known.env},
        )

    def forget(self, sandbox_id: str) -> None:
        """Break off a sandbox's connections and serve it no more. Idempotent."""
        admitted = self._admitted.pop(sandbox_id, None)
        if admitted is not None:
            del self._tokens[_index(admitted.token)]
            for task in admitted.tasks:
                task.cancel()

    async def install(self, files: FileAccess, admission: Certified) -> None:
        """Have the programs of a sandbox trust us, before any of them runs; *files* with the rights of root.

        Raises:
            StockadeError: what `FileAccess.write` raises.
        """
        await diversion_trust.install(files, admission.certificate)

    # ── the listener ────────────────────────────────────────────────────────────────────────────────────────────

    def _listen(self) -> int:
        if not self._is_running:
            raise Unavailable("the server is not serving: secrets cannot be used")
        if self._listener is None:
            listener = self._bound()
            self._listener = listener
            self._tasks.background(self._accept(listener), name="diversions")
        port: int = self._listener.getsockname()[1]
        return port

    def _bound(self) -> socket.socket:
        """On the port of last time where that is free."""
        kept = _kept_port(self._port_file)
        ports = random.sample(range(FIRST_PORT, LAST_PORT + 1), 64)
        for port in [kept, *ports] if kept else ports:
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                one.setblocking(False)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(("127.0.0.1", port))
                one.listen(_BACKLOG)
            except OSError:
                one.close()
                continue
            if port != kept:
                if kept:
                    log.warning("diversions.port_taken", port=kept, now=port)
                _keep_port(self._port_file, port)
            return one
        raise Unavailable("no port can be had for the proxy that puts secrets in: all that were tried are taken")

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # out of descriptors, or a connection that has gone: others come
                await asyncio.sleep(_PAUSE_S)
                continue
            if self._connections >= MOST_OF_ALL:
                connection.close()
                continue
            self._connections += 1
            task = self._tasks.start(self._serve(connection), name="diversion")
            task.add_done_callback(self._served)

    def _served(self, _: "asyncio.Task[None]") -> None:
        self._connections -= 1

    async def _serve(self, connection: socket.socket) -> None:
        """One connection, from its first byte to its end."""
        stream: Bare | None = None
        try:
            stream = Bare(*await asyncio.open_connection(sock=connection, limit=READ_BYTES))
            async with asyncio.timeout(_HELLO_S):
                hello = await _hello(stream)
            admitted = self._tokens.get(_index(str(hello.get("token"))))
            if admitted is None or not hmac.compare_digest(admitted.token, str(hello.get("token"))):
                return
            task = asyncio.current_task()
            if task is None or len(admitted.tasks) >= MOST_CONNECTIONS:
                return
            admitted.tasks.add(task)
            try:
                await _Diverted(admitted, stream, hello, self._trust()).run()
            finally:
                admitted.tasks.discard(task)
        except OSError:  # ssl.SSLError and TimeoutError are some
            pass
        except Exception as error:
            # By its kind only: its text and what it came from may hold what was put in.
            log.error("diversion.failed", kind=type(error).__name__)
        finally:
            if stream is None:
                connection.close()
            else:
                await stream.close()

    def _trust(self) -> ssl.SSLContext:
        """How the hosts prove who they are."""
        if self._context is None:
            context = ssl.create_default_context()
            if self._trusted is not None:
                context.load_verify_locations(self._trusted)
            context.set_alpn_protocols(["http/1.1"])
            self._context = context
        return self._context


class _Diverted:
    """One connection of a sandbox's."""

    def __init__(self, admitted: _Admitted, stream: Bare, hello: Mapping[str, Any], trust: ssl.SSLContext) -> None:
        """Raises ConnectionError: what it was announced with is not ours."""
        self._admitted, self._stream, self._trust = admitted, stream, trust
        address, port, names = hello.get("address"), hello.get("port"), hello.get("names")
        if not isinstance(address, str) or not _ADDRESS.fullmatch(address):
            raise ConnectionError("not announced by the egress process")
        if not isinstance(port, int) or not 0 < port <= _HIGHEST_PORT or not isinstance(names, list):
            raise ConnectionError("not announced by the egress process")
        self._address, self._port, self._names = address, port, frozenset(map(str, names))

    async def run(self) -> None:
        """Raises OSError: one side broke, or came to nothing in time."""
        async with asyncio.timeout(_FIRST_BYTE_S):
            first = await self._stream.read()
        self._stream.give_back(first)
        if first[:1] == bytes([_TLS_HANDSHAKE]):
            await self._run_tls()
        elif _METHOD.match(first):
            await self._talk(self._stream, host=None)
        elif first:
            await self._pass()

    async def _run_tls(self) -> None:
        hosts: list[str] = []

        def choose(name: str | None) -> ssl.SSLContext | None:
            host = self._address if name is None else name.lower().removesuffix(".")
            hosts.append(host)
            return self._admitted.authority.context(host) if self._admitted.rules.concern(host) else None

        async with asyncio.timeout(_HANDSHAKE_S):
            secured = await Secured.accept(self._stream, choose)
        if secured is None:
            await self._pass()
            return
        try:
            await self._talk(secured, host=hosts[0])
        finally:
            await secured.close()

    async def _talk(self, client: Stream, *, host: str | None) -> None:
        """HTTP; *host*: who the program thinks we are, `None` where it has no proof of it."""
        from stockade.engine.diversion_http import Conversation

        rules = self._admitted.rules

        def admit(name: str) -> Replacement:
            if host is None:
                return rules.replacement(name, is_vouched=name in self._names or name == self._address)
            if name != host:
                raise Misdirected("The Host of the request is not the name that the connection was made with.")
            return rules.replacement(name, is_vouched=True)

        await Conversation(
            client, port=self._port, admit=admit, dial=lambda: self._dial(host), is_proven=host is not None
        ).run()

    async def _dial(self, host: str | None) -> Bare:
        """A connection to where the program wanted to go; with *host* it must be this one."""
        async with asyncio.timeout(_CONNECT_S):
            return Bare(
                *await asyncio.open_connection(
                    self._address,
                    self._port,
                    limit=READ_BYTES,
                    ssl=None if host is None else self._trust,
                    server_hostname=host,
                )
            )

    async def _pass(self) -> None:
        """Nothing of ours: carry it as it is."""
        other = await self._dial(None)
        try:
            await relay(self._stream, other)
        finally:
            await other.close()


async def _hello(stream: Bare) -> Mapping[str, Any]:
    """What the egress process announces a connection with. Raises ConnectionError: it is something else."""
    line = b""
    while b"\n" not in line:
        part = await stream.read()
        line += part
        if not part or len(line) > _MOST_LINE + READ_BYTES:
            raise ConnectionError("not announced by the egress process")
    line, _, rest = line.partition(b"\n")
    stream.give_back(rest)
    try:
        hello = json.loads(line) if len(line) <= _MOST_LINE else None
    except (ValueError, RecursionError):
        hello = None
    if not isinstance(hello, dict):
        raise ConnectionError("not announced by the egress process")
    return hello


def _index(token: str) -> bytes:
    """Where a token is looked for: how long that takes says nothing about the token."""
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _kept_port(file: Path | None) -> int | None:
    if file is None:
        return None
    try:
        text = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if re.fullmatch(r"[0-9]{4,5}", text) and 1024 <= int(text) <= _HIGHEST_PORT else None


def _keep_port(file: Path | None, port: int) -> None:
    if file is not None:
        with contextlib.suppress(OSError):  # it is only for the next server
            file.write_text(f"{port}\n", encoding="ascii")
