"""`stockade sandbox` against a whole server and real sandboxes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.app.serving import Server, command, environment, serving
from tests.cli.terminals import terminal
from tests.dialects.execbox.serving import KEY
from tests.sdk.stub import eventually

Sandbox = Callable[..., "subprocess.CompletedProcess[bytes]"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def server_at(port: int, folder: Path) -> Iterator[Server]:
    with serving(folder, "--dialect", f"execbox=127.0.0.1:{port}", STOCKADE_API_KEY=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of a command that speaks to the server."""
    with server_at(free_port(), tmp_path_factory.mktemp("data")) as server:
        yield environment(STOCKADE_URL=server.url, STOCKADE_API_KEY=KEY, TERM="dumb")


@pytest.fixture
def sandbox(variables: dict[str, str], tmp_path: Path) -> Sandbox:
    """Runs a command of `stockade sandbox`."""

    def run(*arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            command("sandbox", *arguments), env=variables, cwd=tmp_path, input=stdin, capture_output=True, timeout=60
        )

    return run


def create(sandbox: Sandbox, *program: str) -> str:
    done = sandbox("create", "--network", "none", "--timeout", "2m", "--", *program)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


@pytest.fixture
def made(sandbox: Sandbox) -> Iterator[str]:
    """The id of a running sandbox."""
    made = create(sandbox, "sleep", "100")
    yield made
    assert sandbox("kill", made).returncode == 0


def test_a_command_runs_inside(sandbox: Sandbox, made: str) -> None:
    done = sandbox("exec", "-w", "/tmp", "-e", "A=b", made, "sh", "-c", "pwd; echo $A; id -u; echo oops >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"/tmp\nb\n1000\n", b"oops\n", 7)
    assert sandbox("exec", "-u", "root", made, "id", "-u").stdout == b"0\n"
    done = sandbox("exec", made, "nothing-of-this-name")
    assert (len(done.stderr.splitlines()), done.returncode) == (1, 127)
    data = os.urandom(3_000_000)
    assert sandbox("exec", "-i", made, "cat", stdin=data).stdout == data


def test_a_terminal_inside_is_a_real_one(variables: dict[str, str], made: str) -> None:
    with terminal(command("sandbox", "exec", "-it", "-e", "PS1=ready> ", made, "sh", "-i"), variables) as session:
        session.expect(b"ready> ")
        assert session.is_raw
        session.type(b"tty; stty size\r")
        assert b"/dev/pts/" in session.expect(b"24 80\r\n")
        session.expect(b"ready> ")
        session.resize(40, 132)
        session.type(b"until [ \"$(stty size)\" = '40 132' ]; do :; done; echo grown\r")
        session.expect(b"\ngrown\r\n")
        session.expect(b"ready> ")
        session.type(b"sh -c 'echo started; exec sleep 60'\r")
        session.expect(b"\nstarted\r\n")
        session.type(b"\x03")
        session.expect(b"ready> ")
        session.type(b"exit 7\r")
        assert session.wait() == 7
        assert session.attributes() == session.before


def test_leaving_a_terminal_kills_what_runs_there(variables: dict[str, str], sandbox: Sandbox, made: str) -> None:
    with terminal(
        command("sandbox", "exec", "-it", made, "sh", "-c", "echo on; exec sleep 31415"), variables
    ) as session:
        session.expect(b"on\r\n")
        session.signal(signal.SIGTERM)
        assert session.wait() == 143
        assert session.attributes() == session.before
    eventually(lambda: b"31415" not in sandbox("exec", made, "ps", "ax").stdout)


def test_files_and_directories_go_in_and_out(sandbox: Sandbox, made: str, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/data").write_bytes(os.urandom(300_000))
    (tmp_path / "tree/run").write_text("#!/bin/sh\necho ran")
    (tmp_path / "tree/run").chmod(0o755)
    (tmp_path / "tree/link").symlink_to("sub/data")
    assert sandbox("cp", "tree", f"{made}:/tmp/there").returncode == 0
    assert sandbox("exec", made, "/tmp/there/run").stdout == b"ran\n"
    assert sandbox("exec", made, "sh", "-c", "ln -s /etc/passwd /tmp/there/out").returncode == 0
    done = sandbox("cp", f"{made}:/tmp/there", "back")
    assert done.returncode == 0
    assert b"out: a link that leads out" in done.stderr
    assert (tmp_path / "back/link").read_bytes() == (tmp_path / "tree/sub/data").read_bytes()
    assert sandbox("cp", "tree/run", f"{made}:tool").returncode == 0  # beside the sandbox's working directory
    assert sandbox("exec", made, "./tool").stdout == b"ran\n"
    assert sandbox("cp", f"{made}:tool", "-").stdout == b"#!/bin/sh\necho ran"
    done = sandbox("cp", f"{made}:/missing", "here")
    assert (len(done.stderr.splitlines()), done.returncode) == (1, 1)


def test_a_sandbox_is_shared_with_a_client_of_the_executor_api(sandbox: Sandbox) -> None:
    """Who has the secret alone works in the same sandbox as who has the key."""
    done = sandbox("create", "--executor", "--network", "exposed", "--timeout", "2m", "--json", "--", "sleep", "100")
    made = json.loads(done.stdout)
    assert sandbox("exec", made["id"], "sh", "-c", "echo from the key > /tmp/note").returncode == 0
    with httpx.Client(
        base_url=made["executor"]["url"],
        headers={"Authorization": f"Bearer {made['executor']['secret']}"},
        trust_env=False,
        timeout=60,
    ) as client:
        assert client.post("/run", json={"cmd": "cat /tmp/note"}).json()["stdout"] == "from the key\n"
        assert client.post("/bind_port", json={"port": "8000"}).status_code == 200
        assert sandbox("kill", made["id"]).returncode == 0
        assert client.post("/run", json={"cmd": "true"}).status_code == 410
    listed = json.loads(sandbox("list", "--json").stdout)
    (found,) = [one for one in listed if one["id"] == made["id"]]
    assert made["executor"] == found["executor"] | {"secret": made["executor"]["secret"]}


def test_a_main_process_is_attached_to_and_its_output_kept(sandbox: Sandbox) -> None:
    made = create(sandbox, "sh", "-c", "echo out; echo err >&2; cat; exit 3")
    done = sandbox("attach", made, stdin=b"typed\n")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\ntyped\n", b"err\n", 3)
    done = sandbox("logs", made)
    assert (done.stdout, done.stderr, done.returncode) == (b"out\ntyped\n", b"err\n", 0)
    assert sandbox("stop", made).returncode == 1
    assert sandbox("kill", made).returncode == 0


def test_an_attachment_outlives_the_server(tmp_path: Path) -> None:
    """It is killed, started again on the same data, and every line comes once."""
    port = free_port()
    variables = environment(STOCKADE_URL=f"http://127.0.0.1:{port}", STOCKADE_API_KEY=KEY)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(server_at(port, tmp_path / "data"))
        done = subprocess.run(
            command("sandbox", "create", "--network", "none", "--timeout", "2m", "--", "cat"),
            env=variables,
            capture_output=True,
            timeout=60,
            check=True,
        )
        made = done.stdout.decode().strip()
        attached = stack.enter_context(
            subprocess.Popen(
                command("sandbox", "attach", made),
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        stack.callback(attached.kill)
        assert attached.stdin is not None
        assert attached.stdout is not None
        attached.stdin.write(b"one\n")
        attached.stdin.flush()
        assert attached.stdout.readline() == b"one\n"
        first.end(signal.SIGKILL)
        with server_at(port, tmp_path / "data"):
            subprocess.run(
                command("sandbox", "attach", made),
                env=variables,
                input=b"two\n",
                capture_output=True,
                timeout=60,
                check=True,
            )
            assert attached.stdout.read() == b"two\n"
            assert attached.wait(30) == 0
            subprocess.run(command("sandbox", "kill", made), env=variables, timeout=60, check=True)
