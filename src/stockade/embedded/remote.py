"""Boxes of a server: BoxLite's REST interface, with what ours has beyond it."""

import asyncio
import contextlib
import io
import json
import math
import socket
import tarfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from stockade import errors
from stockade.embedded.records import BoxInfo, BoxSpec, Chunk, Command, End, SnapshotInfo
from stockade.model import BoxState, FileInfo, FileKind, Outcome, TerminalSize
from stockade.sdk._transport import checked_url, headers, open_websocket, translated
from stockade.sdk.errors import ApiError, SdkError

if TYPE_CHECKING:
    from stockade.engine.languages import Languages

__all__ = ["RemotePlace"]

ANSWER_S = 300.0
"""Within which an answer begins: a start may have to bring an image there first."""
CONNECT_S = 10.0
_MIB, _GIB = 1 << 20, 1 << 30
_TAR = "application/x-tar"
_IS_DIRECTORY = "x-boxlite-source-is-dir"
_STREAMS: Mapping[int, str] = {1: "stdout", 2: "stderr"}
_INPUT_BYTES = 1 << 18
_MOST_HEAD = 1 << 14
_KINDS: Mapping[str, type[errors.StockadeError]] = {
    "invalid_argument": errors.Invalid,
    "unsupported": errors.Unsupported,
    "unauthenticated": errors.Denied,
    "permission_denied": errors.Denied,
    "not_found": errors.NotFound,
    "already_exists": errors.Conflict,
    "invalid_state": errors.Conflict,
    "stopped": errors.Conflict,
    "image_pull_failed": errors.Invalid,
    "execution_failed": errors.Invalid,
    "resource_exhausted": errors.LimitExceeded,
    "timeout": errors.NoAnswer,
    "engine_unavailable": errors.Unavailable,
    "upstream_unavailable": errors.Unavailable,
    "network_unavailable": errors.Unavailable,
}
_STATUSES: Mapping[int, type[errors.StockadeError]] = {
    400: errors.Invalid,
    401: errors.Denied,
    403: errors.Denied,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.Invalid,
    422: errors.Invalid,
    429: errors.LimitExceeded,
    502: errors.Unavailable,
    503: errors.Unavailable,
    504: errors.NoAnswer,
}
_ENDINGS = {"timed_out": Outcome.WALL_TIME, "killed": Outcome.CANCELLED}


class RemotePlace:
    """Satisfies `Place`."""

    is_passing = False

    def __init__(self, url: str, api_key: str) -> None:
        """Nothing is asked yet.

        Raises:
            Invalid: the URL or the key cannot be right.
        """
        try:
            self._url = checked_url(url)
            self._headers = headers(api_key)
        except ValueError as error:
            raise errors.Invalid(f"{error} (url=…, and api_key=… or STOCKADE_API_KEY)") from None
        self._http = httpx.AsyncClient(
            base_url=f"{self._url}/v1/",
            headers={**self._headers, "accept-encoding": "identity"},
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=50),
        )

    async def close(self) -> None:
        """Close the connections that are kept."""
        await self._http.aclose()

    def languages(self, image: str) -> "Languages":
        from stockade.embedded.languages import of_image

        return of_image()

    # ── boxes ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def create(self, spec: BoxSpec) -> BoxInfo:
        return _box(await self._ask("POST", "boxes", json=_creation(spec)))

    async def info(self, box: str) -> BoxInfo:
        return _box(await self._ask("GET", _at(box)))

    async def list(self) -> Sequence[BoxInfo]:
        return [_box(one) for one in (await self._ask("GET", "boxes"))["boxes"]]

    async def start(self, box: str) -> BoxInfo:
        return _box(await self._ask("POST", f"{_at(box)}/start"))

    async def stop(self, box: str, *, grace_s: float | None) -> BoxInfo:
        body = {} if grace_s is None else {"timeout_seconds": grace_s}
        return _box(await self._ask("POST", f"{_at(box)}/stop", json=body))

    async def pause(self, box: str) -> BoxInfo:
        return _box(await self._ask("POST", f"{_at(box)}/pause"))

    async def resume(self, box: str) -> BoxInfo:
        return _box(await self._ask("POST", f"{_at(box)}/resume"))

    async def remove(self, box: str) -> None:
        await self._ask("DELETE", _at(box), params={"force": "true"})

    async def exec(self, box: str, command: Command) -> "_RemoteLink":
        body: dict[str, Any] = {"command": command.argv[0], "args": list(command.argv[1:]), "env": dict(command.env)}
        body |= _given(working_dir=command.cwd, user=command.user, timeout_seconds=command.timeout_s)
        if command.terminal is not None:
            body |= {"tty": True, "rows": command.terminal.rows, "cols": command.terminal.columns}
        execution = (await self._ask("POST", f"{_at(box)}/exec", json=body))["execution_id"]
        path = f"{_at(box)}/executions/{quote(execution, safe='')}"
        with _told():
            connection = await open_websocket(self._url, f"/v1/{path}/attach", self._headers)
        link = _RemoteLink(self, path, connection)
        if command.terminal is not None:
            await link.resize(command.terminal)
        elif not command.has_input:
            await link.close_stdin()
        return link

    # ── snapshots and copies ────────────────────────────────────────────────────────────────────────────────────

    async def snapshot(self, box: str, name: str) -> SnapshotInfo:
        return _snapshot(await self._ask("POST", f"{_at(box)}/snapshots", json={"name": name}))

    async def snapshots(self, box: str) -> Sequence[SnapshotInfo]:
        return [_snapshot(one) for one in (await self._ask("GET", f"{_at(box)}/snapshots"))["snapshots"]]

    async def remove_snapshot(self, box: str, name: str) -> None:
        await self._ask("DELETE", f"{_at(box)}/snapshots/{quote(name, safe='')}")

    async def restore(self, box: str, name: str) -> None:
        await self._ask("POST", f"{_at(box)}/snapshots/{quote(name, safe='')}/restore")

    async def clone(self, box: str, *, name: str | None, snapshot: str | None) -> BoxInfo:
        return _box(await self._ask("POST", f"{_at(box)}/clone", json=_given(name=name, snapshot=snapshot)))

    async def fork(self, box: str, count: int, *, snapshot: str | None) -> Sequence[BoxInfo]:
        body = {"count": count, "start": True, **_given(snapshot=snapshot)}
        return [_box(one) for one in (await self._ask("POST", f"{_at(box)}/fork", json=body))["boxes"]]

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def stat(self, box: str, path: str) -> FileInfo:
        return _entry(await self._ask("GET", f"{_at(box)}/files/entry", params={"path": path}))

    async def entries(self, box: str, path: str) -> Sequence[FileInfo]:
        found = await self._ask("GET", f"{_at(box)}/files/entries", params={"path": path})
        return [_entry(one) for one in found["entries"]]

    async def make_directory(self, box: str, path: str) -> None:
        await self._ask("POST", f"{_at(box)}/files/directories", params={"path": path})

    async def remove_file(self, box: str, path: str, *, recursive: bool) -> None:
        params = {"path": path, **({"recursive": "true"} if recursive else {})}
        await self._ask("DELETE", f"{_at(box)}/files", params=params)

    async def read_file(self, box: str, path: str) -> bytes:
        async with self.copy_out(box, path) as (is_directory, content):
            if is_directory:
                raise errors.Invalid(f"{path} is a directory")
            archive = b"".join([part async for part in content])
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            member = tar.next()
            file = None if member is None else tar.extractfile(member)
            if file is None:
                raise errors.Invalid(f"{path} is no regular file")
            return file.read()

    async def write_file(self, box: str, path: str, content: bytes, *, mode: int) -> None:
        if path.endswith("/"):
            raise errors.Invalid(f"{path} is a directory")
        member = tarfile.TarInfo(path.rsplit("/", 1)[-1][-100:])
        member.size, member.mode = len(content), mode
        filling = bytes(-len(content) % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
        archive = b"".join((member.tobuf(tarfile.PAX_FORMAT), content, filling))
        await self._put(box, path, archive, is_directory=False)

    async def copy_in(self, box: str, path: str, archive: AsyncIterable[bytes], *, is_directory: bool | None) -> None:
        await self._put(box, path, archive, is_directory=is_directory)

    async def _put(
        self, box: str, path: str, archive: bytes | AsyncIterable[bytes], *, is_directory: bool | None
    ) -> None:
        params = {"path": path}
        if is_directory is not None:
            params["source_is_dir"] = str(is_directory).lower()
        told = {"content-type": _TAR}
        await self._ask("PUT", f"{_at(box)}/files", params=params, content=archive, headers=told)

    @contextlib.asynccontextmanager
    async def copy_out(self, box: str, path: str) -> AsyncIterator[tuple[bool, AsyncIterator[bytes]]]:
        async with self._streamed("GET", f"{_at(box)}/files", params={"path": path}) as response:
            yield response.headers.get(_IS_DIRECTORY) == "true", _parts(response)

    # ── ports, and boxes as files ───────────────────────────────────────────────────────────────────────────────

    async def tunnel(self, box: str, port: int) -> str:
        found = await self._ask("POST", f"{_at(box)}/network/tunnel", params={"port": str(port)})
        return str(found["uri"])

    async def dial(self, box: str, port: int) -> socket.socket:
        address = urlsplit(await self.tunnel(box, port))
        assert address.hostname is not None
        assert address.port is not None
        try:
            async with asyncio.timeout(CONNECT_S):
                return await _dialled(address.hostname, address.port)
        except TimeoutError:
            raise errors.Unavailable(f"port {port} did not answer within {CONNECT_S:g} s") from None
        except OSError as error:
            raise errors.Unavailable(f"the tunnel to port {port} cannot be reached: {error.strerror}") from error

    async def export(self, box: str) -> AsyncGenerator[bytes, None]:
        async with self._streamed("POST", f"{_at(box)}/export") as response:
            async for part in _parts(response):
                yield part

    async def import_(self, content: AsyncIterable[bytes], *, name: str | None) -> BoxInfo:
        told = {"content-type": "application/octet-stream"}
        found = await self._ask("POST", "boxes/import", params=_given(name=name), content=content, headers=told)
        return _box(found)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        with _told(), translated(self._url):
            response = await self._http.request(method, path, **how)
        if not response.is_success:
            raise _error(response.status_code, response.headers, response.content)
        if not response.content:
            return {}
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise errors.Invalid(f"{self._url} does not answer as a server of ours")
        return document

    @contextlib.asynccontextmanager
    async def _streamed(self, method: str, path: str, **how: Any) -> AsyncIterator[httpx.Response]:
        with _told(), translated(self._url):
            async with self._http.stream(method, path, **how) as response:
                if not response.is_success:
                    raise _error(response.status_code, response.headers, await response.aread())
                yield response


class _RemoteLink:
    """Satisfies `Link`: an execution and a WebSocket."""

    def __init__(self, place: RemotePlace, path: str, connection: ClientConnection) -> None:
        self.end: End | None = None
        self._place = place
        self._path = path
        self._connection = connection
        self._is_closed = False
        self._complaint = ""

    async def read(self) -> Sequence[Chunk]:
        while self.end is None and not self._is_closed:
            try:
                message = await self._connection.recv()
            except ConnectionClosed as closed:
                await self._lost(closed)
                return ()
            if isinstance(message, bytes):
                stream = _STREAMS.get(message[0]) if len(message) > 1 else None
                if stream is not None:
                    return (Chunk(stream="stderr" if stream == "stderr" else "stdout", data=message[1:]),)
                continue
            told = json.loads(message)
            if told.get("type") == "exit":
                await self._ended(int(told["exit_code"]))
            elif told.get("type") == "error":
                self._complaint = str(told.get("message", ""))
        return ()

    async def _lost(self, closed: ConnectionClosed) -> None:
        if self._is_closed:
            return
        with contextlib.suppress(errors.NotFound):
            found = await self._place._ask("GET", self._path)
            if found.get("exit_code") is not None:
                await self._ended(int(found["exit_code"]))
                return
        why = self._complaint or (closed.rcvd.reason if closed.rcvd is not None else "") or "it broke"
        raise errors.Unavailable(f"the connection to the process is lost: {why}")

    async def _ended(self, exit_code: int) -> None:
        """Learn how it ended, beyond its exit code, and have it forgotten."""
        outcome = Outcome.EXITED
        if exit_code:
            with contextlib.suppress(errors.NotFound):  # its box has ended, too
                found = await self._place._ask("GET", self._path)
                told = found.get("outcome")
                outcome = Outcome(told) if told else _ENDINGS.get(found.get("status", ""), outcome)
        self.end = End(exit_code=exit_code, outcome=outcome)
        await self.close()

    async def write(self, data: bytes) -> bool:
        for at in range(0, len(data), _INPUT_BYTES):
            if not await self._send(data[at : at + _INPUT_BYTES]):
                return False
        return True

    async def close_stdin(self) -> None:
        await self._send(json.dumps({"type": "stdin_eof"}))

    async def signal(self, number: int) -> None:
        if self.end is None and not self._is_closed:
            with contextlib.suppress(errors.NotFound):
                await self._place._ask("POST", f"{self._path}/signal", json={"signal": number})

    async def resize(self, size: TerminalSize) -> None:
        await self._send(json.dumps({"type": "resize", "rows": size.rows, "cols": size.columns}))

    async def _send(self, message: bytes | str) -> bool:
        try:
            await self._connection.send(message)
        except ConnectionClosed:
            return False  # it has ended; who reads will see that
        return True

    async def detach(self) -> None:
        self._is_closed = True
        await self._connection.close()

    async def close(self) -> None:
        if not self._is_closed:
            await self.detach()
            with contextlib.suppress(errors.NotFound):
                await self._place._ask("DELETE", self._path)


async def _dialled(host: str, port: int) -> socket.socket:
    """A connection through a tunnel: what listens behind it may be the first to speak, so it is asked for (CONNECT)."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(connection, address)
        target = f"{host}:{port}"
        await loop.sock_sendall(connection, f"CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n".encode("ascii"))
        head = b""
        # One by one at the end: what follows belongs to whoever speaks through it.
        while not head.endswith(b"\r\n\r\n"):
            part = await loop.sock_recv(connection, 1)
            if not part or len(head) > _MOST_HEAD:
                raise errors.Unavailable("the tunnel was closed")
            head += part
        if head.split(b" ", 2)[1] != b"200":
            raise errors.Unavailable("nothing listens there (yet)")
    except BaseException:
        connection.close()
        raise
    return connection


def _creation(spec: BoxSpec) -> dict[str, Any]:
    if spec.cpus != int(spec.cpus):
        raise errors.Invalid(f"cpus: a server gives whole ones only (got {spec.cpus})")
    outbound: dict[str, Any] = {"mode": "enabled" if spec.network else "disabled"}
    if not isinstance(spec.network, bool):
        outbound["allow_net"] = list(spec.network)
    return {
        "image": spec.image,
        "memory_mib": math.ceil(spec.memory_bytes / _MIB),
        "cpus": int(spec.cpus),
        "env": dict(spec.env),
        "labels": dict(spec.labels),
        "network": {"outbound": outbound, "inbound": {"mode": "enabled"}},
        "auto_stop": math.ceil(spec.auto_stop_s or 0),
        "auto_delete": math.ceil(spec.auto_delete_s or 0),
        "detach": True,
        **_given(
            name=spec.name,
            working_dir=spec.cwd,
            user=spec.user,
            disk_size_gb=None if spec.disk_bytes is None else math.ceil(spec.disk_bytes / _GIB),
        ),
    }


def _box(found: Mapping[str, Any]) -> BoxInfo:
    return BoxInfo(
        id=found["box_id"],
        name=found.get("name"),
        state=BoxState(found["status"]),
        image=found["image"],
        memory_bytes=found["memory_mib"] * _MIB,
        cpus=float(found["cpus"]),
        labels=dict(found.get("labels") or {}),
        created_at=datetime.fromisoformat(found["created_at"]),
        message=found.get("message") or "",
    )


def _snapshot(found: Mapping[str, Any]) -> SnapshotInfo:
    moment = datetime.fromtimestamp(found["created_at"], tz=UTC)
    return SnapshotInfo(name=found["name"], size_bytes=found["size_bytes"], created_at=moment)


def _entry(found: Mapping[str, Any]) -> FileInfo:
    return FileInfo(
        name=found["name"],
        path=found["path"],
        kind=FileKind(found["kind"]),
        size=found["size"],
        mode=found["mode"],
        modified_at=found["modified_at"],
        uid=found["uid"],
        gid=found["gid"],
        target=found.get("target"),
    )


def _at(box: str) -> str:
    return f"boxes/{quote(box, safe='')}"


def _given(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


async def _parts(response: httpx.Response) -> AsyncIterator[bytes]:
    async for part in response.aiter_raw():
        yield part


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns what the transport raises into the engine's errors."""
    try:
        yield
    except ApiError as error:
        kind = _STATUSES.get(error.status, errors.Fault)
        raise kind(str(error)) from None
    except SdkError as error:
        raise errors.Unavailable(str(error)) from error


def _error(status: int, told: Mapping[str, str], body: bytes) -> errors.StockadeError:
    """The engine's error for an answer of the server's."""
    try:
        document = json.loads(body)
        message, code = str(document["message"]), str(document.get("code", ""))
    except (ValueError, LookupError, TypeError, AttributeError):
        message, code = f"the server answered with status {status}", ""
    kind = _KINDS.get(code) or _STATUSES.get(status, errors.Fault)
    return kind(message)
