"""Executions in real sandboxes: time limits, readers, input, and what a restart of the server leaves of them."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.backends.sandboxing import LiveProcess, ProcessEnd
from stockade.engine.execution_ids import has_timed_out, timeout_of
from stockade.engine.executions import AlreadyAttached, Executions, NotRead
from stockade.engine.sandboxes import Sandboxes
from stockade.errors import Invalid, InvalidLimit, NotFound
from stockade.model import ExecSpec, Outcome, Sandbox
from tests.backends.living import eventually
from tests.engine.live_fakes import ONE, Server, request

pytestmark = pytest.mark.anyio
UNENFORCED = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids")
WITHIN_S = 60.0
_numbers = itertools.count(1)


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
async def server(backend: NativeBackend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """What outlives a server."""
    server = Server(tmp_path_factory.mktemp("images"), sweep_s=30.0, lost_after_s=5.0, answer_s=10.0)
    server.backend = backend.sandboxing  # type: ignore[assignment]
    yield server
    for one in await backend.sandboxing.inventory():
        await backend.sandboxing.remove(one.name)


def sh(script: str) -> ExecSpec:
    return ExecSpec(argv=("sh", "-c", script))


async def made(sandboxes: Sandboxes) -> Sandbox:
    return await sandboxes.create(ONE, request(f"box-{next(_numbers)}", command=()))


async def ended(executions: Executions, row: Sandbox, id: str) -> LiveProcess:
    async with asyncio.timeout(WITHIN_S):
        return await executions.ended(row, id)


async def printed(executions: Executions, row: Sandbox, id: str) -> bytes:
    found = b""
    async with asyncio.timeout(WITHIN_S), executions.following(row, id) as follower:
        while True:
            output = await follower.streams.read(len(found), 0)
            found += output.stdout.data
            if output.end is not None:
                return found


async def test_a_time_limit_holds_across_a_restart_of_the_server(server: Server) -> None:
    """It is killed, and known to have run out of time, by a server that has never seen it begin."""
    async with server.running() as sandboxes:
        row, executions = await made(sandboxes), Executions(sandboxes)
        id = (await executions.start(row, sh("echo begun; sleep 60"), timeout_s=0.5)).name
        unlimited = (await executions.start(row, sh("sleep 0.1; echo gone on"))).name
    async with server.running() as sandboxes:
        executions = Executions(sandboxes)
        async with executions.running():
            found = await ended(executions, row, id)
            assert has_timed_out(found)
            assert found.end is not None
            assert found.end.exit_code == 137
            assert await printed(executions, row, id) == b"begun\n"
            assert await printed(executions, row, unlimited) == b"gone on\n"
            assert not has_timed_out(await executions.find(row, unlimited))
            assert [one.name for one in await executions.list(row)] == [id, unlimited]


async def test_one_is_attached_and_goes_on_behind_what_was_delivered(server: Server) -> None:
    async with server.running() as sandboxes:
        row, executions = await made(sandboxes), Executions(sandboxes)
        id = (await executions.start(row, sh("printf 123456; read x"))).name
        async with executions.following(row, id, attach=True) as follower:
            assert follower.at == (0, 0)
            assert executions.is_attached(row, id)
            with pytest.raises(AlreadyAttached):
                async with executions.following(row, id, attach=True):
                    pass
            async with executions.following(row, id) as other:  # to read is no attachment
                assert other.at == (0, 0)
            assert (await follower.streams.read(0, 0)).stdout.data == b"123456"
            follower.at = (3, 0)
        assert not executions.is_attached(row, id)
        async with executions.following(row, id, attach=True) as follower:
            assert follower.at == (3, 0)
        await executions.drop(row, id)
        with pytest.raises(NotFound):
            await executions.find(row, id)


async def test_of_two_who_attach_at_once_one_does(server: Server) -> None:
    async with server.running() as sandboxes:
        row, executions = await made(sandboxes), Executions(sandboxes)
        id = (await executions.start(row, sh("read x"))).name

        async def attach(held: AsyncExitStack) -> bool:
            try:
                await held.enter_async_context(executions.following(row, id, attach=True))
            except AlreadyAttached:
                return False
            return True

        async with AsyncExitStack() as held:
            assert sorted(await asyncio.gather(attach(held), attach(held))) == [False, True]


async def test_output_that_had_to_go_is_missed_and_its_end_is_known(server: Server) -> None:
    async with server.running() as sandboxes:
        row, executions = await made(sandboxes), Executions(sandboxes)
        id = (await executions.start(row, sh("echo gone; exit 4"))).name
        await ended(executions, row, id)
        name = f"proc-{id}"
        await sandboxes.lives.backend.forget_process(row.id, name)
        with pytest.raises(NotFound):
            async with executions.following(row, id):
                pass


async def test_input_that_nobody_reads_is_refused(server: Server) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"abc"

    async def nothing() -> AsyncIterator[bytes]:
        for part in ():
            yield part

    async with server.running() as sandboxes:
        row, executions = await made(sandboxes), Executions(sandboxes)
        id = (await executions.start(row, sh("exec <&-; sleep 60"))).name

        async def refused() -> bool:
            try:
                await executions.write(row, id, parts(), close=False)
            except NotRead:
                return True
            return False

        assert await eventually(refused)
        assert await executions.write(row, id, nothing(), close=True) == 0
        await executions.drop(row, id)


async def test_writers_have_their_turns(server: Server) -> None:
    """What one sends in parts is not mixed with another's."""

    async def parts(letter: bytes) -> AsyncIterator[bytes]:
        for _ in range(5):
            yield letter * 10
            await asyncio.sleep(0.001)

    async def nothing() -> AsyncIterator[bytes]:
        for part in ():
            yield part

    async with server.running() as sandboxes:
        row, executions = await made(sandboxes), Executions(sandboxes)
        id = (await executions.start(row, sh("cat"))).name
        writers = [
            asyncio.create_task(executions.write(row, id, parts(one), close=False)) for one in (b"a", b"b", b"c")
        ]
        assert await asyncio.gather(*writers) == [50, 50, 50]
        await executions.write(row, id, nothing(), close=True)
        assert await printed(executions, row, id) == b"a" * 50 + b"b" * 50 + b"c" * 50


async def test_whoever_gives_up_while_it_starts_leaves_nothing(server: Server) -> None:
    async with server.running() as sandboxes:
        row, executions = await made(sandboxes), Executions(sandboxes)
        starting = asyncio.create_task(executions.start(row, sh("sleep 60")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

        async def none_left() -> bool:
            return not await executions.list(row) and not executions.running_in(row.id)

        assert await eventually(none_left)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf"), 400 * 86400.0])
async def test_a_time_limit_must_be_one(server: Server, timeout_s: float) -> None:
    async with server.running() as sandboxes:
        row, executions = await made(sandboxes), Executions(sandboxes)
        with pytest.raises(InvalidLimit):
            await executions.start(row, sh("true"), timeout_s=timeout_s)
        with pytest.raises(Invalid):
            await executions.start(row, ExecSpec(argv=()))


@pytest.mark.parametrize(
    ("id", "timeout_s"),
    [("exec-0123456789abcdef", None), ("exec-0123456789abcdef1f4", 0.5), ("main", None), ("exec-", None)],
)
def test_the_id_says_the_time_limit(id: str, timeout_s: float | None) -> None:
    assert timeout_of(id) == timeout_s


@pytest.mark.parametrize(
    ("lasted_s", "outcome", "exit_code", "expected"),
    [
        (0.6, Outcome.SIGNALED, 137, True),
        (0.4, Outcome.SIGNALED, 137, False),
        (0.6, Outcome.SIGNALED, 143, False),
        (0.6, Outcome.EXITED, 137, False),
        (0.6, Outcome.CANCELLED, 137, False),
    ],
)
def test_only_a_kill_at_the_end_of_its_time_is_a_time_out(
    lasted_s: float, outcome: Outcome, exit_code: int, expected: bool
) -> None:
    process = LiveProcess(
        name="exec-0123456789abcdef1f4",
        argv=("sleep",),
        pid=2,
        started_at=100.0,
        ended_at=100.0 + lasted_s,
        end=ProcessEnd(outcome=outcome, exit_code=exit_code),
    )
    assert has_timed_out(process) is expected
