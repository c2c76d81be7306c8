"""A template: an interpreter that has been started once and waits at the point where it would read a program.

`become` runs in a child of the mason's: it builds a root from the image, keeps of all privileges just what mapping its
children's ids takes, and starts the interpreter with exactly the command, environment and directory that a run would
have. The interpreter imports a `sitecustomize` of ours (`boot_python`), the last thing before it opens the
program; that calls `main`, which makes cells like the mason does. Only in the tenant's process inside each cell does
`main` return: there the interpreter goes on as if nothing had happened, and reads the tenant's program.

A template holds no tenant's data and runs nobody's code but the image's and that of the modules it preloads. It is in
another pid namespace than its cells, under another user id, and shares no memory with them that could be written to.
"""

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import sys
from dataclasses import asdict
from functools import partial
from typing import Any, NoReturn

from . import bundle, ending, init, kernel, protocol
from .image import IDS as CELL_IDS
from .image import Image
from .layout import Layout
from .making import CELL, make
from .mounts import Stage, enter_template_root, fit_sandbox_root
from .recipe import Recipe

__all__ = ["CELLS", "IDS", "become", "main"]

CELLS = 255
IDS = CELL_IDS * (CELLS + 1)
"""User ids of a template: its own range, and one for each of its cells."""
DIRECTORY = "/tmp/.stockade"
DESCRIPTOR = 3
_NOTE = "note.json"
_FILTER = "filter"
PRELOAD = "preload"
PATH = "path"
_DISK_BYTES = 256 << 20
_DISK_INODES = 4096
_KEPT = frozenset({kernel.CAP_SETGID, kernel.CAP_SETUID})
_KEPT_ALONE = _KEPT | {kernel.CAP_SETFCAP}
"""Where there is one id only, it is the template's root, and mapping that takes this one (user_namespaces(7))."""


def become(birth: init.Birth, recipe: Recipe, files: int) -> NoReturn:
    """Be a template: execute the interpreter. Never returns."""
    try:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(each, signal.SIG_DFL)  # Python ignores some, and execve would hand that on
        streams = {birth.control, birth.stdout, birth.stderr}
        init.close_all_but({*streams, *birth.joins, files})
        init.join_groups(birth)
        init.await_ids(birth)
        init.die_first()
        init.become_root(birth)
        kept = _KEPT if birth.own_ids else _KEPT_ALONE
        kernel.fix_capabilities()  # it is somebody else while it makes a cell
        kernel.drop_bounding_set(kept)
        socket.sethostname(init.HOSTNAME)
        os.setsid()
        stage = enter_template_root(birth.stage, birth.image)
        fit_sandbox_root(disk_bytes=_DISK_BYTES, disk_inodes=_DISK_INODES, cwd=recipe.cwd, user=0)
        os.mkdir(DIRECTORY, 0o700)
        bundle.unpack(files, DIRECTORY)
        stdin = protocol.memory_file("stdin")  # of the kind that a run's is: what the interpreter learns of it stays
        os.chdir(recipe.cwd)
        init.lower_limit(resource.RLIMIT_STACK, recipe.stack_bytes)
        kernel.drop_capabilities(kept)
        env = dict(recipe.env)
        own_path = env.get("PYTHONPATH")
        # Last where there was none, so that it is what can be overwritten (`_clear_traces`).
        env["PYTHONPATH"] = f"{DIRECTORY}:{own_path}" if own_path else DIRECTORY
        program = init.find_program(recipe.argv[0], env)
        _leave_note(birth, stage, recipe)
        # By way of copies, whose numbers are free ones: those that are to be had may be in use.
        for number, fd in enumerate([_above(fd) for fd in (stdin, birth.stdout, birth.stderr, birth.control)]):
            os.dup2(fd, number, inheritable=True)
        kernel.close_range(DESCRIPTOR + 1)
        os.execve(program, recipe.argv, env)
    except BaseException as error:  # told where the interpreter would tell it
        os.write(birth.stderr, f"{type(error).__name__}: {error}".encode(errors="replace"))
    os._exit(1)


def _above(fd: int) -> int:
    """A copy with a number that no standard stream has, nor the control socket."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD, DESCRIPTOR + 1)


def _leave_note(birth: init.Birth, stage: Stage, recipe: Recipe) -> None:
    """What the interpreter must know to make cells, as files: `execve` leaves it nothing else."""
    note = {
        "stage": asdict(stage),
        "image": birth.image.name,
        "own_ids": birth.own_ids,
        "processes_in_group": birth.processes_in_group,
        "recipe": recipe.to_message(),
    }
    contents = {
        _NOTE: json.dumps(note).encode(),
        _FILTER: birth.seccomp,
        PRELOAD: "\n".join(recipe.preload).encode(),
    }
    if (own_path := dict(recipe.env).get("PYTHONPATH")) is not None:
        contents[PATH] = os.fsencode(own_path)
    for name, content in contents.items():
        with open(f"{DIRECTORY}/{name}", "wb") as file:
            file.write(content)


# ── in the interpreter ───────────────────────────────────────────────────────────────────────────────────────────


def main(own_modules: dict[str, Any]) -> None:
    """Make cells until the warden hangs up. Returns in tenants' processes only, each with its program in place.

    Args:
        own_modules: the modules that only we need, out of `sys.modules` already. They are never freed: a tenant's
            process would spend time on that.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(own_modules))
    with open(f"{DIRECTORY}/{_NOTE}") as file:
        note = json.load(file)
    with open(f"{DIRECTORY}/{_FILTER}", "rb") as file:
        seccomp = file.read()
    recipe = Recipe.of_message(note["recipe"])
    stage = _stage(note["stage"])
    layout = _clear_traces(recipe)
    title = kernel.find_process_title()
    _demand_no_children()
    _demand_one_thread()
    _demand_nothing_that_forks_would_share()
    handlers = {n: handler for n in signal.valid_signals() if callable(handler := signal.getsignal(n))}
    sys.stdout.flush()  # what a preloaded module has printed is no program's output
    channel = socket.socket(fileno=DESCRIPTOR)
    ending.hasten(dict(sys.modules))
    gc.collect()
    kernel.trim_memory()
    gc.freeze()  # collections in children would copy these pages for nothing
    _track_main_module()
    gc.disable()
    protocol.send(channel, {"ready": True, "path": [*sys.path, sys.executable]})
    while True:
        received = protocol.receive(channel)
        if received is None:
            os._exit(0)
        order, descriptors = received
        birth = init.Birth.of_kit(
            order["joins"],
            descriptors,
            stage=stage,
            image=stage.images[note["image"]],
            seccomp=seccomp,
            own_ids=note["own_ids"],
            processes_in_group=note["processes_in_group"],
            title=title,
        )
        answer = make(CELL, partial(_live, birth, recipe, layout, handlers), order["ids"])
        if answer is None:
            channel.detach()  # the number is the tenant's now, to use for something else
            gc.enable()
            return
        protocol.send(channel, answer)
        for fd in descriptors:
            os.close(fd)


def _stage(note: dict[str, Any]) -> Stage:
    images = {
        name: Image(name=name, lower=image["lower"], binds=tuple((a, b) for a, b in image["binds"]))
        for name, image in note.pop("images").items()
    }
    masked = tuple((a, b) for a, b in note.pop("masked"))
    return Stage(images=images, masked=masked, **note)


def _clear_traces(recipe: Recipe) -> Layout:
    """Have `/proc/<pid>/environ` show what it would show without us."""
    _, _, _, end = kernel.find_process_title()
    layout = Layout()
    try:
        layout.show_environment(os.fsencode(f"{name}={value}") for name, value in recipe.env)
    except OSError:  # a kernel without CONFIG_CHECKPOINT_RESTORE: what came last can be overwritten
        length = len(f"PYTHONPATH={DIRECTORY}") + 1
        if ctypes.string_at(end - length, length).startswith(b"PYTHONPATH="):
            ctypes.memset(end - length, 0, length)
    return layout


def _track_main_module() -> None:
    """Let the collector know `__main__` again: at a program's end it finds what lives on in there, for `__del__`."""
    module = sys.modules["__main__"]
    for known in (module, vars(module)):
        ctypes.pythonapi.PyObject_GC_UnTrack(ctypes.py_object(known))
        ctypes.pythonapi.PyObject_GC_Track(ctypes.py_object(known))


def _demand_no_children() -> None:
    """Nothing but cells may come from us: with a template ends only what is its own process.

    Raises:
        RuntimeError: a preloaded module has started a process that lives; it does no longer.
    """
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        for pid in children.read().split():
            os.kill(int(pid), signal.SIGKILL)
    raise RuntimeError("a preloaded module keeps a process running: it cannot be in a template")


def _demand_nothing_that_forks_would_share() -> None:
    """All that tenants' processes have of ours must be copies, and complete.

    Raises:
        RuntimeError: a preloaded module keeps memory that can be shared, or a descriptor, which forks lose.
    """
    with open("/proc/self/maps") as maps:
        for line in maps:
            _, permissions, _, _, inode, *names = line.split(maxsplit=5)
            name = names[0].strip() if names else ""
            # A file of the image's is read-only. Everything else was made by somebody in here.
            if permissions[3] == "s" and (permissions[1] == "w" or inode == "0" or "(deleted)" in name):
                raise RuntimeError(f"a preloaded module keeps shared memory ({name}): it cannot be in a template")
    listing = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    opened = {int(name) for name in os.listdir(listing)} - {*range(DESCRIPTOR + 1), listing}
    os.close(listing)
    for fd in opened:
        with contextlib.suppress(OSError):  # the one by which they were listed
            target = os.readlink(f"/proc/self/fd/{fd}")
            raise RuntimeError(f"a preloaded module keeps a descriptor open ({target}): it cannot be in a template")


def _demand_one_thread() -> None:
    """A fork has only the thread that called it; what counts on others would hang.

    Raises:
        RuntimeError: a preloaded module keeps threads.
    """
    # Libraries that are prepared for a fork (OpenBLAS) end their threads now, and start them again when needed.
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"a preloaded module keeps {threads - 1} threads running: it cannot be in a template")


def _live(birth: init.Birth, recipe: Recipe, layout: Layout, handlers: dict[signal.Signals, Any]) -> None:
    """Be PID 1 of a new sandbox, as `init.live`, with a tenant's process that waits. Returns in the latter."""
    try:
        os.close(init.settle(birth, of_template=True))
        fit_sandbox_root(disk_bytes=recipe.disk_bytes, disk_inodes=recipe.disk_inodes, cwd=recipe.cwd)
        init.give_up_privileges(birth)
        os.chdir(recipe.cwd)
        init.set_rlimits(birth, recipe)
        kernel.set_seccomp(birth.seccomp)
        for number in handlers:
            signal.signal(number, signal.SIG_DFL)  # what a PID 1 handles, the tenant may send it
        tenant = os.fork()
        if tenant == 0:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            _await_program(birth, recipe, layout)
            return
        kernel.seal_process_title("init", birth.title)  # after the fork: the tenant's is the interpreter's own
        init.mind(birth, None, tenant)
    except BaseException as error:  # whatever it is, the warden must hear of it
        init.complain(birth, f"{type(error).__name__}: {error}")
    os._exit(1)


def _await_program(birth: init.Birth, recipe: Recipe, layout: Layout) -> None:
    """Wait for the errand, and become what the tenant's process would be had it been started for this run."""
    kernel.set_dumpable(dumpable=True)
    os.setsid()
    for number, fd in ((1, birth.stdout), (2, birth.stderr)):
        os.dup2(fd, number)
    _reseed()
    os.write(birth.control, init.READY)
    with socket.socket(fileno=os.dup(birth.control)) as control:
        received = protocol.receive(control)
    if received is None:
        os._exit(0)  # not needed any more
    message, descriptors = received
    os.write(birth.control, init.started(birth))
    try:
        for source in descriptors[:-1]:
            bundle.unpack(source, ".")
        os.dup2(descriptors[-1], 0)
        kernel.close_range(3)
    except (OSError, bundle.BundleError) as error:
        # Most likely the tenant's own doing (disk full): told and counted as a shell does.
        os.write(2, f"cannot start {recipe.argv[0]}: {error}\n".encode(errors="replace"))
        os._exit(126)
    if message["args"]:
        sys.argv += message["args"]
        sys.orig_argv += message["args"]
        with contextlib.suppress(OSError):
            layout.show_arguments(map(os.fsencode, sys.orig_argv))


def _reseed() -> None:
    """Give generators that a preloaded module has seeded a seed of their own. `random` does so at each fork."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()
