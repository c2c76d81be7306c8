"""`stockade warden`: the privileged part alone, for servers that never were root."""

import contextlib
import json
import os
import pwd
import select
import signal
import stat
from pathlib import Path
from typing import Annotated

import typer

from stockade.cli.failures import complain
from stockade.cli.options import ConfigFile
from stockade.errors import Invalid, StockadeError, Unavailable

__all__ = ["warden"]

UP_S = 30.0
LONGEST_PATH = 107
"""Bytes: sun_path of unix(7) without its final NUL."""


def warden(
    listen: Annotated[
        Path, typer.Option(metavar="PATH", help="UNIX socket to make; it is there once sandboxes can be had.")
    ],
    allow_uid: Annotated[
        list[int] | None,
        typer.Option(
            min=0, metavar="UID", help="User that may use it, beside root. May be repeated.", show_default=False
        ),
    ] = None,
    allow_user: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="The same, by name. May be repeated.", show_default=False)
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Run a warden by itself, until SIGTERM; prints nothing but errors.

    A server that an ordinary user starts makes root's sandboxes with it: name PATH as `sandbox.warden_socket` there.
    Whoever may use it can run programs in sandboxes, and keep disks for them, and nothing else. Of the configuration it
    reads `sandbox.host_paths`, the languages, `disks` and, for where those lie, `data_dir`.
    """
    from stockade.app.engine import backend_options, load_languages
    from stockade.backends.native.launch import command
    from stockade.config import load

    loaded = load(file=config)
    uids = _users(allow_uid or [], allow_user or [])
    path = _checked(listen)
    words = command(backend_options(loaded, load_languages(loaded)))
    words += ["--listen", str(path), *(word for uid in uids for word in ("--allow-uid", str(uid)))]
    read, write = os.pipe()
    _usher(path, uids, read, write)
    os.close(read)
    os.set_inheritable(write, True)
    os.chdir("/")
    try:
        # We become the warden: a supervisor's signals and limits meet the process that they are for. No environment,
        # for a process's own stays readable in /proc for as long as it lives.
        os.execve(words[0], [*words, "--ready-fd", str(write)], {})
    except OSError as error:
        raise Unavailable(f"cannot start the warden: {words[0]}: {error.strerror}") from error


def _users(uids: list[int], names: list[str]) -> tuple[int, ...]:
    """The user ids that are let in.

    Raises:
        Invalid: there is no such user, or we are not root: then nobody else could be let in.
    """
    found = list(uids)
    for name in names:
        try:
            found.append(pwd.getpwnam(name).pw_uid)
        except KeyError:
            raise Invalid(f"--allow-user: this machine has no user {name!r}") from None
    if found and os.geteuid():
        raise Invalid("--allow-uid, --allow-user: only root's warden can serve other users; start it as root")
    return tuple(dict.fromkeys(found))


def _checked(listen: Path) -> Path:
    """*listen* as an absolute path at which only we can put something.

    Raises:
        Invalid: its directory is missing, or others could replace the socket in it by theirs.
    """
    path = listen.absolute()
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise Invalid(f"--listen: {path} is longer than the {LONGEST_PATH} bytes that a socket's path may have")
    try:
        directory = path.parent.stat()
    except OSError as error:
        raise Invalid(f"--listen: directory {path.parent}: {error.strerror}; make it first") from None
    if directory.st_uid not in (0, os.geteuid()):
        raise Invalid(
            f"--listen: directory {path.parent} belongs to user {directory.st_uid}, who could put another "
            "socket there; use one of your own"
        )
    if directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not directory.st_mode & stat.S_ISVTX:
        raise Invalid(
            f"--listen: others may write to the directory {path.parent} and could put another socket there; "
            f"chmod go-w {path.parent}"
        )
    return path


def _usher(path: Path, uids: tuple[int, ...], read: int, write: int) -> None:
    """Leave a process behind that lets *uids* reach the socket once it is there, or says why it never will be.

    It ends then. It is no child of ours, for the warden that we become would not know it.
    """
    us = os.pidfd_open(os.getpid())
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os.close(us)
        return
    try:
        if os.fork() == 0:
            os.close(write)
            _wait_until_up(read)
            try:
                _hand_over(path, uids)
            except StockadeError:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(us, signal.SIGTERM)
                raise
    except StockadeError as error:
        complain(error)
    finally:
        os._exit(0)


def _wait_until_up(read: int) -> None:
    """Wait for the warden's word.

    Raises:
        Unavailable: it does not come up; the message says what it said. It ends by itself.
    """
    if not select.select([read], [], [], UP_S)[0]:
        raise Unavailable(f"the warden has not come up within {UP_S:g} s")
    line = os.read(read, 65536)
    message = json.loads(line) if line else {"error": "it ended without a word"}
    if "error" in message:
        raise Unavailable(f"the warden cannot work on this host: {message['error']}; see docs/troubleshooting.md")


def _hand_over(path: Path, uids: tuple[int, ...]) -> None:
    """Let *uids* reach the socket.

    Raises:
        Unavailable: its owner or mode cannot be changed.
    """
    others = [uid for uid in uids if uid]  # root may in any case
    try:
        # The warden makes the socket with mode 0600. It asks the kernel who connects (SO_PEERCRED), so that a wider
        # mode lets nobody in whom it was not told of; where one owner is enough, not even to knock.
        if len(others) == 1:
            os.chown(path, others[0], -1, follow_symlinks=False)
        elif others:
            path.chmod(0o666)
    except OSError as error:
        raise Unavailable(f"cannot hand {path} over: {error.strerror}") from error
