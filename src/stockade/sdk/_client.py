"""The client for programs that are not asynchronous: the other one, on an event loop in a thread of its own.

The loop reads while the caller writes, and the other way round. A connection that does one at a time stands still for
good as soon as a process neither reads nor is read from.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from stockade.sdk._async_client import DEFAULT_URL, AsyncClient, AsyncDownload, Content
from stockade.sdk._frames import Chunk, Source
from stockade.sdk._process import AsyncProcess
from stockade.sdk.records import (
    ApiKey,
    FileEntry,
    Finished,
    NewApiKey,
    Port,
    PortAddress,
    Sandbox,
    SandboxFile,
    Upload,
    Usage,
)

__all__ = ["Client", "Download", "Process"]


class Process:
    """The input and output of one process. One thread may read while others write; see `AsyncProcess`."""

    def __init__(self, portal: BlockingPortal, process: AsyncProcess) -> None:
        self._portal = portal
        self._process = process

    def __enter__(self) -> Self:
        self._portal.call(self._process.open)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def exit_code(self) -> int | None:
        """Once the process has ended and its output is read to the end."""
        return self._process.exit_code

    @property
    def stdout_offset(self) -> int:
        """Bytes of standard output so far: where a later attachment goes on."""
        return self._process.stdout_offset

    @property
    def stderr_offset(self) -> int:
        return self._process.stderr_offset

    def __iter__(self) -> Iterator[Chunk]:
        while (chunk := self.read()) is not None:
            yield chunk

    def read(self, *, timeout_s: float | None = None) -> Chunk | None:
        """The next output, `None` when the process has ended and there is no more; see `AsyncProcess.read`."""
        return self._portal.call(lambda: self._process.read(timeout_s=timeout_s))

    def collect(self, *, most_bytes: int = 64 << 20, timeout_s: float | None = None) -> Finished:
        """Read to the end and return everything; see `AsyncProcess.collect`."""
        return self._portal.call(lambda: self._process.collect(most_bytes=most_bytes, timeout_s=timeout_s))

    def write(self, data: bytes) -> bool:
        """Write to standard input, waiting while it is full; False when the process has ended."""
        return self._portal.call(self._process.write, data)

    def close_stdin(self) -> None:
        """Let the process see the end of its input. Idempotent."""
        self._portal.call(self._process.close_stdin)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the process's terminal its size."""
        self._portal.call(self._process.resize, rows, columns)

    def close(self) -> None:
        """Let go of it. A process started by `exec` is killed, a main process goes on. Idempotent."""
        self._portal.call(self._process.close)


class Download:
    """A file or an archive on its way to us."""

    def __init__(self, portal: BlockingPortal, download: AsyncDownload) -> None:
        self._portal = portal
        self._download = download

    @property
    def size(self) -> int | None:
        """Bytes, where they are known beforehand."""
        return self._download.size

    def __iter__(self) -> Iterator[bytes]:
        parts = aiter(self._download)

        async def following() -> bytes | None:
            return await anext(parts, None)

        while (part := self._portal.call(following)) is not None:
            yield part


class Client:
    """Speaks to a server.

        with Client("http://127.0.0.1:8080", api_key) as client:
            sandbox = client.create("host", ["sleep", "600"])
            with client.exec(sandbox.id, ["uname", "-r"]) as process:
                print(process.collect().stdout)
            client.kill(sandbox.id)

    The methods are those of `AsyncClient`, which documents them, and may be called from any thread.
    """

    def __init__(self, url: str = DEFAULT_URL, api_key: str = "", *, timeout_s: float = 60.0) -> None:
        self._async = AsyncClient(url, api_key, timeout_s=timeout_s)
        self.url = self._async.url
        self._closing = contextlib.ExitStack()
        self._portal = self._closing.enter_context(start_blocking_portal("asyncio"))
        self._closing.callback(self._portal.call, self._async.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    def close(self) -> None:
        """Close the connections that are kept, and end the thread. Idempotent."""
        self._closing.close()

    def create(
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
        """Start a sandbox; see `AsyncClient.create`."""
        return self._portal.call(
            lambda: self._async.create(
                image,
                command,
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

    def get(self, sandbox_id: str) -> Sandbox:
        """What is known of a sandbox now."""
        return self._portal.call(self._async.get, sandbox_id)

    def sandboxes(self, *, status: str | None = None) -> list[Sandbox]:
        """Those of this key, the newest first; ended ones too."""
        return self._portal.call(lambda: self._async.sandboxes(status=status))

    def stop(self, sandbox_id: str) -> None:
        """End it gracefully, and wait for that. Raises Conflict: it has ended."""
        self._portal.call(self._async.stop, sandbox_id)

    def kill(self, sandbox_id: str) -> None:
        """End it at once and drop what it left; also one that has ended."""
        self._portal.call(self._async.kill, sandbox_id)

    def extend(self, sandbox_id: str, lifetime_s: float) -> Sandbox:
        """Have it live for *lifetime_s* from now on."""
        return self._portal.call(self._async.extend, sandbox_id, lifetime_s)

    def attach(
        self, sandbox_id: str, *, stdout_offset: int = 0, stderr_offset: int = 0, reconnect_s: float = 30.0
    ) -> Process:
        """The main process's stream; see `AsyncClient.attach`."""
        process = self._async.attach(
            sandbox_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset, reconnect_s=reconnect_s
        )
        return Process(self._portal, process)

    def exec(
        self,
        sandbox_id: str,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        terminal: tuple[int, int] | None = None,
    ) -> Process:
        """A further process in a running sandbox; see `AsyncClient.exec`."""
        process = self._async.exec(sandbox_id, command, env=env, workdir=workdir, user=user, terminal=terminal)
        return Process(self._portal, process)

    def upload(self, sandbox_id: str, path: str, content: Content, *, mode: int | None = None) -> Upload:
        """Write a file; see `AsyncClient.upload`."""
        return self._portal.call(lambda: self._async.upload(sandbox_id, path, content, mode=mode))

    def upload_archive(self, sandbox_id: str, path: str, archive: Content) -> None:
        """Unpack a tar archive, plain or gzip, into a directory, which is made."""
        self._portal.call(self._async.upload_archive, sandbox_id, path, archive)

    @contextlib.contextmanager
    def download(self, sandbox_id: str, path: str, *, offset: int = 0, length: int | None = None) -> Iterator[Download]:
        """A file's content, as it comes; see `AsyncClient.download`."""
        coming = self._async.download(sandbox_id, path, offset=offset, length=length)
        with self._portal.wrap_async_context_manager(coming) as download:
            yield Download(self._portal, download)

    @contextlib.contextmanager
    def download_archive(self, sandbox_id: str, path: str) -> Iterator[Download]:
        """A tar archive of what is in a directory. What is in it is the tenant's: `archives.unpack` is careful."""
        with self._portal.wrap_async_context_manager(self._async.download_archive(sandbox_id, path)) as download:
            yield Download(self._portal, download)

    def read_file(self, sandbox_id: str, path: str) -> bytes:
        """A file's whole content."""
        return self._portal.call(self._async.read_file, sandbox_id, path)

    def entries(self, sandbox_id: str, path: str) -> list[FileEntry]:
        """The direct children of a directory, by name. Raises NotFound, BadRequest: it is none."""
        return self._portal.call(self._async.entries, sandbox_id, path)

    def make_directory(self, sandbox_id: str, path: str, *, mode: int | None = None) -> None:
        """Make a directory and those above it; it may be there already."""
        self._portal.call(lambda: self._async.make_directory(sandbox_id, path, mode=mode))

    def delete_file(self, sandbox_id: str, path: str, *, recursive: bool = False) -> None:
        """Delete a file, or a directory: one that is not empty only with *recursive*. Of a link, the link."""
        self._portal.call(lambda: self._async.delete_file(sandbox_id, path, recursive=recursive))

    @contextlib.contextmanager
    def logs(self, sandbox_id: str, source: Source = Source.STDOUT, *, tail: int | None = None) -> Iterator[Download]:
        """What the main process has written to one of its streams so far; see `AsyncClient.logs`."""
        with self._portal.wrap_async_context_manager(self._async.logs(sandbox_id, source, tail=tail)) as download:
            yield Download(self._portal, download)

    def port_url(self, sandbox_id: str, port: int) -> PortAddress:
        """Where a port inside is reached. Raises NotFound: it is not exposed."""
        return self._portal.call(self._async.port_url, sandbox_id, port)

    def stats(self, sandbox_id: str) -> Mapping[str, Any]:
        """What the sandbox uses, as the server tells it."""
        return self._portal.call(self._async.stats, sandbox_id)

    def usage(self) -> Usage:
        """What the key has used today, and its limits."""
        return self._portal.call(self._async.usage)

    def api_keys(self) -> list[ApiKey]:
        """Keys of the account, the oldest first."""
        return self._portal.call(self._async.api_keys)

    def create_api_key(
        self,
        name: str,
        *,
        description: str | None = None,
        expires_at: datetime | None = None,
        daily_limit: int | None = None,
        concurrent_limit: int | None = None,
    ) -> NewApiKey:
        """Make a key. *expires_at* must know its time zone."""
        return self._portal.call(
            lambda: self._async.create_api_key(
                name,
                description=description,
                expires_at=expires_at,
                daily_limit=daily_limit,
                concurrent_limit=concurrent_limit,
            )
        )

    def delete_api_key(self, key_id: str) -> None:
        """Switch a key off. Idempotent."""
        self._portal.call(self._async.delete_api_key, key_id)

    def rotate_api_key(self, key_id: str) -> NewApiKey:
        """Give a key another secret; the old one counts no longer."""
        return self._portal.call(self._async.rotate_api_key, key_id)
