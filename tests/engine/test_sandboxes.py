"""The life of a sandbox, over a backend and a table in memory: what each call does, and what is left when it fails."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path

import pytest

from stockade.backends.sandboxing import MAIN
from stockade.engine.sandboxes import Sandboxes
from stockade.errors import (
    Conflict,
    Fault,
    Invalid,
    InvalidLimit,
    LimitExceeded,
    NotFound,
    StockadeError,
    Unavailable,
    UnknownImage,
)
from stockade.model import (
    Actor,
    EndedBy,
    ExecSpec,
    Network,
    NetworkMode,
    Outcome,
    Port,
    Protocol,
    SandboxState,
)
from tests.engine.live_fakes import ONE, OTHER, Server, limits, request, until

pytestmark = pytest.mark.anyio
EXPOSED = Network(mode=NetworkMode.EXPOSED, ports=(Port(container=8080),))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "images")


@pytest.fixture
async def sandboxes(server: Server) -> AsyncIterator[Sandboxes]:
    async with server.running() as sandboxes:
        yield sandboxes


async def test_a_sandbox_runs_when_create_returns(server: Server, sandboxes: Sandboxes) -> None:
    made = await sandboxes.create(ONE, request(env={"A": "b"}, cwd="/srv/", network=EXPOSED, labels={"x": "y"}))
    assert (made.state, made.cwd, made.account_id) == (SandboxState.RUNNING, "/srv", "account-one")
    assert made.started_at is not None
    assert made.deadline_at is not None
    assert (made.deadline_at - made.started_at).total_seconds() == pytest.approx(60.0, abs=0.1)
    assert made.network.ports[0].host > 0
    assert server.table.rows["box-1"] == made == await sandboxes.get(ONE, "box-1")
    main = server.backend.boxes["box-1"].processes[MAIN].spec
    assert (main.argv, main.cwd, main.env["A"], main.env["HOME"]) == (("sleep", "60"), "/srv", "b", "/home/user")
    assert sandboxes.find_port("box-1", 8080) == made.network.ports[0]
    assert sandboxes.find_port("box-1", 8081) is None


async def test_an_image_gives_what_a_request_leaves_open(server: Server, sandboxes: Sandboxes) -> None:
    made = await sandboxes.create(ONE, request(image="python:3.12", command=None))
    assert (made.image, made.command, made.cwd) == ("python:3.12", ("/bin/sh",), "/home/user")
    assert server.backend.boxes["box-1"].spec.image == "host"


async def test_a_sandbox_may_have_no_main_process(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request(command=()))
    assert not server.backend.boxes["box-1"].processes
    with pytest.raises(Conflict, match="no main process"):
        await sandboxes.attach(ONE, "box-1")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"image": "alpine"}, UnknownImage),
        ({"command": ("",)}, Invalid),
        ({"command": ("a\0",)}, Invalid),
        ({"env": {"A=B": ""}}, Invalid),
        ({"env": {"": ""}}, Invalid),
        ({"env": {"A": "\0"}}, Invalid),
        ({"cwd": "srv"}, Invalid),
        ({"user": "daemon"}, Invalid),
        ({"sandbox_id": "No"}, Invalid),
        ({"limits": limits(wall_s=601.0)}, InvalidLimit),
        ({"limits": limits(memory_bytes=0)}, InvalidLimit),
        ({"network": Network(mode=NetworkMode.EXPOSED, ports=(Port(container=65536),))}, Invalid),
        ({"network": Network(ports=(Port(container=Port.BOUND, protocol=Protocol.UDP),))}, Invalid),
        ({"network": Network(ports=(Port(container=Port.BOUND, host=65536),))}, Invalid),
        ({"secret_digest": "the secret itself"}, Invalid),
        ({"network": Network(mode=NetworkMode.EXPOSED, ports=(Port(container=1), Port(container=1)))}, Invalid),
        ({"network": Network(mode=NetworkMode.OUTGOING, allow_cidrs=("10.0.0.1/8",))}, Invalid),
        ({"network": Network(mode=NetworkMode.OUTGOING, allow_domains=("a b",))}, Invalid),
    ],
)
async def test_what_can_never_be_is_refused_before_anything_is_recorded(
    server: Server, sandboxes: Sandboxes, changes: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await sandboxes.create(ONE, request(**changes))  # type: ignore[arg-type]
    assert not server.table.rows
    assert not server.backend.calls[1:]  # the inventory at the start


async def test_a_plan_bounds_memory_and_life(sandboxes: Sandboxes) -> None:
    small = Actor(id="small", account_id="s", max_duration_s=30.0, max_memory_bytes=64 << 20)
    with pytest.raises(InvalidLimit, match="your plan"):
        await sandboxes.create(small, request())
    with pytest.raises(InvalidLimit, match="memory_bytes"):
        await sandboxes.create(small, request(limits=limits(wall_s=30.0)))
    await sandboxes.create(small, request(limits=limits(wall_s=30.0, memory_bytes=64 << 20)))


async def test_ports_are_published_only_where_they_are_exposed(server: Server, sandboxes: Sandboxes) -> None:
    hidden = Network(mode=NetworkMode.OUTGOING, ports=(Port(container=8080),))
    made = await sandboxes.create(ONE, request(network=hidden))
    assert made.network.ports == ()
    assert not server.ports.open_for


async def test_a_quota_is_never_exceeded(server: Server, sandboxes: Sandboxes) -> None:
    few = Actor(id="few", account_id="f", concurrent_limit=5)
    asked = [sandboxes.create(few, request(f"box-{number}")) for number in range(50)]
    made = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(one, LimitExceeded) for one in made) == 45
    assert len(server.backend.boxes) == len(server.table.rows) == 5
    server.backend.exit(next(iter(server.backend.boxes)))
    await until(lambda: len(sandboxes.lives) == 4)
    await sandboxes.create(few, request("box-99"))


async def test_an_end_is_recorded_once_and_told(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request(network=EXPOSED))
    server.backend.exit("box-1", 42)
    ended = await sandboxes.get(ONE, "box-1")
    assert (ended.state, ended.ended_by, ended.outcome, ended.exit_code) == (
        SandboxState.ENDED,
        EndedBy.ITSELF,
        Outcome.EXITED,
        42,
    )
    assert ended.ended_at is not None
    assert ended.usage is not None
    await until(lambda: server.table.recorded == {"box-1"} and "box-1" not in sandboxes.lives)
    assert not server.ports.open_for
    assert sandboxes.find_port("box-1", 8080) is None


async def test_a_deadline_ends_a_sandbox(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request())
    server.backend.expire("box-1")
    ended = await sandboxes.get(ONE, "box-1")
    assert (ended.ended_by, ended.outcome, ended.exit_code) == (EndedBy.DEADLINE, Outcome.WALL_TIME, 137)


async def test_stop_waits_for_the_end(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request())
    stopped = await sandboxes.stop(ONE, "box-1", grace_s=1.0)
    assert (stopped.state, stopped.ended_by, stopped.exit_code) == (SandboxState.ENDED, EndedBy.STOP, 143)
    assert stopped == await sandboxes.get(ONE, "box-1")
    with pytest.raises(Conflict):
        await sandboxes.stop(ONE, "box-1")


async def test_stopping_what_ends_at_that_very_moment_is_a_stop(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request())
    server.backend.holds["stop"] = asyncio.Event()
    stopping = asyncio.create_task(sandboxes.stop(ONE, "box-1"))
    await until(lambda: ("stop", "box-1") in server.backend.calls)
    assert server.table.rows["box-1"].state is SandboxState.STOPPING
    server.backend.exit("box-1", 0)
    await until(lambda: server.table.rows["box-1"].state is SandboxState.ENDED)
    server.backend.holds.pop("stop").set()
    stopped = await stopping
    assert (stopped.ended_by, stopped.exit_code) == (EndedBy.STOP, 0)


async def test_kill_ends_and_deletes(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request())
    killed = await sandboxes.kill(ONE, "box-1")
    assert (killed.ended_by, killed.exit_code, killed.is_deleted) == (EndedBy.KILL, 137, True)
    assert not server.backend.boxes
    assert await sandboxes.kill(ONE, "box-1") == killed


async def test_kill_of_what_has_ended_keeps_how_it_ended(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request())
    server.backend.exit("box-1", 3)
    ended = await sandboxes.get(ONE, "box-1")
    killed = await sandboxes.kill(ONE, "box-1")
    assert killed.is_deleted
    assert (killed.ended_by, killed.exit_code, killed.ended_at) == (EndedBy.ITSELF, 3, ended.ended_at)
    assert not server.backend.boxes


async def test_a_foreign_sandbox_is_as_one_that_does_not_exist(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request())
    for call in (
        lambda name: sandboxes.get(OTHER, name),
        lambda name: sandboxes.stop(OTHER, name),
        lambda name: sandboxes.kill(OTHER, name),
        lambda name: sandboxes.extend(OTHER, name, 1.0),
        lambda name: sandboxes.attach(OTHER, name),
        lambda name: sandboxes.exec(OTHER, name, ExecSpec(argv=("true",))),
        lambda name: sandboxes.usage(OTHER, name),
    ):
        with pytest.raises(NotFound) as foreign:
            await call("box-1")
        with pytest.raises(NotFound) as unknown:
            await call("box-2")
        assert str(foreign.value).replace("box-1", "box-2") == str(unknown.value)
    with pytest.raises(NotFound):
        async with sandboxes.files(OTHER, "box-1"):
            pass
    assert (await sandboxes.get(ONE, "box-1")).state is SandboxState.RUNNING
    assert (await sandboxes.list(OTHER)).items == []
    assert [row.id for row in (await sandboxes.list(ONE)).items] == ["box-1"]


async def test_an_account_knows_the_sandboxes_of_all_its_keys_and_no_others(
    server: Server, sandboxes: Sandboxes
) -> None:
    await sandboxes.create(ONE, request())
    await sandboxes.create(replace(ONE, id="one-more"), request("box-2"))
    await sandboxes.create(OTHER, request("box-3"))
    account = ONE.account_id
    assert (await sandboxes.of_account(account, "box-2")).key_id == "one-more"
    assert {row.id for row in (await sandboxes.list_of_account(account)).items} == {"box-1", "box-2"}
    for sandbox_id in ("box-3", "box-4"):
        with pytest.raises(NotFound, match=f"sandbox {sandbox_id} not found"):
            await sandboxes.of_account(account, sandbox_id)
    with pytest.raises(NotFound):
        await sandboxes.of_account("", "box-1")
    await sandboxes.kill_of_account(account)
    assert set(server.backend.boxes) == {"box-3"}
    assert (await sandboxes.list_of_account(account, states={SandboxState.RUNNING})).items == []
    await sandboxes.kill_of_account(account)


async def test_what_runs_for_a_barred_account_is_killed(server: Server, sandboxes: Sandboxes) -> None:
    asked: list[set[str]] = []

    async def barred(account_ids: Collection[str]) -> Collection[str]:
        asked.append(set(account_ids))
        return {ONE.account_id}

    await sandboxes.kill_barred(barred)
    assert asked == []  # nothing runs: nobody need be asked
    await sandboxes.create(ONE, request())
    await sandboxes.create(OTHER, request("box-2"))
    await sandboxes.kill_barred(barred)
    assert asked == [{ONE.account_id, OTHER.account_id}]
    assert set(server.backend.boxes) == {"box-2"}
    assert (await sandboxes.get(ONE, "box-1")).ended_by is EndedBy.KILL


async def test_a_life_can_be_extended_up_to_the_maximum(server: Server, sandboxes: Sandboxes) -> None:
    made = await sandboxes.create(ONE, request())
    extended = await sandboxes.extend(ONE, "box-1", 500.0)
    assert made.deadline_at is not None
    assert extended.deadline_at is not None
    assert (extended.deadline_at - made.deadline_at).total_seconds() == pytest.approx(440.0, abs=5.0)
    assert extended.state is SandboxState.RUNNING
    for wrong in (601.0, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidLimit):
            await sandboxes.extend(ONE, "box-1", wrong)
    await sandboxes.kill(ONE, "box-1")
    with pytest.raises(Conflict):
        await sandboxes.extend(ONE, "box-1", 1.0)


async def test_output_is_read_after_a_natural_end_alone(server: Server, sandboxes: Sandboxes) -> None:
    for number, end in enumerate(("exit", "expire", "stop", "kill")):
        name = f"box-{number}"
        await sandboxes.create(ONE, request(name))
        if end in ("exit", "expire"):
            getattr(server.backend, end)(name)
            assert (await sandboxes.get(ONE, name)).state is SandboxState.ENDED
            assert (await (await sandboxes.attach(ONE, name)).read(0, 0)).end is not None
        else:
            await getattr(sandboxes, end)(ONE, name)
            with pytest.raises(Conflict):
                await sandboxes.attach(ONE, name)


async def test_output_is_kept_for_the_retention_and_no_longer(tmp_path: Path) -> None:
    server = Server(tmp_path, retention_s=0.2)
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, request())
        server.backend.exit("box-1")
        await sandboxes.get(ONE, "box-1")
        (await sandboxes.attach(ONE, "box-1")).close()
        await until(lambda: not server.backend.boxes)
        with pytest.raises(Conflict, match="no longer kept"):
            await sandboxes.attach(ONE, "box-1")


async def test_only_so_much_output_is_kept(tmp_path: Path) -> None:
    server = Server(tmp_path, most_kept=3)
    async with server.running() as sandboxes:
        for number in range(10):
            await sandboxes.create(ONE, request(f"box-{number}"))
            server.backend.exit(f"box-{number}")
            await sandboxes.get(ONE, f"box-{number}")
        await until(lambda: set(server.backend.boxes) == {"box-7", "box-8", "box-9"})


async def test_exec_starts_a_further_process(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request(env={"A": "1", "B": "1"}, cwd="/srv"))
    execution = await sandboxes.exec(ONE, "box-1", ExecSpec(argv=("id",), env={"B": "2"}, cwd="sub", user="root"))
    spec = server.backend.boxes["box-1"].processes[execution.process].spec
    assert (spec.env["A"], spec.env["B"], spec.env["HOME"], spec.cwd, spec.user) == (
        "1",
        "2",
        "/root",
        "/srv/sub",
        "root",
    )
    await execution.kill()
    await execution.kill()
    assert list(server.backend.boxes["box-1"].processes) == [MAIN]
    with pytest.raises(Invalid):
        await sandboxes.exec(ONE, "box-1", ExecSpec(argv=()))
    server.backend.exit("box-1")
    await sandboxes.get(ONE, "box-1")
    with pytest.raises(Conflict):
        await sandboxes.exec(ONE, "box-1", ExecSpec(argv=("id",)))


async def test_a_process_whose_caller_went_away_is_dropped(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request())
    server.backend.calls.clear()
    server.backend.holds["exec"] = asyncio.Event()
    asking = asyncio.create_task(sandboxes.exec(ONE, "box-1", ExecSpec(argv=("id",))))
    await until(lambda: ("exec", "box-1") in server.backend.calls)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    server.backend.holds.pop("exec").set()
    await until(lambda: ("forget_process", "box-1") in server.backend.calls)
    await until(lambda: list(server.backend.boxes["box-1"].processes) == [MAIN])


async def test_usage_is_told_while_it_runs_and_after(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request())
    now = await sandboxes.usage(ONE, "box-1")
    assert (now.usage.cpu_s, now.memory_bytes) == (0.75, 1 << 20)
    await sandboxes.stop(ONE, "box-1")
    then = await sandboxes.usage(ONE, "box-1")
    assert (then.usage.cpu_s, then.memory_bytes) == (0.75, 0)


STEPS = ("assign", "create", "exec", "move")


def break_at(server: Server, step: str, error: StockadeError) -> None:
    if step == "assign":
        server.ports.failure = error
    elif step != "move":
        server.backend.failures[step] = error


@pytest.mark.parametrize("step", ["assign", "create", "exec"])
async def test_a_creation_that_fails_leaves_only_its_record(server: Server, sandboxes: Sandboxes, step: str) -> None:
    break_at(server, step, Fault("broken"))
    with pytest.raises(Fault, match="broken"):
        await sandboxes.create(ONE, request(network=EXPOSED))
    row = server.table.rows["box-1"]
    assert (row.state, row.ended_by, row.message) == (SandboxState.ENDED, EndedBy.FAILURE, "broken")
    assert not server.backend.boxes
    assert not server.ports.open_for
    assert "box-1" not in sandboxes.creations


@pytest.mark.parametrize("step", ["create", "exec"])
async def test_a_creation_whose_caller_goes_away_is_taken_back(server: Server, sandboxes: Sandboxes, step: str) -> None:
    server.backend.holds[step] = asyncio.Event()
    asking = asyncio.create_task(sandboxes.create(ONE, request(network=EXPOSED)))
    await until(lambda: (step, "box-1") in server.backend.calls)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    server.backend.holds.pop(step).set()
    await until(lambda: server.table.rows["box-1"].state is SandboxState.ENDED and not server.backend.boxes)
    assert server.table.rows["box-1"].ended_by is EndedBy.FAILURE
    assert not server.ports.open_for


async def test_a_caller_that_goes_away_while_its_record_is_committed_leaves_nothing(
    server: Server, sandboxes: Sandboxes
) -> None:
    server.table.holds["insert"] = asyncio.Event()
    asking = asyncio.create_task(sandboxes.create(ONE, request()))
    await until(lambda: "box-1" in sandboxes.creations)
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    server.table.holds.pop("insert").set()
    await until(lambda: "box-1" not in sandboxes.creations)
    assert server.table.rows["box-1"].state is SandboxState.ENDED
    assert not server.backend.boxes


@pytest.mark.parametrize("call", ["stop", "kill"])
async def test_a_sandbox_can_be_ended_while_it_is_made(server: Server, sandboxes: Sandboxes, call: str) -> None:
    server.backend.holds["create"] = asyncio.Event()
    asking = asyncio.create_task(sandboxes.create(ONE, request()))
    await until(lambda: ("create", "box-1") in server.backend.calls)
    ending = asyncio.create_task(getattr(sandboxes, call)(ONE, "box-1"))
    await asyncio.sleep(0.01)
    server.backend.holds.pop("create").set()
    ended = await ending
    assert (ended.state, ended.ended_by) == (SandboxState.ENDED, EndedBy(call))
    with pytest.raises(Conflict, match="while it was being made"):
        await asking
    assert not server.backend.boxes


async def test_attach_waits_for_what_is_being_made(server: Server, sandboxes: Sandboxes) -> None:
    server.backend.holds["create"] = asyncio.Event()
    asking = asyncio.create_task(sandboxes.create(ONE, request()))
    await until(lambda: ("create", "box-1") in server.backend.calls)
    attaching = asyncio.create_task(sandboxes.attach(ONE, "box-1"))
    await asyncio.sleep(0.01)
    assert not attaching.done()
    server.backend.holds.pop("create").set()
    (await attaching).close()
    await asking


async def test_an_end_is_recorded_when_the_database_is_back(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request(network=EXPOSED))
    server.table.is_away = True
    server.backend.exit("box-1", 7)
    await until(lambda: not server.ports.open_for)
    with pytest.raises(Unavailable):
        await sandboxes.get(ONE, "box-1")
    with pytest.raises(Unavailable):
        await sandboxes.create(ONE, request("box-2"))
    server.table.is_away = False
    await until(lambda: server.table.rows["box-1"].state is SandboxState.ENDED)
    assert server.table.rows["box-1"].exit_code == 7
    await until(lambda: server.table.recorded == {"box-1"})
    assert "box-2" not in server.table.rows
    assert list(server.backend.boxes) == ["box-1"]


async def test_a_database_that_goes_away_half_way_leaves_no_sandbox(server: Server, sandboxes: Sandboxes) -> None:
    server.backend.holds["create"] = asyncio.Event()
    asking = asyncio.create_task(sandboxes.create(ONE, request(network=EXPOSED)))
    await until(lambda: ("create", "box-1") in server.backend.calls)
    server.table.is_away = True
    server.backend.holds.pop("create").set()
    with pytest.raises(Unavailable):
        await asking
    assert not server.backend.boxes
    assert not server.ports.open_for
    server.table.is_away = False
    await until(lambda: server.table.rows["box-1"].state is SandboxState.ENDED)


async def test_sandboxes_are_lost_with_their_warden(server: Server, sandboxes: Sandboxes) -> None:
    for number in range(5):
        await sandboxes.create(ONE, request(f"box-{number}", network=EXPOSED))
    server.backend.lose()
    with pytest.raises(Unavailable):
        await sandboxes.create(ONE, request("box-9"))
    with contextlib.suppress(Unavailable):
        await sandboxes.attach(ONE, "box-0")
    server.backend.come_back()
    await until(lambda: not len(sandboxes.lives))
    for number in range(5):
        row = server.table.rows[f"box-{number}"]
        assert (row.ended_by, row.outcome, row.exit_code) == (EndedBy.LOST, Outcome.LOST, None)
    assert not server.ports.open_for
    await sandboxes.create(ONE, request("box-10"))


async def test_a_warden_that_stays_away_is_given_up(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request())
    server.backend.lose()
    await until(lambda: server.table.rows["box-1"].ended_by is EndedBy.LOST)


async def test_a_connection_that_breaks_costs_no_sandbox(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request())
    server.backend.lose(sandboxes=False)
    await until(lambda: server.backend.calls.count(("inspect", "box-1")) > 1)
    server.backend.come_back()
    await until(lambda: server.backend.calls.count(("ended", "box-1")) > 1)
    assert server.table.rows["box-1"].state is SandboxState.RUNNING
    server.backend.exit("box-1", 0)
    await until(lambda: server.table.rows["box-1"].ended_by is EndedBy.ITSELF)
