#!/usr/bin/python3 -IS
"""PID 1 of the virtual machine: sets up a host with nothing but cgroup v2, runs the checks in it, ends the machine.

The first process of a real system does likewise: it mounts what the kernel offers, then leaves the initial RAM file
system (`switch_root`), from which `pivot_root` would not work.
"""

import ctypes
import os
import platform
import sys
import termios
import traceback

sys.path[:0] = ["/stockade", "/stockade/src"]

from stockade.warden import kernel  # noqa: E402 - nothing is installed here
from stockade.warden.syscall_table import NUMBERS  # noqa: E402

_MS_MOVE = 0x2000
_RB_AUTOBOOT = 0x01234567
_PAGE = 4096
_SWAP_BYTES = 256 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount_all() -> None:
    kernel.mount("root", "/run", "tmpfs", 0, "mode=755")
    for name in sorted(os.listdir("/")):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"/run/{name}")
        elif os.path.isdir(f"/{name}") and name != "run":
            os.mkdir(f"/run/{name}")
            if name in ("usr", "bin", "sbin", "lib", "lib64", "stockade", "modules"):
                kernel.mount(f"/{name}", f"/run/{name}", None, kernel.MS_BIND)
    os.chdir("/run")
    kernel.mount(".", "/", None, _MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    kernel.mount("dev", "/dev", "devtmpfs", 0)
    kernel.mount("proc", "/proc", "proc", 0)
    kernel.mount("sys", "/sys", "sysfs", 0)
    kernel.mount("tmp", "/tmp", "tmpfs", 0, "mode=1777")
    # As systemd mounts it.
    kernel.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, "nsdelegate,memory_recursiveprot")


def _load_modules() -> None:
    finit_module = NUMBERS[platform.machine()]["finit_module"]
    for name in sorted(os.listdir("/modules")):
        with open(f"/modules/{name}", "rb") as file:
            _checked(_libc.syscall(finit_module, file.fileno(), b"", 0), f"module {name}")


def _open_swap() -> None:
    """Give the kernel swap to use: a compressed disk in memory with the header that mkswap writes."""
    with open("/sys/block/zram0/disksize", "w") as size:
        size.write(str(_SWAP_BYTES))
    header = bytearray(_PAGE)
    header[1024:1032] = (1).to_bytes(4, "little") + (_SWAP_BYTES // _PAGE - 1).to_bytes(4, "little")
    header[-10:] = b"SWAPSPACE2"
    with open("/dev/zram0", "wb") as disk:
        disk.write(header)
    _checked(_libc.swapon(b"/dev/zram0", 0), "swapon")


def main() -> None:
    try:
        _mount_all()
        _load_modules()
        _open_swap()
        from tests.vm import checks

        checks.run_all()
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        termios.tcdrain(sys.stdout)
        _libc.reboot(_RB_AUTOBOOT)  # QEMU was told to end instead


main()
