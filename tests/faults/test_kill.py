"""`kill -9` at the worst moment: nothing is left behind, and the next call works."""

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stockade
from stockade.backends.base import BackendOptions
from stockade.backends.native import NativeBackend, launch
from stockade.errors import BackendLost, Unavailable
from stockade.model import ProcessResult
from stockade.warden import protocol
from tests.backends.sandboxes import children, mason_of, run, running, until, wardens

pytestmark = pytest.mark.anyio
MANY = 100


def mounts() -> list[str]:
    """Those of the host's namespace: ours must never show there."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "stockade" in line or " overlay " in line]


def groups(pid: int) -> set[str]:
    """Control groups of the warden *pid*."""
    found = set()
    for folder, folders, _ in os.walk("/sys/fs/cgroup"):
        found |= {f"{folder}/{name}" for name in folders if name.startswith("stockade-") and f"-{pid}-" in name}
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextlib.contextmanager
def nothing_left_in(directory: Path) -> Iterator[None]:
    """No file below *directory* and no mount that was not there before."""
    before = mounts(), sorted(directory.rglob("*"))
    yield
    assert (mounts(), sorted(directory.rglob("*"))) == before


async def start_many(backend: NativeBackend, marker: str) -> list["asyncio.Task[ProcessResult]"]:
    """Runs of every kind at once, some under way, some waiting to begin."""
    kinds = (
        ("/bin/sleep", marker),
        ("/bin/sh", "-c", f"sleep {marker} & sleep {marker}"),
        ("/bin/sh", "-c", f"(setsid sleep {marker} &); exec yes {marker}"),
        ("/bin/sh", "-c", f"trap '' TERM INT HUP; sleep {marker}; sleep {marker}"),
    )
    tasks = [
        asyncio.create_task(run(backend, *kinds[number % 4], stdin=b"x" * 5000, output_bytes=1 << 30, cpus=0.2))
        for number in range(MANY)
    ]
    await asyncio.to_thread(until, lambda: len(running(marker)) >= MANY // 2, 60)
    return tasks


async def all_lost(tasks: list["asyncio.Task[ProcessResult]"]) -> None:
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
    assert {type(result) for result in results} == {BackendLost}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_warden_is_killed_in_the_middle_of_a_hundred_runs(
    backend: NativeBackend, tmp_path: Path, number: int
) -> None:
    """All of them end, each of their callers is told, and a new warden serves the next call and clears up."""
    with nothing_left_in(tmp_path):
        (warden,) = wardens()
        tasks = await start_many(backend, "65432.1")
        inside = children(warden)
        assert len(inside) > MANY // 2
        os.kill(warden, number)
        await all_lost(tasks)
        await asyncio.to_thread(until, lambda: not any(map(is_alive, {warden, *inside})))
        assert not running("65432.1")
        assert (await run(backend, "/bin/echo", "again")).stdout == b"again\n"
        assert wardens()
        assert warden not in wardens()
        assert not groups(warden)


async def test_a_warden_that_died_idle_is_replaced(backend: NativeBackend) -> None:
    (warden,) = wardens()
    os.kill(warden, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: not is_alive(warden))
    results = await asyncio.gather(*(run(backend, "/bin/true") for _ in range(5)), return_exceptions=True)
    # Who asked before the news came is told that it was lost; nobody waits for a warden that is gone.
    assert all(isinstance(r, BackendLost) or (isinstance(r, ProcessResult) and r.succeeded) for r in results)
    assert (await run(backend, "/bin/true")).succeeded
    assert len(wardens()) == 1


async def test_the_process_that_makes_sandboxes_is_killed(backend: NativeBackend) -> None:
    """The warden cannot go on without it, and ends in good order."""
    (warden,) = wardens()
    maker = mason_of(warden)
    if maker is None:
        pytest.skip("the warden makes its sandboxes itself")
    os.kill(maker, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: not is_alive(warden))
    await asyncio.to_thread(until, lambda: not groups(warden))
    with contextlib.suppress(BackendLost):
        await run(backend, "/bin/true")
    assert (await run(backend, "/bin/true")).succeeded


async def test_a_stopped_warden_does_not_hang_a_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed when it does not end by itself."""
    monkeypatch.setattr(launch, "_DOWN_WITHIN_S", 0.5)
    backend = NativeBackend(BackendOptions(data_dir=tmp_path, embedded=True))
    await backend.start()
    (warden,) = wardens()
    os.kill(warden, signal.SIGSTOP)
    await asyncio.wait_for(backend.close(), 40)
    assert not is_alive(warden)
    # Its control groups are for the next warden to find.
    successor = NativeBackend(BackendOptions(data_dir=tmp_path, embedded=True))
    await successor.start()
    assert not groups(warden)
    await successor.close()


SERVER = """
import asyncio, sys
from pathlib import Path
from typing import Any
from stockade.backends.base import BackendOptions
from stockade.backends.native import NativeBackend
from tests.backends.sandboxes import run

async def main() -> None:
    backend = NativeBackend(BackendOptions(data_dir=Path(sys.argv[1]), embedded=True))
    await backend.start()
    print("up", flush=True)
    script = f"sleep {sys.argv[2]} & sleep {sys.argv[2]}"
    await asyncio.gather(*(run(backend, "/bin/sh", "-c", script) for _ in range(100)))

asyncio.run(main())
"""


@contextlib.contextmanager
def server(directory: Path, marker: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A process that uses the backend, in the middle of a hundred runs; and its warden."""
    root, source = Path(__file__).parents[2], Path(stockade.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(directory), marker],
        env={"PYTHONPATH": f"{root}:{source}", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        (warden,) = wardens(process.pid)
        until(lambda: len(running(f"sleep {marker}")) >= MANY, 60)
        yield process, warden
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_a_server_is_killed_in_the_middle_of_a_hundred_runs(tmp_path: Path) -> None:
    """Its warden sees it go, ends what runs, clears up and ends."""
    with nothing_left_in(tmp_path), server(tmp_path, "54321.1") as (process, warden):
        inside = children(warden)
        process.kill()
        process.wait()
        until(lambda: not any(map(is_alive, {warden, *inside})))
        assert not running("54321.1")
        assert not groups(warden)


async def test_server_and_warden_are_killed_at_once(tmp_path: Path) -> None:
    """Then only control groups, which cannot die, are left: the next start removes them."""
    with nothing_left_in(tmp_path):
        with server(tmp_path, "43210.1") as (process, warden):
            inside = children(warden)
            os.kill(warden, signal.SIGKILL)
            process.kill()
            until(lambda: not any(map(is_alive, {warden, *inside})))
        assert not running("43210.1")
        backend = NativeBackend(BackendOptions(data_dir=tmp_path, embedded=True))
        await backend.start()
        try:
            assert not groups(warden)
            assert (await run(backend, "/bin/true")).succeeded
        finally:
            await backend.close()


async def test_without_descriptors_a_run_is_refused_for_now(backend: NativeBackend) -> None:
    """As unavailable, so that a job waits and is not failed for what is not its fault; then runs work again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (await run(backend, "/bin/true")).succeeded
    for spare in range(6):
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare, hard))
        held = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    held.append(os.dup(0))
            for fd in held[len(held) - spare :]:
                os.close(fd)
            del held[len(held) - spare :]
            with contextlib.suppress(Unavailable, BackendLost):  # an answer whose descriptors do not fit is lost
                assert (await run(backend, "/bin/echo", "works")).stdout == b"works\n"
        finally:
            for fd in held:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(Unavailable, BackendLost):
                    assert (await run(backend, "/bin/echo", "works")).stdout == b"works\n"
                    break
                await asyncio.sleep(0.05)


async def test_too_many_descriptors_on_their_way_cost_one_request(
    backend: NativeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel did not take is refused for now; what is under way on the same connection goes on."""
    under_way = asyncio.create_task(run(backend, "/bin/sh", "-c", "echo begun; read line; echo $line", stdin=b"x\n"))
    sleeper = asyncio.create_task(run(backend, "/bin/sh", "-c", "sleep 0.5; echo slept"))
    await asyncio.sleep(0)
    real = protocol.send

    def refuse(connection: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        if fds and message.get("op") == "run":
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        real(connection, message, fds)

    await asyncio.to_thread(until, lambda: len(running("sleep 0.5")) > 0 or sleeper.done())
    monkeypatch.setattr(protocol, "send", refuse)
    with pytest.raises(Unavailable, match="too many descriptors"):
        await run(backend, "/bin/true")
    monkeypatch.undo()
    assert (await sleeper).stdout == b"slept\n"
    assert (await under_way).stdout == b"begun\nx\n"
    assert (await run(backend, "/bin/true")).succeeded
