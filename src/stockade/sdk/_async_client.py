"""The client for asynchronous programs. `stockade.sdk.Client` is the same for others."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import httpx

from stockade.sdk import _calls
from stockade.sdk._frames import Source
from stockade.sdk._process import AsyncProcess
from stockade.sdk._transport import checked_url, headers, open_websocket, timeouts, translated
from stockade.sdk.errors import api_error
from stockade.sdk.records import (
    ApiKey,
    FileEntry,
    NewApiKey,
    Port,
    PortAddress,
    Sandbox,
    SandboxFile,
    Upload,
    Usage,
)

__all__ = ["AsyncClient", "AsyncDownload", "Content"]

DEFAULT_URL = "http://127.0.0.1:8080"
PART_BYTES = 1 << 20
"""Of a file that is read to be uploaded."""
ERROR_BYTES = 1 << 16
"""Of an error's body that are read."""

Content = bytes | BinaryIO | Iterable[bytes] | AsyncIterable[bytes]
"""What can be uploaded: only bytes are held in memory whole."""

T = TypeVar("T")


class AsyncDownload:
    """A file or an archive on its way to us."""

    def __init__(self, response: httpx.Response, url: str) -> None:
        self._response = response
        self._url = url
        length = response.headers.get("content-length", "")
        self.size: int | None = int(length) if length.isdigit() else None
        """Bytes, where they are known beforehand."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with translated(self._url):
            async for part in self._response.aiter_raw():
                yield part


class AsyncClient:
    """Speaks to a server.

        async with AsyncClient("http://127.0.0.1:8080", api_key) as client:
            sandbox = await client.create(image="host", command=["sleep", "600"])
            async with client.exec(sandbox.id, ["uname", "-r"]) as process:
                print((await process.collect()).stdout)
            await client.kill(sandbox.id)

    Every method raises ApiError (a kind of it by status), ConnectionFailed, ProtocolError.

    Args:
        url: of the server.
        api_key: `sk_…`
        timeout_s: for the server to begin its answer, and between two parts of it.

    Raises:
        ValueError: the URL or the key cannot be right.
    """

    def __init__(self, url: str = DEFAULT_URL, api_key: str = "", *, timeout_s: float = 60.0) -> None:
        self.url = checked_url(url)
        self._headers = headers(api_key)
        self._http = httpx.AsyncClient(headers=self._headers, timeout=timeouts(timeout_s))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that are kept. Idempotent."""
        await self._http.aclose()

    async def create(
        self,
        image: str,
        command: Sequence[str] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        cpu_millis: int | None = None,
        memory_mb: int | None = None,
        timeout_s: float | None = None,
        network: str | None = None,
        ports: Iterable[Port] = (),
        setup: Iterable[str] = (),
        files: Iterable[SandboxFile] = (),
        allow_cidrs: Iterable[str] | None = None,
        allow_domains: Iterable[str] | None = None,
        executor: bool | str = False,
    ) -> Sandbox:
        """Start a sandbox. What is not given is the server's default.

        Args:
            image: name of an image that the server has.
            command: the main process, whose end is the sandbox's.
            env: of every process in it.
            workdir: made when it is missing.
            cpu_millis: 1000 is one core.
            memory_mb: MiB.
            timeout_s: the sandbox's life.
            network: `none`, `outgoing` or `exposed`.
            ports: that are reached from outside; needs `exposed`.
            allow_cidrs: IPv4 networks; it may connect to these only, and to *allow_domains*.
            allow_domains: names; it may resolve, and connect to, these only. `*.example.org` is all below.
            setup: shell commands that are run once, when the image is built.
            files: that the image gets beforehand.
            executor: True to have the executor API reach it, by a secret that the server makes; or that secret. It is
                in the returned record's `executor`, and nowhere else afterwards.
        """
        return await self._ask(
            _calls.create(
                image=image,
                command=command,
                env=env,
                workdir=workdir,
                cpu_millis=cpu_millis,
                memory_mb=memory_mb,
                timeout_s=timeout_s,
                network=network,
                ports=ports,
                setup=setup,
                files=files,
                allow_cidrs=allow_cidrs,
                allow_domains=allow_domains,
                executor=executor,
            )
        )

    async def get(self, sandbox_id: str) -> Sandbox:
        """What is known of a sandbox now."""
        return await self._ask(_calls.get(sandbox_id))

    async def sandboxes(self, *, status: str | None = None) -> list[Sandbox]:
        """Those of this key, the newest first; ended ones too.

        Args:
            status: only those in this state.
        """
        return await self._ask(_calls.list_(status))

    async def stop(self, sandbox_id: str) -> None:
        """End it gracefully, and wait for that: SIGTERM, after a grace SIGKILL. Raises Conflict: it has ended."""
        await self._ask(_calls.stop(sandbox_id))

    async def kill(self, sandbox_id: str) -> None:
        """End it at once and drop what it left; also one that has ended."""
        await self._ask(_calls.kill(sandbox_id))

    async def extend(self, sandbox_id: str, lifetime_s: float) -> Sandbox:
        """Have it live for *lifetime_s* from now on."""
        return await self._ask(_calls.extend(sandbox_id, lifetime_s))

    def attach(
        self, sandbox_id: str, *, stdout_offset: int = 0, stderr_offset: int = 0, reconnect_s: float = 30.0
    ) -> AsyncProcess:
        """The main process's stream: all output so far, then live. To be entered, as a context.

        Args:
            stdout_offset: bytes of it that are not wanted again.
            stderr_offset: the same.
            reconnect_s: a broken connection is tried to be resumed for so long; 0 for not at all.
        """

        async def dial(stdout_at: int, stderr_at: int) -> Any:
            path = _calls.attach(sandbox_id, stdout_offset=stdout_at, stderr_offset=stderr_at)
            return await open_websocket(self.url, path, self._headers)

        return AsyncProcess(dial, stdout_offset=stdout_offset, stderr_offset=stderr_offset, reconnect_s=reconnect_s)

    def exec(
        self,
        sandbox_id: str,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        terminal: tuple[int, int] | None = None,
    ) -> AsyncProcess:
        """A further process in a running sandbox. It starts when the context is entered and dies when that is left.

        Args:
            command: argv; a text is for `/bin/sh -c`.
            env: laid over the sandbox's own.
            workdir: the sandbox's own where it is not given.
            user: `root` for the root inside.
            terminal: rows and columns. Standard error then comes as standard output.
        """
        path = _calls.exec_(sandbox_id, command, env=env or {}, workdir=workdir, user=user, terminal=terminal)

        async def dial(stdout_at: int, stderr_at: int) -> Any:
            return await open_websocket(self.url, path, self._headers)

        return AsyncProcess(dial)

    async def upload(self, sandbox_id: str, path: str, content: Content, *, mode: int | None = None) -> Upload:
        """Write a file; its directories are made. A relative path begins at the sandbox's working directory.

        Args:
            content: an open file is read to its end.
            mode: permission bits; 0o644 where it is not given.
        """
        done = await self._send(_calls.upload(sandbox_id, path, archive=False, mode=mode), content)
        assert done is not None
        return done

    async def upload_archive(self, sandbox_id: str, path: str, archive: Content) -> None:
        """Unpack a tar archive, plain or gzip, into a directory, which is made."""
        await self._send(_calls.upload(sandbox_id, path, archive=True, mode=None), archive)

    @contextlib.asynccontextmanager
    async def download(
        self, sandbox_id: str, path: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[AsyncDownload]:
        """A file's content, as it comes.

            async with client.download(sandbox.id, "/tmp/plot.png") as parts:
                async for part in parts: ...

        Args:
            offset: bytes at its beginning that are not wanted.
            length: at most so many are.
        """
        call = _calls.download(sandbox_id, path, archive=False, offset=offset, length=length)
        async with self._receive(call) as download:
            yield download

    @contextlib.asynccontextmanager
    async def download_archive(self, sandbox_id: str, path: str) -> AsyncIterator[AsyncDownload]:
        """A tar archive of what is in a directory. What is in it is the tenant's: `archives.unpack` is careful."""
        call = _calls.download(sandbox_id, path, archive=True, offset=0, length=None)
        async with self._receive(call) as download:
            yield download

    async def read_file(self, sandbox_id: str, path: str) -> bytes:
        """A file's whole content."""
        async with self.download(sandbox_id, path) as parts:
            return b"".join([part async for part in parts])

    async def entries(self, sandbox_id: str, path: str) -> list[FileEntry]:
        """The direct children of a directory, by name. Raises NotFound, BadRequest: it is none."""
        return await self._ask(_calls.entries(sandbox_id, path))

    async def make_directory(self, sandbox_id: str, path: str, *, mode: int | None = None) -> None:
        """Make a directory and those above it; it may be there already.

        Args:
            mode: permission bits; 0o755 where it is not given.
        """
        await self._ask(_calls.make_directory(sandbox_id, path, mode=mode))

    async def delete_file(self, sandbox_id: str, path: str, *, recursive: bool = False) -> None:
        """Delete a file, or a directory: one that is not empty only with *recursive*. Of a link, the link."""
        await self._ask(_calls.delete_file(sandbox_id, path, recursive=recursive))

    @contextlib.asynccontextmanager
    async def logs(
        self, sandbox_id: str, source: Source = Source.STDOUT, *, tail: int | None = None
    ) -> AsyncIterator[AsyncDownload]:
        """What the main process has written to one of its streams so far, as far as it is kept.

        Args:
            source: STDOUT or STDERR.
            tail: only so many bytes of its end.
        """
        async with self._receive(_calls.logs(sandbox_id, stream=source.name.lower(), tail=tail)) as download:
            yield download

    async def port_url(self, sandbox_id: str, port: int) -> PortAddress:
        """Where a port inside is reached. Raises NotFound: it is not exposed."""
        return await self._ask(_calls.port_url(sandbox_id, port))

    async def stats(self, sandbox_id: str) -> Mapping[str, Any]:
        """What the sandbox uses, as the server tells it."""
        return await self._ask(_calls.stats(sandbox_id))

    async def usage(self) -> Usage:
        """What the key has used today, and its limits."""
        return await self._ask(_calls.usage())

    async def api_keys(self) -> list[ApiKey]:
        """Keys of the account, the oldest first."""
        return await self._ask(_calls.api_keys())

    async def create_api_key(
        self,
        name: str,
        *,
        description: str | None = None,
        expires_at: datetime | None = None,
        daily_limit: int | None = None,
        concurrent_limit: int | None = None,
    ) -> NewApiKey:
        """Make a key. *expires_at* must know its time zone."""
        return await self._ask(
            _calls.create_api_key(
                name=name,
                description=description,
                expires_at=expires_at,
                daily_limit=daily_limit,
                concurrent_limit=concurrent_limit,
            )
        )

    async def delete_api_key(self, key_id: str) -> None:
        """Switch a key off. Idempotent."""
        await self._ask(_calls.delete_api_key(key_id))

    async def rotate_api_key(self, key_id: str) -> NewApiKey:
        """Give a key another secret; the old one counts no longer."""
        return await self._ask(_calls.rotate_api_key(key_id))

    async def _ask(self, call: _calls.Call[T]) -> T:
        async with self._receive(call, json=call.body) as download:
            body = b"".join([part async for part in download])
        return call.read(body)

    async def _send(self, call: _calls.Call[T], content: Content) -> T:
        if isinstance(content, bytes | bytearray | memoryview):
            streamed: Any = bytes(content)
        else:
            streamed = _parts(content)
        async with self._receive(call, content=streamed) as download:
            body = b"".join([part async for part in download])
        return call.read(body)

    @contextlib.asynccontextmanager
    async def _receive(self, call: _calls.Call[Any], **request: Any) -> AsyncIterator[AsyncDownload]:
        timeout: Any = httpx.USE_CLIENT_DEFAULT if call.timeout_s is None else timeouts(call.timeout_s)
        # Compressed content would have lengths that are not the file's.
        more = {"accept-encoding": "identity", **call.headers}
        async with contextlib.AsyncExitStack() as stack:
            with translated(self.url):
                response = await stack.enter_async_context(
                    self._http.stream(call.method, self.url + call.path, headers=more, timeout=timeout, **request)
                )
                if not response.is_success:
                    raise api_error(response.status_code, response.headers, await _beginning(response))
            yield AsyncDownload(response, self.url)


async def _beginning(response: httpx.Response) -> bytes:
    body = b""
    async for part in response.aiter_raw():
        body += part
        if len(body) > ERROR_BYTES:
            break
    return body


async def _parts(content: BinaryIO | Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """*content* in parts; what may block is read in a thread."""
    if isinstance(content, AsyncIterable):
        async for part in content:
            yield part
    elif hasattr(content, "read"):
        while part := await asyncio.to_thread(content.read, PART_BYTES):
            yield part
    else:
        iterator = iter(content)

        def following() -> bytes | None:
            return next(iterator, None)

        while (made := await asyncio.to_thread(following)) is not None:
            yield made
