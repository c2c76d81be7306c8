"""Five hundred runs cost the five-hundred-and-first nothing."""

import asyncio
import gc
import os
from pathlib import Path

import pytest

from stockade.backends.native import NativeBackend
from stockade.errors import Invalid
from tests.backends.sandboxes import MB, children, run, until, wardens

pytestmark = pytest.mark.anyio

AT_REST = 9
"""Four sandboxes that are kept ready, a margin of two, and what makes them, connects them and keeps disks."""
IDLE_GROUPS = 12
OPEN_FOR_EACH = 14


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def groups() -> int:
    return sum(1 for _, _, _ in os.walk("/sys/fs/cgroup"))


async def batch(backend: NativeBackend, count: int) -> None:
    """Runs that end in every way there is, eight at a time."""
    places = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        async with places:
            kind = number % 7
            if kind == 0:
                made = await run(backend, "/bin/sh", "-c", "echo x > file", collect=True)
                assert made.bundle is not None
                assert (await run(backend, "/bin/cat", "file", bundle=made.bundle)).stdout == b"x\n"
                made.bundle.close()
            elif kind == 1:
                await run(backend, "/usr/bin/yes", output_bytes=100_000)
            elif kind == 2:
                await run(backend, "/bin/sleep", "100", wall_s=0.02)
            elif kind == 3:
                task = asyncio.create_task(run(backend, "/bin/sleep", "100"))
                await asyncio.sleep(0.01)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            elif kind == 4:
                assert (await run(backend, "no-such-program")).exit_code == 127
            elif kind == 5:
                with pytest.raises(Invalid):
                    await run(backend, "/bin/true", image="unknown")
            else:
                assert (await run(backend, "/bin/cat", stdin=b"y" * 70_000)).stdout == b"y" * 70_000

    await asyncio.gather(*(one(number) for number in range(count)))


async def test_nothing_grows_with_the_number_of_runs(backend: NativeBackend) -> None:
    (warden,) = wardens()
    await batch(backend, 100)  # whatever is made once has been made after these
    gc.collect()
    await asyncio.to_thread(until, lambda: len(children(warden)) <= AT_REST)
    opened = {pid: descriptors(pid) for pid in (warden, os.getpid())}
    taken = {pid: private_bytes(pid) for pid in (warden, os.getpid())}
    held = groups()
    await batch(backend, 500)
    gc.collect()
    # The last sandboxes may still be on their way out. Some control groups are kept, with what is open of them.
    await asyncio.to_thread(until, lambda: descriptors(warden) <= opened[warden] + 8 + IDLE_GROUPS * OPEN_FOR_EACH)
    await asyncio.to_thread(until, lambda: groups() <= held + 16)
    await asyncio.to_thread(until, lambda: len(children(warden)) <= AT_REST)
    assert descriptors(os.getpid()) <= opened[os.getpid()] + 2
    assert private_bytes(warden) - taken[warden] < 4 * MB
    assert private_bytes(os.getpid()) - taken[os.getpid()] < 16 * MB
