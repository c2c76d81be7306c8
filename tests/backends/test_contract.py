"""What `Backend` promises, on every backend."""

import asyncio
import socket

import pytest

from stockade.backends.base import Backend, BackendOptions, Glimpse, SandboxSpec
from stockade.backends.native import NativeBackend
from stockade.errors import Fault, Invalid, Unavailable, Unsupported
from stockade.model import Outcome
from tests.backends.sandboxes import MB, limits, run, running, spec, until

pytestmark = pytest.mark.anyio
PYTHON = "/usr/bin/python3"


async def enforced(backend: Backend, name: str) -> None:
    """Skip the test where the host cannot enforce *name*."""
    features = {feature.name: feature for feature in (await backend.report()).features}
    if not features[name].enforced:
        pytest.skip(f"{name} is not enforced here: {features[name].mechanism}")


# ── programs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_output_streams_come_apart_and_unchanged(backend: Backend) -> None:
    result = await run(backend, "/bin/sh", "-c", r"printf 'out\377\000'; printf err >&2")
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.EXITED, 0, None)
    assert (result.stdout, result.stderr) == (b"out\xff\0", b"err")
    assert result.succeeded
    assert (result.stdout_truncated, result.stderr_truncated) == (False, False)


async def test_output_can_be_seen_while_the_program_runs(backend: Backend) -> None:
    """And is the result's in the end, as that of any other."""
    seen: list[Glimpse] = []
    script = "printf out; printf err >&2; sleep 100"
    running = asyncio.create_task(
        backend.run(
            SandboxSpec(image="host", limits=limits(wall_s=3.0)), spec("/bin/sh", "-c", script), watched=seen.append
        )
    )

    def shows() -> bool:
        return bool(seen) and [seen[0].read(is_stderr=one, offset=1, most=10) for one in (False, True)] == [
            b"ut",
            b"rr",
        ]

    await asyncio.to_thread(until, shows)
    assert not running.done()
    result = await running
    assert (result.outcome, result.stdout, result.stderr) == (Outcome.WALL_TIME, b"out", b"err")
    assert seen[0].read(is_stderr=False, offset=0, most=10) == b""


async def test_a_watched_program_prints_no_more_than_its_limit(backend: Backend) -> None:
    seen: list[Glimpse] = []
    result = await backend.run(
        SandboxSpec(image="host", limits=limits(output_bytes=1000)), spec("/usr/bin/yes"), watched=seen.append
    )
    assert (result.outcome, result.stdout_truncated, len(result.stdout)) == (Outcome.OUTPUT, True, 1000)


async def test_stdin_is_what_was_given_and_then_ends(backend: Backend) -> None:
    content = bytes(range(256)) * 4000
    assert (await run(backend, "/bin/cat", stdin=content)).stdout == content
    assert (await run(backend, "/bin/cat")).stdout == b""


@pytest.mark.parametrize("code", [0, 1, 3, 126, 127, 128, 137, 255])
async def test_exit_codes_are_the_programs_own(backend: Backend, code: int) -> None:
    result = await run(backend, "/bin/sh", "-c", f"exit {code}")
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.EXITED, code, None)


@pytest.mark.parametrize("number", [1, 6, 9, 11, 15])
async def test_a_signal_is_not_an_exit_code(backend: Backend, number: int) -> None:
    result = await run(backend, "/bin/sh", "-c", f"kill -{number} $$")
    assert (result.outcome, result.exit_code, result.signal) == (Outcome.SIGNALED, None, number)


async def test_a_program_that_is_not_there_counts_as_a_shell_counts_it(backend: Backend) -> None:
    missing = await run(backend, "no-such-program")
    assert (missing.outcome, missing.exit_code) == (Outcome.EXITED, 127)
    assert b"no-such-program" in missing.stderr
    refused = await run(backend, "/code/data", files={"data": b"not a program"})
    assert (refused.outcome, refused.exit_code) == (Outcome.EXITED, 126)


async def test_the_environment_is_what_was_given_and_nothing_else(backend: Backend) -> None:
    result = await run(backend, "/usr/bin/env", env={"A": "1 2", "B": "ü"})
    assert sorted(result.stdout.decode().splitlines()) == ["A=1 2", "B=ü"]


async def test_files_are_there_before_the_program_starts(backend: Backend) -> None:
    files = {"a": b"1", "deep/er/b": b"2\0", "ü": b"3"}
    result = await run(backend, "/bin/sh", "-c", "pwd; cat a deep/er/b ü; touch new", files=files, cwd="/code/here")
    assert (result.stdout, result.exit_code) == (b"/code/here\n12\x003", 0)


async def test_the_user_is_nobody_special(backend: Backend) -> None:
    script = "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status"
    lines = (await run(backend, "/bin/sh", "-c", script)).stdout.decode().split("\n")
    assert int(lines[0]) != 0
    facts = dict(line.split(":\t") for line in lines[1:] if line)
    assert facts == {"CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}


async def test_nothing_survives_its_run(backend: Backend) -> None:
    """Not a daemon that forked twice, left the session, closed its streams and ignores every signal."""
    script = (
        "import os, signal, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
        "        os.closerange(0, 100)\n"
        "        os.execv('/bin/sleep', ['sleep', '98765.25'])\n"
        "    os._exit(0)\n"
        "os.wait(); time.sleep(0.05); print('done')\n"
    )
    result = await run(backend, PYTHON, "-c", script)
    assert (result.outcome, result.stdout) == (Outcome.EXITED, b"done\n")
    assert not running("98765.25")


async def test_a_run_leaves_nothing_for_the_next(backend: Backend) -> None:
    script = "ls -A /tmp /var/tmp /dev/shm /code $HOME; for d in /tmp /var/tmp /dev/shm /code; do touch $d/left; done"
    first = await run(backend, "/bin/sh", "-c", script)
    second = await run(backend, "/bin/sh", "-c", script)
    assert first.exit_code == 0
    assert first.stdout == second.stdout


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_wall_limit_ends_a_sleeper(backend: Backend) -> None:
    result = await run(backend, "/bin/sh", "-c", "echo before; sleep 100", wall_s=0.3)
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.WALL_TIME, None, b"before\n")
    assert 0.3 <= result.usage.wall_s < 5


async def test_the_cpu_limit_ends_a_spinner(backend: Backend) -> None:
    await enforced(backend, "cpu_time")
    result = await run(backend, "/bin/sh", "-c", "while :; do :; done", cpu_s=0.3)
    assert result.outcome is Outcome.CPU_TIME
    assert result.usage.cpu_s >= 0.3


async def test_the_memory_limit_ends_a_hog(backend: Backend) -> None:
    await enforced(backend, "memory")
    hog = "x = bytearray(500 << 20)"
    result = await run(backend, PYTHON, "-c", hog, memory_bytes=64 * MB)
    assert (result.outcome, result.exit_code) == (Outcome.MEMORY, None)
    assert result.usage.memory_peak_bytes <= 65 * MB


async def test_the_process_limit_refuses_more(backend: Backend) -> None:
    await enforced(backend, "processes")
    script = (
        "import os, time\n"
        "made = 0\n"
        "try:\n"
        "    while made < 100:\n"
        "        if os.fork() == 0: time.sleep(100)\n"
        "        made += 1\n"
        "finally: print(made, flush=True)\n"
    )
    result = await run(backend, PYTHON, "-c", script, processes=10)
    assert result.outcome in (Outcome.PROCESSES, Outcome.EXITED)  # the latter where nothing counts refusals
    assert result.exit_code == 1
    assert int(result.stdout) <= 10


async def test_the_disk_limit_counts_bytes(backend: Backend) -> None:
    script = "head -c 3000000 /dev/zero > a && head -c 9000000 /dev/zero > b"
    result = await run(backend, "/bin/sh", "-c", script, disk_bytes=8 * MB)
    assert result.outcome is Outcome.DISK
    assert b"space" in result.stderr


async def test_the_disk_limit_holds_for_one_file(backend: Backend) -> None:
    result = await run(backend, "/usr/bin/truncate", "-s", "1G", "sparse", disk_bytes=8 * MB)
    assert not result.succeeded


async def test_the_disk_limit_counts_files(backend: Backend) -> None:
    script = "i=0; while : > f$i; do i=$((i+1)); done; exit 1"
    result = await run(backend, "/bin/sh", "-c", script, disk_inodes=200)
    assert result.outcome is Outcome.DISK


async def test_the_output_limit_ends_a_flood(backend: Backend) -> None:
    result = await run(backend, "/usr/bin/yes", output_bytes=10_000)
    assert (result.outcome, len(result.stdout), result.stdout_truncated) == (Outcome.OUTPUT, 10_000, True)
    assert not result.stderr_truncated


async def test_output_over_the_limit_is_dropped_on_request(backend: Backend) -> None:
    script = "head -c 30000000 /dev/zero; echo end >&2"
    result = await run(backend, "/bin/sh", "-c", script, output_bytes=10_000, drop=True)
    assert (result.outcome, result.exit_code) == (Outcome.EXITED, 0)
    assert (len(result.stdout), result.stdout_truncated) == (10_000, True)
    assert (result.stderr, result.stderr_truncated) == (b"end\n", False)


async def test_output_of_exactly_the_limit_is_no_flood(backend: Backend) -> None:
    result = await run(backend, "/usr/bin/head", "-c", "10000", "/dev/zero", output_bytes=10_000)
    assert (result.outcome, len(result.stdout), result.stdout_truncated) == (Outcome.EXITED, 10_000, False)


async def test_there_is_no_network_but_its_own_loopback(backend: Backend) -> None:
    """A listener on the host's loopback is not there; one of its own is."""
    script = (
        "import os, socket, sys\n"
        "print(sorted(os.listdir('/sys/class/net')) if os.path.exists('/sys/class/net') else ['lo'])\n"
        "print(sorted(name for _, name in socket.if_nameindex()))\n"
        "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])), 3); print('reached the host')\n"
        "except ConnectionRefusedError: print('refused')\n"
        "own = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(own.getsockname(), 3); print('own loopback')\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        result = await run(backend, PYTHON, "-c", script, str(listener.getsockname()[1]))
    assert result.stdout.decode().splitlines() == ["['lo']", "['lo']", "refused", "own loopback"], result.stderr


async def test_usage_is_reported(backend: Backend) -> None:
    result = await run(backend, PYTHON, "-c", "x = bytearray(50 << 20)\nfor i in range(10**6): pass")
    assert 0 < result.usage.wall_s < 20
    features = {feature.name: feature.enforced for feature in (await backend.report()).features}
    if features["cpu_time"]:
        assert 0 < result.usage.cpu_s < 20
    if features["memory"]:
        assert 50 * MB < result.usage.memory_peak_bytes < 256 * MB


# ── bundles ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_one_sandbox_made_another_one_runs(backend: Backend) -> None:
    """Files, directories, links and modes; files that are given beside it come after it."""
    script = (
        "mkdir -p lib/ro; echo 'echo made' > tool; chmod 755 tool; ln -s tool link; echo data > lib/ro/data; "
        "chmod 555 lib/ro; echo old > replaced"
    )
    made = await run(backend, "/bin/sh", "-c", script, collect=True)
    assert made.succeeded
    assert made.bundle is not None
    try:
        assert made.bundle.size > 0
        script = "./link; cat lib/ro/data replaced; stat -c %a tool lib/ro"
        result = await run(backend, "/bin/sh", "-c", script, bundle=made.bundle, files={"replaced": b"new\n"})
        assert result.stdout.decode().split() == ["made", "data", "new", "755", "555"], result.stderr
    finally:
        made.bundle.close()
        made.bundle.close()


async def test_many_sandboxes_use_one_bundle_and_none_can_change_it(backend: Backend) -> None:
    made = await run(backend, "/bin/sh", "-c", "head -c 300000 /dev/urandom > data; sha256sum data > sum", collect=True)
    assert made.bundle is not None
    try:
        script = "sha256sum -c sum && echo mine > data && rm sum && cat data"
        runs = [run(backend, "/bin/sh", "-c", script, bundle=made.bundle) for _ in range(8)]
        for result in await asyncio.gather(*runs):
            assert (result.stdout, result.exit_code) == (b"data: OK\nmine\n", 0), result.stderr
    finally:
        made.bundle.close()


async def test_a_failed_step_leaves_no_bundle(backend: Backend) -> None:
    result = await run(backend, "/bin/sh", "-c", "echo x > file; exit 1", collect=True)
    assert result.exit_code == 1
    assert result.bundle is None


async def test_a_closed_bundle_is_not_used(backend: Backend) -> None:
    made = await run(backend, "/bin/touch", "file", collect=True)
    assert made.bundle is not None
    made.bundle.close()
    with pytest.raises(Fault):
        await run(backend, "/bin/true", bundle=made.bundle)


async def test_input_belongs_to_one_run(backend: Backend) -> None:
    """Runs at once with the same input read all of it, and what one does to its descriptor no other sees."""
    script = (
        "import os, sys\n"
        "data = sys.stdin.buffer.read()\n"
        "try: os.pwrite(0, b'HARM', 0)\n"
        "except OSError: pass\n"
        "try: os.ftruncate(0, 0)\n"
        "except OSError: pass\n"
        "sys.stdout.buffer.write(data)\n"
    )
    content = b"input " * 10_000
    for _ in range(2):
        for result in await asyncio.gather(*(run(backend, PYTHON, "-c", script, stdin=content) for _ in range(4))):
            assert result.stdout == content


# ── cancelling, errors, many at once ─────────────────────────────────────────────────────────────────────────────────


async def test_the_sandbox_is_dead_when_the_cancellation_comes_back(backend: Backend) -> None:
    task = asyncio.create_task(run(backend, "/bin/sh", "-c", "sleep 87654.5 & sleep 87654.5"))
    await asyncio.to_thread(until, lambda: len(running("87654.5")) >= 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not running("sleep 87654.5")
    assert (await run(backend, "/bin/true")).succeeded


async def test_cancelling_at_any_moment_is_safe(backend: Backend) -> None:
    """Before it is sent, while it waits for a cell, while it runs, when it has just ended."""
    for moment in range(25):
        tasks = [asyncio.create_task(run(backend, "/bin/sleep", "76543.5", stdin=b"x" * 1000)) for _ in range(4)]
        tasks.append(asyncio.create_task(run(backend, "/bin/true")))
        await asyncio.sleep(moment * 0.001)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results[:4])
        assert not running("76543.5")
    assert (await run(backend, "/bin/true")).succeeded


@pytest.mark.parametrize(
    "members",
    [
        {"image": "no-such-image"},
        {"files": {"../out": b""}},
        {"files": {"/etc/passwd": b""}},
        {"files": {"": b""}},
        {"files": {"a\0b": b""}},
        {"files": {"\ud800": b""}},
        {"cwd": "code"},
        {"cwd": "/code/../../etc"},
        {"env": {"A=B": "x"}},
        {"env": {"A": "\0"}},
        {"env": {"A": "\ud800"}},
        {"env": {"A": "x" * 300_000}},
    ],
    ids=lambda members: repr(members)[:50],
)
async def test_what_cannot_be_described_to_the_kernel_is_invalid(backend: Backend, members: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        await run(backend, "/bin/true", **members)  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["a\0b", "\ud800", "x" * 300_000], ids=["NUL", "surrogate", "too long"])
async def test_arguments_that_cannot_be_passed_are_invalid(backend: Backend, argument: str) -> None:
    with pytest.raises(Invalid):
        await run(backend, "/bin/echo", argument)
    assert (await run(backend, "/bin/true")).succeeded


async def test_another_network_is_unsupported(backend: Backend) -> None:
    with pytest.raises(Unsupported):
        await run(backend, "/bin/true", network="outgoing")


async def test_fifty_at_once_get_each_their_own(backend: Backend) -> None:
    async def one(number: int) -> None:
        result = await run(backend, "/bin/sh", "-c", f"read x; echo {number} $x", stdin=b"%d\n" % (number * 7))
        assert result.stdout == b"%d %d\n" % (number, number * 7), result

    await asyncio.gather(*(one(number) for number in range(50)))


async def test_the_report_names_each_feature_once(backend: Backend) -> None:
    report = await backend.report()
    names = [feature.name for feature in report.features]
    assert len(names) == len(set(names)) > 5
    assert all(feature.mechanism for feature in report.features)
    assert all(feature.remedy for feature in report.features if not feature.enforced)
    assert report.details


async def test_closing_twice_is_closing_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """And nothing runs afterwards."""
    backend = NativeBackend(BackendOptions(data_dir=tmp_path_factory.mktemp("data"), embedded=True))
    await backend.close()
    with pytest.raises(Unavailable):
        await run(backend, "/bin/true")
    await backend.close()
