"""A cell in which an interpreter has been started already, for those that cannot fork.

It is started with a small program of ours (`Recipe.files`) that runs before it would look for the tenant's, says on
descriptor 63 that it is warm, and waits there for one line of JSON: what the command line would have told it.
"""

import fcntl
import json
import os
import signal
import socket
from collections.abc import Mapping
from typing import Any, NoReturn

from . import bundle, init, kernel, protocol
from .mounts import fit_sandbox_root
from .recipe import Recipe

__all__ = ["DESCRIPTOR", "live"]

DESCRIPTOR = 63
"""Above those that interpreters open for themselves: a program's own get the numbers that they would have."""
_WARM = b"R"


def live(birth: init.Birth, recipe: Recipe) -> NoReturn:
    """Be PID 1 of a new sandbox with a process that waits for its program. Never returns."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            kernel.set_handler(number, kernel.DEFAULT_HANDLER)  # the warden's handlers are not ours
        os.close(init.settle(birth))
        kernel.seal_process_title("init", birth.title)
        fit_sandbox_root(disk_bytes=recipe.disk_bytes, disk_inodes=recipe.disk_inodes, cwd=recipe.cwd)
        init.give_up_privileges(birth)
        os.chdir(recipe.cwd)
        _write_files(recipe)
        stdin = protocol.memory_file("stdin")
        ours, theirs = socket.socketpair()
        tenant = _start(birth, recipe, stdin, theirs)
        if ours.recv(1) != _WARM:
            raise ChildProcessError("the process ended before it was warm")
        os.write(birth.control, init.READY)
        message, descriptors = _await_errand(birth)
        os.write(birth.control, init.started(birth))
        _hand_over(recipe, message, descriptors, stdin, ours, birth.stderr)
        ours.detach()
        init.mind(birth, None, tenant)
    except BaseException as error:  # whatever it is, the warden must hear of it
        init.complain(birth, f"{type(error).__name__}: {error}")
    os._exit(1)


def _write_files(recipe: Recipe) -> None:
    for path, text in recipe.files:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)


def _start(birth: init.Birth, recipe: Recipe, stdin: int, channel: socket.socket) -> int:
    init.set_rlimits(birth, recipe)
    kernel.set_seccomp(birth.seccomp)
    env = dict(recipe.env)
    inherited = (stdin, birth.stdout, birth.stderr, channel.detach())
    moved = [os.dup(fd) for fd in inherited]  # above the numbers that they are to have: none is overwritten
    pid = os.posix_spawn(
        init.find_program(recipe.boot[0], env),
        recipe.boot,
        env,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, fd, number) for fd, number in zip(moved, (0, 1, 2, DESCRIPTOR), strict=True)
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them, and execve would hand that on
    )
    for fd in (*moved, inherited[3]):
        os.close(fd)
    return pid


def _await_errand(birth: init.Birth) -> tuple[dict[str, Any], list[int]]:
    with socket.socket(fileno=os.dup(birth.control)) as control:
        received = protocol.receive(control)
    if received is None:
        os._exit(0)  # not needed any more
    return received


def _hand_over(
    recipe: Recipe,
    message: Mapping[str, Any],
    descriptors: list[int],
    stdin: int,
    channel: socket.socket,
    stderr: int,
) -> None:
    """Put the program's files in place, and let the warm process go on."""
    *bundles, source = descriptors
    try:
        for number in bundles:
            bundle.unpack(number, ".")
        offset = 0
        # By offset: the position is shared with the process, for which it shall be the beginning.
        while data := os.pread(source, 1 << 20, offset):
            offset += os.pwrite(stdin, data, offset)
        fcntl.fcntl(stdin, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except (OSError, bundle.BundleError) as error:
        # Most likely the tenant's own doing (disk full): told and counted as a shell does.
        os.write(stderr, f"cannot start {recipe.argv[0]}: {error}\n".encode(errors="replace"))
        line = {"exit": 126}
    else:
        line = {"args": message["args"]}
    channel.sendall(json.dumps(line).encode() + b"\n")
