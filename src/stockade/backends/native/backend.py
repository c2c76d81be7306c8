"""Client of the warden: one connection, many runs under way, answers in any order."""

import asyncio
import fcntl
import os
from collections.abc import Callable, Mapping
from typing import Any

from stockade.backends.base import BackendOptions, Feature, Glimpse, Report, SandboxSpec, Warm
from stockade.backends.native.connection import ANSWER_WITHIN_S, Connection, close_all, error_of
from stockade.backends.native.disks import NativeDisks
from stockade.backends.native.launch import connect_or_launch
from stockade.backends.native.outcomes import decide
from stockade.backends.native.sandboxes import NativeSandboxes
from stockade.errors import BackendLost, CannotEnforce, Fault, Invalid, StockadeError, Unavailable
from stockade.model import (
    Bundle,
    OnOutputLimit,
    ProcessResult,
    ProcessSpec,
    Usage,
)
from stockade.warden import bundle, protocol

__all__ = ["NativeBackend"]


class FileBundle:
    """A bundle in a memory file."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


class MemoryGlimpse:
    """The memory files into which the warden moves a program's output."""

    def __init__(self, stdout: int, stderr: int) -> None:
        self._files: tuple[int, int] | None = (stdout, stderr)

    def read(self, *, is_stderr: bool, offset: int, most: int) -> bytes:
        """See `Glimpse.read`."""
        # The warden writes at the position that we share with it, so ours is left alone.
        return os.pread(self._files[is_stderr], most, offset) if self._files is not None else b""

    def end(self) -> None:
        """Show nothing more: the descriptors are about to be closed."""
        self._files = None


class NativeBackend:
    """Satisfies `stockade.backends.base.Backend`; a lost warden is replaced at the next call."""

    def __init__(self, options: BackendOptions, *, wall: str = "") -> None:
        """Make sandboxes with the warden that *options* lead to.

        Args:
            wall: behind which further wall runs are (`stockade.warden.walls`); empty for none.
        """
        self._options = options
        self._wall = wall
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._announced: list[tuple[SandboxSpec, ProcessSpec]] = []
        self.sandboxing = NativeSandboxes(
            self._connected,
            instance=options.instance,
            permit_private=options.permit_private,
            refuse=options.refuse,
        )
        """See `stockade.backends.sandboxing`."""
        self.disks = NativeDisks(self._connected, allow_unenforced=options.allow_unenforced)
        """See `stockade.backends.disks`."""

    async def start(self) -> None:
        """See `Backend.start`."""
        await self._connected()

    async def _connected(self) -> Connection:
        connection = self._connection
        if connection is not None and connection.lost is None:
            return connection
        async with self._connecting:
            if self._closed:
                raise Unavailable("the server is shutting down")
            if self._connection is not None:
                if self._connection.lost is None:
                    return self._connection
                await self._connection.close()
                self._connection = None
            fresh = Connection(await connect_or_launch(self._options))
            try:
                self._demand(_report(await self._hello(fresh)))
                if self._wall:  # a warden that has never heard of walls would run without one
                    await self._look_at_wall(fresh)
                for sandbox, process in self._announced:
                    await fresh.template(sandbox, process, announce=True)
            except BaseException:
                await fresh.close()
                raise
            self._connection = fresh
            return fresh

    async def _hello(self, connection: Connection) -> dict[str, Any]:
        try:
            answer, _ = await connection.ask({"op": "hello", "version": protocol.VERSION}, (), ANSWER_WITHIN_S)
        except BackendLost as error:
            if connection.warden.process is not None:
                raise
            # It asks the kernel who we are, and hangs up on whom it was not told of.
            raise Unavailable(
                f"the warden at {self._options.warden_socket} hung up: {error}. If it does not serve user "
                f"{os.geteuid()}, start it with --allow-uid {os.geteuid()}"
            ) from error
        if "error" in answer:
            raise error_of(answer["error"])
        report: dict[str, Any] = answer["ok"]
        return report

    def _demand(self, report: Report) -> None:
        """Refuse to go on without a protection, unless the operator has named it."""
        missing = [name for name in report.missing if name not in self._options.allow_unenforced]
        if missing:
            raise CannotEnforce(missing)

    async def run(
        self, sandbox: SandboxSpec, process: ProcessSpec, *, watched: Callable[[Glimpse], None] | None = None
    ) -> ProcessResult:
        """See `Backend.run`."""
        connection = await self._connected()
        limits = sandbox.limits
        message = {
            "op": "run",
            "network": sandbox.network,
            "collect": process.collect,
            "drop_output": process.on_output_limit is OnOutputLimit.DROP,
            "watched": watched is not None,
            "limits": {
                "wall_s": limits.wall_s,
                "cpu_s": limits.cpu_s,
                "cpus": limits.cpus,
                "memory_bytes": limits.memory_bytes,
                "processes": limits.processes,
                "disk_bytes": limits.disk_bytes,
                "disk_inodes": limits.disk_inodes,
                "open_files": limits.open_files,
                "stack_bytes": limits.stack_bytes,
                "output_bytes": limits.output_bytes,
            },
        }
        template = None
        if self._wall:
            message["wall"] = self._wall
        else:
            template = await connection.template(sandbox, process)
        if template is not None:
            message["template"] = template
            message["args"] = process.args
        else:
            message["image"] = sandbox.image
            message["argv"] = (*process.argv, *process.args)
            message["env"] = dict(process.env)
            message["cwd"] = process.cwd
        own: list[int] = []
        glimpse: MemoryGlimpse | None = None
        try:
            passed: list[int] = []
            if process.bundle is not None:
                if not isinstance(process.bundle, FileBundle) or process.bundle.fd < 0:
                    raise Fault("the bundle was not made by this backend, or is closed")
                passed.append(process.bundle.fd)
            if process.files:
                try:
                    pieces = bundle.pack(process.files)
                except bundle.BundleError as error:
                    raise Invalid(str(error)) from error
                own.append(_filled("files", pieces))
                passed.append(own[-1])
            own.append(_filled("stdin", [process.stdin]))
            passed.append(own[-1])
            if watched is not None:
                for _ in range(2):
                    own.append(_memory_file("output"))
                    passed.append(own[-1])
                glimpse = MemoryGlimpse(passed[-2], passed[-1])
                watched(glimpse)
            answer, fds = await connection.ask(message, tuple(passed), limits.wall_s + ANSWER_WITHIN_S)
        finally:
            if glimpse is not None:
                glimpse.end()
            close_all(own)
        try:
            if "error" in answer:
                raise error_of(answer["error"])
            return _result(answer["ok"], fds)
        finally:
            close_all(fds)

    async def warm(self, sandbox: SandboxSpec, process: ProcessSpec) -> None:
        """See `Backend.warm`; behind a further wall there are no templates."""
        if self._wall:
            return
        connection = await self._connected()
        if (sandbox, process) not in self._announced:
            self._announced.append((sandbox, process))
        await connection.template(sandbox, process, announce=True)

    async def wall(self) -> Mapping[str, str]:
        """What the warden knows of the further wall: its version, how it works, …

        Raises:
            Unsupported: this warden cannot have one.
            Unavailable: there is none on this host; the message says what to do.
        """
        return await self._look_at_wall(await self._connected())

    async def _look_at_wall(self, connection: Connection) -> Mapping[str, str]:
        answer, _ = await connection.ask({"op": "wall"}, (), ANSWER_WITHIN_S)
        if "error" in answer:
            raise error_of(answer["error"])
        return {str(name): str(fact) for name, fact in answer["ok"].items()}

    async def report(self) -> Report:
        """See `Backend.report`."""
        connection = self._connection
        try:
            if connection is not None and connection.lost is None:
                return _report(await self._hello(connection))
            fresh = Connection(await connect_or_launch(self._options))
            try:
                return _report(await self._hello(fresh))
            finally:
                await fresh.close()
        except StockadeError as error:
            broken = Feature(
                name="sandboxes", enforced=False, mechanism=str(error), remedy="see docs/troubleshooting.md"
            )
            return Report(backend="native", features=(broken,), details={})

    async def close(self) -> None:
        """See `Backend.close`."""
        self._closed = True
        self.sandboxing.close()
        async with self._connecting:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None


def _memory_file(name: str) -> int:
    try:
        return protocol.memory_file(name)
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> Unavailable:
    """Nothing is wrong with the run, nor with us: a job waits for its turn, and a client is told to come again."""
    return Unavailable(f"there is no room for the input and output of a run: {error.strerror}")


def _filled(name: str, pieces: list[bytes]) -> int:
    """A memory file with that content, its position at the start."""
    fd = _memory_file(name)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                try:
                    view = view[os.write(fd, view) :]
                except OSError as error:
                    raise _no_room(error) from error
        os.lseek(fd, 0, os.SEEK_SET)
        # The program gets its standard input by this descriptor, and so could write there.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _result(facts: dict[str, Any], fds: list[int]) -> ProcessResult:
    """Translate the warden's answer; takes the bundle's descriptor out of *fds*."""
    outcome, exit_code, signal = decide(facts)
    contents = []
    for size in facts["sizes"]:
        contents.append(os.pread(fds[0], size, 0) if size else b"")
        if size:
            os.close(fds.pop(0))
    collected: Bundle | None = FileBundle(fds.pop(0)) if facts["collected"] and fds else None
    return ProcessResult(
        outcome=outcome,
        exit_code=exit_code,
        signal=signal,
        stdout=contents[0],
        stderr=contents[1],
        stdout_truncated=facts["truncated"][0],
        stderr_truncated=facts["truncated"][1],
        usage=Usage(
            wall_s=facts["wall_s"],
            cpu_user_s=facts["cpu_user_us"] / 1e6,
            cpu_system_s=facts["cpu_system_us"] / 1e6,
            memory_peak_bytes=facts["memory_peak"] or 0,
        ),
        bundle=collected,
    )


def _report(answer: dict[str, Any]) -> Report:
    return Report(
        backend="native",
        features=tuple(Feature(**feature) for feature in answer["features"]),
        details={str(k): str(v) for k, v in answer["details"].items()},
        warm=tuple(
            Warm(**{**one, "command": tuple(one["command"]), "preload": tuple(one["preload"])})
            for one in answer["warm"]
        ),
    )
