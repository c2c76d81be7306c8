"""The client and our own server's dialect hold the wire together; behind the latter is an engine in memory."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from stockade.model import TerminalSize
from stockade.sdk import AsyncClient, BadRequest, Conflict, NotFound, Port, SandboxFile, Source, StreamFailed
from tests.dialects.execbox.conftest import Served, serving
from tests.dialects.execbox.fakes import Echo, Process

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, kw_only=True)
class Both:
    server: Served
    client: AsyncClient

    async def start(self, process: Process) -> str:
        """A sandbox whose main process is that one."""
        self.server.sandboxes.make = lambda: process
        return (await self.client.create("host")).id


@pytest.fixture
async def both(anyio_backend: str) -> AsyncIterator[Both]:
    async with serving() as served, AsyncClient(f"http://127.0.0.1:{served.port}", "key-a", timeout_s=10) as client:
        yield Both(server=served, client=client)


async def test_a_sandbox_is_made_as_it_was_asked_for(both: Both) -> None:
    made = await both.client.create(
        "host",
        ["sleep", "60"],
        env={"A": "b"},
        workdir="/srv",
        cpu_millis=500,
        memory_mb=256,
        timeout_s=30,
        network="exposed",
        ports=[Port(container=9000)],
        setup=["true"],
        files=[SandboxFile(path="/opt/x", content=b"\xff\0", mode=0o755)],
    )
    row = both.server.sandboxes.rows[made.id]
    assert (row.command, dict(row.env), row.cwd) == (("sleep", "60"), {"A": "b"}, "/srv")
    assert (row.limits.cpus, row.limits.memory_bytes, row.limits.wall_s) == (0.5, 256 << 20, 30)
    assert [port.container for port in row.network.ports] == [9000]
    found = await both.client.get(made.id)
    assert (found.status, found.image, found.network) == ("running", "host", made.network)
    assert [one.id for one in await both.client.sandboxes(status="running")] == [made.id]
    assert (await both.client.extend(made.id, 60)).expires_at is not None
    await both.client.stop(made.id)
    with pytest.raises(Conflict):
        await both.client.stop(made.id)
    await both.client.kill(made.id)
    assert (await both.client.get(made.id)).status == "killed"
    with pytest.raises(NotFound):
        await both.client.get("sess_000000000000")
    with pytest.raises(BadRequest):
        await both.client.create("")


async def test_a_process_with_a_terminal_is_typed_to_and_resized(both: Both) -> None:
    sandbox = await both.start(Process())
    both.server.sandboxes.make = Echo
    async with both.client.exec(
        sandbox, ["cat", "a b"], env={"A": "b=c"}, workdir="/tmp", user="root", terminal=(30, 90)
    ) as process:
        await process.resize(31, 91)
        await process.write(b"typed")
        chunk = await process.read(timeout_s=10)
        assert chunk is not None
        assert chunk.data == b"typed"
        await process.close_stdin()
        assert (await process.collect(timeout_s=10)).exit_code == 0
    spec, inside, _ = both.server.sandboxes.executions[0]
    assert (spec.argv, spec.env, spec.cwd, spec.user) == (("cat", "a b"), {"A": "b=c"}, "/tmp", "root")
    assert spec.terminal == TerminalSize(rows=30, columns=90)
    assert inside.sizes == [TerminalSize(rows=31, columns=91)]


async def test_an_attachment_goes_on_where_another_was(both: Both) -> None:
    main = Process()
    sandbox = await both.start(main)
    await main.print(b"0123456789")
    await main.print(b"error", to="stderr")
    async with both.client.attach(sandbox) as first:
        while first.stdout_offset + first.stderr_offset < 15:
            await first.read(timeout_s=10)
        offsets = first.stdout_offset, first.stderr_offset
    await main.print(b"more")
    await main.exit(3)
    async with both.client.attach(sandbox, stdout_offset=offsets[0], stderr_offset=offsets[1]) as second:
        finished = await second.collect(timeout_s=10)
    assert (finished.stdout, finished.stderr, finished.exit_code) == (b"more", b"", 3)


async def test_what_the_server_dropped_is_told_and_counted(both: Both) -> None:
    """The text of the notice is what the client counts by."""
    main = Process(kept=4)
    sandbox = await both.start(main)
    await main.print(b"0123456789")
    await main.exit(0)
    async with both.client.attach(sandbox) as process:
        finished = await process.collect(timeout_s=10)
    assert finished.stdout == b"6789"
    assert len(finished.notices) == 1
    assert process.stdout_offset == 10


async def test_a_lost_backend_is_told(both: Both) -> None:
    main = Process()
    sandbox = await both.start(main)
    async with both.client.attach(sandbox) as process:
        await main.lose()
        with pytest.raises(StreamFailed, match="the warden went away"):
            await process.collect(timeout_s=10)


async def test_files_are_written_read_and_listed(both: Both) -> None:
    sandbox = await both.start(Process())
    assert (await both.client.upload(sandbox, "/tmp/a", b"abcdef", mode=0o755)).size == 6
    assert await both.client.read_file(sandbox, "/tmp/a") == b"abcdef"
    async with both.client.download(sandbox, "/tmp/a", offset=2, length=3) as parts:
        assert b"".join([part async for part in parts]) == b"cde"
    with pytest.raises(NotFound):
        await both.client.read_file(sandbox, "/tmp/none")
    assert [one.name for one in await both.client.entries(sandbox, "/tmp")] == ["a"]


async def test_logs_and_stats_are_read(both: Both) -> None:
    main = Process()
    sandbox = await both.start(main)
    await main.print(b"out")
    await main.print(b"err", to="stderr")
    async with both.client.logs(sandbox) as parts:
        assert b"".join([part async for part in parts]) == b"out"
    async with both.client.logs(sandbox, Source.STDERR, tail=2) as parts:
        assert b"".join([part async for part in parts]) == b"rr"
    assert (await both.client.stats(sandbox))["memoryPeakBytes"] == 1 << 20
