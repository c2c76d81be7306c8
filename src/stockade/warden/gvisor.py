"""A cell with a second wall: the tenant's program runs on gVisor's kernel, and only gVisor on the host's.

The cell is one like all others: the same namespaces, user ids, control groups, disk, output and deadlines, and a PID 1
of ours. What differs is its root, in which gVisor finds itself and nothing else (`mounts.enter_wall_root`), what it may
do before a tenant's program is there, and its filter (`seccomp.WALL`): gVisor sets up namespaces and a filter of its
own below ours. The tenant's root is a directory there, shown to the tenant by gVisor's file server.

PID 1 is on the host's side of that wall: it starts gVisor with a process that does nothing, tells the warden that the
cell is ready, and has the program started inside when its errand comes.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from . import bundle, init, kernel, newborn
from .gvisor_calls import CONTAINER, Calls, GuestError, GuestGone
from .image import UID
from .mounts import enter_wall_root, fit_sandbox_root

__all__ = ["Shape", "Wall", "live"]

CAPABILITIES = frozenset(
    {
        kernel.CAP_CHOWN,
        kernel.CAP_DAC_OVERRIDE,
        kernel.CAP_DAC_READ_SEARCH,
        kernel.CAP_FOWNER,
        kernel.CAP_FSETID,
        kernel.CAP_KILL,
        kernel.CAP_SETGID,
        kernel.CAP_SETPCAP,
        kernel.CAP_SETUID,
        kernel.CAP_SYS_ADMIN,
        kernel.CAP_SYS_CHROOT,
        kernel.CAP_SYS_PTRACE,
    }
)
"""Over the cell's own user namespace, for gVisor to set itself up. Its file server keeps those on files, its kernel
those with which it ends threads of its own; nothing of the tenant's has any."""
_TENANT, _STATE, _BUNDLE = "/tenant", "/state", "/bundle"  # in the root that `enter_wall_root` builds
_COMPLAINTS = f"{_STATE}/complaints"
# That its first process ignores SIGCHLD has a kernel reap orphans by itself.
_IDLE = ("/usr/bin/env", "--ignore-signal=CHLD", "sleep", "infinity")
_UP_WITHIN_S = 25.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is settled when gVisor is started: limits that it enforces by itself for all processes."""

    disk_bytes: int
    open_files: int
    stack_bytes: int

    def rlimits(self) -> list[dict[str, Any]]:
        """As the OCI runtime specification has them."""
        limits = {
            "CORE": 0,
            "FSIZE": self.disk_bytes,
            "NOFILE": self.open_files,
            "STACK": self.stack_bytes,
            "MEMLOCK": 64 * 1024,
            "MSGQUEUE": 800 * 1024,
            "RTPRIO": 0,
            "NICE": 0,
        }
        return [{"type": f"RLIMIT_{name}", "soft": most, "hard": most} for name, most in limits.items()]


@dataclass(frozen=True, kw_only=True)
class Wall:
    """How gVisor is started: the maker's order, which comes from the warden."""

    program: str
    """Path of `runsc` in the warden's own root."""
    platform: str
    options: tuple[str, ...]
    shape: Shape

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> "Wall":
        return cls(
            program=message["program"],
            platform=message["platform"],
            options=tuple(message["options"]),
            shape=Shape(**message["shape"]),
        )


def live(birth: init.Birth, wall: Wall) -> NoReturn:
    """Be PID 1 of a new sandbox with a second wall, until the process that it was told to run has ended."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            kernel.set_handler(number, kernel.DEFAULT_HANDLER)  # the warden's handlers are not ours
        enter = partial(enter_wall_root, program=wall.program)
        os.close(init.settle(birth, capabilities=CAPABILITIES, enter=enter))
        kernel.seal_process_title("init", birth.title)
        kernel.set_no_new_privileges()
        kernel.set_seccomp(birth.seccomp)
        _boot(birth, wall, wall.shape)
        os.write(birth.control, init.READY)
        errand = init.errand_of(*newborn.await_message(birth))
        shape = Shape(disk_bytes=errand.disk_bytes, open_files=errand.open_files, stack_bytes=errand.stack_bytes)
        orders, news = _connect(birth, wall, shape)
        # From here on we see just what the tenant sees, so no link of theirs leads us anywhere else.
        os.chroot(_TENANT)
        fit_sandbox_root(disk_bytes=errand.disk_bytes, disk_inodes=errand.disk_inodes, cwd=errand.cwd)
        _give_up_privileges()
        os.write(birth.control, init.started(birth))
        init.end(birth, errand, _run(birth, errand, orders, news))
    except BaseException as error:  # whatever it is, the warden must hear of it
        init.complain(birth, f"{type(error).__name__}: {error}")
    os._exit(1)


def _connect(birth: init.Birth, wall: Wall, shape: Shape) -> tuple[Calls, Calls]:
    """Two lines to a gVisor of that shape: the one that was started ahead, if it will do."""
    if shape == wall.shape:
        with contextlib.suppress(GuestGone):  # as when memory ran out on the host, and it was the first to go
            return Calls(_STATE), Calls(_STATE)
    init.end_all_others()
    _boot(birth, wall, shape)
    return Calls(_STATE), Calls(_STATE)


def _boot(birth: init.Birth, wall: Wall, shape: Shape) -> None:
    """Start gVisor with a process that does nothing, and wait until that runs.

    Raises:
        OSError: it cannot be started; the message says what it said.
    """
    with open(f"{_BUNDLE}/config.json", "w", encoding="utf-8") as file:
        json.dump(_specification(birth, shape), file)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(_STATE):
            os.unlink(f"{_STATE}/{name}")
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    complaints = os.open(_COMPLAINTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (null, null, complaints)]
    argv = [
        "runsc", f"--root={_STATE}", f"--platform={wall.platform}", "--network=none", "--ignore-cgroups",
        # The root is written to by us as well; what the image shows is not written to at all.
        "--file-access=shared", "--file-access-mounts=exclusive",
        *wall.options,
        "run", "--detach", f"--bundle={_BUNDLE}", CONTAINER,
    ]  # fmt: skip
    pid = os.posix_spawn(
        "/runsc",
        argv,
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(moved)],
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them, and execve would hand that on
    )
    for fd in (*moved, null, complaints):
        os.close(fd)
    pidfd = os.pidfd_open(pid)
    if not select.select([pidfd], [], [], _UP_WITHIN_S)[0]:
        raise OSError(f"gVisor was not up within {_UP_WITHIN_S:g} s: {_complaint()}")
    os.close(pidfd)
    status = os.waitpid(pid, 0)[1]
    if status:
        raise OSError(f"gVisor cannot be started: {_complaint()} (status {os.waitstatus_to_exitcode(status)})")


def _complaint() -> str:
    """The end of what it wrote to standard error."""
    with open(_COMPLAINTS, encoding="utf-8", errors="replace") as file:
        return file.read()[-1500:].strip() or "it does not say why"


def _specification(birth: init.Birth, shape: Shape) -> dict[str, Any]:
    """The bundle's `config.json`: see the OCI runtime specification."""
    nothing: list[str] = []
    kinds = ("bounding", "effective", "inheritable", "permitted", "ambient")
    mounts = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    mounts += [_bound(f"/{target}", "ro") for _, target in birth.image.binds]
    # Else gVisor would put memory of its own there, which is no part of the disk.
    mounts += [_bound(path) for path in ("/tmp", "/dev/shm")]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(_IDLE),
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(kinds, nothing),
            "noNewPrivileges": True,
            "rlimits": shape.rlimits(),
        },
        "root": {"path": _TENANT, "readonly": False},
        "hostname": init.HOSTNAME,
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


def _bound(path: str, *options: str) -> dict[str, Any]:
    return {"destination": path, "type": "bind", "source": _TENANT + path, "options": ["rbind", *options]}


def _give_up_privileges() -> None:
    """Be the tenant's user, who can do nothing but end what is left in the cell."""
    kernel.drop_bounding_set(frozenset({kernel.CAP_KILL, kernel.CAP_SETPCAP}))
    kernel.fix_capabilities()
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    kernel.drop_bounding_set()
    kernel.drop_capabilities(frozenset({kernel.CAP_KILL}))
    kernel.set_dumpable(dumpable=False)
    kernel.set_parent_death_signal(signal.SIGKILL)  # after the ids: changing them clears it


def _run(birth: init.Birth, errand: init.Errand, orders: Calls, news: Calls) -> int:
    """Put the program's files in place, run it, and wait for its end; its wait status."""
    os.chdir(errand.cwd)
    try:
        for source in errand.unpack:
            bundle.unpack(source, ".")
        program = init.find_program(errand.argv[0], errand.env)
        streams = (errand.stdin, birth.stdout, birth.stderr)
        pid = orders.execute(program, errand.argv, errand.env, errand.cwd, (UID, UID), streams)
    except (OSError, bundle.BundleError, GuestError) as error:
        # Most likely the tenant's own doing (no such program, disk full): told and counted as a shell does.
        os.write(birth.stderr, f"cannot start {errand.argv[0]}: {error}\n".encode(errors="replace"))
        return (127 if isinstance(error, FileNotFoundError) else 126) << 8
    init.close_all_but(
        {birth.control, orders.fileno(), news.fileno()} | ({errand.collect} if errand.collect is not None else set())
    )
    try:
        return news.wait(pid)
    except GuestGone:
        # The tenant's program has ended its own kernel, or it has for want of memory or processes.
        return int(signal.SIGKILL)
