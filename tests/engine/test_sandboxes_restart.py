"""What a server finds when it starts, and any order of events: records and sandboxes come together, nothing leaks."""

import asyncio
import contextlib
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockade.backends.sandboxing import MAIN, LiveExec, LiveSpec
from stockade.engine import lives
from stockade.errors import StockadeError
from stockade.model import EndedBy, Network, NetworkMode, Port, Sandbox, SandboxState
from tests.engine.live_fakes import ONE, Server, limits, request, until

pytestmark = pytest.mark.anyio
EXPOSED = Network(mode=NetworkMode.EXPOSED, ports=(Port(container=8080),))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "images")


async def _in_backend(server: Server, name: str) -> None:
    await server.backend.create(name, LiveSpec(image="host", limits=limits(), cwd="/", lifetime_s=60.0))
    await server.backend.exec(name, MAIN, LiveExec(argv=("sleep", "60"), env={}, cwd="/"))


def _row(name: str, state: SandboxState) -> Sandbox:
    return Sandbox(
        id=name,
        account_id=ONE.account_id,
        key_id=ONE.id,
        dialect="tests",
        state=state,
        image="host",
        command=("sleep", "60"),
        env={},
        cwd="/",
        user="user",
        limits=limits(),
        network=Network(),
        labels={},
        created_at=datetime.now(UTC),
    )


async def test_sandboxes_outlive_the_server(server: Server) -> None:
    async with server.running() as sandboxes:
        made = [await sandboxes.create(ONE, request(f"box-{number}", network=EXPOSED)) for number in range(50)]
    assert len(server.backend.boxes) == 50
    server.backend.exit("box-7", 7)
    async with server.running() as sandboxes:
        assert server.table.rows["box-7"].exit_code == 7
        assert len(sandboxes.lives) == 49
        for one in made:
            if one.id != "box-7":
                assert await sandboxes.get(ONE, one.id) == one
                assert server.ports.open_for[one.id] == one.network
        assert "box-7" not in server.ports.open_for
        (await sandboxes.attach(ONE, "box-7")).close()
        server.backend.exit("box-8", 8)
        assert (await sandboxes.get(ONE, "box-8")).exit_code == 8
        await until(lambda: {"box-7", "box-8"} == server.table.recorded)


async def test_what_a_dead_server_was_making_is_taken_back(server: Server) -> None:
    server.table.rows["nothing"] = _row("nothing", SandboxState.CREATING)
    server.table.rows["half"] = _row("half", SandboxState.CREATING)
    await _in_backend(server, "half")
    async with server.running():
        for name in ("nothing", "half"):
            row = server.table.rows[name]
            assert (row.state, row.ended_by) == (SandboxState.ENDED, EndedBy.FAILURE)
        assert not server.backend.boxes


async def test_what_died_with_its_warden_is_lost(server: Server) -> None:
    server.table.rows["gone"] = _row("gone", SandboxState.RUNNING)
    async with server.running():
        assert server.table.rows["gone"].ended_by is EndedBy.LOST
        assert server.table.recorded == {"gone"}


async def test_what_nobody_has_a_record_of_is_removed(server: Server) -> None:
    await _in_backend(server, "stray")
    await _in_backend(server, "build-0123")
    await _in_backend(server, "deleted")
    await _in_backend(server, "over")
    await _in_backend(server, "kept")
    server.backend.exit("deleted")
    server.backend.exit("kept")
    for name in ("deleted", "over", "kept"):
        server.table.rows[name] = _row(name, SandboxState.ENDED)
    server.table.rows["deleted"] = replace(server.table.rows["deleted"], is_deleted=True)
    async with server.running():
        assert set(server.backend.boxes) == {"kept"}


async def test_a_stop_is_carried_on(server: Server) -> None:
    server.table.rows["half"] = _row("half", SandboxState.STOPPING)
    await _in_backend(server, "half")
    async with server.running():
        await until(lambda: server.table.rows["half"].state is SandboxState.ENDED)
        assert server.table.rows["half"].ended_by is EndedBy.STOP


async def test_a_deadline_that_was_not_recorded_is_taken_from_the_backend(server: Server) -> None:
    server.table.rows["box"] = _row("box", SandboxState.RUNNING)
    await _in_backend(server, "box")
    async with server.running():
        deadline_at = server.table.rows["box"].deadline_at
        assert deadline_at is not None
        assert deadline_at.timestamp() == pytest.approx(server.backend.boxes["box"].deadline_at)


async def test_an_end_that_was_not_told_is_told_again(server: Server) -> None:
    server.table.rows["box"] = _row("box", SandboxState.ENDED)
    async with server.running():
        assert server.table.recorded == {"box"}


async def test_a_creation_under_way_is_not_reaped(server: Server) -> None:
    async with server.running() as sandboxes:
        for step in ("create", "exec"):
            server.backend.holds[step] = asyncio.Event()
            asking = asyncio.create_task(sandboxes.create(ONE, request(f"box-{step}")))
            await until(lambda step=step: (step, f"box-{step}") in server.backend.calls)
            for _ in range(3):
                await sandboxes.reconciler.reconcile()
            server.backend.holds.pop(step).set()
            assert (await asking).state is SandboxState.RUNNING
        await sandboxes.reconciler.reconcile()
        assert len(server.backend.boxes) == 2


async def test_a_server_does_not_start_without_its_database(server: Server) -> None:
    server.table.is_away = True
    with pytest.raises(StockadeError):
        async with server.running():
            pass


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ("create", "exit", "expire", "stop", "kill", "extend", "cancel", "restart", "away", "back", "lose", "sweep")
        ),
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS)
def test_any_order_of_events_ends_in_legal_states(events: list[tuple[str, int, int]]) -> None:
    """`Table` refuses illegal moves; at the end records and sandboxes agree, and every end is told."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lives, "BACK_OFF_S", (0.001, 0.01))  # nobody waits for a real database here
        asyncio.run(_play(Server(Path(directory), lost_after_s=0.02), events))


async def _play(server: Server, events: list[tuple[str, int, int]]) -> None:
    numbers = [0, 0, 0, 0]
    calls: list[asyncio.Task[object]] = []
    remaining = iter(events)
    is_over = False
    while not is_over:
        async with server.running() as sandboxes:
            is_over = True
            for event, place, yields in remaining:
                name = f"box-{place}-{numbers[place]}"
                if event == "create":
                    numbers[place] += 1
                    new = request(f"box-{place}-{numbers[place]}", network=EXPOSED)
                    calls.append(asyncio.create_task(sandboxes.create(ONE, new)))
                elif event in ("exit", "expire"):
                    box = server.backend.boxes.get(name)
                    if box is not None and MAIN in box.processes:
                        getattr(server.backend, event)(name)
                elif event in ("stop", "kill"):
                    calls.append(asyncio.create_task(getattr(sandboxes, event)(ONE, name)))
                elif event == "extend":
                    calls.append(asyncio.create_task(sandboxes.extend(ONE, name, 5.0)))
                elif event == "cancel" and calls:
                    calls[-1 - place % len(calls)].cancel()
                elif event in ("away", "back"):
                    server.table.is_away = event == "away"
                elif event == "lose":
                    server.backend.lose()
                    server.backend.come_back()
                elif event == "sweep":
                    with contextlib.suppress(StockadeError):
                        await sandboxes.reconciler.reconcile()
                elif event == "restart":
                    is_over = False
                    break
                for _ in range(3 * yields):
                    await asyncio.sleep(0)
            else:
                server.table.is_away = False
                await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
                await until(lambda: not _disagreement(server, sandboxes))
        server.table.is_away = False
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert not isinstance(result, BaseException) or isinstance(
                result, StockadeError | asyncio.CancelledError
            ), repr(result)


def _disagreement(server: Server, sandboxes: object) -> str:
    unended = {row.id for row in server.table.rows.values() if row.state is not SandboxState.ENDED}
    ended = set(server.table.rows) - unended
    running = {box.name for box in server.backend.boxes.values() if box.facts is None}
    if unended != running:
        return f"recorded {unended}, running {running}"
    if any(server.table.rows[name].state is SandboxState.CREATING for name in unended):
        return "still being made"
    if ended != server.table.recorded:
        return f"ended {ended}, told {server.table.recorded}"
    if set(server.ports.open_for) != running:
        return f"ports of {set(server.ports.open_for)}, running {running}"
    return ""
