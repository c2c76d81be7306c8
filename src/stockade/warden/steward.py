"""PID 1 of a sandbox that lives: it starts processes when the warden says so, and reaps them.

It has given up its privileges by then, apart from those that root of the sandbox has over the sandbox's own files, ids
and processes: processes are started as the user or as that root. What it starts inherits namespaces, groups,
limits and filter from it, so nothing ever has to enter a sandbox from outside.

It never reads what a tenant wrote. It takes orders over its control socket, one JSON message each:

    {"do": "spawn", "n": 3, "argv": …, "env": …, "cwd": …, "ids": [1000, 1000], "terminal": null}  stdin, stdout, stderr
    {"do": "signal", "n": 3, "pid": 7, "signal": 15, "tree": false, "ids": [1000, 1000]}
    {"do": "agent", "ids": [0, 0]}                                                       a socket
    {"do": "dial", "n": 4, "port": 80, "kind": "tcp"}

(no standard input where that is to be /dev/null) and tells {"up": …}, {"spawned": 3, "pid": 7, …}, {"exited": 3, …},
{"dialled": 4, …}, {"failed": …, "where": "ground", "room" or ""}.
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from . import agent, init, kernel, layers, outgoing, protocol, roots
from .image import UID
from .mounts import fit_sandbox_root, furnish_sandbox_root

__all__ = ["Stay", "live"]

_NO_ROOM = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE)
"""Of processes, of memory, of terminals, of descriptors."""
_TIOCGPTN = 0x8004_5430
_TIOCSPTLCK = 0x4004_5431
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_LOOKS = 16  # until a tree of processes stands still
_NO_LIMIT = 1 << 62
_REAPED_A_TURN = 64  # so that one who forks without end does not keep us from the warden's orders


@dataclass(frozen=True, kw_only=True)
class Stay:
    """What a sandbox that lives is to be: the warden's message, taken apart. The warden has checked it."""

    cwd: str
    disk_bytes: int
    disk_inodes: int
    processes: int
    open_files: int
    stack_bytes: int
    layer: bool
    """Whether the first descriptor is a layer, to be unpacked over the image."""
    ground: Mapping[str, Any] | None
    """What the root is to be made of instead, its descriptors following: `layers` (names), `disk` (whether there is
    one), `mounts` (paths, and whether they are the user's)."""
    memory_disk_bytes: int
    """Of what is written to memory, where the disk is not in memory."""
    drop_capabilities: list[int]
    """What root inside does not have."""
    outgoing: Mapping[str, Any] | None
    """Where it may connect, in the words of `egress`; `None` for nowhere."""
    descriptors: list[int]
    upper: int


def live(birth: init.Birth, stay: Stay) -> NoReturn:
    """Be PID 1 until the warden ends the sandbox. Never returns."""
    control = socket.socket(fileno=birth.control)
    control.setblocking(True)
    where = ""
    try:
        for one in (birth.stdout, birth.stderr):
            os.close(one)
        where = "ground"
        upper = stay.upper if stay.ground is None else _enter_ground(birth, stay, stay.ground)
        where = ""
        of_image = stay.ground is not None and bool(stay.ground["layers"])
        fit_sandbox_root(
            disk_bytes=stay.memory_disk_bytes,
            disk_inodes=stay.disk_inodes,
            cwd=stay.cwd,
            user=0 if of_image else UID,
            is_kept=stay.ground is not None,
        )
        if not of_image:
            furnish_sandbox_root(is_kept=stay.ground is not None)
        listeners: tuple[int, ...] = ()
        if stay.outgoing is not None:
            listeners = tuple(outgoing.open_outgoing(stay.outgoing))
            # On a disk there may be no place for it, as when it is full, or `/etc` is gone: that is its owner's affair.
            with contextlib.suppress(*((OSError,) if stay.ground is not None else ())):
                outgoing.write_resolver_file()
        importance = _open_importance()
        _become_steward(birth, init.ROOT_CAPABILITIES - set(stay.drop_capabilities))
        # What a file on a disk may come to, the disk says.
        init.set_rlimits(birth, stay if stay.ground is None else replace(stay, disk_bytes=_NO_LIMIT))
        kernel.set_seccomp(birth.seccomp)
        if stay.layer:
            layers.unpack(stay.descriptors[0], "/")
        keep = {birth.control, upper, importance, *listeners}
        init.close_all_but(keep | ({birth.cpu_stat} if birth.cpu_stat is not None else set()))
        protocol.send(control, {"up": time.monotonic()}, listeners)
        for one in listeners:
            os.close(one)
        _Steward(birth, control, upper, importance).work()
    except BaseException as error:  # whatever it is, the warden must hear of it
        if where and isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = "room"
        with contextlib.suppress(OSError, protocol.ProtocolError):
            protocol.send(control, {"failed": f"{type(error).__name__}: {error}"[:2000], "where": where})
    os._exit(1)


def _enter_ground(birth: init.Birth, stay: Stay, ground: Mapping[str, Any]) -> int:
    sources = iter(stay.descriptors[1 if stay.layer else 0 :])
    upper = roots.enter(
        roots.Ground(
            layers=ground["layers"],
            layers_source=next(sources) if ground["layers"] else None,
            disk_source=next(sources) if ground["disk"] else None,
            mounts=[roots.Mount(source=next(sources), path=path, is_users=own) for path, own in ground["mounts"]],
            binds=[target for _, target in birth.image.binds],
            memory_bytes=stay.memory_disk_bytes,
            memory_inodes=stay.disk_inodes,
        )
    )
    os.close(stay.upper)
    return upper


def _become_steward(birth: init.Birth, roots_capabilities: frozenset[int]) -> None:
    """Give up everything but what a sandbox's root may do with what is the sandbox's own.

    We keep all of that, for starting processes takes it; what they can have is bounded by *roots_capabilities*.
    """
    if birth.own_ids:
        kernel.drop_bounding_set(roots_capabilities)
        kernel.fix_capabilities()
        os.setgroups([])
        _be_user()
        kernel.drop_capabilities(init.ROOT_CAPABILITIES)
    else:  # there is one id only
        kernel.drop_bounding_set()
        kernel.drop_capabilities()
    kernel.set_no_new_privileges()
    kernel.set_dumpable(dumpable=False)
    kernel.set_parent_death_signal(signal.SIGKILL)  # after the ids: changing them clears it


def _open_importance() -> int:
    """Our /proc/self/oom_score_adj, to be written to later on, when it will not be ours to open any more."""
    kernel.set_dumpable(dumpable=True)  # nobody else is here yet
    try:
        return os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    finally:
        kernel.set_dumpable(dumpable=False)


def _be_user() -> None:
    """Have the tenant's ids, so that what is started has them, but for one that only we have and execve takes away:
    nobody else is so exactly the same that the kernel would let them set our limits (prlimit(2)).
    """
    os.setresuid(UID, UID, UID)
    os.setresgid(UID, UID, 0)


class _Steward:
    def __init__(self, birth: init.Birth, control: socket.socket, upper: int, importance: int) -> None:
        self._birth = birth
        self._control = control
        self._upper = upper
        self._importance = importance
        self._pids: dict[int, int] = {}
        """Number of each process that the warden knows, by its pid."""
        self._woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        # A handler, which is why the tenant can send us this one: it makes us look for children, no more.
        kernel.set_handler(signal.SIGCHLD, lambda *_: None)

    def work(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                    self._reap()
                    continue
                received = protocol.receive(self._control)
                if received is None:
                    return  # the warden is gone, and with it the sandbox
                order, descriptors = received
                try:
                    self._obey(order, descriptors)
                finally:
                    for one in descriptors:
                        os.close(one)

    def _tell(self, news: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        protocol.send(self._control, news, descriptors)  # waits while the warden is busy

    def _reap(self) -> None:
        for _ in range(_REAPED_A_TURN):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            number = self._pids.pop(pid, None)
            if number is not None:
                disk = os.fstatvfs(self._upper)
                # btrfs has no number of inodes, and says 0 of 0.
                full = disk.f_bfree == 0 or (disk.f_files > 0 and disk.f_ffree == 0)
                self._tell({"exited": number, "status": status, "at": time.monotonic(), "disk_full": full})
        os.kill(os.getpid(), signal.SIGCHLD)  # there may be more; an order comes first

    def _obey(self, order: dict[str, Any], descriptors: list[int]) -> None:
        what = order["do"]
        if what == "spawn":
            self._spawn(order, descriptors)
        elif what == "signal":
            self._signal(order["n"], order["pid"], order["signal"], tree=order["tree"], ids=order["ids"])
        elif what == "agent":
            self._begin_agent(descriptors[0], *order["ids"])
        elif what == "dial":
            self._dial(order)

    # ── processes ───────────────────────────────────────────────────────────────────────────────────────────────

    def _spawn(self, order: dict[str, Any], descriptors: list[int]) -> None:
        number, master = order["n"], -1
        began = time.monotonic()
        try:
            with self._as_user(*order["ids"]):
                if order["terminal"] is not None:
                    master, path = _open_terminal(*order["terminal"])
                    actions: list[Any] = [
                        (os.POSIX_SPAWN_OPEN, 0, path, os.O_RDWR, 0),  # which makes it the new session's
                        (os.POSIX_SPAWN_DUP2, 0, 1),
                        (os.POSIX_SPAWN_DUP2, 0, 2),
                    ]
                else:
                    first = 3 - len(descriptors)  # 1 where nobody is to write to it
                    actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate(descriptors, first)]
                    if first:
                        actions.append((os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0))
                with self._as_expendable():
                    pid = _start(order["argv"], order["env"], order["cwd"], actions)
        except OSError as error:
            if error.errno in _NO_ROOM:
                self._tell({"spawned": number, "busy": f"no room for another process: {error.strerror}"})
            else:
                is_missing = isinstance(error, FileNotFoundError) or error.errno == errno.ENOENT
                code = _NOT_FOUND if is_missing else _NOT_EXECUTABLE
                why = f"cannot start {order['argv'][0]}: {error.strerror or error}"
                is_cwd = isinstance(error, _NoDirectory)
                self._tell({"spawned": number, "refused": why[:2000], "code": code, "cwd": is_cwd})
        else:
            self._pids[pid] = number
            while descriptors:  # now: who writes to a process that reads no more is to hear of it
                os.close(descriptors.pop())
            self._tell({"spawned": number, "pid": pid, "at": began}, (master,) if master >= 0 else ())
        finally:
            if master >= 0:
                os.close(master)

    def _signal(self, number: int, pid: int, what: int, *, tree: bool, ids: list[int]) -> None:
        """Send a signal to a process that the warden knows, or, once that has ended, to what is left of its group.

        *ids*: with which it was started: only that user sees what descends from it (`hidepid`).
        """
        if pid not in self._pids:
            pid = next((one for one, known in self._pids.items() if known == number), pid)
        if self._pids.get(pid, number) != number:
            return  # its id is another's by now
        has_ended = pid not in self._pids
        if pid <= 1:
            return
        others: list[int] = []
        if tree and not has_ended:
            with self._as_user(*ids):
                others = _descendants(pid, stop=what == signal.SIGKILL)
        # It leads its session, and so cannot have left its process group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, what)
        for one in others:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(one) != pid:
                    os.kill(one, what)

    @contextlib.contextmanager
    def _as_expendable(self) -> Iterator[None]:
        """Be one to go when memory runs out, as what is started now shall be; else it is us, who hold the most where
        a program has its memory in files and pipes, and the whole sandbox goes with us.
        """
        with contextlib.suppress(OSError):
            os.pwrite(self._importance, init.EXPENDABLE, 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # our starter's own setting may forbid it
                os.pwrite(self._importance, b"0", 0)

    @contextlib.contextmanager
    def _as_user(self, uid: int, gid: int) -> Iterator[None]:
        """Be another user of the sandbox for a moment. No capability comes or goes with it; execve sees to those."""
        if (uid, gid) == (UID, UID):
            yield
            return
        if not self._birth.own_ids:
            raise PermissionError(errno.EPERM, "this warden has one user id only: there is no root inside, nor others")
        os.setresgid(gid, gid, UID)
        os.setresuid(uid, uid, UID)
        try:
            yield
        finally:
            _be_user()
            kernel.set_dumpable(dumpable=False)  # changing the ids has set it to what fs.suid_dumpable says
            kernel.set_parent_death_signal(signal.SIGKILL)  # changing the ids has cleared it

    def _begin_agent(self, channel: int, uid: int, gid: int) -> None:
        try:
            pid = os.fork()
        except OSError:
            return  # its channel is closed, which tells
        if pid:
            return
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Opened anew: an old descriptor of a directory may not tell of what came since (btrfs).
            upper = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._upper)
            init.close_all_but({channel, upper})
            if self._birth.own_ids:  # else there is one, and all files are its
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                if uid:
                    kernel.drop_capabilities()
            kernel.set_dumpable(dumpable=False)
            kernel.set_parent_death_signal(signal.SIGKILL)
            os.setsid()
            agent.serve(channel, upper)
        finally:
            os._exit(1)

    # ── ports ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _dial(self, order: dict[str, Any]) -> None:
        kind = socket.SOCK_DGRAM if order["kind"] == "udp" else socket.SOCK_STREAM
        why = "nothing listens there"
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                with socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as found:
                    result = found.connect_ex((address, order["port"]))
                    if result == errno.EINPROGRESS:
                        # connect(2) does not wait here; on the loopback a refusal has come by its end.
                        result = found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if result == 0:
                        self._tell({"dialled": order["n"]}, (found.fileno(),))
                        return
                    why = os.strerror(result)
            except OSError as error:
                why = str(error)
        self._tell({"dialled": order["n"], "refused": why})


def _start(argv: list[str], env: Mapping[str, str], cwd: str, actions: list[Any]) -> int:
    try:
        os.chdir(cwd)
    except OSError as error:
        raise _NoDirectory(error.errno, f"{cwd}: {error.strerror}") from error
    try:
        return os.posix_spawn(
            init.find_program(argv[0], env),
            argv,
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD),  # Python ignores the first two
        )
    finally:
        os.chdir("/")


def _open_terminal(rows: int, columns: int) -> tuple[int, str]:
    """A new terminal of the sandbox's own: its master side, and the path of its slave side. See pts(4)."""
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        (number,) = struct.unpack("I", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))
        fcntl.ioctl(master, 0x5414, struct.pack("HHHH", rows, columns, 0, 0))  # TIOCSWINSZ
    except OSError:
        os.close(master)
        raise
    return master, f"/dev/pts/{number}"


class _NoDirectory(OSError):
    """The working directory cannot be entered."""


def _descendants(pid: int, *, stop: bool) -> list[int]:
    """The processes that descend from *pid*, as far as their parents live.

    With *stop* they, and *pid*, stand still then, so that none can have made another one unseen.

    From `/proc/<pid>/task/<tid>/children` (proc_tid_children(5)): nothing there is the tenant's wording.
    """
    found = [pid]
    for _ in range(_LOOKS):
        before = len(found)
        if stop:
            for one in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(one, signal.SIGSTOP)
        seen = set(found)
        for one in found:  # which grows
            fresh = [child for child in _children(one) if child not in seen]
            seen.update(fresh)
            found += fresh
        if len(found) == before or not stop:
            break
    return found[1:]


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with contextlib.suppress(OSError, ValueError):  # it has just ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                children += map(int, file.read().split())
    return children
