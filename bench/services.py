"""A PostgreSQL and a Redis of our own: programs of the system, in a temporary folder, on UNIX sockets."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.measure import BenchError

__all__ = ["NotHere", "postgresql", "postgresql_binaries", "redis", "unprivileged"]

START_S = 60.0
POLL_S = 0.05


class NotHere(BenchError):
    """It is not installed, or does not start."""


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty database, with PostgreSQL's own defaults: what is committed is on the disk.

    Raises:
        NotHere: it is not installed, or does not start.
    """
    binaries = postgresql_binaries()
    # Whoever knows the socket may use it: a server that was root's has given up root's powers to enter.
    with _folder(0o711) as folder:
        identity: dict[str, Any] = {"cwd": folder}
        if os.geteuid() == 0:  # it refuses to run as root
            user = unprivileged()
            os.chown(folder, user.pw_uid, user.pw_gid)
            identity |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}

        def does(*command: str | Path) -> bool:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=START_S,
                **identity,
            )
            return done.returncode == 0

        data = folder / "data"
        made = does(
            binaries / "initdb", "--pgdata", data, "--auth=trust", "--username=stockade", "--encoding=UTF8",
            "--locale=C.UTF-8", "--no-sync", "--no-instructions",
        )  # fmt: skip
        if not made:
            raise NotHere("PostgreSQL: initdb failed")
        with _running(
            [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "logging_collector=off"],
            end=signal.SIGINT,  # a fast shutdown
            answers=lambda: does(binaries / "pg_isready", "-q", "-h", folder),
            identity=identity,
        ):
            if not does(binaries / "createdb", "-h", folder, "-U", "stockade", "bench"):
                raise NotHere("PostgreSQL: createdb failed")
            yield f"postgresql://stockade@/bench?host={folder}"


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """The URL of an empty Redis that keeps what it has acknowledged (`appendfsync always`).

    Raises:
        NotHere: it is not installed, or does not start.
    """
    program, client = shutil.which("redis-server"), shutil.which("redis-cli")
    if program is None or client is None:
        raise NotHere("Redis is not installed (Debian package redis-server)")
    with _folder(0o711) as folder:
        socket = folder / "redis.sock"

        def answers() -> bool:
            asked = subprocess.run([client, "-s", socket, "ping"], capture_output=True, timeout=START_S)
            return asked.stdout.strip() == b"PONG"

        command: list[str | Path] = [
            program, "--port", "0", "--unixsocket", socket, "--unixsocketperm", "777", "--dir", folder,
            "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning",
        ]  # fmt: skip
        with _running(command, end=signal.SIGTERM, answers=answers, identity={"cwd": folder}):
            yield f"unix://{socket}"


@contextlib.contextmanager
def _folder(mode: int) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="stockade-bench-", dir="/var/tmp"))
    try:
        folder.chmod(mode)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _running(
    command: list[str | Path], *, end: signal.Signals, answers: Callable[[], bool], identity: dict[str, Any]
) -> Iterator[None]:
    """A server during the block, once it answers."""
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet, **identity) as process:
        try:
            deadline = time.monotonic() + START_S
            while not answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NotHere(f"{Path(command[0]).name} does not start")
                time.sleep(POLL_S)
            yield
        finally:
            process.send_signal(end)
            try:
                process.wait(START_S)
            except subprocess.TimeoutExpired:
                process.kill()


def postgresql_binaries() -> Path:
    """Where PostgreSQL's programs are.

    Raises:
        NotHere: it is not installed.
    """
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda one: int(one.parts[-3]))
    found = shutil.which("initdb")
    if places:
        return places[-1].parent
    if found is None:
        raise NotHere("PostgreSQL is not installed (Debian package postgresql)")
    return Path(found).parent


def unprivileged() -> pwd.struct_passwd:
    """Somebody for what refuses to run as root.

    Raises:
        NotHere: there is neither a user postgres nor nobody.
    """
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise NotHere("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
