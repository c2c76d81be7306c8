"""A maker's own side: what the mason and templates do alike."""

import contextlib
import errno
import os
import signal
from collections.abc import Callable
from typing import Any

from . import kernel
from .image import IDS, UID

__all__ = ["CELL", "TEMPLATE", "make"]

TEMPLATE = (
    kernel.CLONE_PARENT | kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
)  # fmt: skip
"""Namespaces of a template. It stays in our pid namespace: only so can its children become the warden's."""
CELL = TEMPLATE | kernel.CLONE_NEWPID
_BUSY = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EUSERS)


def make(namespaces: int, live: Callable[[], None], first_id: int | None, *, ids: int = IDS) -> dict[str, Any] | None:
    """Clone a process, map its ids, and say what came of it; the process itself calls *live*.

    It is a sibling of the caller's, which learns of it as soon as it exists. Should *live* return, then so do we, in
    the new process, with `None`.

    Args:
        first_id: first of its user ids as the caller sees them, or `None` where the caller has just one id.
        ids: how many.
    """
    pid = -1
    try:
        if first_id is not None:
            _become_owner(first_id)
        pid = kernel.clone(namespaces, signal.SIGCHLD)
        if pid == 0:
            live()
            return None
        if first_id is not None:
            _map_ids(pid, f"0 {first_id} {ids}")
        else:
            _map_ids(pid, f"{UID if namespaces == CELL else 0} 0 1")
    except OSError as error:
        if pid == 0:
            os._exit(1)
        answer = {"kind": "unavailable" if error.errno in _BUSY else "fault", "error": str(error)}
        if pid < 0:
            return answer
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # not yet reaped: the id cannot be another's
        return {"pid": pid, **answer}
    finally:
        if pid != 0 and first_id is not None:
            _become_ourselves()
    return {"pid": pid}


def _become_owner(uid: int) -> None:
    """Have a user namespace that we make now belong to *uid*, the first of its own ids.

    Much that the kernel counts for each user (inotify instances, signals and timers that are pending, queues) it counts
    once more for the owner of the namespace. Were that the same for all, one sandbox could use it up for every other.
    """
    os.setresuid(-1, uid, uid)
    kernel.set_dumpable(dumpable=True)  # which that has taken away: the child's /proc entries must be its own


def _become_ourselves() -> None:
    os.setresuid(-1, 0, 0)
    kernel.set_parent_death_signal(signal.SIGKILL)  # which that has cleared


def _map_ids(pid: int, line: str) -> None:
    # All three: a map that is left empty is one that the tenant may write.
    for kind in ("uid_map", "gid_map", "projid_map"):
        fd = os.open(f"/proc/{pid}/{kind}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)
