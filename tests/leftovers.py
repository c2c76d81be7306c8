"""What a run could leave on the host: seen from outside, so that the code under test cannot hide it."""

import os
from pathlib import Path

__all__ = ["Snapshot", "since", "snapshot"]

Snapshot = frozenset[str]


def snapshot() -> Snapshot:
    """One line for each process, mount, control group, loop device and temporary file that could be ours."""
    return frozenset((*_processes(), *_mounts(), *_control_groups(), *_loop_devices(), *_files()))


def since(before: Snapshot) -> list[str]:
    """What is there now and was not before."""
    return sorted(snapshot() - before)


def _processes() -> list[str]:
    """Sandboxed processes (host user ids from 0x70000000 on), wardens, and servers."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            uid = entry.stat().st_uid
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # ended meanwhile
            continue
        if uid >= 0x7000_0000 or command.startswith(("stockade-", "init")) or "stockade.warden" in command:
            found.append(f"process {entry.name}: uid {uid}: {command or '(no arguments)'}")
    return found


def _mounts() -> list[str]:
    text = Path("/proc/self/mounts").read_text(encoding="utf-8")
    return [f"mount: {line}" for line in text.splitlines() if "stockade" in line or " overlay " in line]


def _control_groups() -> list[str]:
    found = []
    for folder, folders, _ in os.walk("/sys/fs/cgroup"):
        found += [f"control group: {folder}/{name}" for name in folders if name.startswith("stockade-")]
    return [line for line in found if not line.endswith("/stockade-host")]


def _loop_devices() -> list[str]:
    """Those that show a file of disks. A mount in a namespace of its own is seen by them alone."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            shown = file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:  # let go of meanwhile
            continue
        if "disks.img" in shown:
            found.append(f"loop device: {file.parts[3]}: {shown}")
    return found


def _files() -> list[str]:
    return [f"file: {path}" for path in Path("/dev/shm").iterdir()]
