"""Whole servers with sandboxes that live in them, what of theirs can be seen from outside, and their ends."""

import asyncio
import contextlib
import os
import re
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import websockets

from tests.app.serving import Server
from tests.app.traces import children, until
from tests.dialects.execbox.serving import Client, Heard, platform

__all__ = [
    "LONG",
    "MIB",
    "becomes_so",
    "command_of",
    "descriptors",
    "end_process",
    "groups_of",
    "hear_until_cut",
    "is_alive",
    "nothing_left",
    "peak_memory",
    "processes_like",
    "reset_peak",
    "served",
    "warden_of",
]

LONG = os.environ.get("STOCKADE_LONG_TESTS") == "1"
"""Whether to take the numbers that take minutes."""
MIB = 1 << 20


@contextlib.contextmanager
def served(folder: Path, **variables: str) -> Iterator[Server]:
    """A server on a data directory; at the end it is killed, and what it would leave for a successor is ended."""
    try:
        with platform(folder, **variables) as server:
            yield server
    finally:
        for warden in warden_of(folder):
            end_process(warden, signal.SIGTERM)


def warden_of(folder: Path) -> list[int]:
    """Wardens that listen for the server of that data directory."""
    wanted = set()
    for line in Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(folder / "warden.sock") and fields[3] == "00010000":  # it listens
            wanted.add(f"socket:[{fields[6]}]")
    found = [pid for pid in _processes() if command_of(pid).startswith("stockade-warden") and _opened(pid) & wanted]
    made = {child for pid in found for child in children(pid)}  # what it has forked and what has no name yet
    return [pid for pid in found if pid not in made]


def end_process(pid: int, number: int = signal.SIGKILL) -> None:
    """End a process that need not be our child, and wait until it is gone."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, number)
        assert select.select([process], [], [], 60)[0], f"process {pid} ({command_of(pid)}) does not end"
    except ProcessLookupError:
        pass
    finally:
        os.close(process)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def family_of(pid: int) -> set[int]:
    """A process and all below it, those in sandboxes included."""
    found, left = {pid}, [pid]
    while left:
        below = children(left.pop())
        found.update(below)
        left += below
    return found


def groups_of(warden: int) -> set[str]:
    """Control groups that a warden has made."""
    found = set()
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        found |= {f"{folder}/{name}" for name in names if name.startswith("stockade-") and f"-{warden}-" in name}
    return found


def mounts() -> set[str]:
    """Those of the host that could be ours."""
    text = Path("/proc/self/mounts").read_text(encoding="utf-8")
    return {line for line in text.splitlines() if "stockade" in line or " overlay " in line}


@contextlib.contextmanager
def nothing_left(folder: Path) -> Iterator[Callable[[Server], None]]:
    """Call the value with each server whose traces are to be gone when the block ends."""
    before = mounts()
    pids: set[int] = set()
    wardens: set[int] = set()

    def note(server: Server) -> None:
        wardens.update(warden_of(folder))
        for one in (server.process.pid, *wardens):
            pids.update(family_of(one))

    yield note
    until(lambda: not {pid for pid in pids if is_alive(pid)})
    until(lambda: not any(map(groups_of, wardens)))
    assert not warden_of(folder)
    assert not (folder / "warden.sock").exists()
    assert mounts() <= before


def processes_like(words: str) -> list[int]:
    """Processes of this host whose command line begins with *words*."""
    return [pid for pid in _processes() if command_of(pid).startswith(words)]


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def reset_peak(*pids: int) -> int:
    """Forget how much memory the processes have held at most; what they hold together now, in bytes."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return sum(_memory(pid, "VmRSS") for pid in pids)


def peak_memory(*pids: int) -> int:
    """Most memory that each of the processes has held since `reset_peak`, in bytes, added up."""
    return sum(_memory(pid, "VmHWM") for pid in pids)


async def becomes_so(client: Client, session: str, status: str, within_s: float = 30.0) -> dict[str, object]:
    """The session once it has that status."""
    async with asyncio.timeout(within_s):
        while (found := await client.read(session))["status"] != status:  # noqa: ASYNC110  # nothing tells us
            await asyncio.sleep(0.05)
    return found


async def hear_until_cut(connection: Any, heard: Heard, within_s: float = 60.0) -> None:
    """Listen until the connection ends, in order or not; with which code is in *heard*."""
    async with asyncio.timeout(within_s):
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                heard.hear(await connection.recv())
    heard.close_code = connection.close_code


def _memory(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return 1024 * int(re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[0])


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _opened(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found
