"""The companion of an executor: a command in the sandbox that has our standard streams, signals and exit status."""

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.app.executing import SECRET, arguments, executing, variables_of
from tests.app.serving import START_S
from tests.app.traces import until
from tests.cli.terminals import terminal
from tests.faults.sessions import LONG, end_process, warden_of

MIB = 1 << 20


def companion(folder: Path, *words: str, given: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """What a companion makes of *given*, with an executor that says nothing itself unless something is wrong."""
    return subprocess.run(
        arguments(folder, "--", *words),
        env=variables_of(SANDBOX_SECRET=SECRET, LOG_LEVEL="Error"),
        input=given,
        capture_output=True,
        timeout=START_S,
    )


def test_its_streams_and_its_status_are_ours(tmp_path: Path) -> None:
    given = os.urandom(3 * MIB)
    done = companion(tmp_path, "sh", "-c", "cat; echo complaint >&2; exit 7", given=given)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(given).digest()
    assert (done.returncode, done.stderr) == (7, b"complaint\n")
    assert not warden_of(tmp_path)


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["no-such-program"], 127, b"cannot start no-such-program: no such program in the sandbox\n"),
        (["/etc/passwd"], 126, b"cannot start /etc/passwd: Permission denied\n"),
        (["sh", "-c", "kill -KILL $$"], 137, b""),
    ],
    ids=["missing", "no program", "killed"],
)
def test_how_it_ended_is_our_status(tmp_path: Path, words: list[str], status: int, told: bytes) -> None:
    done = companion(tmp_path, *words)
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", told)


def test_nothing_of_what_it_prints_is_lost_however_soon_it_does(tmp_path: Path) -> None:
    done = companion(tmp_path, "head", "-c", str(100 * MIB), "/dev/zero")
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 100 * MIB, b"")


@pytest.mark.skipif(not LONG, reason="takes longer than the warden waits for other readers; STOCKADE_LONG_TESTS=1")
def test_whoever_does_not_read_our_output_holds_it_back(tmp_path: Path) -> None:
    script = "head -c 5000000 /dev/zero; echo done > /tmp/done; exec sleep 1000"
    with executing(tmp_path, "--", "sh", "-c", script) as executor:
        assert executor.process.stdout is not None
        patience_is_over = time.monotonic() + 12
        until(lambda: time.monotonic() > patience_is_over)
        assert "error" in executor.ask("/read_file", {"path": "/tmp/done"}).json()
        assert len(executor.process.stdout.read(5_000_000)) == 5_000_000
        until(lambda: executor.ask("/read_file", {"path": "/tmp/done"}).json() == {"content": "done\n"})


def test_it_shares_the_sandbox_and_gets_our_signals(tmp_path: Path) -> None:
    script = "trap 'echo got it; exit 5' INT; echo $$ > /tmp/pid; read line; echo $line; while :; do sleep 0.1; done"
    with executing(tmp_path, "--", "sh", "-c", script, stdin=subprocess.PIPE) as executor:
        assert executor.process.stdin is not None
        assert executor.process.stdout is not None
        until(lambda: "sh -c trap" in executor.run("tr '\\0' ' ' < /proc/$(cat /tmp/pid)/cmdline"))
        executor.process.stdin.write(b"typed\n")
        executor.process.stdin.flush()
        assert executor.process.stdout.readline() == b"typed\n"
        assert executor.end(signal.SIGINT) == 5
        assert executor.process.stdout.read() == b"got it\n"


def test_a_second_signal_ends_one_that_does_not_heed_the_first(tmp_path: Path) -> None:
    with executing(tmp_path, "--", "sh", "-c", "trap 'echo no' TERM; echo up; while :; do sleep 0.1; done") as executor:
        assert executor.process.stdout is not None
        assert executor.process.stdout.readline() == b"up\n"
        executor.process.send_signal(signal.SIGTERM)
        assert executor.process.stdout.readline() == b"no\n"
        # Those that follow within a moment are the same one, which make and the like pass on.
        until(lambda: b"server.stopping_at_once" in executor.log or executor.process.send_signal(signal.SIGTERM))
        assert executor.process.wait(START_S) == 137


def test_after_a_kill_the_next_executor_has_it_again(tmp_path: Path) -> None:
    words = ("--", "sh", "-c", "echo up; read line; echo $line; exit 3")
    with executing(tmp_path, *words, stdin=subprocess.PIPE) as first:
        assert first.process.stdout is not None
        assert first.process.stdout.readline() == b"up\n"
        first.end(signal.SIGKILL)
        with executing(tmp_path, *words, stdin=subprocess.PIPE) as second:
            assert second.process.stdin is not None
            assert second.process.stdout is not None
            second.process.stdin.write(b"typed\n")
            second.process.stdin.close()
            assert second.process.stdout.read() == b"up\ntyped\n"  # what it said before is said again
            assert second.process.wait(START_S) == 3


def test_at_a_terminal_it_has_one(tmp_path: Path) -> None:
    script = (
        "stty size; read line; echo got $line; until stty size | grep -qx '40 100'; do sleep 0.02; done; "
        "echo resized; exit 4"
    )
    try:
        with terminal(
            arguments(tmp_path, "--", "sh", "-c", script), variables_of(SANDBOX_SECRET=SECRET, LOG_LEVEL="error")
        ) as session:
            session.expect(b"24 80")
            until(lambda: session.is_raw)
            session.type(b"typed\r")
            session.expect(b"got typed")
            session.resize(40, 100)
            session.expect(b"resized")
            assert session.wait() == 4
            assert session.attributes() == session.before
    finally:
        for warden in warden_of(tmp_path):
            end_process(warden, signal.SIGTERM)
