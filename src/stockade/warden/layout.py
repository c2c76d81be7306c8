"""Where `/proc/<pid>/cmdline` and `/proc/<pid>/environ` are read from: two ranges of a process's own memory.

`execve` sets them, and a process may move them (PR_SET_MM_MAP of prctl(2), Linux 3.18, which takes no privilege): so a
fork of a template shows the arguments and the environment that it would show had it been started with them.
"""

import ctypes
import os
from collections.abc import Iterable

__all__ = ["Layout"]

_PR_SET_MM = 35
_PR_SET_MM_MAP = 14
_KEEP_EXE = 0xFFFF_FFFF

_libc = ctypes.PyDLL(None, use_errno=True)
_prctl = _libc["prctl"]
_prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
_sbrk = _libc["sbrk"]
_sbrk.argtypes = (ctypes.c_ssize_t,)
_sbrk.restype = ctypes.c_void_p


class _Map(ctypes.Structure):
    """struct prctl_mm_map"""

    _fields_ = (
        ("code", ctypes.c_uint64 * 2),
        ("data", ctypes.c_uint64 * 2),
        ("brk", ctypes.c_uint64 * 2),
        ("stack", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 2),
        ("environment", ctypes.c_uint64 * 2),
        ("auxv", ctypes.c_void_p),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    )


class Layout:
    """That of the process that made it, and of its forks."""

    def __init__(self) -> None:
        with open("/proc/self/stat", "rb") as stat:
            numbers = stat.read().rpartition(b")")[2].split()  # the name, before it, may hold blanks
        # Fields 26-28 and 45-51 of proc_pid_stat(5).
        code, data, title = numbers[23:25], numbers[42:44], numbers[45:49]
        self._map = _Map(exe_fd=_KEEP_EXE)
        self._map.code[:] = [int(n) for n in code]
        self._map.stack = int(numbers[25])
        self._map.data[:] = [int(n) for n in data]
        self._map.brk[0] = int(numbers[44])
        self._map.arguments[:] = [int(n) for n in title[:2]]
        self._map.environment[:] = [int(n) for n in title[2:]]

    def show_arguments(self, arguments: Iterable[bytes]) -> None:
        """Raises OSError where the kernel cannot do it."""
        self._map.arguments[:] = _keep(arguments)
        self._apply()

    def show_environment(self, variables: Iterable[bytes]) -> None:
        """Texts of the form `name=value`. Raises OSError where the kernel cannot do it."""
        self._map.environment[:] = _keep(variables)
        self._apply()

    def _apply(self) -> None:
        self._map.brk[1] = _sbrk(0)  # what malloc has come to: it is set with the rest
        if _prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(self._map), ctypes.sizeof(self._map), 0) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl PR_SET_MM_MAP: {os.strerror(number)}")


def _keep(texts: Iterable[bytes]) -> tuple[int, int]:
    """Put them into memory that is never freed, for the kernel goes on reading there; returns where it is."""
    data = b"".join(text + b"\0" for text in texts)
    buffer = ctypes.create_string_buffer(data, max(1, len(data)))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(buffer))
    start = ctypes.addressof(buffer)
    return start, start + len(data)
