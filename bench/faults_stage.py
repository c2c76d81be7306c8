"""A whole deployment in miniature: a server, a worker, PostgreSQL and Redis, each started again whenever it ends.

Server and worker reach both through a relay of ours, which can be cut. What they write lies on file systems of their
own, which can be filled. The machine's own clock, disks and limits are left alone.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.faults_units import Groups, Shim, Unit
from bench.measure import BenchError
from bench.services import postgresql_binaries, unprivileged

__all__ = ["KEY", "Relay", "Stage", "staged"]

KEY = "sk_" + "f8" * 32
"""The operator's."""
UP_S = 90.0
TOOL_S = 60.0
MIB = 1 << 20
DATA_BYTES = 512 * MIB
DATABASE_BYTES = 256 * MIB
_SETTINGS = {
    "STOCKADE_API_KEY": KEY,
    "STOCKADE_DATABASE_TIMEOUT_S": "2",
    "STOCKADE_JOBS_REDIS_TIMEOUT_S": "2",
    "STOCKADE_JOBS_HEARTBEAT_S": "0.3",
    # Longer than a loaded machine keeps a worker from its heartbeat, shorter than anybody's patience.
    "STOCKADE_JOBS_LEASE_S": "5",
    # Each kill may cost an attempt of what runs; none must be given up here.
    "STOCKADE_JOBS_MOST_ATTEMPTS": "100",
    "STOCKADE_DISKS_SIZE_BYTES": str(256 * MIB),
    "STOCKADE_DIALECTS_EXECBOX_PUBLIC_RATE_PER_S": "1000",
}


class Relay:
    """Passes a UNIX socket's connections on, until it is told not to."""

    def __init__(self, path: Path, target: Path) -> None:
        self._path, self._target = path, target
        self._open = asyncio.Event()
        self._open.set()
        self._refuses = False
        self.count = 0
        """How often it has changed between passing and not passing."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        self._path.chmod(0o777)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def is_passing(self) -> bool:
        return self._open.is_set() and not self._refuses

    def cut(self) -> None:
        """Break every connection, and new ones at once, until `mend`."""
        self._refuses = True
        self.count += 1
        for task in self._tasks:
            task.cancel()

    def stall(self) -> None:
        """Pass nothing on, and break nothing, until `mend`."""
        self._open.clear()
        self.count += 1

    def mend(self) -> None:
        self.count += 1
        self._refuses = False
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        other: asyncio.StreamWriter | None = None
        try:
            if not self._refuses:
                answers, other = await asyncio.open_unix_connection(self._target)
                # Either end's end is both's.
                ways = {
                    asyncio.create_task(self._pass(reader, other)),
                    asyncio.create_task(self._pass(answers, writer)),
                }
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # the service is away, or we are cut: who has connected sees the end of its connection
        finally:
            self._tasks.discard(task)
            for one in (writer, other):
                if one is not None:
                    one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._open.wait()
                writer.write(data)
                await writer.drain()


@dataclass(kw_only=True)
class Stage:
    """The parts, while they run."""

    folder: Path
    url: str
    groups: Groups
    shim: Shim
    units: dict[str, Unit]
    relays: dict[str, Relay]
    disks: dict[str, Path]
    """File systems that may be filled: `data` (server and worker), and `database` (PostgreSQL and Redis)."""
    database: str | Path
    """Where it is, past any relay: a URL, or the file of SQLite."""
    _ended: set[str] = field(default_factory=set)

    async def end(self, unit: str, number: int) -> int:
        """End one for good, see `Unit.end`."""
        self._ended.add(unit)
        return await self.units[unit].end(number)

    async def end_all(self) -> None:
        """In good order: sandboxes end with the server, as by Ctrl-C.

        Raises:
            BenchError: one does not end, or not in good order.
        """
        wrong = []
        for name, number in (("worker", signal.SIGTERM), ("server", signal.SIGINT)):
            status = await self.end(name, number)
            if status not in (0, 130, -number):
                wrong.append(f"{name} ended with {status}")
        for name in ("redis", "postgresql"):
            if name in self.units:
                await self.end(name, signal.SIGINT)
        if wrong:
            raise BenchError("; ".join(wrong))

    async def answers(self) -> bool:
        """Whether the server says that it works."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                return (await client.get(f"{self.url}/health")).status_code == 200
        except httpx.HTTPError:
            return False


@contextlib.asynccontextmanager
async def staged(*, has_services: bool = True) -> AsyncIterator[Stage]:
    """A deployment that answers; whatever is left of it in the end is ended and removed.

    Args:
        has_services: whether it keeps everything in PostgreSQL and Redis; otherwise in SQLite, which server and worker
            share.

    Raises:
        BenchError: it cannot be had here, or does not come up.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-", dir="/var/tmp")))
        folder.chmod(0o711)
        groups = Groups()
        stack.callback(groups.remove)
        disks = {"data": stack.enter_context(_small_disk(folder / "data", DATA_BYTES))}
        stage = _stage(folder, disks, groups)
        if has_services:
            disks["database"] = stack.enter_context(_small_disk(folder / "database", DATABASE_BYTES))
            await asyncio.to_thread(_add_services, stage)
        async with _relayed(stage):
            try:
                await _up(stage)
                yield stage
            finally:
                for unit in stage.units.values():
                    if unit.name not in stage._ended:
                        with contextlib.suppress(BenchError):
                            await unit.end(signal.SIGKILL)


def _stage(folder: Path, disks: dict[str, Path], groups: Groups) -> Stage:
    """A server and a worker that share a data directory, and all that is kept."""
    shim = Shim(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = disks["data"] / "server"
    stage = Stage(
        folder=folder,
        url=f"http://127.0.0.1:{port}",
        groups=groups,
        shim=shim,
        units={},
        relays={},
        disks=disks,
        database=home / "state" / "stockade.db",
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKADE_")} | _SETTINGS
    for name in ("PORT", "DATABASE_URL", "REDIS_URL"):
        environment.pop(name, None)
    # The server's own worker has one place: jobs of one that died are there for the other.
    _add(
        stage, "server", ["serve", "--port", str(port), "--data-dir", home], environment | {"STOCKADE_JOBS_PLACES": "1"}
    )
    _add(stage, "worker", ["worker", "--data-dir", home, "--places", "3"], environment)
    return stage


def _add(stage: Stage, name: str, words: list[str | Path], environment: dict[str, str]) -> None:
    stage.units[name] = Unit(
        name=name,
        command=[sys.executable, "-m", "stockade", *words],
        environment=environment | stage.shim.environment(name),
        log=stage.folder / f"{name}.log",
        groups=stage.groups,
    )


def _add_services(stage: Stage) -> None:
    """PostgreSQL and Redis, on a disk of their own, and what tells server and worker to use them.

    Raises:
        NotHere: PostgreSQL is not installed.
        BenchError: it cannot be made.
    """
    binaries, user = postgresql_binaries(), unprivileged()
    disk = stage.disks["database"]
    for name in ("pg", "redis", "relayed"):
        (disk / name).mkdir()
    os.chown(disk / "pg", user.pw_uid, user.pw_gid)
    _initialize(binaries, disk / "pg", user.pw_uid, user.pw_gid)
    words: dict[str, list[str | Path]] = {
        "postgresql": [
            binaries / "postgres", "-D", disk / "pg" / "data", "-k", disk / "pg", "-c", "listen_addresses=",
            "-c", "max_connections=200", "-c", "shared_buffers=16MB", "-c", "dynamic_shared_memory_type=mmap",
            "-c", "max_wal_size=64MB", "-c", "min_wal_size=32MB",
        ],
        "redis": [
            "redis-server", "--port", "0", "--unixsocket", disk / "redis" / "redis.sock", "--unixsocketperm", "777",
            "--dir", disk / "redis", "--save", "", "--appendonly", "yes", "--appendfsync", "always",
            "--loglevel", "warning",
        ],
    }  # fmt: skip
    for name, command in words.items():
        stage.units[name] = Unit(
            name=name,
            command=command,
            environment={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"} | stage.shim.environment(name),
            log=stage.folder / f"{name}.log",
            groups=stage.groups,
            user=user if name == "postgresql" else None,
            folder=disk / "pg" if name == "postgresql" else Path("/"),
        )
    relayed = disk / "relayed"
    stage.relays["postgresql"] = Relay(relayed / ".s.PGSQL.5432", disk / "pg" / ".s.PGSQL.5432")
    stage.relays["redis"] = Relay(relayed / "redis.sock", disk / "redis" / "redis.sock")
    stage.database = f"postgresql://stockade@/stage?host={disk / 'pg'}"
    for name in ("server", "worker"):
        urls = {
            "DATABASE_URL": f"postgresql://stockade@/stage?host={relayed}",
            "REDIS_URL": f"unix://{relayed / 'redis.sock'}",
        }
        stage.units[name].environment = dict(stage.units[name].environment) | urls


@contextlib.asynccontextmanager
async def _relayed(stage: Stage) -> AsyncIterator[None]:
    for relay in stage.relays.values():
        await relay.start()
    try:
        yield
    finally:
        for relay in stage.relays.values():
            await relay.close()


async def _up(stage: Stage) -> None:
    """Start everything, in the order in which it needs each other."""
    deadline = time.monotonic() + UP_S
    if "postgresql" in stage.units:
        for name in ("postgresql", "redis"):
            stage.units[name].start()
        words = (postgresql_binaries() / "createdb", "-h", stage.disks["database"] / "pg", "-U", "stockade", "stage")
        while await asyncio.to_thread(_run, *words):
            if time.monotonic() > deadline:
                raise BenchError(f"PostgreSQL does not come up: {stage.units['postgresql'].lines()[-5:]}")
            await asyncio.sleep(0.1)
    stage.units["server"].start()
    while not await stage.answers():
        if time.monotonic() > deadline:
            raise BenchError(f"the server does not come up: {stage.units['server'].lines()[-5:]}")
        await asyncio.sleep(0.1)
    stage.units["worker"].start()


def _initialize(binaries: Path, folder: Path, user: int, group: int) -> None:
    words: tuple[str | Path, ...] = (
        binaries / "initdb", "--pgdata", folder / "data", "--auth=trust", "--username=stockade", "--encoding=UTF8",
        "--locale=C.UTF-8", "--no-sync", "--no-instructions", "--wal-segsize=1",
    )  # fmt: skip
    if _run(*words, user=user, group=group, cwd=folder):
        raise BenchError("PostgreSQL: initdb failed")


def _run(*words: str | Path, user: int | None = None, group: int | None = None, cwd: Path = Path("/")) -> int:
    quiet = subprocess.DEVNULL
    extra = () if user is not None else None
    return subprocess.run(
        words,
        stdin=quiet,
        stdout=quiet,
        stderr=quiet,
        timeout=TOOL_S,
        user=user,
        group=group,
        extra_groups=extra,
        cwd=cwd,
    ).returncode


@contextlib.contextmanager
def _small_disk(place: Path, size: int) -> Iterator[Path]:
    """A file system of *size* bytes."""
    place.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "faults", str(place)], check=True, timeout=20
    )
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=20)
