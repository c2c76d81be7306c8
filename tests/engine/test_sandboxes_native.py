"""The life of sandboxes and image builds with the real parts: native backend, both databases, ports of this host."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stockade.accounts.usage import UsageAccounting
from stockade.app.sandboxes import running_sandboxes
from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.backends.sandboxing import ProcessEnd, Streams
from stockade.config_accounts import PriceConfig
from stockade.config_sandboxes import BuildsConfig, LiveConfig
from stockade.engine import LimitPolicy
from stockade.engine.builds import BuildFailed
from stockade.engine.images import Images
from stockade.engine.ports import Ports
from stockade.engine.sandboxes import Sandboxes
from stockade.errors import Conflict, StockadeError, Unavailable, Unsupported
from stockade.model import (
    BuildFile,
    BuildSpec,
    EndedBy,
    ExecSpec,
    Network,
    NetworkMode,
    Outcome,
    Port,
    Sandbox,
    SandboxState,
)
from stockade.store.builds import BuildTable
from stockade.store.database import Database
from stockade.store.sandboxes import SandboxTable
from tests.backends.living import eventually
from tests.backends.sandboxes import MB, limits
from tests.engine.live_fakes import ONE, request
from tests.postgres import Postgres
from tests.store.databases import database, postgres, postgres_url, where

__all__ = ["database", "postgres", "postgres_url", "where"]

pytestmark = pytest.mark.anyio
UNENFORCED = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids")


@dataclass
class Server:
    """What outlives a server: a backend, a database and a directory; `running` is one server's life."""

    backend: NativeBackend
    database: Database
    directory: Path
    id: str = "00000000-0000-0000-0000-000000000001"
    ended: list[Sandbox] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Sandboxes]:
        accounting = UsageAccounting(self.database, PriceConfig())

        async def on_ended(sandbox: Sandbox) -> None:
            self.ended.append(sandbox)
            await accounting.record_end(sandbox)

        sandboxing = self.backend.sandboxing
        ports = Ports(sandboxing)
        async with (
            ports.running(),
            running_sandboxes(
                backend=sandboxing,
                table=SandboxTable(database=self.database, server_id=self.id),
                build_table=BuildTable(database=self.database, server_id=self.id),
                ports=ports,
                on_ended=on_ended,
                limits=LimitPolicy(defaults=limits(), maximum=limits(memory_bytes=1024 * MB)),
                live=LiveConfig(clean_up_s=0.5, most_lifetime_s=600.0),
                images=Images(aliases={"alpine:3.20": "host"}),
                builds=BuildsConfig(network="none", time_s=30.0, memory_bytes=256 * MB, layer_bytes=64 * MB),
                directory=self.directory / "images",
            ) as sandboxes,
        ):
            yield sandboxes


async def eventually_empty(server: "Server") -> None:
    """Wait until the backend knows of no sandbox; it takes the kernel a moment to take one apart."""
    deadline = time.monotonic() + 30
    while left := await server.backend.sandboxing.inventory():
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[NativeBackend]:
    options = BackendOptions(
        data_dir=tmp_path_factory.mktemp("data"), allow_unenforced=UNENFORCED if os.geteuid() else (), embedded=True
    )
    backend = NativeBackend(options)
    await backend.start()
    yield backend
    await backend.close()


@pytest.fixture
async def server(backend: NativeBackend, database: Database, tmp_path: Path) -> AsyncIterator[Server]:
    yield Server(backend=backend, database=database, directory=tmp_path)
    for one in await backend.sandboxing.inventory():
        await backend.sandboxing.remove(one.name)


async def output_of(streams: Streams) -> tuple[bytes, bytes, ProcessEnd]:
    """All of a process's output, and its end."""
    stdout, stderr = bytearray(), bytearray()
    try:
        async with asyncio.timeout(20):
            while True:
                output = await streams.read(len(stdout), len(stderr))
                stdout += output.stdout.data
                stderr += output.stderr.data
                if output.end is not None:
                    return bytes(stdout), bytes(stderr), output.end
    finally:
        streams.close()


async def ended(sandboxes: Sandboxes, sandbox_id: str) -> Sandbox:
    async def over() -> Sandbox | None:
        row = await sandboxes.get(ONE, sandbox_id)
        return row if row.state is SandboxState.ENDED else None

    row: Sandbox = await eventually(over)
    return row


def shell(text: str, **changes: Any) -> Any:
    return request(changes.pop("sandbox_id", "box-1"), command=("sh", "-c", text), limits=limits(), **changes)


async def test_a_short_command_is_recorded_and_its_output_kept(server: Server) -> None:
    async with server.running() as sandboxes:
        made = await sandboxes.create(ONE, shell("echo $V; pwd; echo low >&2; exit 42", env={"V": "x1"}, cwd="/tmp"))
        assert made.state is SandboxState.RUNNING
        out, err, end = await output_of(await sandboxes.attach(ONE, "box-1"))
        assert (out, err, end.exit_code) == (b"x1\n/tmp\n", b"low\n", 42)
        row = await sandboxes.get(ONE, "box-1")
        assert (row.state, row.ended_by, row.exit_code, row.outcome) == (
            SandboxState.ENDED,
            EndedBy.ITSELF,
            42,
            Outcome.EXITED,
        )
        assert row.usage is not None
        assert row.usage.memory_peak_bytes > 0
        assert await output_of(await sandboxes.attach(ONE, "box-1")) == (out, err, end)
    assert [one.id for one in server.ended] == ["box-1"]


async def test_a_program_that_is_not_there_ends_with_127(server: Server) -> None:
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, request(command=("no-such-program",), limits=limits()))
        assert (await ended(sandboxes, "box-1")).exit_code == 127


async def test_stop_lets_the_process_end_by_itself(server: Server) -> None:
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, shell("trap 'echo trapped; exit 5' TERM; echo ready; while :; do sleep 0.01; done"))
        streams = await sandboxes.attach(ONE, "box-1")
        async with asyncio.timeout(30):
            assert (await streams.read(0, 0)).stdout.data == b"ready\n"
        row = await sandboxes.stop(ONE, "box-1", grace_s=10.0)
        assert (row.ended_by, row.exit_code) == (EndedBy.STOP, 5)
        assert (await output_of(streams))[0] == b"ready\ntrapped\n"


async def test_stop_kills_when_the_grace_is_over_and_kill_at_once(server: Server) -> None:
    async with server.running() as sandboxes:
        for sandbox_id in ("box-1", "box-2"):
            await sandboxes.create(
                ONE, shell("trap '' TERM; echo ready; while :; do sleep 0.01; done", sandbox_id=sandbox_id)
            )
            streams = await sandboxes.attach(ONE, sandbox_id)
            async with asyncio.timeout(30):
                await streams.read(0, 0)
            streams.close()
        row = await sandboxes.stop(ONE, "box-1", grace_s=0.2)
        assert (row.ended_by, row.exit_code) == (EndedBy.STOP, 137)
        row = await sandboxes.kill(ONE, "box-2")
        assert (row.ended_by, row.exit_code, row.is_deleted) == (EndedBy.KILL, 137, True)


async def test_the_deadline_ends_it(server: Server) -> None:
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, request(command=("sleep", "60"), limits=limits(wall_s=0.5)))
        row = await ended(sandboxes, "box-1")
        assert (row.ended_by, row.exit_code, row.outcome) == (EndedBy.DEADLINE, 137, Outcome.WALL_TIME)


async def test_a_life_is_extended(server: Server) -> None:
    async with server.running() as sandboxes:
        made = await sandboxes.create(ONE, request(command=("sleep", "60"), limits=limits(wall_s=1.0)))
        extended = await sandboxes.extend(ONE, "box-1", 30.0)
        assert made.deadline_at is not None
        assert extended.deadline_at is not None
        assert (extended.deadline_at - made.deadline_at).total_seconds() > 20


async def test_further_processes_and_files(server: Server) -> None:
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, request(command=("sleep", "60"), env={"A": "1"}, limits=limits()))

        async def content() -> AsyncIterator[bytes]:
            yield b"some text\n"

        async with sandboxes.files(ONE, "box-1") as files:
            assert await files.write("/tmp/a/b.txt", content()) == 10
        execution = await sandboxes.exec(ONE, "box-1", ExecSpec(argv=("sh", "-c", "echo $A; cat b.txt"), cwd="/tmp/a"))
        assert (await output_of(execution.streams))[0] == b"1\nsome text\n"
        await execution.kill()
        root = await sandboxes.exec(ONE, "box-1", ExecSpec(argv=("id", "-u"), user="root"))
        assert (await output_of(root.streams))[0] == b"0\n"
        await root.kill()
        now = await sandboxes.usage(ONE, "box-1")
        assert now.memory_bytes > 0
        await sandboxes.kill(ONE, "box-1")
        with pytest.raises(Conflict):
            async with sandboxes.files(ONE, "box-1"):
                pass


async def test_a_port_leads_inside_and_is_the_same_after_a_restart(server: Server) -> None:
    serve = "import socket\ns = socket.create_server(('127.0.0.1', 8080))\nwhile True: s.accept()[0].send(b'hello')"
    exposed = Network(mode=NetworkMode.EXPOSED, ports=(Port(container=8080),))

    async def hello(port: int) -> bytes:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    try:
                        if data := await reader.read(5):
                            return data
                    finally:
                        writer.close()
                await asyncio.sleep(0.05)

    async with server.running() as sandboxes:
        try:
            made = await sandboxes.create(
                ONE, request(command=("python3", "-c", serve), network=exposed, limits=limits())
            )
        except Unsupported as error:
            pytest.skip(f"no outgoing network here: {error}")
        port = made.network.ports[0].host
        assert await hello(port) == b"hello"
    async with server.running() as sandboxes:
        assert await hello(port) == b"hello"
        assert (await sandboxes.get(ONE, "box-1")).network == made.network


async def test_sandboxes_outlive_the_server_with_their_output(server: Server) -> None:
    async with server.running() as sandboxes:
        for number in range(10):
            text = f"echo before; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo after; exit {number}"
            await sandboxes.create(ONE, shell(text, sandbox_id=f"box-{number}"))
    async with server.running() as sandboxes:
        assert len(sandboxes.lives) == 10
        for number in range(10):
            execution = await sandboxes.exec(ONE, f"box-{number}", ExecSpec(argv=("touch", "/tmp/go")))
            out, _, end = await output_of(await sandboxes.attach(ONE, f"box-{number}"))
            assert (out, end.exit_code) == (b"before\nafter\n", number)
            await execution.kill()
            assert (await ended(sandboxes, f"box-{number}")).exit_code == number


async def test_an_end_while_the_server_was_away_is_recorded_at_its_start(server: Server) -> None:
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, shell("sleep 0.3; exit 9"))

    async def over() -> bool:
        return not (await server.backend.sandboxing.inspect("box-1")).is_running

    await eventually(over)
    async with server.running() as sandboxes:
        assert (await sandboxes.lives.table.get("box-1")).exit_code == 9  # type: ignore[union-attr]
    assert [one.id for one in server.ended] == ["box-1"]


BUILD = BuildSpec(
    setup=("echo built > /opt/mark", "mkdir -p /srv/app && cp /opt/data.bin /srv/app/ && chmod 700 /srv/app/data.bin"),
    files=(BuildFile(path="/opt/data.bin", content=bytes(range(256)) * 1000, mode=0o755),),
)


async def test_a_build_is_in_every_sandbox_made_on_it(server: Server) -> None:
    async with server.running() as sandboxes:
        asked = [
            sandboxes.create(
                ONE, shell("cat /opt/mark; cksum < /srv/app/data.bin", build=BUILD, sandbox_id=f"box-{number}")
            )
            for number in range(8)
        ]
        await asyncio.gather(*asked)
        assert sandboxes.builds.made == 1
        outputs = {(await output_of(await sandboxes.attach(ONE, f"box-{number}")))[:2] for number in range(8)}
        assert len(outputs) == 1
        assert outputs.pop()[0].startswith(b"built\n")
        (layer,) = (server.directory / "images").glob("*.layer")
        assert layer.stat().st_mode & 0o777 == 0o600
    assert {one.name for one in await server.backend.sandboxing.inventory()} == {f"box-{n}" for n in range(8)}


async def test_a_build_that_fails_says_why(server: Server) -> None:
    async with server.running() as sandboxes:
        spec = BuildSpec(setup=("true", "echo about to fail; ls /no/such/thing"))
        with pytest.raises(BuildFailed) as failed:
            await sandboxes.create(ONE, shell("true", build=spec))
        assert "setup[1]" in str(failed.value)
        assert "about to fail" in failed.value.log
        assert "/no/such/thing" in failed.value.log
        assert (await sandboxes.get(ONE, "box-1")).ended_by is EndedBy.FAILURE
    await eventually_empty(server)


async def test_what_a_build_leaves_running_does_not_hold_it_up(server: Server) -> None:
    async with server.running() as sandboxes:
        spec = BuildSpec(setup=("nohup setsid sleep 300 > /dev/null 2>&1 & echo one > /opt/mark",))
        await sandboxes.create(ONE, shell("cat /opt/mark", build=spec))
        assert (await output_of(await sandboxes.attach(ONE, "box-1")))[0] == b"one\n"


async def test_the_end_of_the_server_does_not_wait_for_sandboxes(server: Server) -> None:
    async with server.running() as sandboxes:
        for number in range(20):
            await sandboxes.create(ONE, request(f"box-{number}", command=("sleep", "60"), limits=limits()))
        loop = asyncio.get_running_loop()
        began = loop.time()
    assert loop.time() - began < 5.0
    assert all(one.is_running for one in await server.backend.sandboxing.inventory())


async def test_two_servers_on_one_database_leave_each_others_sandboxes_alone(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options = BackendOptions(
        data_dir=tmp_path_factory.mktemp("other"), allow_unenforced=UNENFORCED if os.geteuid() else (), embedded=True
    )
    backend = NativeBackend(options)
    await backend.start()
    other = Server(
        backend=backend,
        database=server.database,
        directory=tmp_path_factory.mktemp("other-layers"),
        id="00000000-0000-0000-0000-000000000002",
    )
    try:
        async with server.running() as ours, other.running() as theirs:
            await ours.create(ONE, request("box-1", command=("sleep", "60"), limits=limits()))
            await theirs.create(ONE, request("box-2", command=("sleep", "60"), limits=limits()))
            for sandboxes in (ours, theirs):
                await sandboxes.reconciler.reconcile()
                assert [row.id for row in (await sandboxes.list(ONE)).items] == ["box-2", "box-1"]
            for call in (theirs.stop, theirs.kill, theirs.attach):
                with pytest.raises(Unavailable, match="another server"):
                    await call(ONE, "box-1")
            assert (await theirs.get(ONE, "box-1")).state is SandboxState.RUNNING
        async with server.running() as ours:
            assert "box-1" in ours.lives
            assert (await ours.get(ONE, "box-2")).state is SandboxState.RUNNING
            assert (await ours.kill(ONE, "box-1")).ended_by is EndedBy.KILL
    finally:
        await backend.close()


async def test_an_alias_is_an_image(server: Server) -> None:
    async with server.running() as sandboxes:
        made = await sandboxes.create(ONE, shell("echo here", image="alpine:3.20"))
        assert made.image == "alpine:3.20"
        assert (await output_of(await sandboxes.attach(ONE, "box-1")))[0] == b"here\n"


async def test_a_setup_command_may_not_outgrow_the_build(server: Server) -> None:
    async with server.running() as sandboxes:
        with pytest.raises(BuildFailed, match="it ended with 137") as failed:
            await sandboxes.create(ONE, shell("true", build=BuildSpec(setup=("python3 -c 'x = bytearray(10 ** 9)'",))))
        assert "Killed" in failed.value.log
    await eventually_empty(server)


async def test_a_database_that_is_gone_for_a_while_costs_no_sandbox_and_no_end(
    backend: NativeBackend, postgres: Postgres, tmp_path: Path
) -> None:
    async with await Database.open(postgres.new_database()) as database:
        server = Server(backend=backend, database=database, directory=tmp_path)
        async with server.running() as sandboxes:
            await sandboxes.create(ONE, shell("while [ ! -e /tmp/go ]; do sleep 0.01; done; exit 6"))
            await sandboxes.create(ONE, request("box-2", command=("sleep", "60"), limits=limits()))
            postgres.stop()
            try:
                with pytest.raises(Unavailable):
                    await sandboxes.create(ONE, request("box-3", command=("sleep", "60"), limits=limits()))
                # What runs can be used meanwhile; what has ended is not said to run.
                touching = await sandboxes.exec(ONE, "box-1", ExecSpec(argv=("touch", "/tmp/go")))
                with contextlib.suppress(StockadeError):  # its sandbox may be quicker to end
                    await asyncio.wait_for(touching.streams.read(0, 0), 20)
                await touching.kill()
                with pytest.raises(Unavailable):
                    await ended(sandboxes, "box-1")
            finally:
                postgres.start()

            async def recorded() -> Sandbox | None:
                with contextlib.suppress(Unavailable):
                    return await ended(sandboxes, "box-1")
                return None

            row = await eventually(recorded)
            assert row.exit_code == 6
            assert (await sandboxes.get(ONE, "box-2")).state is SandboxState.RUNNING
            assert {one.name for one in await backend.sandboxing.inventory()} == {"box-1", "box-2"}
            for name in ("box-1", "box-2"):
                await sandboxes.kill(ONE, name)
