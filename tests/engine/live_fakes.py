"""A backend, a table and ports in memory that behave as the real ones do, and break when they are told to."""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stockade.backends.sandboxing import (
    MAIN,
    LiveExec,
    LiveSandbox,
    LiveSpec,
    Output,
    OutputSlice,
    ProcessEnd,
    Reading,
)
from stockade.engine import LimitPolicy
from stockade.engine.builds import BuildOptions, Builds
from stockade.engine.creations import Creations
from stockade.engine.images import Images
from stockade.engine.lives import Lives
from stockade.engine.reconcile import Reconciler
from stockade.engine.sandbox_needs import SandboxOptions
from stockade.engine.sandboxes import Sandboxes
from stockade.errors import BackendLost, Conflict, LimitExceeded, NotFound, StockadeError, Unavailable
from stockade.model import (
    LEGAL_MOVES,
    Actor,
    EndedBy,
    FileInfo,
    Limits,
    Network,
    NetworkMode,
    Outcome,
    Protocol,
    Sandbox,
    SandboxRequest,
    SandboxState,
    TerminalSize,
    Usage,
)
from stockade.model.accounts import ImageBuild
from stockade.store.sandboxes import Page

__all__ = [
    "ONE",
    "OTHER",
    "Backend",
    "BuildRecords",
    "HostPorts",
    "Server",
    "Table",
    "limits",
    "request",
    "until",
]

MB = 1 << 20
ONE, OTHER = Actor(id="one", account_id="account-one"), Actor(id="other", account_id="account-other")


def limits(**changes: Any) -> Limits:
    base = Limits(
        wall_s=60.0,
        cpu_s=60.0,
        cpus=1.0,
        memory_bytes=128 * MB,
        processes=50,
        disk_bytes=64 * MB,
        disk_inodes=1000,
        open_files=100,
        stack_bytes=8 * MB,
        output_bytes=1 * MB,
    )
    return replace(base, **changes)


def request(sandbox_id: str = "box-1", **changes: Any) -> SandboxRequest:
    changes = {"image": "host", "command": ("sleep", "60"), "limits": limits(), "dialect": "tests"} | changes
    return SandboxRequest(id=sandbox_id, **changes)


async def until(condition: Callable[[], Any], within_s: float = 30.0) -> None:
    """Let the loop run until *condition* holds; the test fails when it does not come to."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not so within {within_s:g} s"
        await asyncio.sleep(0.002)


@dataclass
class Process:
    """One process; it runs until its box ends it or `end` is called."""

    spec: LiveExec
    stdout: bytes = b""
    end: ProcessEnd | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def finish(self, exit_code: int, outcome: Outcome = Outcome.EXITED) -> None:
        if self.end is None:
            self.end = ProcessEnd(outcome=outcome, exit_code=exit_code)
            self.news.set()


class OneReader:
    """Streams of a process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.is_closed = False

    async def read(self, stdout_at: int, stderr_at: int, *, most: int = 1 << 18) -> Output:
        while stdout_at >= len(self.process.stdout) and self.process.end is None:
            self.process.news.clear()
            await self.process.news.wait()
        data = self.process.stdout[stdout_at : stdout_at + most]
        is_over = stdout_at + len(data) == len(self.process.stdout)
        return Output(
            stdout=OutputSlice(data=data, at=stdout_at),
            stderr=OutputSlice(data=b"", at=stderr_at),
            end=self.process.end if is_over else None,
        )

    async def write(self, data: bytes) -> bool:
        return self.process.end is None

    async def close_stdin(self) -> None:
        return None

    async def signal(self, number: int) -> None:
        self.process.finish(128 + number, Outcome.SIGNALED)

    async def resize(self, size: TerminalSize) -> None:
        return None

    def close(self) -> None:
        self.is_closed = True


@dataclass
class Box:
    """A sandbox of the fake backend."""

    name: str
    spec: LiveSpec
    started_at: float = field(default_factory=time.time)
    deadline_at: float = 0.0
    processes: dict[str, Process] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    facts: LiveSandbox | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    stop_asked: bool = False

    def known(self) -> LiveSandbox:
        usage = Usage(wall_s=1.0, cpu_user_s=0.5, cpu_system_s=0.25, memory_peak_bytes=MB)
        return self.facts or LiveSandbox(
            name=self.name,
            is_running=True,
            started_at=self.started_at,
            deadline_at=self.deadline_at,
            processes=tuple(self.processes),
            usage=usage,
            memory_bytes=MB,
        )

    def finish(self, by: EndedBy, exit_code: int | None, outcome: Outcome) -> None:
        if self.facts is None:
            self.facts = replace(
                self.known(),
                is_running=False,
                ended_at=time.time(),
                ended_by=by,
                outcome=outcome,
                exit_code=exit_code if MAIN in self.processes else None,
            )
            for process in self.processes.values():
                process.finish(137, Outcome.SIGNALED)
            self.over.set()


class Files:
    """The files of a box. `fails` is raised by whatever is done."""

    def __init__(self, box: Box, backend: "Backend") -> None:
        self.box = box
        self.backend = backend

    async def stat(self, path: str) -> FileInfo:
        raise NotImplementedError

    async def list(self, path: str) -> list[FileInfo]:
        raise NotImplementedError

    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> tuple[FileInfo, AsyncIterator[bytes]]:
        raise NotImplementedError

    async def write(self, path: str, content: AsyncIterable[bytes], *, mode: int = 0o644) -> int:
        self.backend.check("write")
        data = b"".join([part async for part in content])
        self.box.files[path] = data
        return len(data)

    async def delete(self, path: str, *, recursive: bool = False) -> None:
        raise NotImplementedError

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = True) -> None:
        raise NotImplementedError

    async def rename(self, path: str, new_path: str) -> None:
        raise NotImplementedError

    async def read_tar(self, path: str) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def write_tar(self, path: str, archive: AsyncIterable[bytes]) -> int:
        raise NotImplementedError

    async def watch(self, path: str) -> AsyncIterator[tuple[str, str]]:
        raise NotImplementedError

    async def save_layer(self, target: int, *, most_bytes: int) -> int:
        layer = json.dumps({path: data.decode() for path, data in self.box.files.items()}).encode()
        if len(layer) > most_bytes:
            raise LimitExceeded("the layer is too large")
        os.write(target, layer[: len(layer) // 2])
        self.backend.check("save_layer")
        return os.write(target, layer[len(layer) // 2 :])

    def close(self) -> None:
        return None


class Backend:
    """`Sandboxing` in memory."""

    def __init__(self) -> None:
        self.boxes: dict[str, Box] = {}
        self.failures: dict[str, StockadeError] = {}
        """What a method raises, by its name."""
        self.holds: dict[str, asyncio.Event] = {}
        """Methods that wait for an event before they do what they do."""
        self.calls: list[tuple[str, str]] = []
        self.lost: asyncio.Event | None = None
        self.commands: Callable[[Box, str], tuple[int, bytes]] = lambda box, command: (0, command.encode() + b"\n")
        """What becomes of `/bin/sh -c …`: exit code and output."""

    def check(self, method: str) -> None:
        if self.lost is not None:
            raise BackendLost("the warden died")
        if method in self.failures:
            raise self.failures[method]

    async def _enter(self, method: str, name: str) -> None:
        await asyncio.sleep(0)
        self.calls.append((method, name))
        self.check(method)
        if method in self.holds:
            await self.holds[method].wait()
            self.check(method)

    def _find(self, name: str) -> Box:
        if name not in self.boxes:
            raise NotFound(f"no sandbox {name}")
        return self.boxes[name]

    def _alive(self, name: str) -> Box:
        box = self._find(name)
        if box.facts is not None:
            raise Conflict(f"sandbox {name} has ended")
        return box

    def exit(self, name: str, code: int = 0) -> None:
        """The main process ends."""
        box = self.boxes[name]
        if box.facts is None:
            box.processes[MAIN].finish(code)
            box.finish(EndedBy.ITSELF, code, Outcome.EXITED)

    def expire(self, name: str) -> None:
        """The deadline passes."""
        self.boxes[name].finish(EndedBy.DEADLINE, 137, Outcome.WALL_TIME)

    def lose(self, *, sandboxes: bool = True) -> None:
        """The warden dies, or (without *sandboxes*) only the connection to it breaks."""
        self.lost = asyncio.Event()
        waiters = [box.over for box in self.boxes.values()]
        if sandboxes:
            self.boxes.clear()
        for over in waiters:
            over.set()

    def come_back(self) -> None:
        """A warden answers again."""
        self.lost = None
        for box in self.boxes.values():
            if box.facts is None:
                box.over = asyncio.Event()

    async def create(self, name: str, spec: LiveSpec) -> LiveSandbox:
        await self._enter("create", name)
        if name in self.boxes:
            raise Conflict(f"there is a sandbox {name} already")
        box = self.boxes[name] = Box(name=name, spec=spec)
        box.deadline_at = box.started_at + (spec.lifetime_s or 0)
        if spec.layer is not None:
            box.files = {path: text.encode() for path, text in json.loads(spec.layer.read_text()).items()}
        return box.known()

    async def exec(
        self, name: str, process: str, spec: LiveExec, *, reading: Reading = Reading(), gather: int = 0
    ) -> OneReader:
        await self._enter("exec", name)
        box = self._alive(name)
        started = box.processes[process] = Process(spec=spec)
        if process != MAIN and spec.argv[:2] == ("/bin/sh", "-c"):
            code, output = self.commands(box, spec.argv[2])
            started.stdout = output
            started.finish(code)
        return OneReader(started)

    async def open(self, name: str, process: str, *, reading: Reading = Reading()) -> OneReader:
        await self._enter("open", name)
        box = self._find(name)
        if process not in box.processes:
            raise NotFound(f"no process {process}")
        return OneReader(box.processes[process])

    async def forget_process(self, name: str, process: str) -> None:
        await self._enter("forget_process", name)
        if (known := self._find(name).processes.pop(process, None)) is not None:
            known.finish(137, Outcome.SIGNALED)

    async def inspect(self, name: str) -> LiveSandbox:
        await self._enter("inspect", name)
        return self._find(name).known()

    async def inventory(self) -> list[LiveSandbox]:
        await self._enter("inventory", "")
        return [box.known() for box in self.boxes.values()]

    async def ended(self, name: str) -> LiveSandbox:
        await self._enter("ended", name)
        box = self._find(name)
        await box.over.wait()
        self.check("ended")
        return self._find(name).known()

    async def stop(self, name: str, *, grace_s: float) -> None:
        await self._enter("stop", name)
        box = self._alive(name)
        box.stop_asked = True
        box.finish(EndedBy.STOP, 143, Outcome.CANCELLED)

    async def kill(self, name: str) -> None:
        await self._enter("kill", name)
        self._find(name).finish(EndedBy.KILL, 137, Outcome.CANCELLED)

    async def extend(self, name: str, lifetime_s: float | None) -> None:
        await self._enter("extend", name)
        self._alive(name).deadline_at = time.time() + (lifetime_s or 0)

    async def remove(self, name: str) -> None:
        await self._enter("remove", name)
        box = self.boxes.pop(name, None)
        if box is not None:
            box.finish(EndedBy.KILL, 137, Outcome.CANCELLED)

    async def files(self, name: str, *, user: str = "user") -> Files:
        await self._enter("files", name)
        return Files(self._alive(name), self)

    async def dial(self, name: str, port: int, protocol: Protocol) -> socket.socket:
        raise Unavailable("nothing listens there")


class Table:
    """The records, in memory. Checks that each move is legal."""

    def __init__(self) -> None:
        self.rows: dict[str, Sandbox] = {}
        self.is_away = False
        self.holds: dict[str, asyncio.Event] = {}
        self.recorded: set[str] = set()

    async def _enter(self, method: str) -> None:
        await asyncio.sleep(0)
        if self.is_away:
            raise Unavailable("the database is away")
        if method in self.holds:
            await self.holds[method].wait()
            if self.is_away:
                raise Unavailable("the database is away")

    async def insert_within_quota(
        self,
        sandbox: Sandbox,
        *,
        daily: int | None,
        concurrent: int | None,
        monthly_cost_cents: int | None,
        is_quota_free: bool,
    ) -> None:
        await self._enter("insert")
        own = [row for row in self.rows.values() if row.key_id == sandbox.key_id]
        unended = [row for row in own if row.state is not SandboxState.ENDED]
        if concurrent is not None and len(unended) >= concurrent:
            raise LimitExceeded(f"concurrent session limit reached ({len(unended)}/{concurrent})")
        if daily is not None and len(own) >= daily:
            raise LimitExceeded(f"daily session limit reached ({len(own)}/{daily})")
        if sandbox.id in self.rows:
            raise Conflict(f"there is a sandbox {sandbox.id} already")
        if sandbox.secret_digest and any(row.secret_digest == sandbox.secret_digest for row in self._unended()):
            raise Conflict("this secret is another sandbox's: choose another")
        self.rows[sandbox.id] = sandbox

    def _unended(self) -> tuple[Sandbox, ...]:
        return tuple(row for row in self.rows.values() if row.state is not SandboxState.ENDED)

    async def get(self, sandbox_id: str, /) -> Sandbox | None:
        await self._enter("get")
        return self.rows.get(sandbox_id)

    async def find_by_secret(self, digest: str, /) -> Sandbox | None:
        await self._enter("find_by_secret")
        found = [row for row in self.rows.values() if row.secret_digest == digest]
        return max(found, key=lambda row: (row.state is not SandboxState.ENDED, row.ended_at), default=None)

    async def bind(self, sandbox_id: str, port: int, /) -> Sandbox | None:
        await self._enter("bind")
        row = self.rows.get(sandbox_id)
        if row is None or row.state is not SandboxState.RUNNING or row.bound_port is not None:
            return None
        self.rows[sandbox_id] = row = replace(row, bound_port=port)
        return row

    async def list(
        self,
        key_id: str | None = None,
        *,
        account_id: str | None = None,
        states: Collection[SandboxState] | None = None,
        ended_by: Collection[EndedBy] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        await self._enter("list")
        rows = [
            row
            for row in self.rows.values()
            if key_id in (None, row.key_id)
            and account_id in (None, row.account_id)
            and (states is None or row.state in states)
        ]
        return Page(items=sorted(rows, key=lambda row: row.created_at, reverse=True)[:limit], cursor=None)

    async def list_unended(self) -> tuple[Sandbox, ...]:
        await self._enter("list_unended")
        return self._unended()

    async def list_unrecorded(self) -> tuple[Sandbox, ...]:
        await self._enter("list_unrecorded")
        ended = (row for row in self.rows.values() if row.state is SandboxState.ENDED)
        return tuple(row for row in ended if row.id not in self.recorded)

    async def move(self, sandbox_id: str, from_states: Collection[SandboxState], /, **changes: Any) -> Sandbox | None:
        await self._enter("move")
        row = self.rows.get(sandbox_id)
        if row is None or row.state not in from_states:
            return None
        if "state" in changes:
            assert changes["state"] in LEGAL_MOVES[row.state], f"{row.state} to {changes['state']}"
        self.rows[sandbox_id] = row = replace(row, **changes)
        return row

    async def mark_deleted(self, sandbox_id: str, /) -> Sandbox | None:
        return await self.move(sandbox_id, {SandboxState.ENDED}, is_deleted=True)

    async def record_end(self, sandbox: Sandbox) -> None:
        """What accounts do with an end."""
        await self._enter("record_end")
        assert self.rows[sandbox.id].state is SandboxState.ENDED
        self.recorded.add(sandbox.id)


class BuildRecords:
    def __init__(self) -> None:
        self.builds: dict[str, ImageBuild] = {}

    async def record(self, build: ImageBuild) -> None:
        self.builds[build.digest] = build

    async def touch(self, digest: str) -> bool:
        return digest in self.builds

    async def forget(self, digest: str) -> bool:
        return self.builds.pop(digest, None) is not None


class HostPorts:
    """Ports that are only written down."""

    def __init__(self) -> None:
        self.open_for: dict[str, Network] = {}
        self.next = 40000
        self.failure: StockadeError | None = None

    async def assign(self, sandbox_id: str, network: Network) -> Network:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        if network.mode is not NetworkMode.EXPOSED:
            return network
        ports = []
        for port in network.ports:
            self.next += 1
            ports.append(replace(port, host=self.next))
        self.open_for[sandbox_id] = network = replace(network, ports=tuple(ports))
        return network

    def open(self, sandbox_id: str, network: Network) -> None:
        if network.ports:
            self.open_for[sandbox_id] = network

    def close(self, sandbox_id: str) -> None:
        self.open_for.pop(sandbox_id, None)


class Server:
    """All services of the engine over what outlives it; `start` again for the next server."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.backend = Backend()
        self.table = Table()
        self.build_records = BuildRecords()
        self.ports = HostPorts()
        self.directory = directory
        self.options = SandboxOptions(**{"sweep_s": 0.02, "lost_after_s": 0.3, "answer_s": 2.0, **options})
        self.build_options = BuildOptions(limits=limits(), network=NetworkMode.NONE)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Sandboxes]:
        """One server's life. What runs in the backend goes on after it."""
        self.ports.open_for.clear()
        images = Images(aliases={"python:3.12": "host"}, host_content=lambda: "content")
        lives = Lives(
            table=self.table,
            backend=self.backend,
            ports=self.ports,
            on_ended=self.table.record_end,
            options=self.options,
        )
        self.builds = builds = Builds(
            backend=self.backend,
            images=images,
            table=self.build_records,
            directory=self.directory,
            options=self.build_options,
            tasks=lives.tasks,
        )
        policy = LimitPolicy(defaults=limits(), maximum=limits(wall_s=600.0))
        creations = Creations(lives=lives, images=images, builds=builds, limits=policy)
        sandboxes = Sandboxes(
            lives=lives,
            creations=creations,
            images=images,
            builds=builds,
            limits=policy,
            reconciler=Reconciler(lives=lives, creations=creations, builds=builds),
        )
        async with sandboxes.running():
            yield sandboxes
