"""One server at a time on a data directory."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from stockade.errors import Conflict, Unavailable

__all__ = ["exclusive"]


@contextlib.contextmanager
def exclusive(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process; the kernel lets go of it however the process ends.

    Raises:
        Conflict: another server holds it.
        Unavailable: the lock file cannot be opened.
    """
    path = data_dir / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            who = f"process {holder}" if holder.isdecimal() else "another server"
            raise Conflict(
                f"{who} uses the data directory {data_dir}; stop it, or name another directory with --data-dir"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: whom a second server meets will have no name, that is all
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: removing it would let two servers lock two files of the same name.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also where a fork of this process has it open, too
        os.close(descriptor)
