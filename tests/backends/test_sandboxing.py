"""What every backend whose sandboxes live must do: the same cases for each."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from stockade.backends.base import Backend
from stockade.backends.sandboxing import MAIN, LiveExec, Output, Reading, Refusal, Sandboxing
from stockade.errors import Conflict, NotFound, Unavailable
from stockade.model import EndedBy, Outcome, Protocol, TerminalSize
from tests.backends.living import ENV, collect, eventually, live_spec, living, ran, start
from tests.backends.sandboxes import MB, running, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def sandboxing(backend: Backend) -> Sandboxing:
    found: Sandboxing | None = getattr(backend, "sandboxing", None)
    if found is None:
        pytest.skip("this backend's sandboxes do not live")
    return found


async def test_many_processes_share_files_and_processes_of_one_sandbox(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        await ran(sandboxing, name, "sh", "-c", "echo kept > /tmp/note; mkdir /srv/made")
        assert await ran(sandboxing, name, "cat", "/tmp/note") == (b"kept\n", b"", 0)
        sleeper = await start(sandboxing, name, "sleep", "77")
        out, _, _ = await ran(sandboxing, name, "pgrep", "-f", "sleep 77")
        assert out.strip().isdigit()
        sleeper.close()


async def test_streams_are_apart_binary_safe_and_complete(sandboxing: Sandboxing) -> None:
    every = bytes(range(256)) * 4096
    async with living(sandboxing) as name:
        out, err, code = await ran(sandboxing, name, "sh", "-c", "cat; echo low >&2; exit 9", stdin=every)
        assert (out, err, code) == (every, b"low\n", 9)


async def test_each_reader_gets_everything_also_after_the_end(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        first = await start(sandboxing, name, "sh", "-c", "echo one; sleep 0.2; echo two; exit 3", process="p")
        second = await sandboxing.open(name, "p")
        results = await asyncio.gather(collect(first), collect(second))
        late = await sandboxing.open(name, "p")
        results.append(await collect(late))
        assert {(out, end.exit_code) for out, _, end in results} == {(b"one\ntwo\n", 3)}
        assert (await collect(late, out=4))[0] == b"two\n"
        for one in (first, second, late):
            one.close()


async def test_a_reader_that_keeps_up_slows_the_process_and_misses_nothing(sandboxing: Sandboxing) -> None:
    """1,000 times what the log holds."""
    async with living(sandboxing, log_bytes=64 << 10) as name:
        out, _, code = await ran(sandboxing, name, "sh", "-c", "yes | head -c 67108864")
        assert (len(out), code) == (64 * MB, 0)
        assert out == b"y\n" * (32 * MB)


async def test_without_readers_the_oldest_output_is_dropped_and_it_is_said_how_much(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, log_bytes=64 << 10) as name:
        (await start(sandboxing, name, "sh", "-c", "yes | head -c 1000000; exit 3", process="p")).close()

        async def end() -> Output | None:
            reader = await sandboxing.open(name, "p")
            try:
                return await asyncio.wait_for(reader.read(0, 0), 20)
            finally:
                reader.close()

        async def all_is_there() -> Output | None:
            output = await end()
            return output if output is not None and output.stdout.end == 10**6 else None

        output = await eventually(all_is_there)
        assert output.stdout.dropped == 10**6 - (64 << 10)
        assert output.stdout.data == b"y\n" * (32 << 10)


async def test_a_reader_that_stalls_does_not_hold_the_process_for_ever(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, log_bytes=64 << 10) as name:
        spec = LiveExec(argv=("sh", "-c", "yes | head -c 1000000; exit 4"), env=ENV, cwd="/home/user")
        stalled = await sandboxing.exec(name, "p", spec, reading=Reading(patience_s=0.5))
        await asyncio.wait_for(stalled.read(0, 0), 20)  # and never again
        reader = await sandboxing.open(name, "p")
        total, at, end = 0, 0, None
        while end is None:
            output = await asyncio.wait_for(reader.read(at, 0), 40)
            at, end = output.stdout.end, output.end
            total += len(output.stdout.data) + output.stdout.dropped
        assert total == 10**6
        assert end.exit_code == 4
        stalled.close()
        reader.close()


async def test_input_is_streamed_and_closed(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        streams = await start(sandboxing, name, "cat")
        await streams.write(b"a")
        assert (await asyncio.wait_for(streams.read(0, 0), 20)).stdout.data == b"a"
        other = await sandboxing.open(name, (await sandboxing.inspect(name)).processes[0])
        await other.write(b"b")
        assert (await asyncio.wait_for(streams.read(1, 0), 20)).stdout.data == b"b"
        await other.close_stdin()
        assert not await streams.write(b"c")
        assert (await collect(streams))[2].exit_code == 0
        streams.close()
        other.close()


async def test_input_that_is_closed_while_others_come_is_closed(sandboxing: Sandboxing) -> None:
    """Whether the backend has heard of them before or after, and also when who closed it has gone by then."""
    async with living(sandboxing) as name:
        for turns in range(8):
            streams = await start(sandboxing, name, "cat", process=f"cat{turns}")
            coming = [asyncio.create_task(sandboxing.open(name, f"cat{turns}")) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            await streams.close_stdin()
            streams.close()
            others = await asyncio.gather(*coming)
            for one in others:
                assert (await collect(one))[2].exit_code == 0
                assert not await one.write(b"late")
                one.close()


async def test_a_process_is_forgotten_also_while_its_sandbox_takes_no_orders(sandboxing: Sandboxing) -> None:
    """It is killed as soon as that does again."""
    mark = "5135.77"
    async with living(sandboxing) as name:
        script = f"setsid sleep {mark} & exec sleep {mark}"
        streams = [await start(sandboxing, name, "sh", "-c", script, process=f"p{n}") for n in range(2)]
        await asyncio.to_thread(until, lambda: len(running(f"sleep {mark}")) == 4)
        (steward,) = {parent(pid) for pid in running(f"sleep {mark}")} - set(running(f"sleep {mark}"))
        os.kill(steward, signal.SIGSTOP)
        try:
            with contextlib.suppress(Unavailable):
                while True:
                    await sandboxing.signal_process(name, "p0", signal.SIGCONT)
            await sandboxing.forget_process(name, "p0")
            streams[1].discard()
            assert len(running(f"sleep {mark}")) == 4
        finally:
            os.kill(steward, signal.SIGCONT)
        await asyncio.to_thread(until, lambda: not running(f"sleep {mark}"))
        assert (await ran(sandboxing, name, "echo", "fine"))[0] == b"fine\n"


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])


async def test_a_further_process_of_one_name_has_input_of_its_own(sandboxing: Sandboxing) -> None:
    """Also while somebody holds what an earlier one had."""
    async with living(sandboxing) as name:
        earlier = [await start(sandboxing, name, "cat", process="p"), await sandboxing.open(name, "p")]
        for close in (False, True):
            if close:
                await earlier[-1].close_stdin()
            await sandboxing.forget_process(name, "p")
            earlier.append(await start(sandboxing, name, "cat", process="p"))
            reader = await sandboxing.open(name, "p")
            assert await earlier[-1].write(b"one")
            assert await reader.write(b"two")
            await reader.close_stdin()
            assert (await collect(reader))[0] == b"onetwo"
            reader.close()
        for one in earlier:
            one.close()


async def test_writing_to_a_process_that_does_not_read_waits_and_to_one_that_cannot_says_so(
    sandboxing: Sandboxing,
) -> None:
    async with living(sandboxing) as name:
        asleep = await start(sandboxing, name, "sleep", "60")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asleep.write(bytes(MB)), 0.3)
        asleep.close()
        deaf = await start(sandboxing, name, "sh", "-c", "exec <&-; echo shut; sleep 60")
        await asyncio.wait_for(deaf.read(0, 0), 20)
        assert not await asyncio.wait_for(deaf.write(b"x"), 20)
        deaf.close()


async def test_signals_reach_the_process_and_its_group(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:

        async def sleepers() -> bytes:
            return bytes((await ran(sandboxing, name, "pgrep", "-x", "sleep"))[0])

        async def is_alone() -> bool:
            return not await sleepers()

        streams = await start(sandboxing, name, "sh", "-c", "trap 'echo term; exit 5' TERM; sleep 60 & wait")
        await eventually(sleepers)
        await streams.signal(signal.SIGTERM)
        out, _, end = await collect(streams)
        assert (out, end.exit_code) == (b"term\n", 5)
        await eventually(is_alone)
        killed = await start(sandboxing, name, "sleep", "60")
        await killed.signal(signal.SIGKILL)
        _, _, end = await collect(killed)
        assert (end.outcome, end.exit_code) == (Outcome.SIGNALED, 137)
        await eventually(is_alone)
        for one in (streams, killed):
            one.close()


async def test_a_terminal_has_a_size_that_can_change_and_is_one_stream(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        script = "stty size; trap 'stty size; exit' WINCH; echo err >&2; tty; sleep 60 & wait"
        streams = await start(sandboxing, name, "bash", "-c", script, terminal=TerminalSize(rows=33, columns=99))
        seen = b""

        async def has_started() -> bool:
            nonlocal seen
            output = await asyncio.wait_for(streams.read(len(seen), 0), 20)
            seen += output.stdout.data
            return b"/dev/pts/" in seen

        await eventually(has_started)
        assert seen.startswith(b"33 99\r\nerr\r\n")
        await streams.resize(TerminalSize(rows=44, columns=111))
        out, err, _ = await collect(streams, out=len(seen))
        assert b"44 111" in out
        assert err == b""
        streams.close()


async def test_the_end_of_input_reaches_a_program_at_a_terminal(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        streams = await start(sandboxing, name, "cat", terminal=TerminalSize())
        await streams.write(b"line\n")
        await streams.close_stdin()
        out, _, end = await collect(streams)
        assert end.exit_code == 0
        assert out.endswith(b"line\r\n")
        streams.close()


async def test_a_program_that_is_not_there_ends_with_127_and_says_so(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        out, err, code = await ran(sandboxing, name, "no-such-program")
        assert (out, code) == (b"", 127)
        assert b"no-such-program" in err
        await ran(sandboxing, name, "sh", "-c", "echo text > /tmp/text")
        assert (await ran(sandboxing, name, "/tmp/text"))[2] == 126
        assert (await ran(sandboxing, name, "true", cwd="/nowhere"))[2] == 127


async def test_root_inside_owns_what_is_the_sandboxs_and_nothing_else(
    sandboxing: Sandboxing, request: pytest.FixtureRequest
) -> None:
    async with living(sandboxing) as name:
        out, err, code = await ran(sandboxing, name, "id", "-u", user="root")
        if code == 126 and b"one user id" in err:
            pytest.skip("an ordinary user's warden has one user id: there is no root inside")
        assert (out, code) == (b"0\n", 0)
        assert (await ran(sandboxing, name, "sh", "-c", "touch /tmp/x && chown 1:2 /tmp/x", user="root"))[2] == 0
        for attempt in (
            "mount -t tmpfs x /mnt",
            "touch /usr/x",
            "hostname x",
            "echo 1 > /proc/sys/kernel/panic",
            "unshare -m true",
            "mknod /tmp/sda b 8 0",
            "chroot / true",
            "kill -9 1; kill -0 1 && echo > /dev/null; cat /proc/1/environ > /tmp/env && test -s /tmp/env",
            "ip link set lo down",
        ):
            assert (await ran(sandboxing, name, "sh", "-c", attempt, user="root"))[2] != 0, attempt
        assert (await ran(sandboxing, name, "true"))[2] == 0  # it still lives
        out, _, _ = await ran(sandboxing, name, "sh", "-c", "grep CapEff /proc/self/status; id -u")
        assert out == b"CapEff:\t0000000000000000\n1000\n"


async def test_the_end_of_the_main_process_is_the_sandboxs(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        helper = await start(sandboxing, name, "sleep", "88")
        main = await start(sandboxing, name, "sh", "-c", "echo bye; exit 42", process=MAIN)
        ended = await asyncio.wait_for(sandboxing.ended(name), 20)
        assert (ended.ended_by, ended.outcome, ended.exit_code) == (EndedBy.ITSELF, Outcome.EXITED, 42)
        assert not ended.is_running
        assert ended.ended_at is not None
        assert ended.usage.wall_s > 0
        assert (await collect(main))[0] == b"bye\n"
        assert (await collect(helper))[2].exit_code == 137
        with pytest.raises(Conflict):
            await start(sandboxing, name, "true")
        again = await sandboxing.open(name, MAIN)
        assert (await collect(again))[0] == b"bye\n"
        for one in (helper, main, again):
            one.close()


async def test_stop_asks_first_and_kills_when_the_grace_is_over(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as polite, living(sandboxing) as stubborn:
        for name, script in (
            (polite, "trap 'echo done; exit 0' TERM; sleep 60 & wait"),
            (stubborn, "trap '' TERM; while :; do sleep 1; done"),
        ):
            (await start(sandboxing, name, "sh", "-c", f"{script}", process=MAIN)).close()
        assert (await ran(sandboxing, polite, "true"))[2] == 0
        await asyncio.gather(sandboxing.stop(polite, grace_s=30), sandboxing.stop(stubborn, grace_s=0.3))
        ended = await asyncio.wait_for(sandboxing.ended(stubborn), 20)
        assert (ended.ended_by, ended.exit_code) == (EndedBy.STOP, 137)
        ended = await asyncio.wait_for(sandboxing.ended(polite), 20)
        assert ended.ended_by is EndedBy.STOP


async def test_kill_ends_everything_whatever_it_ignores(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        script = "trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' & wait"
        (await start(sandboxing, name, "sh", "-c", script, process=MAIN)).close()
        await sandboxing.kill(name)
        ended = await asyncio.wait_for(sandboxing.ended(name), 20)
        assert (ended.ended_by, ended.exit_code) == (EndedBy.KILL, 137)
        await sandboxing.kill(name)


async def test_the_deadline_ends_it_and_can_be_moved(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, lifetime_s=0.2) as short, living(sandboxing, lifetime_s=0.5) as extended:
        await sandboxing.extend(extended, 60)
        ended = await asyncio.wait_for(sandboxing.ended(short), 20)
        assert (ended.ended_by, ended.outcome, ended.exit_code) == (EndedBy.DEADLINE, Outcome.WALL_TIME, 137)
        info = await sandboxing.inspect(extended)
        assert info.is_running
        assert info.deadline_at is not None
        assert info.deadline_at > info.started_at + 30
        await sandboxing.extend(extended, None)
        assert (await sandboxing.inspect(extended)).deadline_at is None


async def test_names_are_unique_and_what_is_removed_is_forgotten(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        with pytest.raises(Conflict):
            await sandboxing.create(name, live_spec())
        assert name in {one.name for one in await sandboxing.inventory()}
        await sandboxing.remove(name)

        async def is_gone() -> bool:
            return name not in {one.name for one in await sandboxing.inventory()}

        await eventually(is_gone)
        for call in (
            sandboxing.inspect(name),
            sandboxing.open(name, MAIN),
            sandboxing.kill(name),
            sandboxing.ended(name),
        ):
            with pytest.raises(NotFound):
                await call
        await sandboxing.remove(name)


async def test_what_has_ended_is_kept_for_as_long_as_was_asked(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, keep_s=0.2) as name:
        (await start(sandboxing, name, "true", process=MAIN)).close()

        async def is_gone() -> bool:
            return name not in {one.name for one in await sandboxing.inventory()}

        await eventually(is_gone)


async def test_a_process_that_is_forgotten_is_killed(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        streams = await start(sandboxing, name, "sleep", "99", process="p")
        await sandboxing.forget_process(name, "p")
        with pytest.raises(NotFound):
            await asyncio.wait_for(streams.read(0, 0), 20)

        async def is_gone() -> bool:
            return (await ran(sandboxing, name, "pgrep", "-f", "sleep 99"))[0] == b""

        await eventually(is_gone)
        await start(sandboxing, name, "true", process="q")
        with pytest.raises(Conflict):
            await start(sandboxing, name, "true", process="q")
        streams.close()


async def test_ports_are_dialled_in_the_sandboxs_own_network(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name, living(sandboxing) as other:
        serve = (
            "import socket; s = socket.create_server(('127.0.0.1', 8080)); print('up', flush=True)\n"
            "while 1: c, _ = s.accept(); c.sendall(c.recv(99).upper()); c.close()"
        )
        with pytest.raises(Unavailable):
            await sandboxing.dial(name, 8080, Protocol.TCP)
        server = await start(sandboxing, name, "python3", "-c", serve)
        await asyncio.wait_for(server.read(0, 0), 20)
        loop = asyncio.get_running_loop()
        with await sandboxing.dial(name, 8080, Protocol.TCP) as connection:
            await loop.sock_sendall(connection, b"hello")
            assert await asyncio.wait_for(loop.sock_recv(connection, 99), 20) == b"HELLO"
        with pytest.raises(Unavailable):
            await sandboxing.dial(other, 8080, Protocol.TCP)
        server.close()


async def test_one_process_that_outgrows_the_memory_dies_and_the_sandbox_lives_on(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, memory_bytes=64 * MB) as name:
        report = await ran(sandboxing, name, "true")
        assert report[2] == 0
        streams = await start(sandboxing, name, "python3", "-c", "x = bytearray(1 << 28)")
        _, _, end = await collect(streams)
        streams.close()
        if end.exit_code == 0:
            pytest.skip("memory is not enforced for this backend")
        assert end.outcome is Outcome.MEMORY
        assert (await ran(sandboxing, name, "true"))[2] == 0


async def test_a_process_bomb_is_contained_and_the_rest_can_still_be_ended(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, processes=32) as name:
        bomb = await start(sandboxing, name, "sh", "-c", "b() { b | b & }; b; sleep 60")
        await asyncio.sleep(0)
        await sandboxing.kill(name)
        assert (await asyncio.wait_for(sandboxing.ended(name), 20)).ended_by is EndedBy.KILL
        bomb.close()


async def test_fifty_at_once_are_made_used_and_removed(sandboxing: Sandboxing) -> None:
    async def one(n: int) -> bytes:
        async with living(sandboxing) as name:
            out, _, _ = await ran(sandboxing, name, "echo", str(n))
            return bytes(out)

    assert await asyncio.gather(*map(one, range(50))) == [f"{n}\n".encode() for n in range(50)]


async def test_dropped_readers_leave_no_descriptor(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        streams = await start(sandboxing, name, "sleep", "60", process="p")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(200):
            reader = await sandboxing.open(name, "p")
            task = asyncio.ensure_future(reader.read(0, 0))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            reader.close()
        assert len(os.listdir("/proc/self/fd")) <= before
        streams.close()


# ── processes that are kept, and how their output is read ───────────────────────────────────────────────────────────


def _pieces(outputs: list[Output]) -> bytes:
    """What was printed, in the order in which it came; what went to standard error in capitals."""
    data = [b"".join(one.stdout.data for one in outputs), b"".join(one.stderr.data for one in outputs)]
    done = [outputs[0].stdout.at, outputs[0].stderr.at]
    start = list(done)
    text = b""
    for output in outputs:
        ends = (output.stdout.end, output.stderr.end)
        for mark in output.marks:
            upto = min(mark.end, ends[mark.is_stderr])
            piece = data[mark.is_stderr][done[mark.is_stderr] - start[mark.is_stderr] : upto - start[mark.is_stderr]]
            text += piece.upper() if mark.is_stderr else piece
            done[mark.is_stderr] = max(done[mark.is_stderr], upto)
        assert tuple(done) == ends, "everything has a mark"
    return text


async def test_marks_tell_in_which_order_both_streams_came(sandboxing: Sandboxing) -> None:
    program = "for i in 1 2 3; do echo a$i; sleep 0.02; echo b$i >&2; sleep 0.02; done"
    async with living(sandboxing) as name:
        streams = await start(sandboxing, name, "sh", "-c", program)
        outputs, at = [], [0, 0]
        before = time.time_ns()
        while not outputs or outputs[-1].end is None:
            outputs.append(await asyncio.wait_for(streams.read(*at, most=5), 20))
            at = [outputs[-1].stdout.end, outputs[-1].stderr.end]
        assert _pieces(outputs) == b"a1\nB1\na2\nB2\na3\nB3\n"
        times = [mark.at_ns for output in outputs for mark in output.marks]
        assert before - 10**9 < min(times) <= max(times) < time.time_ns()
        assert _pieces([await streams.read(0, 0)]) == b"a1\nB1\na2\nB2\na3\nB3\n"  # and again
        streams.close()


async def test_more_marks_than_are_kept_leave_the_newest(sandboxing: Sandboxing) -> None:
    program = "import os\nfor i in range(9000): os.write(1, b'o'); os.write(2, b'e')"
    async with living(sandboxing) as name:
        streams = await start(sandboxing, name, "python3", "-c", program)
        out, err, end = await collect(streams)
        assert (len(out), len(err), end.exit_code) == (9000, 9000, 0)
        output = await streams.read(0, 0)
        assert output.marks[-1].end == 9000
        streams.close()


async def test_a_quick_command_is_answered_once_and_whole(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        spec = LiveExec(argv=("sh", "-c", "echo out; echo err >&2; exit 7"), env=ENV, cwd="/tmp", stdin=False)
        streams = await sandboxing.exec(name, "q", spec, reading=Reading(until_closed=True), gather=1 << 18)
        output = await asyncio.wait_for(streams.read(0, 0), 20)
        assert (output.stdout.data, output.stderr.data) == (b"out\n", b"err\n")
        assert output.end is not None
        assert output.end.exit_code == 7
        assert streams.pid > 1
        streams.discard()

        async def is_gone() -> bool:
            with contextlib.suppress(NotFound):
                (await sandboxing.open(name, "q")).close()
                return False
            return True

        await eventually(is_gone)


async def test_gathered_output_comes_before_the_ring_is_full(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, log_bytes=64 << 10) as name:
        spec = LiveExec(argv=("sh", "-c", "yes | head -c 3000000"), env=ENV, cwd="/tmp")
        streams = await sandboxing.exec(name, "q", spec, reading=Reading(until_closed=True), gather=1 << 18)
        out, at = b"", 0
        while True:
            output = await asyncio.wait_for(streams.read(at, 0, least=1 << 18), 20)
            assert not output.stdout.dropped
            out, at = out + output.stdout.data, output.stdout.end
            if output.end is not None:
                break
        assert out == b"y\n" * 1_500_000
        streams.discard()


async def test_its_end_is_told_when_its_children_have_let_go_or_at_once(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        argv = ("sh", "-c", "(sleep 0.5; echo late) & echo now")
        spec = LiveExec(argv=argv, env=ENV, cwd="/tmp")
        patient = await sandboxing.exec(name, "p", spec, reading=Reading(until_closed=True))
        at_once = await sandboxing.open(name, "p")
        assert (await collect(at_once))[0] == b"now\n"
        assert (await collect(patient))[0] == b"now\nlate\n"
        patient.close()
        at_once.close()


async def test_without_standard_input_it_is_dev_null(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        streams = await start(sandboxing, name, "sh", "-c", "readlink /proc/self/fd/0; cat", stdin=False)
        assert (await collect(streams))[0] == b"/dev/null\n"
        assert not await streams.write(b"x")
        streams.close()


@pytest.mark.parametrize(
    ("spec", "refusal"),
    [
        ({"argv": ("true",), "cwd": "/no/such"}, Refusal.CWD),
        ({"argv": ("true",), "cwd": "/etc/passwd"}, Refusal.CWD),
        ({"argv": ("no-such-program",), "cwd": "/"}, Refusal.PROGRAM),
        ({"argv": ("sh", "-c", ":" + " " * 140_000), "cwd": "/"}, Refusal.PROGRAM),
    ],
    ids=["no directory", "a file", "no program", "too long"],
)
async def test_what_was_never_started_says_why(sandboxing: Sandboxing, spec: dict[str, Any], refusal: Refusal) -> None:
    async with living(sandboxing) as name:
        streams = await sandboxing.exec(name, "p", LiveExec(env=ENV, **spec))
        _, _, end = await collect(streams)
        assert (streams.refusal, streams.pid, end.refusal) == (refusal, 0, refusal)
        streams.close()


async def test_kept_processes_are_listed_with_how_they_ended(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        for process, program in (("a", "exit 3"), ("b", "sleep 60"), ("c", "kill -9 $$")):
            (await start(sandboxing, name, "sh", "-c", program, process=process, keep=True)).close()
        (await start(sandboxing, name, "true", process="not-kept")).close()
        ended = await asyncio.wait_for(sandboxing.process_ended(name, "a"), 20)
        await asyncio.wait_for(sandboxing.process_ended(name, "c"), 20)
        listed = await sandboxing.processes(name)
        assert [one.name for one in listed] == ["a", "b", "c"]
        assert listed[0] == ended
        assert [one.end and (one.end.outcome, one.end.exit_code) for one in listed] == [
            (Outcome.EXITED, 3),
            None,
            (Outcome.SIGNALED, 137),
        ]
        assert listed[1].argv == ("sh", "-c", "sleep 60")
        assert listed[0].ended_at is not None
        assert listed[0].ended_at >= listed[0].started_at
        await sandboxing.forget_process(name, "a")
        assert [one.name for one in await sandboxing.processes(name)] == ["b", "c"]


async def test_long_lists_of_processes_come_in_parts(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        long = "x" * 90_000
        for number in range(5):
            (await start(sandboxing, name, "true", long, process=f"p{number}", keep=True)).close()
        assert [one.argv for one in await sandboxing.processes(name)] == [("true", long)] * 5


async def test_output_that_is_too_much_goes_and_the_facts_stay(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, log_bytes=256 << 10, kept_bytes=1 << 20) as name:
        for number in range(12):
            argv = ("head", "-c", "200000", "/dev/zero")
            streams = await start(sandboxing, name, *argv, process=f"p{number}", keep=True)
            await collect(streams)
            streams.close()
        assert [one.name for one in await sandboxing.processes(name)] == [f"p{number}" for number in range(12)]
        with pytest.raises(NotFound):
            await sandboxing.open(name, "p0")
        (await sandboxing.open(name, "p11")).close()
        assert (await sandboxing.process_ended(name, "p0")).end is not None
        with pytest.raises(Conflict):
            await start(sandboxing, name, "true", process="p0", keep=True)


async def test_what_ended_keeps_its_output_however_many_run(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, log_bytes=256 << 10, kept_bytes=1 << 20) as name:
        (await start(sandboxing, name, "echo", "first", process="first", keep=True)).close()
        for number in range(30):
            (await start(sandboxing, name, "sleep", "60", process=f"p{number}", keep=True)).close()
        streams = await sandboxing.open(name, "first")
        assert (await collect(streams))[0] == b"first\n"
        streams.close()
        (await start(sandboxing, name, "echo", "last", process="last", keep=True)).close()
        streams = await sandboxing.open(name, "last")
        assert (await collect(streams))[0] == b"last\n"
        streams.close()


@pytest.mark.parametrize("user", ["user", "root"])
async def test_a_tree_of_processes_gets_the_signal(sandboxing: Sandboxing, user: str) -> None:
    program = "setsid sh -c 'sleep 6001; :' & sh -c 'sleep 6002; :' & wait"
    async with living(sandboxing) as name:

        async def sleeping() -> bytes:
            return (await ran(sandboxing, name, "pgrep", "-fc", "sleep 600[12]$", user=user))[0].strip()

        streams = await start(sandboxing, name, "sh", "-c", program, process="p", user=user)
        if streams.refusal is not None:
            pytest.skip("an ordinary user's warden has one user id: there is no root inside")

        async def all_sleep() -> bool:
            return await sleeping() == b"2"

        await eventually(all_sleep)
        await sandboxing.signal_process(name, "p", signal.SIGKILL, tree=True)
        await asyncio.wait_for(sandboxing.process_ended(name, "p"), 20)

        async def none_sleeps() -> bool:
            return await sleeping() == b"0"

        await eventually(none_sleeps)
        streams.close()


async def test_what_a_process_left_in_its_group_goes_with_it(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        streams = await start(sandboxing, name, "sh", "-c", "sleep 6003 & exit", process="p")
        await asyncio.wait_for(sandboxing.process_ended(name, "p"), 20)

        async def is_there() -> bool:
            return (await ran(sandboxing, name, "pgrep", "-fc", "sleep 6003$"))[0] == b"1\n"

        await eventually(is_there)
        await sandboxing.forget_process(name, "p")

        async def is_gone() -> bool:
            return (await ran(sandboxing, name, "pgrep", "-fc", "sleep 6003$"))[0] == b"0\n"

        await eventually(is_gone)
        streams.close()


async def test_a_reader_who_is_not_waited_for_never_holds_anybody_back(sandboxing: Sandboxing) -> None:
    """What it is late for is missing, and never garbled, however fast the ring is written over."""
    program = "yes 123456789 | head -c 60000000"
    async with living(sandboxing, log_bytes=128 << 10) as name:
        spec = LiveExec(argv=("sh", "-c", program), env=ENV, cwd="/tmp")
        late = await sandboxing.exec(name, "p", spec, reading=Reading(patience_s=0))
        at, seen, dropped = 0, 0, 0
        while True:
            output = await asyncio.wait_for(late.read(at, 0, most=20_000), 20)
            one = output.stdout
            start_at = one.at % 10
            assert one.data == (b"123456789\n" * (len(one.data) // 10 + 2))[start_at : start_at + len(one.data)]
            seen, dropped, at = seen + len(one.data), dropped + one.dropped, one.end
            if output.end is not None:
                break
        assert seen + dropped == 60_000_000
        late.close()


async def test_a_life_of_many_days_leaves_the_backend_well(sandboxing: Sandboxing) -> None:
    """Timers of the kernel's may count milliseconds in 31 bits, which are 24.8 days; the backend has 366 days."""
    async with living(sandboxing, lifetime_s=300 * 86400.0) as name:
        await sandboxing.extend(name, 31 * 86400.0)
        assert (await ran(sandboxing, name, "true"))[2] == 0
