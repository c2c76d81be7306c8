"""A warden that somebody else runs: root's sandboxes for servers that never were root."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import stockade
from tests.app.serving import START_S, Server, command, environment
from tests.app.traces import until

NOBODY = 65534
SOMEBODY = 65533
HELLO = {"language": "python", "code": "print(6*7)"}
ID_MAP = {"language": "bash", "code": "cat /proc/self/uid_map"}
FIRST_ID = 0x7000_0000
"""From here on root's warden takes the user ids of its sandboxes."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as several users")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A directory that everybody can read, with a copy of the package, and an interpreter that everybody can start."""

    directory: Path
    python: str
    path: str

    @property
    def socket(self) -> Path:
        return self.directory / "warden.sock"

    def start(self, uid: int, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """`stockade` as that user, with a data directory of its own."""
        data_dir = self.directory / f"data-{uid}"
        data_dir.mkdir(exist_ok=True)
        os.chown(data_dir, uid, uid)
        known = {"PYTHONPATH": self.path, "STOCKADE_DATA_DIR": str(data_dir), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen(
            [self.python, "-m", "stockade", *arguments],
            env=environment(**known, **variables),
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=uid,
            group=uid,
            extra_groups=[],
        )

    def run(self, uid: int, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        with self.start(uid, *arguments, **variables) as process:
            try:
                out, err = process.communicate(timeout=START_S)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @contextlib.contextmanager
    def warden(self, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Root's warden, up."""
        self.socket.unlink(missing_ok=True)  # of one that was killed: it would look like this one's
        with subprocess.Popen(
            command("warden", "--listen", str(self.socket), *arguments), env=environment()
        ) as process:
            try:
                until(lambda: self.socket.exists() or process.poll() is not None)
                yield process
            finally:
                process.terminate()
                process.wait(START_S)

    @contextlib.contextmanager
    def server(self, uid: int) -> Iterator[Server]:
        """A server of that user on the warden."""
        with self.start(uid, "serve", "--port", "0", STOCKADE_SANDBOX_WARDEN_SOCKET=str(self.socket)) as process:
            server = Server(process=process)
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    server.banner += line
                    if line.strip().startswith("curl"):
                        break
                else:
                    assert process.stderr is not None
                    raise AssertionError(f"the server did not start:\n{process.stderr.read()}")
                yield server
            finally:
                process.kill()


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    libraries = [entry for entry in sys.path if entry.endswith("site-packages")]
    # pytest's own temporary directories are closed to others.
    with tempfile.TemporaryDirectory(prefix="stockade-warden-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        shutil.copytree(Path(stockade.__file__).parent, directory / "lib" / "stockade")
        path = os.pathsep.join([str(directory / "lib"), *libraries])
        for python in (sys.executable, "/usr/bin/python3"):
            place = Place(directory=directory, python=python, path=path)
            with contextlib.suppress(OSError):
                if place.run(NOBODY, "version").returncode == 0:
                    yield place
                    return
        pytest.skip("no interpreter and libraries here that an ordinary user can read")


def execute(server: Server, body: object) -> httpx.Response:
    return httpx.post(f"{server.url}/execute", json=body, timeout=30)


def test_an_ordinary_user_s_server_has_root_s_sandboxes(place: Place) -> None:
    with place.warden("--allow-uid", str(NOBODY)), place.server(NOBODY) as server:
        inside, outside, count = map(int, execute(server, ID_MAP).json()["stdout"].split())
        assert (inside, count) == (0, 65536)
        assert outside >= FIRST_ID
        assert execute(server, HELLO).json()["stdout"] == "42\n"
        assert os.stat(f"/proc/{server.process.pid}").st_uid == NOBODY
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
        assert not children.strip(), "it has started a warden of its own"


def test_run_and_doctor_use_it_too(place: Place) -> None:
    named = {"STOCKADE_SANDBOX_WARDEN_SOCKET": str(place.socket)}
    with place.warden("--allow-user", "nobody"):
        done = place.run(NOBODY, "run", "-c", "print(6*7)", **named)
        assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
        report = json.loads(place.run(NOBODY, "doctor", "--json", **named).stdout)
    assert report["details"]["privileges"] == "root"
    assert {one["name"]: one["enforced"] for one in report["features"]}["own_ids"]


def test_with_no_warden_at_the_socket_everybody_is_told_where_it_was_looked_for(place: Place) -> None:
    named = {"STOCKADE_SANDBOX_WARDEN_SOCKET": str(place.socket)}
    commands = (("serve", "--port", "0"), ("doctor",))
    with ThreadPoolExecutor() as pool:  # each tries for some seconds
        results = list(pool.map(lambda arguments: place.run(NOBODY, *arguments, **named), commands))
    for done in results:
        assert done.returncode == 1
        assert f"cannot reach the warden at {place.socket}" in " ".join((done.stdout + done.stderr).split())
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("allowed", [(NOBODY,), (NOBODY, 65532)], ids=["one user", "several users"])
def test_who_was_not_allowed_is_refused(place: Place, allowed: tuple[int, ...]) -> None:
    named = {"STOCKADE_SANDBOX_WARDEN_SOCKET": str(place.socket)}
    options = [word for uid in allowed for word in ("--allow-uid", str(uid))]
    with place.warden(*options):
        # Handed over a moment after it is there; our clients try for some seconds.
        assert place.run(NOBODY, "run", "-c", "print(6*7)", **named).stdout == "42\n"
        mode = stat.S_IMODE(place.socket.stat().st_mode)
        assert mode == (0o600 if len(allowed) == 1 else 0o666)
        refused = place.run(SOMEBODY, "run", "-c", "print(6*7)", **named)
    assert refused.returncode == 125
    assert refused.stdout == ""
    assert refused.stderr.startswith("stockade: "), refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_server_goes_on_when_its_warden_is_started_again(place: Place) -> None:
    with place.warden("--allow-uid", str(NOBODY)) as first, place.server(NOBODY) as server:
        assert execute(server, HELLO).status_code == 200
        first.send_signal(signal.SIGKILL)
        first.wait(START_S)
        with place.warden("--allow-uid", str(NOBODY)):
            assert execute(server, HELLO).json()["stdout"] == "42\n"


def test_it_ends_without_a_trace_or_a_word(place: Place) -> None:
    words = command("warden", "--listen", str(place.socket))
    place.socket.unlink(missing_ok=True)
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        until(place.socket.exists)
        until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"stockade-warden"))
        process.terminate()
        said, _ = process.communicate(timeout=START_S)
    assert (said, process.returncode) == (b"", 0)
    assert not place.socket.exists()


def refused(*arguments: str) -> str:
    """What a warden says that does not start."""
    done = subprocess.run(
        command("warden", *arguments), env=environment(), capture_output=True, text=True, timeout=START_S
    )
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_it_cannot_do_is_said_in_a_line(place: Place) -> None:
    missing = place.directory / "missing" / "warden.sock"
    assert f"directory {missing.parent}: No such file or directory" in refused("--listen", str(missing))
    theirs = place.directory / "theirs"
    theirs.mkdir()
    os.chown(theirs, NOBODY, -1)
    assert f"belongs to user {NOBODY}" in refused("--listen", str(theirs / "warden.sock"))
    open_to_all = place.directory / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert "others may write to the directory" in refused("--listen", str(open_to_all / "warden.sock"))
    assert "no user 'nobody-of-that-name'" in refused(
        "--listen", str(place.socket), "--allow-user", "nobody-of-that-name"
    )
    assert "longer than the 107 bytes" in refused("--listen", f"/{'x' * 107}")
    with place.warden():
        assert f"another warden serves {place.socket}" in refused("--listen", str(place.socket))
    denied = place.run(NOBODY, "warden", "--listen", "/tmp/never.sock", "--allow-uid", "1")
    assert "only root's warden can serve other users" in denied.stderr
