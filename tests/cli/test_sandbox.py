"""`stockade sandbox` against a server of the protocol: what it prints, its exit status, and what it asks for."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stockade.cli.sandbox_terminal import DetachKeys, parse_keys
from tests.app.serving import command, environment
from tests.sdk.stub import KEY, SECRET, Stub, eventually, serving

Sandbox = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    root = tmp_path / "inside"
    root.mkdir()
    with serving(root) as stub:
        yield stub


@pytest.fixture
def variables(stub: Stub, tmp_path: Path) -> dict[str, str]:
    return environment(STOCKADE_URL=stub.url, STOCKADE_API_KEY=KEY, XDG_CONFIG_HOME=str(tmp_path / "config"))


@pytest.fixture
def sandbox(variables: dict[str, str], tmp_path: Path) -> Sandbox:
    """Runs a command of `stockade sandbox`."""

    def run(*arguments: str, stdin: bytes = b"", **more: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            command("sandbox", *arguments),
            env={name: value for name, value in (variables | more).items() if value},
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            timeout=60,
        )

    return run


@pytest.fixture
def made(sandbox: Sandbox) -> str:
    """The id of a running sandbox."""
    return sandbox("create", "--", "sleep", "60").stdout.decode().strip()


def one_line(done: "subprocess.CompletedProcess[bytes]") -> str:
    """The only line on standard error."""
    (line,) = done.stderr.decode().splitlines()
    return line


def test_create_prints_the_id_and_asks_for_what_was_wanted(sandbox: Sandbox, stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(b"\x7fELF")
    (tmp_path / "tool").chmod(0o755)
    done = sandbox(
        *("create", "--image", "debian", "-e", "A=b", "-e", "OURS", "-e", "NOWHERE", "-w", "/srv", "--cpu", "0.5"),
        *("--memory", "1G", "--timeout", "1m", "-p", "9000", "-p", "53/udp", "--setup", "true"),
        *("--file", "tool:/bin/tool", "--", "sleep", "60", "--cpu", "3"),
        OURS="x",
    )
    assert (done.stdout, done.returncode) == (b"sess_000000000000\n", 0)
    (asked,) = stub.created
    assert asked == {
        "image": "debian",
        "command": ["sleep", "60", "--cpu", "3"],
        "env": {"A": "b", "OURS": "x"},
        "workDir": "/srv",
        "resources": {"cpuMillis": 500, "memoryMB": 1024, "timeoutMs": 60000},
        "network": "exposed",
        "ports": [{"container": 9000, "protocol": "tcp"}, {"container": 53, "protocol": "udp"}],
        "setup": ["true"],
        "files": [{"path": "/bin/tool", "content": "f0VMRg==", "encoding": "base64", "mode": 0o755}],
    }


def test_create_prints_an_executor_s_secret_below_the_id(sandbox: Sandbox, stub: Stub) -> None:
    done = sandbox("create", "--executor", "--network", "exposed", "--", "sleep", "60")
    assert (done.stdout.decode(), done.returncode) == (f"sess_000000000000\n{SECRET}\n", 0)
    assert stub.created[0]["executor"] is True
    assert json.loads(sandbox("create", "--executor", "--json").stdout)["executor"]["secret"] == SECRET
    listed = sandbox("list", COLUMNS="200").stdout.decode()
    assert "bound → 43031" in listed
    assert SECRET not in listed


def test_an_executor_s_secret_comes_from_a_file_or_from_standard_input(
    sandbox: Sandbox, stub: Stub, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("from-a-file-0123456789\n")
    assert sandbox("create", "--executor-secret-file", "secret").stdout == b"sess_000000000000\n"
    done = sandbox("create", "--executor-secret-file", "-", stdin=b"from-a-pipe-0123456789")
    assert done.stdout == b"sess_000000000001\n"
    assert [one["executor"]["secret"] for one in stub.created] == ["from-a-file-0123456789", "from-a-pipe-0123456789"]
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "large").write_text("x" * 5000)
    for name in ("empty", "large", "missing"):
        done = sandbox("create", "--executor-secret-file", name)
        assert (done.stdout, done.returncode) == (b"", 2)
    assert len(stub.created) == 2


def test_list_stop_and_kill(sandbox: Sandbox) -> None:
    first, second = (sandbox("create", "--", "sleep", "60").stdout.decode().strip() for _ in range(2))
    listed = json.loads(sandbox("list", "--json").stdout)
    assert [one["id"] for one in listed] == [second, first]
    assert first in sandbox("list").stdout.decode()
    assert sandbox("stop", first).stdout.decode() == f"{first}\n"
    running = json.loads(sandbox("list", "--status", "running", "--json").stdout)
    assert [one["id"] for one in running] == [second]
    done = sandbox("stop", first, "sess_none", second)
    assert (done.stdout.decode(), done.returncode) == (f"{second}\n", 1)
    assert done.stderr.decode().splitlines() == [
        f"stockade: {first}: session already stopped",
        "stockade: sess_none: session sess_none not found",
    ]
    assert sandbox("kill", first, second).stdout.decode().split() == [first, second]


def test_port_prints_the_url(sandbox: Sandbox) -> None:
    made = sandbox("create", "-p", "9000", "-p", "9001", "--", "sleep", "60").stdout.decode().strip()
    assert sandbox("port", made, "9000").stdout == b"http://localhost:49000\n"
    assert sandbox("port", made).stdout == b"9000/tcp http://localhost:49000\n9001/tcp http://localhost:49001\n"
    done = sandbox("port", made, "80")
    assert (one_line(done), done.returncode) == ("stockade: port 80 is not exposed", 1)


def test_extend_prints_when_it_ends(sandbox: Sandbox, made: str) -> None:
    assert sandbox("extend", made, "90s").stdout == b"2026-02-03T04:01:30+00:00\n"


def test_exec_passes_streams_and_status_on(sandbox: Sandbox, made: str) -> None:
    done = sandbox("exec", made, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)
    assert sandbox("exec", made, "echo one | tr o 0").stdout == b"0ne\n"
    assert sandbox("exec", "-e", "A=1 2", "-w", "/", made, "--", "sh", "-c", 'echo "$A"; pwd').stdout == b"1 2\n/\n"
    done = sandbox("exec", made, "nothing-of-this-name")
    assert done.returncode == 127
    assert one_line(done) == "stockade: cannot start nothing-of-this-name: no such program"


def test_exec_passes_input_on_only_when_it_is_told_to(sandbox: Sandbox, made: str) -> None:
    data = bytes(range(256)) * 4096  # 1 MiB, every byte value
    assert sandbox("exec", "-i", made, "cat", stdin=data).stdout == data
    assert sandbox("exec", made, "cat", stdin=b"not for it").stdout == b""


def test_exec_takes_a_file_as_input(variables: dict[str, str], made: str, tmp_path: Path) -> None:
    """One cannot wait for a regular file as for a pipe."""
    (tmp_path / "data").write_bytes(b"x" * 200_000)
    with (tmp_path / "data").open("rb") as file:
        done = subprocess.run(
            command("sandbox", "exec", "-i", made, "wc", "-c"),
            env=variables,
            stdin=file,
            capture_output=True,
            timeout=60,
        )
    assert done.stdout.split() == [b"200000"]


def test_exec_without_any_input_at_all(variables: dict[str, str], made: str) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "-", *command("sandbox", "exec", "-i", made, "echo", "on")],
        env=variables,
        capture_output=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (b"on\n", b"")


def test_a_command_that_we_are_ended_with_is_killed(variables: dict[str, str], stub: Stub, made: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        stub.killed.clear()
        with subprocess.Popen(
            command("sandbox", "exec", made, "sh", "-c", "echo on; exec sleep 60"),
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == b"on\n"
            process.send_signal(number)
            assert process.wait(20) == 128 + number
            assert process.stderr.read() == b""
        eventually(lambda: stub.killed)


def test_output_that_nobody_reads_ends_it(variables: dict[str, str], made: str) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -c 1; echo ${PIPESTATUS[0]}', "-", *command("sandbox", "exec", made, "yes")],
        env=variables,
        capture_output=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (b"y141\n", b"")


def test_attach_shows_what_was_and_what_comes(sandbox: Sandbox) -> None:
    made = sandbox("create", "--", "sh", "-c", "echo before; cat; exit 3").stdout.decode().strip()
    done = sandbox("attach", made, stdin=b"typed\n")
    assert (done.stdout, done.returncode) == (b"before\ntyped\n", 3)
    done = sandbox("attach", "--no-stdin", made)
    assert (done.stdout, done.returncode) == (b"before\ntyped\n", 3)


def test_attach_is_left_with_a_signal_and_the_process_goes_on(
    variables: dict[str, str], sandbox: Sandbox, stub: Stub
) -> None:
    made = sandbox("create", "--", "sh", "-c", "echo on; exec sleep 60").stdout.decode().strip()
    with subprocess.Popen(
        command("sandbox", "attach", made),
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"on\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr.read().decode() == f"stockade: left {made}, which goes on\n"
    assert stub.sessions[made].status == "running"


def test_logs_print_what_is_kept_and_follow(sandbox: Sandbox, stub: Stub) -> None:
    made = sandbox("create", "--", "sh", "-c", "echo out; echo err >&2; exit 4").stdout.decode().strip()
    eventually(lambda: stub.sessions[made].exit_code is not None)
    for options in ([], ["--follow"]):
        done = sandbox("logs", *options, made)
        assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 0)
    assert sandbox("logs", "--tail", "2", made).stdout == b"t\n"
    assert sandbox("logs", "--tail", "2", "-f", made).returncode == 2


def test_files_are_copied_both_ways(sandbox: Sandbox, stub: Stub, made: str, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "tool").write_bytes(data)
    (tmp_path / "tool").chmod(0o755)
    assert sandbox("cp", "tool", f"{made}:/bin/other").returncode == 0
    assert (stub.root / "bin/other").read_bytes() == data
    assert sandbox("cp", "tool", f"{made}:/bin").returncode == 0  # it is a directory
    assert (stub.root / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert sandbox("cp", "tool", f"{made}:/new/").returncode == 0
    assert (stub.root / "new/tool").exists()
    assert sandbox("cp", f"{made}:/bin/other", "back").returncode == 0
    assert (tmp_path / "back").read_bytes() == data
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o755
    (tmp_path / "here").mkdir()
    assert sandbox("cp", f"{made}:/bin/other", "here").returncode == 0
    assert (tmp_path / "here/other").read_bytes() == data
    assert not list(tmp_path.rglob(".*")), "no temporary file is left"


def test_directories_are_copied_both_ways(sandbox: Sandbox, stub: Stub, made: str, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("text")
    (tmp_path / "tree/link").symlink_to("sub/file")
    assert sandbox("cp", "tree", f"{made}:/new").returncode == 0
    assert (stub.root / "new/sub/file").read_text() == "text"
    assert sandbox("cp", "tree", f"{made}:/new").returncode == 0  # now it is there
    assert (stub.root / "new/tree/sub/file").read_text() == "text"
    (stub.root / "new/out").symlink_to("/etc/passwd")
    done = sandbox("cp", f"{made}:/new", "back")
    assert done.returncode == 0
    assert one_line(done).startswith("stockade: left out: ./out: a link that leads out")
    assert (tmp_path / "back/tree/link").read_text() == "text"
    assert not (tmp_path / "back/out").is_symlink()


def test_standard_streams_are_copied_too(sandbox: Sandbox, stub: Stub, made: str) -> None:
    assert sandbox("cp", "-", f"{made}:/x", stdin=b"a\0b").returncode == 0
    assert sandbox("cp", f"{made}:/x", "-").stdout == b"a\0b"
    done = subprocess.run(["tar", "t"], input=sandbox("cp", f"{made}:/", "-").stdout, capture_output=True, timeout=60)
    assert done.stdout.split() == [b"./", b"./x"]


def test_a_copy_that_waits_for_input_can_be_ended(variables: dict[str, str], stub: Stub, made: str) -> None:
    with subprocess.Popen(
        command("sandbox", "cp", "-", f"{made}:/x"), env=variables, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        eventually(lambda: "POST /files" in stub.asked)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_stream_that_the_server_gives_up_is_told_in_one_line(sandbox: Sandbox, stub: Stub, made: str) -> None:
    stub.gives_up = "the warden has died"
    done = sandbox("attach", "--no-stdin", made)
    assert (one_line(done), done.returncode) == ("stockade: the warden has died", 1)


def test_a_download_that_fails_leaves_no_file(sandbox: Sandbox, made: str, tmp_path: Path) -> None:
    done = sandbox("cp", f"{made}:/missing", "here")
    assert (one_line(done), done.returncode) == ("stockade: /missing: no such file", 1)
    assert not (tmp_path / "here").exists()
    done = sandbox("cp", "missing", f"{made}:/x")
    assert (one_line(done), done.returncode) == ("stockade: missing: No such file or directory", 1)


ON_ONE = [
    ["exec", "sess_none", "true"],
    ["attach", "sess_none"],
    ["logs", "sess_none"],
    ["stop", "sess_none"],
    ["cp", "-", "sess_none:/x"],
    ["cp", "sess_none:/x", "here"],
]


@pytest.mark.parametrize("arguments", [["list"], ["create"], *ON_ONE])
def test_a_key_that_is_not_accepted_is_told_in_one_line(sandbox: Sandbox, stub: Stub, arguments: list[str]) -> None:
    done = sandbox(*arguments, STOCKADE_API_KEY="sk_wrong")
    text = f"stockade: {stub.url} does not accept the API key: it is unknown, expired or switched off"
    assert (one_line(done), done.returncode) == (text, 1)


@pytest.mark.parametrize("arguments", [["list"], ["create"], *ON_ONE])
def test_a_server_that_is_not_there_is_told_in_one_line(sandbox: Sandbox, arguments: list[str]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        done = sandbox(*arguments, STOCKADE_URL=url)
    text = f"stockade: no server answers at {url}: connection refused; is it the right --url?"
    assert (one_line(done), done.returncode) == (text, 1)


@pytest.mark.parametrize("arguments", ON_ONE)
def test_a_sandbox_that_is_not_there_is_told_in_one_line(sandbox: Sandbox, arguments: list[str]) -> None:
    done = sandbox(*arguments)
    assert done.returncode == 1
    assert one_line(done).endswith("session sess_none not found")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "--memory", "lots"], "--memory"),
        (["create", "--port", "http"], "is no port"),
        (["create", "--file", "missing:/x"], "missing: No such file or directory"),
        (["create", "--env", "=x"], "names no variable"),
        (["exec", "sess_1"], "COMMAND"),
        (["attach", "--detach-keys", "hyper-x", "sess_1"], "is no key"),
        (["cp", "a", "b"], "one of FROM and TO"),
        (["cp", "x:/a", "y:/b"], "one of FROM and TO"),
        (["list", "--url", "nowhere"], "is not the URL of a server"),
        (["list", "--api-key", "sk_ä"], "the API key"),
        (["extend", "sess_1", "soon"], "duration"),
    ],
)
def test_bad_usage_is_told_with_status_2(sandbox: Sandbox, arguments: list[str], message: str) -> None:
    done = sandbox(*arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.decode().replace("│", " ").split())
    assert b"Traceback" not in done.stderr


def test_a_file_of_credentials_is_read_unless_others_can_read_it(sandbox: Sandbox, stub: Stub, tmp_path: Path) -> None:
    file = tmp_path / "config/stockade/credentials"
    file.parent.mkdir(parents=True)
    none = {"STOCKADE_API_KEY": "", "STOCKADE_URL": ""}
    done = sandbox("list", **none)
    assert done.returncode == 1
    assert str(file) in one_line(done)
    file.write_text(f'url = "{stub.url}"\napi_key = "{KEY}"\n')
    file.chmod(0o644)
    assert "chmod 600" in one_line(sandbox("list", **none))
    file.chmod(0o600)
    assert sandbox("list", "--json", **none).stdout == b"[]\n"
    # It is that server's key, and no other is shown it.
    assert "no API key for http://127.0.0.1:9" in one_line(sandbox("list", "--url", "http://127.0.0.1:9", **none))
    file.write_text("api_key = 3")
    done = sandbox("list", **none)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("parts", "passed", "is_typed"),
    [
        ([b"abc"], b"abc", False),
        ([b"ab\x10\x11c"], b"ab", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"a\x10", b"b"], b"a\x10b", False),
        ([b"\x10", b"\x10", b"\x11"], b"\x10", True),
        ([b"\x10"], b"\x10", False),
    ],
)
def test_the_keys_that_let_go_are_found_however_they_come(parts: list[bytes], passed: bytes, is_typed: bool) -> None:
    keys = DetachKeys(parse_keys("ctrl-p,ctrl-q"))
    seen, found = b"", False
    for part in parts:
        some, found = keys.feed(part)
        seen += some
    assert (seen + keys.rest(), found) == (passed, is_typed)


def test_keys_are_named_as_elsewhere() -> None:
    assert parse_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_keys("ctrl-@,a,ctrl-[") == b"\0a\x1b"
    assert parse_keys("") == b""
