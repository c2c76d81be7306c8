"""Processes that keep disks, for tests: as root's warden would start them, and an ordinary user's."""

import contextlib
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stockade.warden import disks, disks_process, kernel
from stockade.warden.fields import Refused

assert disks_process  # imported here: an ordinary user of the tests may not be able to read it

__all__ = ["KINDS", "WITHIN_S", "Keeper", "mounted_inside", "place"]

WITHIN_S = 60.0
MB = 1 << 20
ORDINARY = 4711
KINDS = ("btrfs", "directory", "ordinary user")


@contextlib.contextmanager
def place(kind: str) -> Iterator[Path]:
    """A folder for disks, not pytest's: an ordinary user has no way there."""
    if os.geteuid() != 0:
        pytest.skip("needs root to start processes of root's and of others'")
    with tempfile.TemporaryDirectory(prefix="stockade-disks-") as folder:
        os.chmod(folder, 0o755)
        if kind == "ordinary user":
            os.chown(folder, ORDINARY, ORDINARY)
        yield Path(folder)


class Keeper:
    """One process, and what it says."""

    def __init__(self, folder: Path, kind: str, *, size_bytes: int = 512 * MB) -> None:
        self.directory = folder / "disks"
        self.kind = kind
        driver = "directory" if kind == "ordinary user" else kind
        self._guardian: tuple[int, socket.socket] | None = None
        if kind == "ordinary user":
            self.disks = self._start_as_user(driver)
        else:
            self.disks = disks.start(str(self.directory), kind=driver, size_bytes=size_bytes, own_ids=True)
        self.pid = self.disks.pid

    def _start_as_user(self, driver: str) -> disks.Disks:
        """It dies with its parent, which so has to stay: a child of ours that has become somebody else."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                kernel.close_range(3, theirs.fileno() - 1)  # others' channels, whose end would else not be seen
                kernel.close_range(theirs.fileno() + 1)
                kernel.set_parent_death_signal(signal.SIGKILL)
                os.setgroups([])
                os.setresgid(ORDINARY, ORDINARY, ORDINARY)
                os.setresuid(ORDINARY, ORDINARY, ORDINARY)
                kernel.set_dumpable(dumpable=True)  # else our /proc entries belong to root
                _become_root_of_a_namespace()
                started = disks.start(str(self.directory), kind=driver, own_ids=False)
                socket.send_fds(theirs, [str(started.pid).encode()], [started.channel.fileno()])
                started.channel.close()
                theirs.recv(1)
            os._exit(0)
        theirs.close()
        data, fds, _, _ = socket.recv_fds(ours, 100, 1)
        assert data, "the ordinary user's process could not be started"
        self._guardian = pid, ours
        channel = socket.socket(fileno=fds[0])
        channel.setblocking(False)
        return disks.Disks(int(data), channel)

    def ask(self, op: str, *descriptors: int, **members: Any) -> Any:
        """What comes of an order; its refusal is raised."""
        return self.ask_for_descriptors(op, *descriptors, **members)[0]

    def ask_for_descriptors(self, op: str, *descriptors: int, **members: Any) -> tuple[Any, list[int]]:
        replies = self.begin(op, *descriptors, **members)
        self.hear_until(lambda: bool(replies))
        reply, found = replies[0]
        if isinstance(reply, Refused):
            raise reply
        return reply, found

    def begin(self, op: str, *descriptors: int, **members: Any) -> list[tuple[disks.Reply, list[int]]]:
        """Give an order; what comes of it is put into the list."""
        replies: list[tuple[disks.Reply, list[int]]] = []

        def then(reply: disks.Reply, found: list[int]) -> None:
            replies.append((reply, list(found)))
            found.clear()

        self.disks.ask({"op": op, **members}, descriptors, then)
        return replies

    def hear_until(self, condition: Any) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not condition():
            assert time.monotonic() < deadline, f"no answer within {WITHIN_S:g} s"
            assert not self.disks.is_lost, "it has died"
            select.select([self.disks.channel], [], [], 1.0)
            self.disks.hear()

    def refusal(self, op: str, *descriptors: int, **members: Any) -> str:
        """The kind of refusal that an order meets with."""
        with pytest.raises(Refused) as refused:
            self.ask(op, *descriptors, **members)
        return refused.value.kind

    def make(self, *names: str, size_bytes: int = 64 * MB) -> None:
        for name in names:
            self.ask("make", disk=name, size_bytes=size_bytes)

    @property
    def root(self) -> Path:
        """Where disks lie, as only root can see it, through the process's own root."""
        return Path(f"/proc/{self.pid}/root/disks")

    def upper(self, name: str) -> Path:
        """The content of a disk or layer."""
        found = [path for part in ("disks", "layers") if (path := self.root / part / name / "upper").exists()]
        assert len(found) == 1, f"{name} is in {found}"
        return found[0]

    def write(self, name: str, path: str, content: bytes) -> None:
        """Write a file as a sandbox's root would."""
        file = self.upper(name) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as target:
            target.write(content)
            target.flush()
            os.fsync(target.fileno())
        owner = ORDINARY if self.kind == "ordinary user" else 0
        for one in (file, *file.relative_to(self.upper(name)).parents):
            os.chown(self.upper(name) / one, owner, owner)

    def read(self, name: str, path: str) -> bytes:
        return (self.upper(name) / path).read_bytes()

    @property
    def is_alive(self) -> bool:
        """Whether it lives; that nobody has asked for its exit status yet is no life."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except FileNotFoundError:
            return False

    def kill(self) -> None:
        """End it as a crash does."""
        os.kill(self.pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        self.disks.shut()
        if self._guardian is not None:
            pid, channel = self._guardian
            channel.close()
            os.waitpid(pid, 0)
            deadline = time.monotonic() + WITHIN_S
            while self.is_alive:  # somebody else's child by now
                assert time.monotonic() < deadline
                time.sleep(0.005)
        else:
            os.waitpid(self.pid, 0)


def _become_root_of_a_namespace() -> None:
    """As `stockade.warden.__main__` does for an ordinary user."""
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    for name, text in {"setgroups": "deny", "uid_map": f"0 {uid} 1", "gid_map": f"0 {gid} 1"}.items():
        Path(f"/proc/self/{name}").write_text(text)


@contextlib.contextmanager
def mounted_inside(base: int) -> Iterator[tuple[int, int, socket.socket]]:
    """A process in a user namespace of its own, whose 0 is *base* outside: (pid, pidfd, channel).

    It takes mounts by their descriptors, attaches them at `/mnt/0`, `/mnt/1` and so on, and runs the Python that it is
    sent there; it answers with what that leaves in `result`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(WITHIN_S)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            kernel.set_parent_death_signal(signal.SIGKILL)
            kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
            theirs.send(b"ready")
            theirs.recv(1)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
            kernel.mount("test", "/mnt", "tmpfs", kernel.MS_NOSUID, "mode=755")
            os.chdir("/mnt")
            while True:
                data, fds, _, _ = socket.recv_fds(theirs, 1 << 16, 16)
                if not data:
                    os._exit(0)
                for number, fd in enumerate(fds):
                    os.makedirs(f"/mnt/{number}", exist_ok=True)
                    kernel.move_mount(fd, path=f"/mnt/{number}")
                    os.close(fd)
                scope: dict[str, Any] = {"kernel": kernel, "os": os, "result": None}
                try:
                    exec(data.decode(), scope)
                    answer = repr(scope["result"])
                except BaseException as error:
                    answer = repr(f"{type(error).__name__}: {error}")
                theirs.send(answer.encode())
        finally:
            os._exit(1)
    theirs.close()
    pidfd = os.pidfd_open(pid)
    try:
        assert ours.recv(10) == b"ready"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {base} 65536")
        ours.send(b"!")
        yield pid, pidfd, ours
    finally:
        ours.close()
        os.close(pidfd)
        os.waitpid(pid, 0)
