"""What a container of ours is: from a few checked numbers to the one body that the engine is ever sent.

Nobody but the gate calls this. There is no member for a name, a mount, a capability or a network: what a server that
was taken over may ask for is a sandbox of some size.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stockade.warden.fields import number, whole

__all__ = ["INSTANCE_LABEL", "LABEL", "LEAST_MEMORY", "LOADER", "Demand", "Place", "container", "is_own"]

LABEL = "stockade"
INSTANCE_LABEL = "stockade.instance"
LEAST_MEMORY = 24 << 20
"""Bytes that a sandbox must be given: the guest's interpreter is part of it."""
_LEAST_PROCESSES = 24
"""runc itself has a dozen threads in the group before it becomes the guest; RLIMIT_NPROC is exact below."""
_KERNELS_THREADS = 256
_MOST_WALL_S = 366 * 86400.0
_DIRECTORY_ITSELF = 1
_GUESTS_FILES = 32
_SPECIAL = frozenset(":,\\")  # to overlayfs, in the name of a directory

# PID 1: receives modules by name, then has the last one's `main`. Nothing of it is a secret or a tenant's.
LOADER = """
import os, struct, sys, types
def read(n):
    data = b""
    while len(data) < n:
        chunk = os.read(0, n - len(data))
        if not chunk: os._exit(1)
        data += chunk
    return data
for _ in range(read(1)[0]):
    name, text = (read(struct.unpack("<I", read(4))[0]).decode() for _ in "ab")
    module = sys.modules[name] = types.ModuleType(name)
    above, _, own = name.rpartition(".")
    if above: setattr(sys.modules[above], own, module)
    exec(compile(text, name, "exec"), module.__dict__)
module.main()
"""

# What Docker masks anyway, and what else tells of the host or of other tenants; /sys but for the control groups.
_MASKED = (
    *(f"/proc/{name}" for name in (
        "acpi", "asound", "diskstats", "interrupts", "kcore", "key-users", "keys", "kmsg", "latency_stats",
        "locks", "partitions", "pressure", "sched_debug", "schedstat", "scsi", "softirqs", "swaps", "sysrq-trigger",
        "timer_list", "timer_stats",
    )),
    *(f"/sys/{name}" for name in (
        "block", "bus", "class", "dev", "devices", "firmware", "hypervisor", "kernel", "module", "power",
    )),
    "/dev/pts",  # of terminals the host has one supply for all, and Docker sets no container a limit
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The limits that a container is to have: the only thing a client may say of it."""

    wall_s: float
    cpus: float
    memory_bytes: int
    processes: int
    disk_bytes: int
    disk_inodes: int
    stack_bytes: int
    open_files: int

    @classmethod
    def parse(cls, limits: Mapping[str, Any]) -> "Demand":
        """Check a message's member.

        Raises:
            Refused: a limit is missing, no number, or out of all bounds.
        """
        return cls(
            wall_s=number(limits, "wall_s", _MOST_WALL_S),
            cpus=number(limits, "cpus", 65536.0),
            memory_bytes=whole(limits, "memory_bytes", 1 << 50, least=LEAST_MEMORY),
            processes=whole(limits, "processes", 1 << 22),
            disk_bytes=whole(limits, "disk_bytes", 1 << 50),
            disk_inodes=whole(limits, "disk_inodes", 1 << 31),
            stack_bytes=whole(limits, "stack_bytes", 1 << 40),
            open_files=whole(limits, "open_files", 1 << 20),
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """What the operator has settled for all containers."""

    image: str
    """Id, not a name: what was looked at is what runs."""
    runtime: str
    """Empty for the engine's own choice."""
    instance: str
    binds: Sequence[tuple[str, str]]
    """Directories of the host and where they are shown, read-only."""
    has_own_kernel: bool
    """Whether the runtime has one of its own, as gVisor and Kata, whose threads are counted with the tenant's."""
    empty: str
    """An empty directory of the engine's host, to lay below those; none where it is not known."""
    processors: int


def container(place: Place, demand: Demand, *, uid: int) -> dict[str, Any]:
    """The body of `POST /containers/create`."""
    size = f"size={demand.disk_bytes},nr_inodes={demand.disk_inodes + _DIRECTORY_ITSELF},nosuid,nodev,exec"
    own, everybodys = f"{size},uid={uid},gid={uid},mode=755", f"{size},mode=1777"
    return {
        "Image": place.image,
        "Entrypoint": ["python3", "-I", "-S", "-c", LOADER],
        "Cmd": [],
        "User": "0:0",
        "WorkingDir": "/",
        "Hostname": "sandbox",
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
        "OpenStdin": True,
        "StdinOnce": True,  # when whoever is attached goes, input ends, and with it the guest
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {LABEL: "run", INSTANCE_LABEL: place.instance},
        "HostConfig": {
            "Memory": demand.memory_bytes,
            "MemorySwap": demand.memory_bytes,  # memory and swap together: no swap
            "MemorySwappiness": 0 if os.path.isdir("/sys/fs/cgroup/memory") else None,  # v1 only
            "OomScoreAdj": 0,
            # Above the number of processors Docker refuses, and it means the same.
            "NanoCpus": max(10_000_000, math.floor(min(demand.cpus, place.processors) * 1e9)),
            "PidsLimit": max(demand.processes + 1, _LEAST_PROCESSES) + place.has_own_kernel * _KERNELS_THREADS,
            "Ulimits": [
                {"Name": "core", "Soft": 1, "Hard": 1},
                {"Name": "memlock", "Soft": 64 << 10, "Hard": 64 << 10},
                {"Name": "msgqueue", "Soft": 800 << 10, "Hard": 800 << 10},
                {"Name": "nofile", **_both(max(demand.open_files, _GUESTS_FILES))},
            ],
            "ReadonlyRootfs": True,
            "Tmpfs": {
                "/code": own,
                "/home/user": own,
                "/tmp": everybodys,
                "/var/tmp": everybodys,
                "/dev/shm": everybodys,
            },
            "Mounts": [_shown(place, source, target) for source, target in place.binds],
            "CapDrop": ["ALL"],
            "CapAdd": ["KILL", "SETGID", "SETPCAP", "SETUID"],  # the guest's, to become the tenant and to end it
            "SecurityOpt": ["no-new-privileges"],
            "NetworkMode": "none",
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "PidMode": "",
            "UTSMode": "",
            "Privileged": False,
            "Init": False,
            "AutoRemove": False,  # the gate asks how it ended before it removes it
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            "MaskedPaths": [*_MASKED, *_file_systems()],
            "ReadonlyPaths": list(_READ_ONLY),
            **({"Runtime": place.runtime} if place.runtime else {}),
        },
    }  # fmt: skip


def _shown(place: Place, source: str, target: str) -> dict[str, Any]:
    """A directory of the host, read-only.

    As an overlay of the container's own, where that can be had: then its inodes are, too, and neither the host nor
    another tenant is told by inotify what is opened there, or stopped by a lock. Without an upper directory an overlay
    cannot be written to. The engine removes it with the container.
    """
    if is_own(place, source):
        options = {"type": "overlay", "device": "overlay", "o": f"ro,nosuid,nodev,lowerdir={source}:{place.empty}"}
        return {
            "Type": "volume",
            "Target": target,
            "VolumeOptions": {"NoCopy": True, "DriverConfig": {"Name": "local", "Options": options}},
        }
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": True,
        "BindOptions": {"NonRecursive": True, "Propagation": "rprivate"},
    }


def is_own(place: Place, source: str) -> bool:
    """Whether a container has inodes of its own for that directory."""
    return bool(place.empty) and not _SPECIAL.intersection(source + place.empty)


def _both(value: int) -> dict[str, int]:
    return {"Soft": value, "Hard": value}


def _file_systems() -> list[str]:
    """What the host's file systems tell of themselves, below /sys/fs."""
    try:
        return [f"/sys/fs/{name}" for name in sorted(os.listdir("/sys/fs")) if name != "cgroup"]
    except OSError:
        return []
