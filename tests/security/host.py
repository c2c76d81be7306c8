"""The host as an attack would have to change it, seen from outside."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["DEADLINE_S", "remains", "wait_until_clean"]

DEADLINE_S = 30.0


def remains() -> list[str]:
    """Tenants' processes, control groups of runs and mounts of sandboxes that belong to our wardens and still exist."""
    return [*_processes(), *_control_groups(), *_mounts()]


def wait_until_clean() -> list[str]:
    """Give the kernel and the warden a moment; returns what is there even then."""
    deadline = time.monotonic() + DEADLINE_S
    while (left := remains()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def _processes() -> Iterator[str]:
    """Every descendant of ours that is neither a warden nor a sandbox's init: no tenant's process outlives its run."""
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # ended meanwhile
            continue
        parents[int(entry.name)], commands[int(entry.name)] = parent, command
    for pid, command in commands.items():
        if (
            _descends(pid, parents)
            and not command.startswith(
                ("stockade-warden", "stockade-mason", "stockade-egress", "stockade-disks", "init")
            )
            and "stockade.warden" not in command
            and not command.startswith("postgres:")  # the database that other tests of the session have
            and not _is_waiting(pid, command)
        ):
            yield f"process {pid}: {command or '(no arguments)'}"


def _is_waiting(pid: int, command: str) -> bool:
    """Whether it is a template, or a fork of one that has no program yet."""
    return command == "python3 main.py" and not os.path.lexists(f"/proc/{pid}/root/code/main.py")


def _descends(pid: int, parents: dict[int, int]) -> bool:
    """Whether one of its ancestors is a child of ours: our own children may be the tests' own helpers."""
    ancestor = parents.get(pid, 0)
    while ancestor > 1:
        if parents.get(ancestor) == os.getpid():
            return True
        ancestor = parents.get(ancestor, 0)
    return False


def _control_groups() -> Iterator[str]:
    """Groups of our wardens that hold no process in any hierarchy: a run has left them. Idle sandboxes have theirs."""
    wardens = {str(pid) for pid in _children()}
    held: dict[str, int] = {}
    for folder, folders, _ in os.walk("/sys/fs/cgroup"):
        name = os.path.basename(folder)
        if name.startswith("stockade-") and name.split("-")[2:3] and name.split("-")[2] in wardens:
            for run in folders:
                group = f"{name}/{run}"
                held[group] = held.get(group, 0) + len(_members(f"{folder}/{run}"))
    yield from (f"control group {group}" for group, members in held.items() if not members)


def _members(group: str) -> list[str]:
    try:
        return Path(f"{group}/cgroup.procs").read_text().split()
    except OSError:  # removed meanwhile
        return ["gone"]


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        if line.startswith(("stockade ", "disk ")) or " overlay rw,lowerdir=/image/" in line:
            yield f"mount {line}"
