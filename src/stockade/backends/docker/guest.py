"""PID 1 of a container: starts the tenant's process, minds its limits, and says how it ended.

The gate writes this module, and the two of the warden's that it uses, to the container's standard input: an image needs
nothing but a python3. It sees the standard library alone. What it reads is the errand (`Errand`); what it writes to its
standard output are frames: a letter, a length, and that many bytes.

The tenant's process has another user id, no capabilities, our system call filter and none of our descriptors: it can
neither write a frame nor stop who does. Its output is passed on unread. End of input means that nobody waits any more:
then everything ends, so no container outlives the server, the gate or the daemon's connection to them.
"""

import contextlib
import errno
import fcntl
import json
import os
import resource
import select
import signal
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from stockade.warden import bundle, kernel

__all__ = ["COLLECTED", "ENDED", "HEAD", "MOST_FRAME", "OUTPUT", "STARTED", "TERMS", "main"]

TERMS = struct.Struct("<II")
"""User id of the tenant and length of the filter, which follows: the gate says so before the server can say a word."""
HEAD = struct.Struct("<cI")
"""Letter and length of a frame."""
MOST_FRAME = 64 << 10
STARTED = b"S"  # JSON: the limits that the kernel says are in force
OUTPUT = (b"O", b"E")  # bytes of the tenant's standard output and standard error
COLLECTED = b"C"  # bytes of the working directory's bundle
ENDED = b"X"  # JSON: the facts by which the outcome is decided

_CHUNK = 64 << 10
_MOST_PENDING = 256 << 10  # bytes of frames that nobody has taken yet: then the tenant's pipes fill up
_LOOK_S = 0.05  # between looks at what sends no events: refused memory, bytes of all file systems together
_SOONEST_S = 0.005
_CLEAR_UP_S = 10.0
_START_S = 30.0
_WRITABLE = ("/code", "/home/user", "/tmp", "/var/tmp", "/dev/shm")
_EXPENDABLE = b"500"
_PENDING_SIGNALS = 4096
# What we keep: ending the tenant's processes, and becoming the tenant once more to pack what it made.
_KEPT = frozenset({kernel.CAP_KILL, kernel.CAP_SETGID, kernel.CAP_SETUID})


@dataclass(frozen=True, kw_only=True)
class Errand:
    """What to do, as the server says. As whom and under which filter, the gate does: see `TERMS`."""

    argv: list[str]
    env: Mapping[str, str]
    cwd: str
    wall_s: float
    cpu_s: float
    cpus: float
    processes: int
    disk_bytes: int
    disk_inodes: int
    open_files: int
    stack_bytes: int
    output_bytes: int
    drop_output: bool
    collect: bool
    bundles: list[int]
    """Lengths of the bundles that follow, in the order in which they are unpacked."""
    stdin: int
    """Length of the standard input, which follows them."""


# ── what the kernel counts ───────────────────────────────────────────────────────────────────────────────────────────


class Counters:
    """The container's own control groups, as far as they are shown in it: cgroup v1, v2, or neither."""

    def __init__(self) -> None:
        self._v1: dict[str, str] = {}
        self._v2 = ""
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                kind, _, options = right.split(" ", 2)
                if kind == "cgroup":
                    self._v1.update(dict.fromkeys(options.strip().split(","), left.split()[4]))
                elif kind == "cgroup2" and os.path.exists(f"{left.split()[4]}/memory.max"):
                    self._v2 = left.split()[4]
        self._cpu_before = (0, 0)
        self._refused_before = 0

    def begin(self) -> None:
        """Count from here: what came before was our own doing."""
        self._cpu_before = self._cpu()
        self._refused_before = self._refused()

    @property
    def has_cpu(self) -> bool:
        return bool(self._v2 or "cpuacct" in self._v1)

    def cpu_us(self) -> tuple[int, int]:
        """User and system time since `begin`, of all processes, dead ones too."""
        user, system = self._cpu()
        return user - self._cpu_before[0], system - self._cpu_before[1]

    def refused_forks(self) -> int:
        return self._refused() - self._refused_before

    def oom_kills(self) -> int:
        if self._v2:
            return self._field(f"{self._v2}/memory.events", "oom_kill")
        return self._field(f"{self._v1.get('memory')}/memory.oom_control", "oom_kill")

    def memory_peak(self) -> int:
        path = f"{self._v2}/memory.peak" if self._v2 else f"{self._v1.get('memory')}/memory.max_usage_in_bytes"
        return self._number(path)

    def limits(self) -> dict[str, float]:
        """What is in force; a member is missing where that cannot be seen."""
        if self._v2:
            quota, _, period = self._text(f"{self._v2}/cpu.max").partition(" ")
            found = {
                "memory": self._number(f"{self._v2}/memory.max"),
                "swap": self._number(f"{self._v2}/memory.swap.max"),
                "processes": self._number(f"{self._v2}/pids.max"),
                "cpu_rate": int(quota) / int(period) if quota.isdigit() else -1,
            }
        else:
            memory, pids, cpu = (self._v1.get(name) for name in ("memory", "pids", "cpu"))
            total = self._number(f"{memory}/memory.memsw.limit_in_bytes")
            limit = self._number(f"{memory}/memory.limit_in_bytes")
            period = self._text(f"{cpu}/cpu.cfs_period_us")
            found = {
                "memory": limit,
                "swap": total - limit if total >= 0 else -1,
                "processes": self._number(f"{pids}/pids.max"),
                "cpu_rate": self._number(f"{cpu}/cpu.cfs_quota_us") / int(period) if period else -1,
            }
        return {name: value for name, value in found.items() if value >= 0} | {"cpu_time": float(self.has_cpu)}

    def _cpu(self) -> tuple[int, int]:
        if self._v2:
            return self._field(f"{self._v2}/cpu.stat", "user_usec"), self._field(f"{self._v2}/cpu.stat", "system_usec")
        group = self._v1.get("cpuacct")
        user, system = self._number(f"{group}/cpuacct.usage_user"), self._number(f"{group}/cpuacct.usage_sys")
        return max(user, 0) // 1000, max(system, 0) // 1000

    def _refused(self) -> int:
        return self._field(f"{self._v2 or self._v1.get('pids')}/pids.events", "max")

    def _field(self, path: str, name: str) -> int:
        for line in self._text(path).splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
        return 0

    def _number(self, path: str) -> int:
        text = self._text(path)
        return int(text) if text.isdigit() else -1

    def _text(self, path: str) -> str:
        try:
            with open(path, encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            return ""


class Disks:
    """The file systems that can be written. Each has the limit's size; together they may not take more than it."""

    def __init__(self, most_bytes: int, most_inodes: int) -> None:
        self._most = most_bytes, most_inodes
        self._paths = [path for path in _WRITABLE if os.path.ismount(path)]
        self._before = self._used()

    def _used(self) -> tuple[int, int]:
        found = [os.statvfs(path) for path in self._paths]
        return (
            sum((one.f_blocks - one.f_bfree) * one.f_frsize for one in found),
            sum(one.f_files - one.f_ffree for one in found),
        )

    def over(self) -> bool:
        """Whether all together hold more than the limit."""
        used = self._used()
        return any(now - before > most for now, before, most in zip(used, self._before, self._most, strict=True))

    def full(self) -> bool:
        """Whether one of them has no room left."""
        found = [os.statvfs(path) for path in self._paths]
        return any(one.f_bfree == 0 < one.f_blocks or one.f_ffree == 0 < one.f_files for one in found)

    def limits(self) -> dict[str, float]:
        """What the largest can hold; without a limit, none is said."""
        found = [os.statvfs(path) for path in self._paths]
        if len(found) < len(_WRITABLE) or not all(one.f_blocks and one.f_files for one in found):
            return {}
        return {
            "disk": max(one.f_blocks * one.f_frsize for one in found),
            "inodes": max(one.f_files for one in found),
        }


# ── frames ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Frames:
    """Writes to our standard output without waiting for who reads it."""

    def __init__(self) -> None:
        self._pending = bytearray()
        os.set_blocking(1, False)

    @property
    def has_room(self) -> bool:
        return len(self._pending) < _MOST_PENDING

    @property
    def is_waiting(self) -> bool:
        return bool(self._pending)

    def put(self, kind: bytes, data: bytes) -> None:
        self._pending += HEAD.pack(kind, len(data))
        self._pending += data
        self.push()

    def put_json(self, kind: bytes, value: Mapping[str, Any]) -> None:
        self.put(kind, json.dumps(value).encode())

    def push(self) -> None:
        """Write what is taken at once."""
        while self._pending:
            try:
                written = os.write(1, self._pending[:_CHUNK])
            except BlockingIOError:
                return
            except BrokenPipeError:
                os._exit(1)  # nobody is there any more
            del self._pending[:written]

    def flush(self, *, below: int = 1) -> None:
        """Wait until fewer than *below* bytes are left; whoever does not read for long gets no more."""
        while len(self._pending) >= below:
            if not select.select([], [1], [], _START_S)[1]:
                os._exit(1)
            self.push()


# ── the errand ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        chunk = os.read(0, min(_CHUNK, length - len(data)))
        if not chunk:
            os._exit(1)  # whoever sent us away has gone
        data += chunk
    return bytes(data)


def _received(name: str, length: int) -> int:
    """A memory file with the next *length* bytes of input, which nobody can change."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    while length:
        chunk = _read(min(_CHUNK, length))
        bundle.write_all(fd, chunk)
        length -= len(chunk)
    os.lseek(fd, 0, os.SEEK_SET)
    with contextlib.suppress(OSError):  # gVisor's kernel knows no seals on some versions
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return fd


def main() -> NoReturn:
    """Do the errand that comes on standard input, and end, and with us everything in the container."""
    try:
        uid, length = TERMS.unpack(_read(TERMS.size))
        seccomp = _read(length)
        errand = Errand(**json.loads(_read(struct.unpack("<I", _read(4))[0])))
        sources = [_received("bundle", length) for length in errand.bundles]
        stdin = _received("stdin", errand.stdin)
        _be_first()
        Guest(errand, sources, stdin, uid, seccomp).run()
    except MemoryError:
        os._exit(137)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, f"{type(error).__name__}: {error}".encode(errors="replace")[:2000])
        os._exit(1)


def _be_first() -> None:
    """Be out of the tenant's reach before there is a tenant."""
    with contextlib.suppress(OSError, ValueError, IndexError):  # gVisor's /proc tells less
        kernel.seal_process_title("init", kernel.find_process_title())
    kernel.set_no_new_privileges()
    os.umask(0o022)
    kernel.set_dumpable(dumpable=False)


def _become_tenant(uid: int) -> None:
    kernel.drop_bounding_set()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.drop_capabilities()
    kernel.set_no_new_privileges()


class Guest:
    """One tenant's process and all that it leaves behind."""

    def __init__(self, errand: Errand, sources: list[int], stdin: int, uid: int, seccomp: bytes) -> None:
        self.errand = errand
        self.frames = Frames()
        self.counters = Counters()
        self.disks = Disks(errand.disk_bytes, errand.disk_inodes)
        self._sources, self._stdin, self._uid, self._seccomp = sources, stdin, uid, seccomp
        self._kept = [0, 0]
        self._truncated = [False, False]
        self._pipes: dict[int, int] = {}
        self._tenant = 0
        self._status: int | None = None
        self._reason: str | None = None
        self._wake, wake = os.pipe()
        for fd in (self._wake, wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> NoReturn:
        oom_before = self.counters.oom_kills()
        self._start()
        kernel.drop_bounding_set(_KEPT)
        kernel.drop_capabilities(_KEPT)
        began = time.monotonic()
        self.counters.begin()
        self.frames.put_json(STARTED, self.counters.limits() | self.disks.limits())
        ended = self._mind(began, oom_before)
        self._end_all()
        self._drain()
        oom_kills = self.counters.oom_kills() - oom_before
        collected = self.errand.collect and self._reason is None and self._status == 0 and self._collect()
        user, system = self.counters.cpu_us()
        facts = {
            "reason": self._reason,
            "status": self._status,
            "oom_kills": oom_kills,
            "forks_refused": self.counters.refused_forks(),
            "disk_full": self.disks.full() or self._reason == "disk",
            "wall_s": ended - began,
            "cpu_user_us": user,
            "cpu_system_us": system,
            "memory_peak": max(self.counters.memory_peak(), 0),
            "truncated": self._truncated,
            "collected": collected,
        }
        self.frames.put_json(ENDED, facts)
        self.frames.flush()
        os._exit(0)

    # ── beginning ──

    def _start(self) -> None:
        pairs = [os.pipe(), os.pipe()]
        told, telling = os.pipe()
        self._tenant = os.fork()
        if not self._tenant:
            self._be_tenant([self._stdin, pairs[0][1], pairs[1][1]])
        for fd in (self._stdin, telling, pairs[0][1], pairs[1][1], *self._sources):
            os.close(fd)
        for number, (read, _) in enumerate(pairs):
            os.set_blocking(read, False)
            self._pipes[read] = number
        # End of file: the child has closed its copy, and is about to be the tenant's, or dead.
        select.select([told], [], [], _START_S)
        os.close(told)

    def _be_tenant(self, streams: list[int]) -> NoReturn:
        errand = self.errand
        try:
            signal.set_wakeup_fd(-1)
            with open("/proc/self/oom_score_adj", "wb", buffering=0) as file, contextlib.suppress(OSError):
                file.write(_EXPENDABLE)  # it goes before us when memory runs out
            os.setsid()
            for number, fd in enumerate(streams):  # over the guest's own, which nobody else is to have
                os.dup2(fd, number)
            _become_tenant(self._uid)
            bundle.make_directory(errand.cwd.encode())
            os.chdir(errand.cwd)
            for source in self._sources:
                bundle.unpack(source, ".")
            program = _find_program(errand.argv[0], errand.env)
            _close_from(3)
            for name in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT):
                signal.signal(name, signal.SIG_DFL)
            self._set_limits()
            kernel.set_seccomp(self._seccomp)
            os.execve(program, errand.argv, errand.env)
        except BaseException as error:
            with contextlib.suppress(BaseException):
                os.write(2, f"cannot start {errand.argv[0]}: {error}\n".encode(errors="replace"))
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)

    def _set_limits(self) -> None:
        errand = self.errand
        processes = self.counters.limits().get("processes")
        # Where the group's own limit is near, it is to refuse first, since it keeps count of that. The user id is this
        # container's alone, so that the other limit is as good.
        tight = errand.processes if processes is None or processes > errand.processes + 1 else errand.processes * 2 + 16
        for kind, value in (
            (resource.RLIMIT_FSIZE, errand.disk_bytes),
            (resource.RLIMIT_NOFILE, errand.open_files),
            (resource.RLIMIT_STACK, errand.stack_bytes),
            (resource.RLIMIT_MEMLOCK, 64 << 10),
            (resource.RLIMIT_MSGQUEUE, 800 << 10),
            (resource.RLIMIT_SIGPENDING, _PENDING_SIGNALS),
            (resource.RLIMIT_RTPRIO, 0),
            (resource.RLIMIT_NICE, 0),
            (resource.RLIMIT_NPROC, tight),
            (resource.RLIMIT_CORE, 1),
        ):
            hard = resource.getrlimit(kind)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            with contextlib.suppress(OSError, ValueError):  # gVisor has not all of them
                resource.setrlimit(kind, (most, most))

    # ── minding ──

    def _mind(self, began: float, oom_before: int) -> float:
        """Wait for the tenant's end, or for the limit that ends it; when that was, on the monotonic clock."""
        errand = self.errand
        deadline = began + errand.wall_s
        cpu_next, look_next = self._cpu_next(began), began + _LOOK_S
        while True:
            now = time.monotonic()
            if self._status is not None:
                return now
            if now >= cpu_next:
                cpu_next = self._cpu_next(now)
            if now >= look_next:
                look_next = now + _LOOK_S
                if self.counters.oom_kills() > oom_before:
                    self._reason = "memory"
                elif self.disks.over():
                    self._reason = "disk"
            if self._reason is None and now >= deadline:
                self._reason = "wall_time"
            if self._reason is not None:
                return now
            self._wait(min(deadline, cpu_next, look_next) - now)

    def _cpu_next(self, now: float) -> float:
        """When the CPU time can be used up at the soonest; notes it where it is."""
        if not self.counters.has_cpu:
            return float("inf")
        left = self.errand.cpu_s - sum(self.counters.cpu_us()) / 1e6
        if left <= 0:
            self._reason = "cpu_time"
        return now + max(left / max(self.errand.cpus, 0.01), _SOONEST_S)

    def _wait(self, seconds: float) -> None:
        watched = [self._wake, 0]
        if self.frames.has_room:
            watched += self._pipes
        readable, writable, _ = select.select(watched, [1] if self.frames.is_waiting else [], [], max(seconds, 0.0))
        if 0 in readable:  # end of input, or what nobody has to say
            os._exit(1)
        if writable:
            self.frames.push()
        if self._wake in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._reap()
        for fd in readable:
            if fd in self._pipes:
                self._take(fd)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if pid == self._tenant:
                    self._status = status

    def _take(self, fd: int) -> bool:
        """Pass on what the tenant has printed, as far as it may; whether there was anything."""
        stream = self._pipes[fd]
        try:
            data = os.read(fd, _CHUNK - HEAD.size)
        except BlockingIOError:
            return False
        if not data:
            os.close(fd)
            del self._pipes[fd]
            return False
        room = self.errand.output_bytes - self._kept[stream]
        if len(data) > room:
            self._truncated[stream] = True
            if not self.errand.drop_output and self._reason is None:
                self._reason = "output"
        if room > 0:
            self._kept[stream] += min(len(data), room)
            self.frames.put(OUTPUT[stream], data[:room])
        return True

    # ── ending ──

    def _end_all(self) -> None:
        """End every process but ourselves, and wait until the kernel has."""
        deadline = time.monotonic() + _CLEAR_UP_S
        while time.monotonic() < deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                time.sleep(0.002)
            elif pid == self._tenant and self._status is None and self._reason is None:
                self._status = status

    def _drain(self) -> None:
        """What was in the pipes when the last writer died."""
        for fd in list(self._pipes):
            while self._take(fd):
                self.frames.flush(below=_MOST_PENDING)

    def _collect(self) -> bool:
        """Send the working directory's bundle; whether it is whole. The packing is done with the tenant's rights."""
        read, write = os.pipe()
        packer = os.fork()
        if not packer:
            code = 1
            with contextlib.suppress(BaseException):
                os.close(read)
                _become_tenant(self._uid)
                bundle.collect(self.errand.cwd, write, self.errand.disk_bytes)
                code = 0
            os._exit(code)
        os.close(write)
        while data := os.read(read, _CHUNK - HEAD.size):
            self.frames.put(COLLECTED, data)
            self.frames.flush(below=_MOST_PENDING)
        os.close(read)
        return os.waitpid(packer, 0)[1] == 0


def _close_from(first: int) -> None:
    """Close every descriptor from *first* on, one by one: gVisor's close_range(2) is not to be relied on."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= first:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))


def _find_program(name: str, env: Mapping[str, str]) -> str:
    if "/" in name:
        return name
    for directory in env.get("PATH", "/usr/bin:/bin").split(":"):
        if os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    raise FileNotFoundError(errno.ENOENT, "no such program in the sandbox")
