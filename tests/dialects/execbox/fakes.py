"""An engine of sandboxes in memory, faithful in what the dialect sees of it; and processes whose output tests write."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from stockade.backends.sandboxing import Output, OutputSlice, ProcessEnd
from stockade.errors import BackendLost, Conflict, Invalid, LimitExceeded, NotFound
from stockade.model import (
    Actor,
    EndedBy,
    ExecSpec,
    FileInfo,
    FileKind,
    Outcome,
    Sandbox,
    SandboxRequest,
    SandboxState,
    TerminalSize,
    Usage,
)

USAGE = Usage(wall_s=1.5, cpu_user_s=0.25, cpu_system_s=0.25, memory_peak_bytes=1 << 20)


class Process:
    """A process: tests print, read its input and end it."""

    def __init__(self, *, kept: int = 1 << 20) -> None:
        self.kept = kept
        self.printed = {"stdout": b"", "stderr": b""}
        self.input = bytearray()
        self.is_open = True
        self.reads_input = asyncio.Event()
        self.reads_input.set()
        self.end: ProcessEnd | None = None
        self.lost = False
        self.sizes: list[TerminalSize] = []
        self.readers = 0
        self.asked = 0
        """Up to where somebody has asked for standard output."""
        self.changed = asyncio.Condition()

    async def print(self, data: bytes, *, to: str = "stdout") -> None:
        self.printed[to] += data
        await self.tell()

    async def exit(self, code: int) -> None:
        self.end = ProcessEnd(outcome=Outcome.EXITED, exit_code=code)
        await self.tell()

    async def lose(self) -> None:
        self.lost = True
        await self.tell()

    async def tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()


class Echo(Process):
    """cat: prints what it reads, and ends with its input."""

    async def took(self, data: bytes) -> None:
        await self.print(data)

    async def closed(self) -> None:
        await self.exit(0)


@dataclass(kw_only=True)
class Reader:
    """`Streams` of a process."""

    process: Process
    closed: bool = False

    def __post_init__(self) -> None:
        self.process.readers += 1

    async def read(self, stdout_at: int, stderr_at: int, *, most: int = 1 << 18) -> Output:
        process = self.process
        process.asked = max(process.asked, stdout_at)
        async with process.changed:
            while True:
                if process.lost:
                    raise BackendLost("the warden went away")
                stdout = self._slice("stdout", stdout_at, most)
                stderr = self._slice("stderr", stderr_at, most)
                is_all = stdout.end == len(process.printed["stdout"]) and stderr.end == len(process.printed["stderr"])
                if stdout.data or stderr.data or stdout.dropped or stderr.dropped or (is_all and process.end):
                    return Output(stdout=stdout, stderr=stderr, end=process.end if is_all else None)
                await process.changed.wait()

    def _slice(self, name: str, at: int, most: int) -> OutputSlice:
        whole = self.process.printed[name]
        start = max(at, len(whole) - self.process.kept)
        return OutputSlice(data=whole[start : start + most], at=start, dropped=start - at)

    async def write(self, data: bytes) -> bool:
        await self.process.reads_input.wait()
        if not self.process.is_open or self.process.end is not None:
            return False
        self.process.input += data
        if isinstance(self.process, Echo):
            await self.process.took(data)
        return True

    async def close_stdin(self) -> None:
        self.process.is_open = False
        if isinstance(self.process, Echo):
            await self.process.closed()

    async def signal(self, number: int) -> None:
        del number

    async def resize(self, size: TerminalSize) -> None:
        self.process.sizes.append(size)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.process.readers -= 1


@dataclass(kw_only=True)
class Execution:
    streams: Reader
    killed: bool = False

    async def kill(self) -> None:
        self.streams.close()
        self.killed = True


@dataclass(frozen=True, kw_only=True)
class Page:
    items: list[Sandbox]
    cursor: str | None = None


@dataclass(frozen=True, kw_only=True)
class UsageNow:
    usage: Usage = USAGE
    memory_bytes: int = 4096


@dataclass(kw_only=True)
class Files:
    """Files in memory: the part of `FileAccess` that the dialect uses."""

    content: dict[str, bytes] = field(default_factory=dict)
    open: int = 0
    full_at: int = 1 << 40

    def _info(self, path: str) -> FileInfo:
        name = path.rpartition("/")[2]
        if path in self.content:
            return _file_info(name, path, FileKind.FILE, len(self.content[path]))
        if any(one.startswith(path.rstrip("/") + "/") for one in self.content):
            return _file_info(name, path, FileKind.DIRECTORY, 0)
        raise NotFound(f"{path}: no such file")

    async def stat(self, path: str) -> FileInfo:
        return self._info(path)

    async def list(self, path: str) -> list[FileInfo]:
        if self._info(path).kind is not FileKind.DIRECTORY:
            raise Invalid(f"{path}: not a directory")
        base = path.rstrip("/") + "/"
        names = sorted({one[len(base) :].partition("/")[0] for one in self.content if one.startswith(base)})
        return [self._info(base + name) for name in names]

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> tuple[FileInfo, AsyncIterator[bytes]]:
        info = self._info(path)
        if info.kind is not FileKind.FILE:
            raise Invalid(f"{path}: is a directory")
        data = self.content[path][offset:][:length]

        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 65536):
                yield data[start : start + 65536]

        return info, parts()

    async def write(self, path: str, content: AsyncIterable[bytes], *, mode: int = 0o644) -> int:
        data = b""
        async for part in content:
            data += part
            if len(data) > self.full_at:
                raise LimitExceeded("the disk is full")
        if any(one.startswith(path + "/") for one in self.content):
            raise Invalid(f"{path}: is a directory")
        self.content[path] = data
        return len(data)

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        del self.content[path]

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> None:
        self.content[path + "/.made"] = b""

    async def read_tar(self, path: str) -> AsyncIterator[bytes]:
        async def parts() -> AsyncIterator[bytes]:
            yield b"tar of " + path.encode()

        return parts()

    async def write_tar(self, path: str, archive: AsyncIterable[bytes]) -> int:
        return sum([1 async for _ in archive])


def _file_info(name: str, path: str, kind: FileKind, size: int) -> FileInfo:
    mode = 0o644 if kind is FileKind.FILE else 0o755
    return FileInfo(name=name, path=path, kind=kind, size=size, mode=mode, modified_at=0.0, uid=0, gid=0)


@dataclass(kw_only=True)
class FakeSandboxes:
    """The engine: what it was asked is in `rows`, `processes` and `executions`."""

    rows: dict[str, Sandbox] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    executions: list[tuple[ExecSpec, Process, Execution]] = field(default_factory=list)
    fileset: Files = field(default_factory=Files)
    make: Callable[[], Process] = Process
    failure: BaseException | None = None
    cancelled: int = 0
    hold: asyncio.Event | None = None
    held: int = 0

    async def create(self, actor: Actor, request: SandboxRequest) -> Sandbox:
        if self.failure is not None:
            raise self.failure
        if self.hold is not None:
            self.held += 1
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        row = Sandbox(
            id=request.id,
            account_id=actor.account_id,
            key_id=actor.id,
            dialect=request.dialect,
            state=SandboxState.RUNNING,
            image=request.image,
            command=request.command or (),
            env=request.env,
            cwd=request.cwd or "/home/user",
            user="user",
            limits=request.limits,
            network=request.network,
            secret_digest=request.secret_digest,
            labels={},
            created_at=datetime.now(UTC),
            started_at=datetime.now(UTC),
        )
        self.rows[row.id] = row
        self.processes[row.id] = self.make()
        return row

    def change(self, sandbox_id: str, **members: Any) -> Sandbox:
        row = self.rows[sandbox_id] = replace(self.rows[sandbox_id], **members)
        return row

    async def get(self, actor: Actor, sandbox_id: str) -> Sandbox:
        if self.failure is not None:
            raise self.failure
        row = self.rows.get(sandbox_id)
        if row is None or row.key_id != actor.id:
            raise NotFound(f"no sandbox {sandbox_id}")
        return row

    async def list(
        self,
        actor: Actor,
        *,
        states: Collection[SandboxState] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        found = [one for one in reversed(self.rows.values()) if one.key_id == actor.id]
        found = [one for one in found if states is None or one.state in states]
        start = int(cursor or 0)
        end = start + (limit or len(found))
        return Page(items=found[start:end], cursor=str(end) if end < len(found) else None)

    async def stop(self, actor: Actor, sandbox_id: str) -> Sandbox:
        if (await self.get(actor, sandbox_id)).state is SandboxState.ENDED:
            raise Conflict(f"sandbox {sandbox_id} has ended")
        return self.change(
            sandbox_id, state=SandboxState.ENDED, ended_by=EndedBy.STOP, exit_code=143, ended_at=datetime.now(UTC)
        )

    async def kill(self, actor: Actor, sandbox_id: str) -> Sandbox:
        row = await self.get(actor, sandbox_id)
        if row.state is not SandboxState.ENDED:
            self.change(sandbox_id, state=SandboxState.ENDED, ended_by=EndedBy.KILL, exit_code=137)
        return self.change(sandbox_id, is_deleted=True)

    async def extend(self, actor: Actor, sandbox_id: str, lifetime_s: float) -> Sandbox:
        await self.get(actor, sandbox_id)
        return self.change(sandbox_id, deadline_at=datetime.fromtimestamp(lifetime_s, UTC))

    async def attach(self, actor: Actor, sandbox_id: str) -> Reader:
        row = await self.get(actor, sandbox_id)
        if row.state is SandboxState.ENDED and row.ended_by is not EndedBy.ITSELF:
            raise Conflict(f"sandbox {sandbox_id} has ended")
        return Reader(process=self.processes[sandbox_id])

    async def exec(self, actor: Actor, sandbox_id: str, spec: ExecSpec) -> Execution:
        if (await self.get(actor, sandbox_id)).state is SandboxState.ENDED:
            raise Conflict(f"sandbox {sandbox_id} has ended")
        process = self.make()
        execution = Execution(streams=Reader(process=process))
        self.executions.append((spec, process, execution))
        return execution

    async def usage(self, actor: Actor, sandbox_id: str) -> UsageNow:
        await self.get(actor, sandbox_id)
        return UsageNow()

    @asynccontextmanager
    async def files(self, actor: Actor, sandbox_id: str, *, user: str | None = None) -> AsyncIterator[Files]:
        del user
        if (await self.get(actor, sandbox_id)).state is SandboxState.ENDED:
            raise Conflict(f"sandbox {sandbox_id} has ended")
        self.fileset.open += 1
        try:
            yield self.fileset
        finally:
            self.fileset.open -= 1
