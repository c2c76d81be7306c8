"""Processes that nobody waits for, over a backend in memory: what is started, listed, killed and told of them."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stockade.backends.sandboxing import LiveProcess, Reading, Refusal
from stockade.engine import processes as module
from stockade.engine.process_lines import Lines
from stockade.engine.processes import CannotStart, HasEnded, Processes
from stockade.errors import Conflict, Invalid, NotFound, Unavailable
from stockade.model import ExecSpec, Outcome
from tests.engine.live_fakes import ONE, OTHER, Server, request, until
from tests.engine.process_fakes import Logged, LoggedBackend

pytestmark = pytest.mark.anyio
SPEC = ExecSpec(argv=("/bin/sh", "-c", "true"), env={"A": "b"}, cwd="sub")


@pytest.fixture
def backend() -> LoggedBackend:
    return LoggedBackend()


@pytest.fixture
async def processes(tmp_path: Path, backend: LoggedBackend) -> AsyncIterator[Processes]:
    server = Server(tmp_path / "images", answer_s=1.0)
    server.backend = backend
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, request())
        yield Processes(sandboxes)


@pytest.fixture
async def process(processes: Processes, backend: LoggedBackend) -> Logged:
    await processes.start(ONE, "box-1", SPEC, id="p")
    return backend.logged["box-1"]["proc-p"]


async def collect(processes: Processes, **members: Any) -> list[tuple[bool, bytes]]:
    """All lines of the process `p`."""
    async with asyncio.timeout(30):
        found = processes.logs(ONE, "box-1", "p", **members)
        return [(batch.is_stderr, line) async for batch in found for line in batch.lines]


async def test_a_process_is_started_to_be_kept_and_without_input(processes: Processes, backend: LoggedBackend) -> None:
    started = await processes.start(ONE, "box-1", SPEC, id="0b9e6f0e-6c1b")
    assert (started.name, started.pid, started.argv, started.end) == ("0b9e6f0e-6c1b", 7, SPEC.argv, None)
    spec = backend.specs["proc-0b9e6f0e-6c1b"]
    assert (spec.keep, spec.log_bytes, spec.stdin, spec.cwd) == (True, 4 << 20, False, "/home/user/sub")
    assert spec.env["A"] == "b"
    assert backend.logged["box-1"]["proc-0b9e6f0e-6c1b"].readers == 0


@pytest.mark.parametrize("refusal", list(Refusal))
async def test_what_cannot_be_started_is_in_no_list(
    processes: Processes, backend: LoggedBackend, refusal: Refusal
) -> None:
    backend.refuses = refusal
    with pytest.raises(CannotStart) as refused:
        await processes.start(ONE, "box-1", SPEC, id="p")
    assert refused.value.refusal is refusal
    assert await processes.list(ONE, "box-1") == []


@pytest.mark.parametrize("id", ["", "A", "a_b", "a/b", "a" * 49])
async def test_an_id_is_a_name(processes: Processes, id: str) -> None:
    with pytest.raises(Invalid, match="id: "):
        await processes.start(ONE, "box-1", SPEC, id=id)


async def test_what_the_sandbox_could_never_start_is_refused(processes: Processes) -> None:
    with pytest.raises(Invalid):
        await processes.start(ONE, "box-1", ExecSpec(argv=("a\0b",)), id="p")


async def test_a_caller_who_goes_away_leaves_no_process(processes: Processes, backend: LoggedBackend) -> None:
    backend.holds["exec"] = asyncio.Event()
    starting = asyncio.create_task(processes.start(ONE, "box-1", SPEC, id="p"))
    await until(lambda: backend.calls.count(("exec", "box-1")) == 2)  # the main process, and this
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    backend.holds["exec"].set()
    await until(lambda: ("forget_process", "box-1") in backend.calls)
    assert await processes.list(ONE, "box-1") == []


async def test_who_is_told_to_try_again_has_no_process(
    processes: Processes, backend: LoggedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is late, the process is not."""
    started = backend.exec

    async def late(*args: Any, **members: Any) -> Any:
        (await started(*args, **members)).close()
        await asyncio.Event().wait()

    monkeypatch.setattr(backend, "exec", late)
    with pytest.raises(Unavailable):
        await processes.start(ONE, "box-1", SPEC, id="p")
    await until(lambda: not backend.logged["box-1"])


async def test_all_are_listed_in_the_order_of_their_start(processes: Processes, backend: LoggedBackend) -> None:
    for id in ("z", "a", "m"):
        await processes.start(ONE, "box-1", SPEC, id=id)
    backend.logged["box-1"]["proc-a"].finish(4)
    listed = await processes.list(ONE, "box-1")
    assert [one.name for one in listed] == ["z", "a", "m"]
    ended = listed[1].end
    assert ended is not None
    assert (ended.outcome, ended.exit_code) == (Outcome.EXITED, 4)


async def test_another_keys_sandbox_has_none(processes: Processes, process: Logged) -> None:
    for call in (
        processes.list(OTHER, "box-1"),
        processes.start(OTHER, "box-1", SPEC, id="q"),
        processes.kill(OTHER, "box-1", "p"),
        anext(processes.logs(OTHER, "box-1", "p")),
    ):
        with pytest.raises(NotFound):
            await call


async def test_after_a_kill_the_process_has_ended_with_all_that_it_started(
    processes: Processes, process: Logged, backend: LoggedBackend
) -> None:
    killed = await processes.kill(ONE, "box-1", "p")
    assert killed.name == "p"
    assert killed.end is not None
    assert killed.end.outcome is Outcome.SIGNALED
    assert backend.signals == [("proc-p", signal.SIGKILL, True)]


async def test_of_two_kills_one_succeeds(processes: Processes, process: Logged, backend: LoggedBackend) -> None:
    kills = [processes.kill(ONE, "box-1", "p") for _ in range(5)]
    answers = await asyncio.gather(*kills, return_exceptions=True)
    assert sorted(type(one) for one in answers if not isinstance(one, HasEnded)) == [LiveProcess]
    assert len(backend.signals) == 1


async def test_what_has_ended_is_not_killed(processes: Processes, process: Logged, backend: LoggedBackend) -> None:
    process.finish(0)
    with pytest.raises(HasEnded) as refused:
        await processes.kill(ONE, "box-1", "p")
    assert refused.value.process.name == "p"
    assert not backend.signals


async def test_a_process_that_is_quicker_than_its_kill_was_not_killed(
    processes: Processes, process: Logged, backend: LoggedBackend
) -> None:
    backend.holds["signal_process"] = asyncio.Event()
    killing = asyncio.create_task(processes.kill(ONE, "box-1", "p"))
    await until(lambda: ("signal_process", "box-1") in backend.calls)
    process.finish(3)
    backend.holds["signal_process"].set()
    with pytest.raises(HasEnded) as refused:
        await killing
    assert refused.value.process.end is not None
    assert refused.value.process.end.exit_code == 3


async def test_another_signal_is_only_sent(processes: Processes, process: Logged, backend: LoggedBackend) -> None:
    backend.shrugs_off.add(signal.SIGTERM)
    assert (await processes.kill(ONE, "box-1", "p", number=signal.SIGTERM)).end is None
    assert backend.signals == [("proc-p", signal.SIGTERM, True)]


async def test_a_process_that_does_not_end_in_time_is_said_to(
    processes: Processes, process: Logged, backend: LoggedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KILLED_S", 0.02)
    backend.shrugs_off.add(signal.SIGKILL)
    with pytest.raises(Unavailable):
        await processes.kill(ONE, "box-1", "p")


async def test_an_unknown_process_is_not_found(processes: Processes, process: Logged) -> None:
    with pytest.raises(NotFound, match="process nope not found"):
        await processes.kill(ONE, "box-1", "nope")
    with pytest.raises(NotFound, match="process nope not found"):
        await anext(processes.logs(ONE, "box-1", "nope"))


async def test_a_sandbox_that_has_ended_has_no_processes(
    processes: Processes, process: Logged, backend: LoggedBackend
) -> None:
    backend.boxes.pop("box-1")
    for call in (
        processes.list(ONE, "box-1"),
        processes.start(ONE, "box-1", SPEC, id="q"),
        processes.kill(ONE, "box-1", "p"),
        anext(processes.logs(ONE, "box-1", "p")),
    ):
        with pytest.raises(Conflict):
            await call


async def test_history_comes_first_and_then_what_is_new(processes: Processes, process: Logged) -> None:
    process.write(False, b"old\n")
    process.write(True, b"warn\nhal")
    logs = processes.logs(ONE, "box-1", "p")
    assert await anext(logs) == Lines(1000, False, [b"old"])
    assert await anext(logs) == Lines(1001, True, [b"warn"])
    coming = asyncio.ensure_future(anext(logs))
    await asyncio.sleep(0)
    process.write(True, b"f\nnew\n")
    assert await coming == Lines(1002, True, [b"half", b"new"])
    process.write(False, b"tail")
    process.finish()
    assert await anext(logs) == Lines(1003, False, [b"tail"])
    with pytest.raises(StopAsyncIteration):
        await anext(logs)
    assert process.readers == 0


async def test_a_reader_holds_nobody_back_for_long(
    processes: Processes, process: Logged, backend: LoggedBackend
) -> None:
    process.finish()
    assert await collect(processes) == []
    assert backend.readings == [Reading(patience_s=0.2)]


async def test_the_history_has_so_many_lines_over_both_streams(processes: Processes, process: Logged) -> None:
    for n in range(0, 14_000, 2):
        process.write(False, b"%d\n" % n)
        process.write(True, b"%d\n" % (n + 1))
    process.write(True, b"14000")
    process.finish()
    assert [line for _, line in await collect(processes)] == [b"%d" % n for n in range(4001, 14_001)]
    assert [line for _, line in await collect(processes, most_lines=2)] == [b"13999", b"14000"]


async def test_lines_longer_than_a_chunk_are_told_whole(processes: Processes, process: Logged) -> None:
    line = b"0123456789abcdef" * (3 << 16)
    process.write(False, line)
    process.write(True, b"between\n")
    process.write(False, b"\nlast\n")
    process.finish()
    assert await collect(processes) == [(True, b"between"), (False, line), (False, b"last")]


async def test_exactly_a_chunk_of_output_is_no_reason_to_wait(processes: Processes, process: Logged) -> None:
    """Whether more follows cannot be told from it; who looks for the beginning must not wait for that to come."""
    process.write(False, b"x" * ((1 << 18) - 1) + b"\n")
    async with asyncio.timeout(30):
        assert len((await anext(processes.logs(ONE, "box-1", "p"))).lines[0]) == (1 << 18) - 1


async def test_many_who_look_for_the_beginning_take_turns_and_all_find_it(
    processes: Processes, process: Logged
) -> None:
    process.write(False, b"".join(b"%d\n" % n for n in range(200_000)))
    process.finish()
    for lines in await asyncio.gather(*(collect(processes, most_lines=3) for _ in range(12))):
        assert lines == [(False, b"199997"), (False, b"199998"), (False, b"199999")]


async def test_who_stops_reading_lets_go_and_others_go_on(processes: Processes, process: Logged) -> None:
    process.write(False, b"one\n")
    never, others = processes.logs(ONE, "box-1", "p"), [asyncio.create_task(collect(processes)) for _ in range(3)]
    assert (await anext(never)).lines == [b"one"]
    await until(lambda: process.readers == 4)
    process.write(False, b"two\n")
    process.finish()
    for other in others:
        assert await other == [(False, b"one"), (False, b"two")]
    assert process.readers == 1
    await never.aclose()
    assert process.readers == 0


async def test_a_reader_who_is_cancelled_lets_go(processes: Processes, process: Logged) -> None:
    reading = asyncio.create_task(collect(processes))
    await until(lambda: process.readers == 1 and process.news)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert process.readers == 0


async def test_output_that_is_no_longer_kept_has_no_lines(processes: Processes, process: Logged) -> None:
    process.write(False, b"gone\n")
    reading = asyncio.create_task(collect(processes))
    await until(lambda: process.readers == 1 and process.news)
    process.evict()
    assert await reading == [(False, b"gone")]
    process.finish()
    assert await collect(processes) == []
    assert [one.name for one in await processes.list(ONE, "box-1")] == ["p"]


async def test_a_warden_that_dies_is_said_to_have(
    processes: Processes, process: Logged, backend: LoggedBackend
) -> None:
    backend.lose()
    with pytest.raises(Unavailable):
        await anext(processes.logs(ONE, "box-1", "p"))


async def test_long_lines_of_too_many_readers_are_cut(
    processes: Processes, process: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_HELD", 1 << 20)
    line = b"0123456789abcdef" * (1 << 16)  # a megabyte
    process.write(False, line)
    holding = [asyncio.create_task(collect(processes)) for _ in range(4)]
    await until(lambda: len(process.news) == 4)
    process.write(False, b"\n")
    process.finish()
    for reader in holding:
        ((_, shown),) = await reader
        assert line.endswith(shown)
        assert 1 << 18 <= len(shown) <= 1 << 20
    assert await collect(processes) == [(False, line)]
