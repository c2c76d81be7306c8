"""Giving up root's powers for good, once the ports are open and the warden runs.

The server parses what strangers send; should one of them take it over, it must not own the machine as well.
"""

import ctypes
import os
import pwd
import struct
import time
from pathlib import Path

from stockade.errors import Fault, Invalid

__all__ = ["drop", "find_user"]

# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
# linux/capability.h
_CAPABILITY_VERSION_3 = 0x20080522
_MOST_CAPABILITIES = 64

ENDING_S = 2.0


def find_user(name: str) -> pwd.struct_passwd:
    """The user to become.

    Raises:
        Invalid: there is no such user, or this process is not root and cannot change.
    """
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise Invalid(f"server.user: this machine has no user {name!r}") from None
    if os.geteuid() not in (0, user.pw_uid):
        raise Invalid(f"server.user: only root can become {name!r}")
    return user


def drop(user: pwd.struct_passwd | None = None) -> None:
    """Give up all capabilities, the bounding set and the right to gain any by exec; become *user*; let no other process
    look into this one, nor a core file be made of it.

    Capabilities belong to threads and the calls below change the calling one only, so no other thread may run
    yet; later ones inherit.

    Raises:
        Fault: the kernel refused, or a thread still has capabilities; the process must not serve.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result < 0:
            raise Fault(f"cannot give up privileges: {what}: {os.strerror(ctypes.get_errno())}")

    # The bounding set first: dropping from it needs CAP_SETPCAP.
    if os.geteuid() == 0:
        for capability in range(_MOST_CAPABILITIES):
            present = libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)
            if present < 0:
                break  # past the last one that this kernel knows
            if present:
                check(libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), f"bounding set, capability {capability}")
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if user is not None and os.geteuid() == 0 and user.pw_uid != 0:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    check(libc.capset(header, bytes(2 * 3 * 4)), "capset")
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # Our memory and environment hold keys: no core file has them, no program that collects those, and no other process
    # of our user reads them. Last, for a change of the user sets it to what the host says (fs.suid_dumpable).
    check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "not dumpable")
    _verify()


def _verify() -> None:
    """Make sure that no thread has kept anything."""
    deadline = time.monotonic() + ENDING_S
    while kept := _kept():
        # A thread that Python has joined already is seen until the kernel, too, is done with it.
        if time.monotonic() > deadline:
            raise Fault(f"cannot give up privileges: {kept}")
        time.sleep(0.001)


def _kept() -> str:
    """A capability that some thread still has, in words; empty when there is none."""
    for task in Path("/proc/self/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        for line in lines:
            name, _, value = line.partition(":")
            if name in ("CapInh", "CapPrm", "CapEff", "CapAmb") and int(value, 16):
                return f"thread {task.name} still has {name} {value.strip()}"
    return ""
