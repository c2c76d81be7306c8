"""A real PostgreSQL for the tests: Debian's, in a folder of its own, on a UNIX socket, and gone afterwards."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

START_S = 60.0
POLL_S = 0.05


class Postgres:
    """A PostgreSQL server that a test may stop and start. Nothing but this machine's processes can reach it."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        # Not below pytest's folder, which only its owner may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        # Whoever knows the socket may use it: a server that was root's has given up root's powers to enter.
        self._folder.chmod(0o711)
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._user = _unprivileged()
        if self._user is not None:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)

    @staticmethod
    def find() -> Path | None:
        """Where PostgreSQL's programs are; `None` where it is not installed."""
        places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda one: int(one.parts[-3]))
        found = shutil.which("initdb")
        return places[-1].parent if places else Path(found).parent if found else None

    def make(self) -> None:
        """Make the cluster and start it."""
        self._run(
            "initdb", "--pgdata", str(self._data), "--auth=trust", "--username=stockade", "--encoding=UTF8",
            "--locale=C.UTF-8", "--no-sync", "--no-instructions",
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._process is None
        self._process = subprocess.Popen(
            [
                self._binaries / "postgres", "-D", self._data, "-k", self._folder, "-c", "listen_addresses=",
                "-c", "max_connections=200", "-c", "shared_buffers=16MB", "-c", "logging_collector=off",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._as_user(),
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        while self._run("pg_isready", "-q", "-h", str(self._folder), check=False) != 0:
            assert self._process.poll() is None, "postgres does not start"
            assert time.monotonic() < deadline, "postgres does not answer"
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop it at once, as a crash would; connections break."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGQUIT)  # immediate shutdown
            self._process.wait(START_S)
            self._process = None

    def freeze(self) -> None:
        """Let it answer no more, without any connection breaking."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def new_database(self) -> str:
        """The URL of an empty database."""
        self._databases += 1
        name = f"test{self._databases}"
        self._run("createdb", "-h", str(self._folder), "-U", "stockade", name)
        return f"postgresql://stockade@/{name}?host={self._folder}"

    def remove(self) -> None:
        """Stop it and delete all that it left."""
        self.stop()
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _signal_all(self, number: int) -> None:
        """To the server and to the processes that serve its connections."""
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for one in (pid, *map(int, children)):
            try:
                os.kill(one, number)
            except ProcessLookupError:
                pass  # it has just ended

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        return subprocess.run(
            [self._binaries / program, *arguments],
            check=check,
            timeout=START_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            **self._as_user(),
        ).returncode

    def _as_user(self) -> dict[str, object]:
        """PostgreSQL refuses to run as root."""
        if self._user is None:
            return {"cwd": self._folder}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": (), "cwd": self._folder}


def _unprivileged() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise LookupError("this machine has neither a user postgres nor nobody")
