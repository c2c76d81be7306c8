"""A btrfs file system in a file, on a loop device that is gone with its last mount.

The lock on the file is the loop device's as well as ours: it is held until the kernel has let go of the file, however
we ended. That matters, because Linux 6.7 and later mount a second device with the same file system as a copy of it, and
both would write to the one file.
"""

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import time

__all__ = ["NAME", "NEW_NAME", "Unfit", "attach", "lock", "make", "open_image"]

NAME = "disks.img"
NEW_NAME = "disks.img.new"
_LEAST_BYTES = 256 << 20
_MIB = 1 << 20
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMAT_S = 120.0
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ATTEMPTS = 50
_PAUSE_S = 0.02
# <linux/loop.h>
_CONFIGURE = 0x4C0A
_GET_FREE = 0x4C82
_AUTOCLEAR = 4
_CONFIG = struct.Struct("=II5Q4I64s64s32s2Q8Q")  # struct loop_config
# <linux/fs.h>
_SET_FLAGS = 0x4008_6602
_NO_COPY_ON_WRITE = 0x0080_0000


class Unfit(Exception):
    """This host cannot keep disks so; the message says why, for a human."""


def lock(file: int, patience_s: float) -> bool:
    """Take the lock of a file, waiting for whoever has it to be gone; whether it is ours."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE_S)
        else:
            return True


def make(directory: int, size_bytes: int | None) -> int:
    """Make and format an image under another name, so that it is not there until `os.rename` says so.

    Raises:
        Unfit: it cannot be made here.
        OSError
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NEW_NAME, dir_fd=directory)
    room = os.fstatvfs(directory)
    size = _rounded(size_bytes or room.f_bavail * room.f_frsize // 2)
    if size < _LEAST_BYTES:
        raise Unfit(f"there is no room for a file system of {_LEAST_BYTES // _MIB} MiB")
    image = os.open(NEW_NAME, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
    try:
        with contextlib.suppress(OSError):  # on btrfs: else each block would be moved at each change
            fcntl.ioctl(image, _SET_FLAGS, struct.pack("=Q", _NO_COPY_ON_WRITE))
        os.ftruncate(image, size)
        _format(image)
        os.fsync(image)
    except BaseException:
        os.close(image)
        raise
    return image


def open_image(directory: int, size_bytes: int | None) -> int:
    """The image in a directory, made larger where *size_bytes* is. Raises OSError."""
    image = os.open(NAME, _FLAGS, dir_fd=directory)
    if size_bytes is not None and os.fstat(image).st_size < _rounded(size_bytes):
        os.ftruncate(image, _rounded(size_bytes))
    return image


def attach(image: int) -> tuple[int, str]:
    """A loop device of the image: a descriptor, and its path. It is let go of once neither that nor a mount is open.

    Raises:
        Unfit: this host has none for us.
        OSError
    """
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unfit(f"there are no loop devices here: /dev/loop-control: {error.strerror}") from error
    try:
        for _ in range(_ATTEMPTS):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            try:
                device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                raise Unfit(f"there is no loop device for us: {path}: {error.strerror}") from error
            name = NAME.encode()
            config = _CONFIG.pack(image, 0, 0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, name, b"", b"", 0, 0, *[0] * 8)
            try:
                fcntl.ioctl(device, _CONFIGURE, bytearray(config))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # somebody else was faster
                    raise
                time.sleep(_PAUSE_S)
            else:
                return device, path
    finally:
        os.close(control)
    raise Unfit("all loop devices are taken")


def _rounded(size_bytes: int) -> int:
    return size_bytes // _MIB * _MIB


def _format(image: int) -> None:
    program = next((p for d in _PATH.split(":") if os.access(p := f"{d}/mkfs.btrfs", os.X_OK)), None)
    if program is None:
        raise Unfit("mkfs.btrfs is missing: install btrfs-progs")
    # One copy of everything: what keeps the file safe is the file system that it lies in.
    options = ("--quiet", "--nodiscard", "--data", "single", "--metadata", "single", "--label", "stockade")
    try:
        done = subprocess.run(
            (program, *options, f"/proc/self/fd/{image}"),
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(image,),
            timeout=_FORMAT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unfit(f"mkfs.btrfs did not end within {_FORMAT_S:g} s") from None
    if done.returncode:
        raise Unfit(f"mkfs.btrfs failed: {done.stderr.decode(errors='replace').strip()[-300:]}")
