"""Start the warden. Usage: see `main`; `stockade.backends.native` is what normally calls this."""

import argparse
import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import sys

from . import bundle, disks, egress, kernel, protocol, seccomp
from .cell import Host
from .cgroups import Cgroups
from .fields import Refused
from .image import ImageError
from .mason import Mason
from .mounts import make_stage
from .report import make_report
from .server import Server, stop_on_signals

__all__ = ["main"]

_TRIAL_S = 20.0
# What root's warden keeps once its own root is built: to hand pipes over, to remove its directories from the top of the
# control group trees (which nobody else may write to), to end what it made, to map ids. A sandbox's PID 1 mounts and
# pivots with the capabilities that it has in its own user namespace.
_CAPABILITIES = frozenset(
    {kernel.CAP_CHOWN, kernel.CAP_DAC_OVERRIDE, kernel.CAP_KILL, kernel.CAP_SETGID, kernel.CAP_SETUID}
)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stockade-warden", description=__doc__)
    parser.add_argument("--listen", metavar="PATH", help="make a UNIX socket there (mode 0600) and serve those who may")
    parser.add_argument("--client-fd", type=int, metavar="N", help="serve the client at the other end of descriptor N")
    parser.add_argument("--ready-fd", type=int, metavar="N", help="write one JSON line there once up, or why not")
    parser.add_argument("--allow-uid", type=int, action="append", default=[], metavar="UID", help="beside our own user")
    parser.add_argument("--host-path", action="append", default=[], metavar="DIR", help="show it in the host image")
    parser.add_argument(
        "--cells", type=int, default=4, metavar="N", help="sandboxes of each kind to keep ready (default: 4)"
    )
    parser.add_argument("--disks", metavar="DIR", help="keep disks there; made when the first is wanted")
    parser.add_argument(
        "--disks-kind", default="auto", choices=("auto", "btrfs", "directory"), help="how (default: the best there is)"
    )
    parser.add_argument(
        "--disks-bytes", type=int, metavar="N", help="most that all may take (default: half of what is free)"
    )
    parser.add_argument("--until-idle", action="store_true", help="end with the last client")
    parser.add_argument(
        "--until-unused", action="store_true", help="end when the last client is gone and no sandbox lives"
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Set up, say so, serve; returns the exit status."""
    arguments = _arguments(argv)
    cgroups = None
    try:
        # Everything that needs a path of the host comes before `make_stage`, which leaves the host's root behind.
        uid = os.getuid()
        _settle()
        listener, unlink = _listen(arguments.listen) if arguments.listen else (None, None)
        template_files = _pack_template_files()
        title = kernel.find_process_title()
        out = egress.start(title)
        cgroups = Cgroups()
        own_uids = os.geteuid() == 0
        if not own_uids:
            _become_root_of_a_namespace()
        store = disks.start(
            arguments.disks,
            kind=arguments.disks_kind,
            size_bytes=arguments.disks_bytes,
            own_ids=own_uids,
            title=title,
        )
        stage = make_stage(tuple(arguments.host_path))
        host = Host(
            stage=stage,
            cgroups=cgroups,
            seccomp=seccomp.build(),
            seccomp_of_wall=seccomp.build(of_wall=True),
            own_ids=own_uids,
            null=os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC),
            title=title,
            children={out.pid, store.pid},
            processors=os.cpu_count() or 1,
            template_files=template_files,
        )
        if own_uids:
            kernel.fix_capabilities()  # the mason is somebody else while it makes a cell, and yet the mason
            # The bounding set first: it takes a capability that then goes.
            kernel.drop_bounding_set(_CAPABILITIES)
            kernel.drop_capabilities(_CAPABILITIES)
            kernel.set_no_new_privileges()
        gc.collect()
        gc.freeze()  # collections in children would copy these pages for nothing
        mason = Mason(host)
        mason.order(None)
        select.select([mason.channel], [], [], _TRIAL_S)
        trial, refusal = next(mason.delivered())
        if refusal is not None:
            raise refusal
        trial.until_ready(_TRIAL_S)  # a host on which sandboxes cannot be built is told now, not at the first run
    except (OSError, ImageError, Refused, KeyError, ValueError) as error:
        if cgroups is not None:
            cgroups.close()
        _say(arguments.ready_fd, {"error": f"{type(error).__name__}: {error}"})
        return 1
    server = Server(
        host,
        report=make_report(cgroups, stage.images["host"], own_uids=own_uids),
        listener=listener,
        clients=[] if arguments.client_fd is None else [socket.socket(fileno=arguments.client_fd)],
        # Inside our own user namespace the kernel shows its owner as 0.
        allowed_uids=frozenset({0, *arguments.allow_uid, uid} if own_uids else {0}),
        until_idle=arguments.until_idle,
        until_unused=arguments.until_unused,
        mason=mason,
        first=trial,
        spares=arguments.cells,
        egress=out,
        disks=store,
    )
    stop_on_signals(server)
    if own_uids:  # else we could not write our children's id maps: their /proc entries would belong to root
        kernel.set_dumpable(dumpable=False)
    kernel.seal_process_title("stockade-warden", host.title)
    _say(arguments.ready_fd, {"ok": True})
    try:
        server.serve()
    finally:
        cgroups.close()
        if unlink is not None:
            with contextlib.suppress(OSError):
                os.unlink(unlink[1], dir_fd=unlink[0])
    return 0


def _settle() -> None:
    """Leave our starter's session and descriptors; take as many descriptors as we may have."""
    with contextlib.suppress(PermissionError):  # a session leader already
        os.setsid()
    os.umask(0o022)
    # What our starter ignores (nohup, SIGHUP), tenants' programs would ignore, too. Two are ignored by Python itself,
    # and set right where a program is started.
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _listen(path: str) -> tuple[socket.socket, tuple[int, str]]:
    """A listening socket at *path*, and what it takes to remove it once paths mean something else."""
    directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        probe.connect(path)
    except FileNotFoundError:
        pass
    except ConnectionRefusedError:
        os.unlink(path)  # its warden is dead
    else:
        raise FileExistsError(f"another warden serves {path}")
    finally:
        probe.close()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    umask = os.umask(0o177)  # the socket is never there with another mode than 0600
    try:
        listener.bind(path)
    finally:
        os.umask(umask)
    listener.listen(128)
    return listener, (directory, os.path.basename(path))


def _pack_template_files() -> int:
    """A bundle of what a template's interpreter imports of us; see `template`."""
    here = os.path.dirname(__file__)
    files = {"stockade/__init__.py": b""}
    for name in os.listdir(here):
        if name.endswith(".py"):
            with open(f"{here}/{name}", "rb") as file:
                files["sitecustomize.py" if name == "boot_python.py" else f"stockade/warden/{name}"] = file.read()
    fd = protocol.memory_file("template")
    with open(fd, "wb", closefd=False) as target:
        target.writelines(bundle.pack(files))
    return fd


def _become_root_of_a_namespace() -> None:
    """As an ordinary user: a user namespace in which we may do what root may do with its sandboxes."""
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    maps = {"uid_map": f"0 {uid} 1", "gid_map": f"0 {gid} 1", "projid_map": f"0 {uid} 1"}
    for name, text in {"setgroups": "deny", **maps}.items():
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _say(fd: int | None, message: dict[str, object]) -> None:
    line = json.dumps(message) + "\n"
    if fd is None:
        sys.stderr.write(line)
        return
    with contextlib.suppress(OSError):
        os.write(fd, line.encode())
    os.close(fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
