"""Bound ports: one at a time, durable, and known in memory at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stockade.engine.bindings import AlreadyBound, Bindings
from stockade.engine.sandboxes import Sandboxes
from stockade.errors import Conflict, Invalid, NotFound, Unavailable
from stockade.model import Sandbox, SandboxState
from tests.engine.live_fakes import ONE, OTHER, Server, Table, request, until

pytestmark = pytest.mark.anyio
BOX = "box-1"


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "images")


@pytest.fixture
async def sandboxes(server: Server, anyio_backend: str) -> AsyncIterator[Sandboxes]:
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, request(BOX))
        yield sandboxes


@pytest.fixture
def bindings(sandboxes: Sandboxes) -> Bindings:
    return Bindings(sandboxes)


async def test_a_port_is_bound_until_it_is_let_go(sandboxes: Sandboxes, bindings: Bindings) -> None:
    assert await bindings.bound(ONE, BOX) is None
    await bindings.bind(ONE, BOX, 8080)
    assert await bindings.bound(ONE, BOX) == sandboxes.lives.bound_port(BOX) == 8080
    for _ in range(2):
        await bindings.unbind(ONE, BOX)
        assert await bindings.bound(ONE, BOX) is sandboxes.lives.bound_port(BOX) is None
    await bindings.bind(ONE, BOX, 9090)
    assert await bindings.bound(ONE, BOX) == 9090


@pytest.mark.parametrize("port", [8080, 9090])
async def test_while_one_is_bound_no_other_is_nor_the_same_again(bindings: Bindings, port: int) -> None:
    await bindings.bind(ONE, BOX, 8080)
    with pytest.raises(AlreadyBound) as refusal:
        await bindings.bind(ONE, BOX, port)
    assert refusal.value.port == 8080


async def test_of_many_at_once_one_binds_and_the_others_are_told_which(bindings: Bindings) -> None:
    results = await asyncio.gather(
        *(bindings.bind(ONE, BOX, port) for port in range(8000, 8020)), return_exceptions=True
    )
    bound = await bindings.bound(ONE, BOX)
    refused = [one for one in results if one is not None]
    assert all(isinstance(one, AlreadyBound) and one.port == bound for one in refused), refused
    assert len(refused) == 19


@pytest.mark.parametrize("port", [0, -1, 65536])
async def test_what_is_no_port_is_not_bound(bindings: Bindings, port: int) -> None:
    with pytest.raises(Invalid):
        await bindings.bind(ONE, BOX, port)


async def test_a_bound_port_outlives_the_server(server: Server, sandboxes: Sandboxes, bindings: Bindings) -> None:
    await bindings.bind(ONE, BOX, 8080)
    async with server.running() as again:
        assert again.lives.bound_port(BOX) == await Bindings(again).bound(ONE, BOX) == 8080
        with pytest.raises(AlreadyBound):
            await Bindings(again).bind(ONE, BOX, 9090)


async def test_only_of_a_sandbox_that_runs_and_only_for_its_key(
    server: Server, sandboxes: Sandboxes, bindings: Bindings
) -> None:
    with pytest.raises(NotFound):
        await bindings.bind(OTHER, BOX, 8080)
    with pytest.raises(NotFound):
        await bindings.unbind(ONE, "nothing")
    await sandboxes.kill(ONE, BOX)
    for asked in (bindings.bind(ONE, BOX, 8080), bindings.unbind(ONE, BOX), bindings.bound(ONE, BOX)):
        with pytest.raises(Conflict, match="ended"):
            await asked
    assert sandboxes.lives.bound_port(BOX) is None


async def test_a_caller_that_goes_away_leaves_memory_and_database_alike(
    server: Server, sandboxes: Sandboxes, bindings: Bindings
) -> None:
    server.table.holds["bind"] = asyncio.Event()
    asking = asyncio.create_task(bindings.bind(ONE, BOX, 8080))
    for _ in range(5):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.sleep(0)
    server.table.holds["bind"].set()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert server.table.rows[BOX].bound_port == sandboxes.lives.bound_port(BOX) == 8080


async def test_while_the_database_is_away_nothing_changes(server: Server, bindings: Bindings) -> None:
    server.table.is_away = True
    with pytest.raises(Unavailable):
        await bindings.bind(ONE, BOX, 8080)
    assert await bindings.bound(ONE, BOX) is None
    server.table.is_away = False


async def test_a_bind_whose_answer_was_lost_is_found_out_and_can_be_undone(server: Server, bindings: Bindings) -> None:
    assert await server.table.bind(BOX, 8080) is not None  # committed, and nobody here heard of it
    with pytest.raises(AlreadyBound) as refusal:
        await bindings.bind(ONE, BOX, 9090)
    assert refusal.value.port == await bindings.bound(ONE, BOX) == 8080
    await bindings.unbind(ONE, BOX)
    await bindings.bind(ONE, BOX, 9090)


async def test_another_server_s_sandbox_is_not_bound_here(
    server: Server, sandboxes: Sandboxes, bindings: Bindings
) -> None:
    server.table.rows["far"] = replace(server.table.rows[BOX], id="far")
    with pytest.raises(Unavailable, match="another server"):
        await bindings.bind(ONE, "far", 8080)
    del server.table.rows["far"]


class SlowAnswers(Table):
    """Whose answer to the first move comes after everything else that can come."""

    first_answer: asyncio.Event | None = None

    async def move(self, sandbox_id: str, from_states: Collection[SandboxState], /, **changes: Any) -> Sandbox | None:
        answer = await super().move(sandbox_id, from_states, **changes)
        if (held := self.first_answer) is not None:
            self.first_answer = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(held.wait(), 0.1)
        return answer


async def test_changes_that_overlap_do_not_undo_each_other_in_memory(tmp_path: Path) -> None:
    """A longer life that was asked for first, and is answered last, leaves the port bound."""
    server = Server(tmp_path / "images")
    server.table = SlowAnswers()
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, request(BOX))
        server.table.first_answer = asyncio.Event()
        extending = asyncio.create_task(sandboxes.extend(ONE, BOX, 100.0))
        await until(lambda: server.table.first_answer is None)  # type: ignore[attr-defined]
        await Bindings(sandboxes).bind(ONE, BOX, 8080)
        await extending
        assert sandboxes.lives.find(BOX) == server.table.rows[BOX]
        assert sandboxes.lives.bound_port(BOX) == 8080
