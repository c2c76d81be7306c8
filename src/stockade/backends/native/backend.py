"""Client of the warden: one connection, many runs under way, answers in any order."""

import asyncio
import contextlib
import fcntl
import os
from typing import Any, TypeAlias

from stockade.backends.base import BackendOptions, Feature, Report, SandboxSpec, Warm
from stockade.backends.native.launch import Warden, connect_or_launch
from stockade.backends.native.outcomes import decide
from stockade.errors import BackendLost, CannotEnforce, Fault, Invalid, StockadeError, Unavailable, Unsupported
from stockade.model import (
    Bundle,
    Limits,
    OnOutputLimit,
    ProcessResult,
    ProcessSpec,
    Template,
    TemplateKind,
    Usage,
)
from stockade.warden import bundle, protocol

__all__ = ["NativeBackend"]

_ANSWER_WITHIN_S = 30.0  # beyond the wall limit: time to build, kill and answer
_MOST_TEMPLATES = 1024
_LEAST_MEMORY = 16 << 20  # bytes: what a fork and its PID 1 take before the program does
_Key: TypeAlias = tuple[Template, str, tuple[str, ...], tuple[tuple[str, str], ...], str, Limits]
_Answer: TypeAlias = tuple[dict[str, Any], list[int]]
"""A message and its descriptors."""

_KINDS: dict[str, type[StockadeError]] = {"invalid": Invalid, "unsupported": Unsupported, "unavailable": Unavailable}


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


class _Connection:
    """Numbers requests and hands each answer, with its descriptors, to whoever waits for it."""

    def __init__(self, warden: Warden) -> None:
        self.warden = warden
        self.lost: str | None = None
        self._socket = warden.connection
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        self._number = 0
        self._templates: dict[_Key, int] = {}
        self._writable: asyncio.Event = asyncio.Event()
        self._writable.set()
        self._loop.add_reader(self._socket, self._read)

    async def ask(self, message: dict[str, Any], fds: tuple[int, ...], within_s: float) -> _Answer:
        """Send a request and wait for its answer; the answer's descriptors are the caller's to close.

        When cancelled, the warden is told, and the cancellation goes on once it has answered.
        """
        self._number += 1
        number = self._number
        future: asyncio.Future[_Answer] = self._loop.create_future()
        self._waiting[number] = future
        try:
            await self._send({**message, "id": number}, fds)
            try:
                async with asyncio.timeout(within_s):
                    # Shielded: a cancelled future could not take the answer that we still wait for.
                    return await asyncio.shield(future)
            except TimeoutError:
                raise BackendLost(f"the warden did not answer within {within_s:g} s") from None
            except asyncio.CancelledError:
                await self._cancel(number, future)
                raise
        finally:
            self._waiting.pop(number, None)

    async def template(self, sandbox: SandboxSpec, process: ProcessSpec, *, announce: bool = False) -> int | None:
        """The number by which the warden knows what *process* may be begun from; `None` for nothing."""
        template = process.template
        if template is None:
            return None
        limits = sandbox.limits
        env = tuple(process.env.items())
        key = (template, sandbox.image, process.argv, env, process.cwd, limits)
        number = self._templates.get(key)
        if number is None or announce:
            recipe = _recipe(template, sandbox, process)
            answer, _ = await self.ask({"op": "template", "announce": announce, **recipe}, (), _ANSWER_WITHIN_S)
            if "error" in answer:
                error = _error(answer["error"])
                if isinstance(error, Unavailable):
                    return None  # it knows too many already: the run starts from nothing
                raise error
            number = int(answer["ok"]["template"])
            if len(self._templates) < _MOST_TEMPLATES:
                self._templates[key] = number
        return number

    async def _cancel(self, number: int, future: "asyncio.Future[_Answer]") -> None:
        with contextlib.suppress(BaseException):
            await self._send({"op": "cancel", "id": number}, ())
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                _, fds = await asyncio.shield(future)
                _close_all(fds)

    async def _send(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        while True:
            if self.lost is not None:
                raise BackendLost(self.lost)
            try:
                protocol.send(self._socket, message, fds)
                return
            except BlockingIOError:
                await self._until_writable()
            except protocol.ProtocolError as error:
                raise Invalid(f"arguments and environment are too long: {error}") from error
            except UnicodeEncodeError as error:
                raise Invalid(f"arguments and environment must be text that UTF-8 can write: {error}") from error
            except OSError as error:
                self._lose(f"the warden is gone: {error.strerror}")

    async def _until_writable(self) -> None:
        if self._writable.is_set():
            self._writable.clear()
            self._loop.add_writer(self._socket, self._now_writable)
        await self._writable.wait()

    def _now_writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._writable.set()

    def _read(self) -> None:
        while True:
            try:
                received = protocol.receive(self._socket)
            except BlockingIOError:
                return
            except (OSError, protocol.ProtocolError) as error:
                self._lose(f"the warden is gone: {error}")
                return
            if received is None:
                self._lose("the warden has ended")
                return
            message, fds = received
            future = self._waiting.get(message.get("re", -1))
            if future is None or future.done():
                _close_all(fds)
            else:
                future.set_result((message, fds))

    def _lose(self, why: str) -> None:
        """Every waiting request learns that its sandbox is gone."""
        if self.lost is None:
            self.lost = why
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._writable.set()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(BackendLost(why))
                    future.exception()  # its waiter may be gone already: no complaint at collection

    async def close(self) -> None:
        self._lose("closed")
        await self.warden.close()


class NativeBackend:
    """Satisfies `stockade.backends.base.Backend`; a lost warden is replaced at the next call."""

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False
        self._announced: list[tuple[SandboxSpec, ProcessSpec]] = []

    async def start(self) -> None:
        """See `Backend.start`."""
        await self._connected()

    async def _connected(self) -> _Connection:
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
            fresh = _Connection(await connect_or_launch(self._options))
            try:
                self._demand(_report(await self._hello(fresh)))
                for sandbox, process in self._announced:
                    await fresh.template(sandbox, process, announce=True)
            except BaseException:
                await fresh.close()
                raise
            self._connection = fresh
            return fresh

    async def _hello(self, connection: _Connection) -> dict[str, Any]:
        try:
            answer, _ = await connection.ask({"op": "hello", "version": protocol.VERSION}, (), _ANSWER_WITHIN_S)
        except BackendLost as error:
            if connection.warden.process is not None:
                raise
            # It asks the kernel who we are, and hangs up on whom it was not told of.
            raise Unavailable(
                f"the warden at {self._options.warden_socket} hung up: {error}. If it does not serve user "
                f"{os.geteuid()}, start it with --allow-uid {os.geteuid()}"
            ) from error
        if "error" in answer:
            raise _error(answer["error"])
        report: dict[str, Any] = answer["ok"]
        return report

    def _demand(self, report: Report) -> None:
        """Refuse to go on without a protection, unless the operator has named it."""
        missing = [name for name in report.missing if name not in self._options.allow_unenforced]
        if missing:
            raise CannotEnforce(missing)

    async def run(self, sandbox: SandboxSpec, process: ProcessSpec) -> ProcessResult:
        """See `Backend.run`."""
        connection = await self._connected()
        limits = sandbox.limits
        message = {
            "op": "run",
            "network": sandbox.network,
            "collect": process.collect,
            "drop_output": process.on_output_limit is OnOutputLimit.DROP,
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
            answer, fds = await connection.ask(message, tuple(passed), limits.wall_s + _ANSWER_WITHIN_S)
        finally:
            _close_all(own)
        try:
            if "error" in answer:
                raise _error(answer["error"])
            return _result(answer["ok"], fds)
        finally:
            _close_all(fds)

    async def warm(self, sandbox: SandboxSpec, process: ProcessSpec) -> None:
        """See `Backend.warm`."""
        connection = await self._connected()
        if (sandbox, process) not in self._announced:
            self._announced.append((sandbox, process))
        await connection.template(sandbox, process, announce=True)

    async def report(self) -> Report:
        """See `Backend.report`."""
        connection = self._connection
        try:
            if connection is not None and connection.lost is None:
                return _report(await self._hello(connection))
            fresh = _Connection(await connect_or_launch(self._options))
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
        async with self._connecting:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None


def _recipe(template: Template, sandbox: SandboxSpec, process: ProcessSpec) -> dict[str, Any]:
    """What the warden is told of a template."""
    limits = sandbox.limits
    is_fork = template.kind is TemplateKind.FORK
    return {
        "kind": template.kind,
        "image": sandbox.image,
        "argv": process.argv,
        "env": dict(process.env),
        "cwd": process.cwd,
        "preload": template.preload,
        "boot": template.boot,
        "files": dict(template.files),
        "memory_bytes": _LEAST_MEMORY if is_fork else limits.memory_bytes,
        "processes": limits.processes,
        "disk_bytes": limits.disk_bytes,
        "disk_inodes": limits.disk_inodes,
        "open_files": limits.open_files,
        "stack_bytes": limits.stack_bytes,
    }


def _filled(name: str, pieces: list[bytes]) -> int:
    """A memory file with that content, its position at the start."""
    fd = protocol.memory_file(name)
    try:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
        # The program gets its standard input by this descriptor, and so could write there.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _error(error: dict[str, Any]) -> StockadeError:
    return _KINDS.get(error.get("kind", ""), Fault)(str(error.get("message")))


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
