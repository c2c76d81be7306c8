"""A server's processes by their part in it, and what the kernel has counted for each.

Parts are told by the tree and by pid namespaces, which hold however the processes name themselves: a child of the
warden's in the warden's own pid namespace is the mason or a template, one in another is PID 1 of a sandbox.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "PARTS",
    "Usage",
    "belongings",
    "kernel_workers",
    "machine",
    "memory",
    "number_inside",
    "parts",
    "peak",
    "pid_namespace",
    "resident",
    "usage",
]

PARTS = ("server", "keeper", "warden", "mason", "templates", "sandboxes")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KERNEL_THREAD = 0x0020_0000
"""PF_KTHREAD of the flags in proc_pid_stat(5)."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What processes have used so far; a difference of two is what they used between."""

    user_s: float = 0.0
    system_s: float = 0.0
    switches: int = 0
    """Context switches, wanted and forced ones."""
    faults: int = 0
    """Page faults that needed no disk."""
    reaped_s: float = 0.0
    """CPU of the children that they have reaped; not part of the others."""

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            user_s=self.user_s + other.user_s,
            system_s=self.system_s + other.system_s,
            switches=self.switches + other.switches,
            faults=self.faults + other.faults,
            reaped_s=self.reaped_s + other.reaped_s,
        )

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(
            user_s=self.user_s - other.user_s,
            system_s=self.system_s - other.system_s,
            switches=self.switches - other.switches,
            faults=self.faults - other.faults,
            reaped_s=self.reaped_s - other.reaped_s,
        )


def parts(server: int) -> dict[str, list[int]]:
    """The processes below and including *server*; `sandboxes` are those that wait, run or are being cleared away."""
    found: dict[str, list[int]] = {part: [] for part in PARTS}
    found["server"].append(server)
    for pid in _descendants(server):
        command = _command(pid)
        if command.startswith("stockade-warden"):
            found["warden"].append(pid)
        elif "keeper" in command:
            found["keeper"].append(pid)
    for warden in found["warden"]:
        namespace = pid_namespace(warden)
        for pid in _descendants(warden):
            if "stockade-mason" in _command(pid):
                found["mason"].append(pid)
            elif pid_namespace(pid) == namespace:
                found["templates"].append(pid)
            else:
                found["sandboxes"].append(pid)
    known = {pid for pids in found.values() for pid in pids}
    found["server"] += [pid for pid in _descendants(server) if pid not in known]
    return found


def usage(pids: Iterable[int]) -> Usage:
    """What these have used so far. One that has ended counts nothing."""
    total = Usage()
    for pid in pids:
        with contextlib.suppress(OSError):
            total += _usage(pid)
    return total


def memory(pids: Iterable[int]) -> dict[str, int]:
    """Resident (`rss`) and proportional (`pss`) bytes."""
    total = {"rss": 0, "pss": 0}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("Rss", "Pss"):
                    total[name.lower()] += int(value.split()[0]) * 1024
    return total


def resident(pids: Iterable[int]) -> int:
    """Resident bytes, the quick way."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * _PAGE_BYTES


def peak(pid: int) -> int:
    """The most resident bytes that a process has had since its start, or since its peak was set back; 0 once ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def belongings(found: dict[str, list[int]]) -> dict[str, int]:
    """What must not grow, as counts."""
    wardens = found["warden"]
    return {
        "server descriptors": sum(map(_descriptors, found["server"])),
        "warden descriptors": sum(map(_descriptors, (*wardens, *found["mason"], *found["templates"]))),
        "warden mounts": sum(map(_mounts, wardens)),
        "host mounts": _mounts(os.getpid()),
        "control groups": sum(map(_groups, wardens)),
        "network namespaces": _network_namespaces(pid for pids in found.values() for pid in pids),
        "processes": sum(map(len, found.values())),
    }


def kernel_workers() -> dict[int, Usage]:
    """What the kernel's own threads have used, by their ids: they clear away what a run leaves, on nobody's bill."""
    found: dict[int, Usage] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                pid = int(entry.name)
                fields = _stat(pid)
                if int(fields[6]) & _KERNEL_THREAD:
                    found[pid] = _usage(pid)
    return found


def machine() -> Usage:
    """What everything on this machine has used, the kernel's interrupts included; faults are not counted."""
    user_s = system_s = 0.0
    switches = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == "cpu":
            user, nice, system, _idle, _wait, interrupts, soft = (int(ticks) * _TICK_S for ticks in values[:7])
            user_s, system_s = user + nice, system + interrupts + soft
        elif name == "ctxt":
            switches = int(values[0])
    return Usage(user_s=user_s, system_s=system_s, switches=switches)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children: list[int] = []
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                with contextlib.suppress(OSError):
                    children += map(int, (task / "children").read_text().split())
        found += children
        waiting += children
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def pid_namespace(pid: int) -> str:
    """Its pid namespace's name; empty when it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def number_inside(pid: int) -> int:
    """Its number in its own pid namespace; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return 0


def _stat(pid: int) -> list[bytes]:
    """The fields of proc_pid_stat(5) from the third on: the second, in brackets, may hold anything."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def _usage(pid: int) -> Usage:
    fields = _stat(pid)
    user, system, child_user, child_system = (int(ticks) * _TICK_S for ticks in fields[11:15])
    switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for line in (task / "status").read_text().splitlines():
                if "ctxt_switches" in line:
                    switches += int(line.split()[1])
    return Usage(
        user_s=user,
        system_s=system,
        switches=switches,
        faults=int(fields[7]),
        reaped_s=child_user + child_system,
    )


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:  # ended meanwhile
        return 0


def _mounts(pid: int) -> int:
    try:
        return len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    except OSError:
        return 0


def _network_namespaces(pids: Iterable[int]) -> int:
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/ns/net"))
    return len(found)


def _groups(warden: int) -> int:
    """Control groups of this warden's, in every hierarchy."""
    ours = re.compile(rf"stockade-\d+-{warden}-\d+")
    count = 0
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        kind = line.partition(" - ")[2].split()[0]
        if kind in ("cgroup", "cgroup2"):
            for folder, folders, _ in os.walk(line.split()[4]):  # one that goes away meanwhile is passed over
                if any(map(ours.fullmatch, folder.split("/"))):
                    count += len(folders)
    return count
