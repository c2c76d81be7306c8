"""Runs on the real backend: what a program is, does and uses becomes the right result."""

import pytest

from stockade.engine import Engine
from stockade.model import Actor, LimitOverrides, OnOutputLimit, Outcome, RunResult, RunSpec

pytestmark = pytest.mark.anyio
ACTOR = Actor(id="test")
MB = 1 << 20


async def run(
    engine: Engine,
    code: str,
    *,
    stdin: bytes = b"",
    args: tuple[str, ...] = (),
    on_output_limit: OnOutputLimit = OnOutputLimit.KILL,
    **limits: float,
) -> RunResult:
    overrides = LimitOverrides(**limits)  # type: ignore[arg-type]
    spec = RunSpec(
        language="python", code=code, stdin=stdin, args=args, limits=overrides, on_output_limit=on_output_limit
    )
    return await engine.runs.run(ACTOR, spec)


async def test_a_program_prints_and_exits(engine: Engine) -> None:
    result = (await run(engine, "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(7)")).last
    assert (result.outcome, result.exit_code, result.stdout, result.stderr) == (Outcome.EXITED, 7, b"out\n", b"err\n")


async def test_stdin_and_arguments_reach_the_program_unchanged(engine: Engine) -> None:
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read() + repr(sys.argv[1:]).encode())"
    result = (await run(engine, code, stdin=b"\x00\xff\n", args=("a b", "$(id)", "ü", ""))).last
    assert result.stdout == b"\x00\xff\n" + repr(["a b", "$(id)", "ü", ""]).encode()


async def test_death_by_a_signal_is_reported_as_such(engine: Engine) -> None:
    result = (await run(engine, "import os; os.kill(os.getpid(), 11)")).last
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.SIGNALED, None, 11)


async def test_the_wall_limit_ends_a_sleeper_and_keeps_its_output(engine: Engine) -> None:
    result = (await run(engine, "print('a', flush=True)\nimport time; time.sleep(60)", wall_s=0.5)).last
    assert (result.outcome, result.stdout) == (Outcome.WALL_TIME, b"a\n")
    assert result.usage.wall_s == pytest.approx(0.5, abs=0.05)


async def test_the_cpu_limit_counts_all_processes_together(engine: Engine) -> None:
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    result = (await run(engine, code, cpu_s=0.5, wall_s=20)).last
    assert result.outcome is Outcome.CPU_TIME
    assert result.usage.cpu_s == pytest.approx(0.5, abs=0.15)


async def test_more_memory_than_allowed_is_an_outcome(engine: Engine) -> None:
    result = (await run(engine, "x = bytearray(600 << 20)", memory_bytes=64 * MB)).last
    assert result.outcome is Outcome.MEMORY
    assert result.usage.memory_peak_bytes <= 64 * MB


async def test_memory_of_a_child_counts_and_takes_the_parent_with_it(engine: Engine) -> None:
    code = "import os, time\nif os.fork() == 0: x = bytearray(600 << 20)\ntime.sleep(60)"
    assert (await run(engine, code, memory_bytes=64 * MB)).last.outcome is Outcome.MEMORY


async def test_a_fork_bomb_ends_as_processes(engine: Engine) -> None:
    result = (await run(engine, "import os\nwhile True: os.fork()", processes=20)).last
    assert result.outcome in (Outcome.PROCESSES, Outcome.CPU_TIME, Outcome.WALL_TIME)


async def test_a_full_disk_ends_as_disk(engine: Engine) -> None:
    code = "f = open('big', 'wb')\nfor _ in range(64): f.write(bytes(1 << 20))"
    result = (await run(engine, code, disk_bytes=8 * MB)).last
    assert result.outcome in (Outcome.DISK, Outcome.SIGNALED)
    many = await run(engine, "for i in range(10_000): open(str(i), 'w')", disk_inodes=500)
    assert many.last.outcome is Outcome.DISK


async def test_endless_output_ends_the_program_and_keeps_what_fits(engine: Engine) -> None:
    result = (await run(engine, "while True: print('x' * 999)", output_bytes=100_000)).last
    assert (result.outcome, result.stdout_truncated, len(result.stdout)) == (Outcome.OUTPUT, True, 100_000)


async def test_output_beyond_the_limit_can_be_dropped_instead(engine: Engine) -> None:
    code = "for _ in range(100): print('x' * 99_999)"
    result = (await run(engine, code, output_bytes=1000, on_output_limit=OnOutputLimit.DROP)).last
    assert (result.outcome, result.exit_code, result.stdout_truncated) == (Outcome.EXITED, 0, True)
    assert len(result.stdout) == 1000


async def test_nothing_waits_for_a_daemon_that_holds_the_output_open(engine: Engine) -> None:
    code = (
        "import os, signal, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    for n in range(1, 32):\n"
        "        try: signal.signal(n, signal.SIG_IGN)\n"
        "        except OSError: pass\n"
        "    if os.fork() == 0: time.sleep(60)\n"
        "    os._exit(0)\n"
        "print('parent')"
    )
    result = (await run(engine, code, wall_s=30)).last
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.EXITED, 0, b"parent\n")
    assert result.usage.wall_s < 30


async def test_usage_comes_from_the_kernel(engine: Engine) -> None:
    code = "import time\nx = bytearray(40 << 20)\nt = time.process_time()\nwhile time.process_time() - t < 0.3: pass"
    usage = (await run(engine, code)).last.usage
    assert usage.cpu_s >= 0.3
    assert usage.wall_s >= 0.3
    assert usage.memory_peak_bytes >= 40 * MB


async def test_one_compilation_serves_many_inputs(engine: Engine) -> None:
    code = '#include <stdio.h>\nint main(void){int n; scanf("%d", &n); printf("%d\\n", n * n); return 0;}'
    spec = RunSpec(language="c", code=code)
    limits = engine.runs.check(spec)
    async with engine.runs.prepare(ACTOR, spec) as program:
        assert program.runnable
        outputs = [
            (await engine.runs.run_program(ACTOR, program, limits, stdin=str(n).encode())).last.stdout for n in (3, 4)
        ]
    assert outputs == [b"9\n", b"16\n"]
