"""Boxes of an engine in this process."""

import asyncio
import contextlib
import math
import posixpath
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stockade.backends.sandboxing import FileAccess, Reading, in_order
from stockade.embedded.languages import of_image
from stockade.embedded.records import BoxInfo, BoxSpec, Chunk, Command, End, SnapshotInfo
from stockade.engine import Engine
from stockade.engine.languages import Languages
from stockade.engine.ports import DIAL_S
from stockade.engine.relays import is_its_own_peer
from stockade.engine.sandboxes import Execution
from stockade.engine.tasks import Tasks
from stockade.errors import Invalid, NotFound, StockadeError, Unavailable
from stockade.model import (
    Actor,
    Box,
    BoxRequest,
    ExecSpec,
    FileInfo,
    Limits,
    Network,
    NetworkMode,
    Outcome,
    Protocol,
    Snapshot,
    TerminalSize,
)

if TYPE_CHECKING:
    from stockade.dialects.boxlite.tunnels import Tunnels

__all__ = ["LocalPlace"]

_OWNER = Actor(id="library", account_id="library", is_admin=True)
_DIALECT = "library"
_PROCESSES, _OPEN_FILES = 1024, 4096
_READ_BYTES = 1 << 20
_LOOPBACK = "127.0.0.1"
_MOST_TUNNELS, _TUNNEL_IDLE_S = 1000, 86400.0
_HELD = Reading(patience_s=math.inf)
"""A process is held back by who reads it, as by a pipe: they share their fate."""


class LocalPlace:
    """Satisfies `Place`."""

    def __init__(self, engine: Engine, tasks: Tasks, late: contextlib.AsyncExitStack, *, is_passing: bool) -> None:
        """Take an engine that has boxes.

        Args:
            tasks: for what goes on by itself.
            late: closed before the engine is; for what is started when it is first used.
        """
        assert engine.boxes is not None
        assert engine.sandboxes is not None
        self.is_passing = is_passing
        self._engine = engine
        self._boxes = engine.boxes
        self._sandboxes = engine.sandboxes
        self._late = late
        self._tunnels: Tunnels | None = None
        self._tasks = tasks
        self._known: dict[str, Box] = {}
        """Boxes as they once were: what they are known by does not change."""

    def languages(self, image: str) -> Languages:
        is_host = self._sandboxes.images.is_own(image)
        return self._engine.languages if is_host else of_image()

    async def create(self, spec: BoxSpec) -> BoxInfo:
        request = BoxRequest(
            name=spec.name,
            image=spec.image,
            env=dict(spec.env),
            cwd=spec.cwd,
            user=spec.user,
            limits=self._limits(spec),
            network=_network(spec),
            labels=dict(spec.labels),
            auto_stop_s=spec.auto_stop_s,
            auto_delete_s=spec.auto_delete_s,
            dialect=_DIALECT,
        )
        return self._told(await self._boxes.create(_OWNER, request))

    def _limits(self, spec: BoxSpec) -> Limits:
        policy, options = self._sandboxes.limits, self._boxes.options
        most = policy.maximum
        return replace(
            most,
            memory_bytes=spec.memory_bytes,
            cpus=float(spec.cpus),
            processes=min(_PROCESSES, most.processes),
            open_files=min(_OPEN_FILES, most.open_files),
            disk_bytes=spec.disk_bytes or options.default_disk_bytes,
        )

    async def info(self, box: str) -> BoxInfo:
        return self._told(await self._boxes.get(_OWNER, box))

    async def list(self) -> Sequence[BoxInfo]:
        return [self._told(one) for one in (await self._boxes.list(_OWNER)).items]

    async def start(self, box: str) -> BoxInfo:
        return self._told(await self._boxes.start(_OWNER, await self._box(box)))

    async def stop(self, box: str, *, grace_s: float | None) -> BoxInfo:
        found = await self._box(box)
        stopped = self._told(await self._boxes.stop(_OWNER, found, grace_s=grace_s))
        if self._tunnels is not None:
            self._tunnels.close_box(found.id)
        return stopped

    async def pause(self, box: str) -> BoxInfo:
        return self._told(await self._boxes.pause(_OWNER, await self._box(box)))

    async def resume(self, box: str) -> BoxInfo:
        return self._told(await self._boxes.resume(_OWNER, await self._box(box)))

    async def remove(self, box: str) -> None:
        found = await self._box(box)
        await self._boxes.remove(_OWNER, found, force=True)
        if self._tunnels is not None:
            self._tunnels.close_box(found.id)
        self._known.pop(found.id, None)

    async def exec(self, box: str, command: Command) -> "_LocalLink":
        found = await self._box(box)
        with contextlib.ExitStack() as held:
            held.enter_context(self._boxes.using(found.id))
            sandbox = await self._boxes.sandbox(_OWNER, found)
            spec = ExecSpec(
                argv=command.argv,
                env=command.env,
                cwd=command.cwd,
                user=command.user or sandbox.user,
                terminal=command.terminal,
                stdin=command.has_input,
            )
            execution = await self._sandboxes.exec(self._boxes.acting(found), sandbox.id, spec, reading=_HELD)
            return _LocalLink(execution, self._tasks, held.pop_all(), timeout_s=command.timeout_s)

    async def snapshot(self, box: str, name: str) -> SnapshotInfo:
        return _snapshot(await self._boxes.snapshot(_OWNER, await self._box(box), name))

    async def snapshots(self, box: str) -> Sequence[SnapshotInfo]:
        return [_snapshot(one) for one in await self._boxes.snapshots(_OWNER, await self._box(box))]

    async def remove_snapshot(self, box: str, name: str) -> None:
        await self._boxes.remove_snapshot(_OWNER, await self._box(box), name)

    async def restore(self, box: str, name: str) -> None:
        await self._boxes.restore(_OWNER, await self._box(box), name)

    async def clone(self, box: str, *, name: str | None, snapshot: str | None) -> BoxInfo:
        return self._told(await self._boxes.clone(_OWNER, await self._box(box), name=name, snapshot=snapshot))

    async def fork(self, box: str, count: int, *, snapshot: str | None) -> Sequence[BoxInfo]:
        made = await self._boxes.fork(_OWNER, await self._box(box), count, snapshot=snapshot)
        return [self._told(one) for one in made]

    # ── files ───────────────────────────────────────────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def _files(self, box: str, path: str) -> AsyncIterator[tuple[FileAccess, str]]:
        if not path or "\0" in path:
            raise Invalid(f"path: {path!r} is none")
        found = await self._box(box)
        with self._boxes.using(found.id):
            sandbox = await self._boxes.sandbox(_OWNER, found)
            async with self._sandboxes.files(self._boxes.acting(found), sandbox.id) as files:
                yield files, _absolute(path, sandbox.cwd)

    async def stat(self, box: str, path: str) -> FileInfo:
        async with self._files(box, path) as (files, at):
            return await files.stat(at)

    async def entries(self, box: str, path: str) -> Sequence[FileInfo]:
        async with self._files(box, path) as (files, at):
            return await files.list(at)

    async def read_file(self, box: str, path: str) -> bytes:
        async with self._files(box, path) as (files, at):
            _, content = await files.read(at)
            return b"".join([part async for part in content])

    async def write_file(self, box: str, path: str, content: bytes, *, mode: int) -> None:
        async def once() -> AsyncIterator[bytes]:
            yield content

        async with self._files(box, path) as (files, at):
            await files.write(at, once(), mode=mode)

    async def make_directory(self, box: str, path: str) -> None:
        async with self._files(box, path) as (files, at):
            await files.mkdir(at)

    async def remove_file(self, box: str, path: str, *, recursive: bool) -> None:
        async with self._files(box, path) as (files, at):
            await files.delete(at, recursive=recursive)

    async def copy_in(self, box: str, path: str, archive: AsyncIterable[bytes], *, is_directory: bool | None) -> None:
        async with self._files(box, path) as (files, at):
            await files.copy_in(at, archive, is_directory=is_directory)

    @contextlib.asynccontextmanager
    async def copy_out(self, box: str, path: str) -> AsyncIterator[tuple[bool, AsyncIterator[bytes]]]:
        async with self._files(box, path) as (files, at):
            yield await files.copy_out(at)

    # ── ports, and boxes as files ───────────────────────────────────────────────────────────────────────────────

    async def tunnel(self, box: str, port: int) -> str:
        found = await self._box(box)
        sandbox = await self._boxes.sandbox(_OWNER, found)
        if self._tunnels is None:
            from stockade.dialects.boxlite.tunnels import Tunnels  # with which the parts of HTTP come

            self._tunnels = Tunnels(
                host=_LOOPBACK,
                dialler=self._sandboxes.lives.backend,
                boxes=self._boxes,
                most_of_actor=_MOST_TUNNELS,
                idle_s=_TUNNEL_IDLE_S,
            )
            await self._late.enter_async_context(self._tunnels.running())
        return f"http://{_LOOPBACK}:{await self._tunnels.open(_OWNER, found, sandbox, port)}"

    async def dial(self, box: str, port: int) -> socket.socket:
        sandbox = await self._boxes.sandbox(_OWNER, await self._box(box))
        try:
            async with asyncio.timeout(DIAL_S):
                connection = await self._sandboxes.lives.backend.dial(sandbox.id, port, Protocol.TCP)
        except TimeoutError:
            raise Unavailable(f"port {port} did not answer within {DIAL_S:g} s") from None
        if is_its_own_peer(connection):
            connection.close()
            raise Unavailable(f"nothing listens on port {port} (yet)")
        return connection

    async def export(self, box: str) -> AsyncGenerator[bytes, None]:
        assert self._engine.archives is not None
        content = self._engine.archives.export(_OWNER, await self._box(box))
        async with contextlib.aclosing(content):
            async for part in content:
                yield part

    async def import_(self, content: AsyncIterable[bytes], *, name: str | None) -> BoxInfo:
        assert self._engine.archives is not None
        return self._told(await self._engine.archives.import_(_OWNER, content, name=name))

    async def _box(self, name: str) -> Box:
        found = self._known.get(name)
        if found is None:
            found = await self._boxes.get(_OWNER, name)
            self._known[found.id] = found
        return found

    def _told(self, box: Box) -> BoxInfo:
        self._known[box.id] = box
        return BoxInfo(
            id=box.id,
            name=box.name,
            state=box.state,
            image=box.image,
            memory_bytes=box.limits.memory_bytes,
            cpus=box.limits.cpus,
            labels=dict(box.labels),
            created_at=box.created_at,
            message=box.message,
        )


class _LocalLink:
    """Satisfies `Link`."""

    def __init__(
        self, execution: Execution, tasks: Tasks, held: contextlib.ExitStack, *, timeout_s: float | None
    ) -> None:
        self.end: End | None = None
        self._execution = execution
        self._held = held
        self._at = (0, 0)
        self._is_closed = False
        self._has_timed_out = False
        loop = asyncio.get_running_loop()
        self._alarm = None if timeout_s is None else loop.call_later(timeout_s, self._time_out, tasks)

    async def read(self) -> Sequence[Chunk]:
        while self.end is None and not self._is_closed:
            output = await self._execution.streams.read(*self._at, most=_READ_BYTES)
            self._at = output.stdout.end, output.stderr.end
            chunks = [
                Chunk(stream="stderr" if is_stderr else "stdout", data=data) for is_stderr, data in in_order(output)
            ]
            if output.end is not None:
                outcome = Outcome.WALL_TIME if self._has_timed_out else output.end.outcome
                self.end = End(exit_code=output.end.exit_code, outcome=outcome)
                if not self._is_closed:
                    self._let_go()
                    self._execution.discard()
            if chunks:
                return chunks
        return ()

    async def write(self, data: bytes) -> bool:
        return await self._execution.streams.write(data)

    async def close_stdin(self) -> None:
        await self._execution.streams.close_stdin()

    async def signal(self, number: int) -> None:
        if self.end is None and not self._is_closed:
            one = self._execution
            with contextlib.suppress(NotFound):  # it has ended
                whole = number == signal.SIGKILL
                await one.backend.signal_process(one.sandbox_id, one.process, number, tree=whole)

    async def resize(self, size: TerminalSize) -> None:
        await self._execution.streams.resize(size)

    async def close(self) -> None:
        if not self._is_closed:
            self._let_go()
            await self._execution.kill()

    async def detach(self) -> None:
        if not self._is_closed:
            self._let_go()
            self._execution.streams.close()

    def _let_go(self) -> None:
        self._is_closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        self._held.close()

    def _time_out(self, tasks: Tasks) -> None:
        if self.end is None and not self._is_closed:
            self._has_timed_out = True
            with contextlib.suppress(Unavailable):
                tasks.background(self._kill(), name=f"time of {self._execution.process} is up")

    async def _kill(self) -> None:
        with contextlib.suppress(StockadeError):  # it ends with its sandbox
            await self.signal(signal.SIGKILL)


def _network(spec: BoxSpec) -> Network:
    """Its ports can be reached from here in any case."""
    if spec.network is True:
        return Network(mode=NetworkMode.EXPOSED)
    if not spec.network:
        return Network(mode=NetworkMode.EXPOSED, allow_cidrs=(), allow_domains=())
    # What a server would make of the same list.
    from stockade.dialects.boxlite.translate import to_network
    from stockade.dialects.boxlite.wire import InboundBody, NetworkBody, OutboundBody

    outbound = OutboundBody(mode="enabled", allow_net=list(spec.network))
    return to_network(NetworkBody(outbound=outbound, inbound=InboundBody(mode="enabled")))


def _absolute(path: str, base: str) -> str:
    """*path* from *base* on; a slash at its end, which says that it is to be a directory, stays."""
    whole = posixpath.normpath(posixpath.join("/", base, path))
    return f"{whole}/" if path.endswith("/") and whole != "/" else whole


def _snapshot(found: Snapshot) -> SnapshotInfo:
    return SnapshotInfo(name=found.name, size_bytes=found.size_bytes, created_at=found.created_at)
