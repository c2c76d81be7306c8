"""Processes that nobody waits for, in real sandboxes: all that they print is told, and a kill reaches all of them."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from stockade.backends.base import BackendOptions
from stockade.backends.native.backend import NativeBackend
from stockade.backends.sandboxing import LiveProcess, Refusal
from stockade.engine.process_lines import Lines
from stockade.engine.processes import CannotStart, HasEnded, Processes
from stockade.engine.sandboxes import Sandboxes
from stockade.errors import Conflict
from stockade.model import ExecSpec, Outcome
from tests.backends.living import eventually
from tests.engine.live_fakes import ONE, Server, request

pytestmark = pytest.mark.anyio
UNENFORCED = ("memory", "swap", "processes", "cpu_rate", "cpu_time", "own_ids")
_ids = itertools.count(1)
Shown = list[tuple[bool, str]]
"""Lines, and whether they are on standard error."""


@dataclass
class Shell:
    """Processes of one sandbox."""

    sandboxes: Sandboxes
    processes: Processes = field(init=False)

    def __post_init__(self) -> None:
        self.processes = Processes(self.sandboxes)

    async def start(self, script: str, **members: Any) -> str:
        id = f"test-{next(_ids)}"
        spec = ExecSpec(argv=("/bin/sh", "-c", script), **members)
        started = await self.processes.start(ONE, "box-1", spec, id=id)
        assert started.pid > 1
        return id

    async def ended(self, id: str) -> LiveProcess:
        async def over() -> LiveProcess | None:
            found = await self.find(id)
            return found if found.end is not None else None

        ended: LiveProcess = await eventually(over)
        return ended

    async def find(self, id: str) -> LiveProcess:
        return next(one for one in await self.processes.list(ONE, "box-1") if one.name == id)

    async def batches(self, id: str) -> list[Lines]:
        async with asyncio.timeout(30):
            return [batch async for batch in self.processes.logs(ONE, "box-1", id)]

    async def shown(self, id: str) -> Shown:
        return [(one.is_stderr, line.decode()) for one in await self.batches(id) for line in one.lines]

    async def do(self, script: str) -> None:
        """Run something in the sandbox to its end."""
        assert (await self.ended(await self.start(script))).end is not None


@pytest.fixture(scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[NativeBackend]:
    options = BackendOptions(
        data_dir=tmp_path_factory.mktemp("data"), allow_unenforced=UNENFORCED if os.geteuid() else (), embedded=True
    )
    backend = NativeBackend(options)
    await backend.start()
    yield backend
    await backend.close()


@pytest.fixture(scope="module")
async def server(backend: NativeBackend, tmp_path_factory: pytest.TempPathFactory) -> Server:
    server = Server(tmp_path_factory.mktemp("images"), sweep_s=30.0, lost_after_s=5.0, answer_s=10.0)
    server.backend = backend.sandboxing  # type: ignore[assignment]
    return server


@pytest.fixture(scope="module")
async def shell(server: Server) -> AsyncIterator[Shell]:
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, request(command=()))
        yield Shell(sandboxes)
        await sandboxes.kill(ONE, "box-1")


async def test_both_streams_are_told_in_the_order_in_which_they_came(shell: Shell) -> None:
    script = "for n in 1 2 3 4 5; do echo o$n; sleep 0.02; echo e$n >&2; sleep 0.02; done; printf tail"
    id = await shell.start(script)
    expected = [(bool(n % 2), f"{'oe'[n % 2]}{n // 2 + 1}") for n in range(10)] + [(False, "tail")]
    assert await shell.shown(id) == expected  # attached at once
    batches = await shell.batches(id)  # and after the end
    assert [(one.is_stderr, line.decode()) for one in batches for line in one.lines] == expected
    times = [one.at_ns for one in batches]
    assert times == sorted(times)
    assert times[-1] - times[0] > 150e6
    assert abs(times[-1] / 1e9 - time.time()) < 30


@pytest.mark.parametrize("script", ["echo a; echo b >&2", "echo a >&2; echo b"])
async def test_what_a_process_printed_last_keeps_its_order(shell: Shell, script: str) -> None:
    """Also where its end is known before its output has been looked at."""
    for _ in range(10):
        assert [line for _, line in await shell.shown(await shell.start(script))] == ["a", "b"]


async def test_history_comes_first_and_then_what_is_new_for_every_reader(shell: Shell) -> None:
    id = await shell.start("echo old; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo new; echo warn >&2")
    async with asyncio.timeout(30):
        readers = [shell.processes.logs(ONE, "box-1", id) for _ in range(3)]
        assert [(await anext(one)).lines for one in readers] == [[b"old"]] * 3
        await shell.do("touch /tmp/go")
        rest = [await _rest(one) for one in readers]
    assert [sorted(one) for one in rest] == [[b"new", b"warn"]] * 3
    await shell.ended(id)
    assert (await shell.shown(id))[0] == (False, "old")


async def test_the_last_ten_thousand_lines_are_told(shell: Shell) -> None:
    id = await shell.start("seq 1 12000")
    await shell.ended(id)
    assert await shell.shown(id) == [(False, str(n)) for n in range(2001, 12001)]


async def test_the_last_ten_thousand_lines_are_those_of_both_streams(shell: Shell) -> None:
    id = await shell.start("seq 1 3500; sleep 0.05; seq 1 7000 >&2; sleep 0.05; seq 3501 7000")
    await shell.ended(id)
    shown = await shell.shown(id)
    out, err = ([int(line) for is_stderr, line in shown if is_stderr is which] for which in (False, True))
    assert len(shown) == 10_000
    assert out == list(range(3501, 7001))
    assert err == list(range(501, 7001))
    assert [is_stderr for is_stderr, _ in shown] == [True] * 6500 + [False] * 3500


async def test_short_processes_lose_no_line(shell: Shell) -> None:
    for _ in range(3):
        ids = [await shell.start("echo hi; printf tail") for _ in range(20)]
        for id in ids:
            assert await shell.shown(id) == [(False, "hi"), (False, "tail")]


async def test_a_burst_is_told_whole_to_a_hundred_readers_of_whom_one_never_reads(shell: Shell) -> None:
    id = await shell.start("while [ ! -e /tmp/burst ]; do sleep 0.01; done; seq 1 5000; sleep 0.1; echo end >&2")
    expected = [(False, str(n)) for n in range(1, 5001)] + [(True, "end")]
    never = shell.processes.logs(ONE, "box-1", id)
    readers = [asyncio.create_task(shell.shown(id)) for _ in range(99)]
    await shell.do("touch /tmp/burst")
    assert (await anext(never)).lines[0] == b"1"
    for reader in readers:
        assert await reader == expected
    await never.aclose()


async def test_a_line_of_three_megabytes_is_one(shell: Shell) -> None:
    id = await shell.start("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo next")
    assert [len(line) for _, line in await shell.shown(id)] == [3_000_000, 4]
    assert [len(line) for _, line in await shell.shown(id)] == [3_000_000, 4]


async def test_who_falls_behind_goes_on_with_whole_lines_up_to_the_last(shell: Shell) -> None:
    """Eleven megabytes, of which four are kept; nobody holds the process back."""
    id = await shell.start("seq -f %09.0f 1 1100000")
    logs = shell.processes.logs(ONE, "box-1", id)
    first = await anext(logs)
    await shell.ended(id)
    rest = await _rest(logs)
    shown = [int(line) for line in (*first.lines, *rest)]
    assert shown == sorted(set(shown))
    assert shown[-1] == 1_100_000
    assert 400_000 < len(shown) < 1_100_000


async def test_a_child_that_is_left_behind_keeps_no_reader_waiting(shell: Shell) -> None:
    id = await shell.start("sleep 60 & echo done")
    assert await shell.shown(id) == [(False, "done")]
    ended = await shell.ended(id)
    assert ended.end is not None
    assert ended.end.exit_code == 0


async def test_a_process_is_known_by_how_it_ended(shell: Shell) -> None:
    ends = []
    for script in ("true", "exit 4", "kill -9 $$"):
        end = (await shell.ended(await shell.start(script))).end
        assert end is not None
        ends.append((end.outcome, end.exit_code))
    assert ends == [(Outcome.EXITED, 0), (Outcome.EXITED, 4), (Outcome.SIGNALED, 137)]


async def test_a_process_has_no_input(shell: Shell) -> None:
    assert await shell.shown(await shell.start("cat; readlink /proc/self/fd/0")) == [(False, "/dev/null")]


async def test_a_kill_reaches_all_that_a_process_started(shell: Shell) -> None:
    """Its children, those that run in a session of their own too; and its readers are told the rest."""
    id = await shell.start("setsid sh -c 'sleep 6101; :' & (sleep 6102; :) & echo up; sleep 6103; echo x")
    reading = asyncio.create_task(shell.shown(id))
    running = "ps -eo args | grep -c '^sleep 610'"

    async def up() -> bool:
        return await shell.shown(await shell.start(running)) == [(False, "3")]

    await eventually(up)
    answers = await asyncio.gather(*(shell.processes.kill(ONE, "box-1", id) for _ in range(2)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in answers) == ["HasEnded", "LiveProcess"]
    end = (await shell.find(id)).end  # at once
    assert end is not None
    assert end.outcome is Outcome.SIGNALED

    async def gone() -> bool:
        return await shell.shown(await shell.start(running)) == [(False, "0")]

    await eventually(gone)
    assert await reading == [(False, "up")]
    with pytest.raises(HasEnded):
        await shell.processes.kill(ONE, "box-1", id)


async def test_what_cannot_be_started_says_why(shell: Shell) -> None:
    before = await shell.processes.list(ONE, "box-1")
    with pytest.raises(CannotStart) as refused:
        await shell.start("true", cwd="/no/such")
    assert refused.value.refusal is Refusal.CWD
    with pytest.raises(CannotStart) as refused:
        await shell.start("x" * (140 << 10))
    assert refused.value.refusal is Refusal.PROGRAM
    assert await shell.processes.list(ONE, "box-1") == before


async def test_a_name_is_had_once(shell: Shell) -> None:
    id = await shell.start("true")
    with pytest.raises(Conflict):
        await shell.processes.start(ONE, "box-1", ExecSpec(argv=("true",)), id=id)
    assert (await shell.ended(id)).argv == ("/bin/sh", "-c", "true")


async def test_with_its_sandbox_a_process_and_its_readers_end(shell: Shell) -> None:
    await shell.sandboxes.create(ONE, request("box-2", command=()))
    spec = ExecSpec(argv=("/bin/sh", "-c", "echo up; printf half; sleep 6104"))
    await shell.processes.start(ONE, "box-2", spec, id="p")
    logs = shell.processes.logs(ONE, "box-2", "p")
    assert (await anext(logs)).lines == [b"up"]
    rest = asyncio.create_task(_rest(logs))
    await shell.sandboxes.kill(ONE, "box-2")
    async with asyncio.timeout(30):
        assert await rest in ([], [b"half"])  # what is there is told, unless it is gone already
    with pytest.raises(Conflict):
        await shell.processes.list(ONE, "box-2")


async def _rest(logs: AsyncIterator[Lines]) -> list[bytes]:
    return [line async for batch in logs for line in batch.lines]


async def test_processes_and_what_they_printed_are_there_after_a_restart(server: Server, shell: Shell) -> None:
    id = await shell.start("echo before; while [ ! -e /tmp/again ]; do sleep 0.01; done; echo after")
    assert (await anext(shell.processes.logs(ONE, "box-1", id))).lines == [b"before"]
    async with server.running() as sandboxes:  # another server over the same warden and records
        again = Shell(sandboxes)
        assert (await again.find(id)).end is None
        await again.do("touch /tmp/again")
        assert await again.shown(id) == [(False, "before"), (False, "after")]
        assert (await again.processes.list(ONE, "box-1"))[0].name == "test-1"
