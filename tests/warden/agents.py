"""A file agent without a sandbox: a child of the test that has given up what a sandbox's PID 1 gives up."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stockade.warden import agent, init, kernel, seccomp

__all__ = ["NOBODY", "agent_process", "as_tenant", "needs_root", "private_mounts", "tenants_directory"]

NOBODY = 65534
WITHIN_S = 60.0

Before = Callable[[], int | None]


@contextlib.contextmanager
def agent_process(before: Before | None = None, *, user: int | None = NOBODY) -> Iterator[tuple[socket.socket, int]]:
    """The server's end of an agent's channel, and the agent's pid; it must have ended by the end of the block.

    Args:
        before: called in the child while it may still do everything; returns `serve`'s second argument.
        user: whom the agent is to be; as the tests' user where that is not root, or with `None`.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            upper = None if before is None else before()
            if user is not None:
                as_tenant(user)
            kernel.set_no_new_privileges()
            kernel.set_dumpable(dumpable=False)
            # Other tests' descriptors may lie above the limit: then none of ours would be to be had.
            init.close_all_but({0, 1, 2, theirs.fileno()} | ({upper} if upper is not None else set()))
            resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
            kernel.set_seccomp(seccomp.build())
            agent.serve(theirs.detach(), upper)
        except BaseException as error:  # nothing of pytest may run in this process
            os.write(2, f"agent: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(9)
    theirs.close()
    status = None
    try:
        yield ours, pid
        ours.close()
        status = _wait(pid)
    finally:
        ours.close()
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), f"the agent ended with status {status}"


def _wait(pid: int) -> int | None:
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.005)
    return None


def as_tenant(user: int = NOBODY) -> None:
    """Be an ordinary user without capabilities, where we are root."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


@contextlib.contextmanager
def tenants_directory() -> Iterator[Path]:
    """A directory of the agent's user. (What is in pytest's own, others than root cannot reach.)"""
    directory = Path(tempfile.mkdtemp(prefix="stockade-test-files-"))
    try:
        if os.geteuid() == 0:
            os.chown(directory, NOBODY, NOBODY)
        yield directory
    finally:
        # Not shutil: what is in it may be deeper than Python's stack.
        subprocess.run(["rm", "-rf", str(directory)], check=True, timeout=60)


def private_mounts() -> None:
    """A mount namespace of our own: what is mounted from here on is gone with this process."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
