"""`stockade executor` as a process: one sandbox, who may use it, and that nothing of it stays."""

import os
import pwd
import signal
import socket
import stat
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.app.executing import SECRET, Executor, arguments, executing, variables_of
from tests.app.serving import START_S, Server
from tests.app.traces import until
from tests.faults.sessions import command_of, end_process, nothing_left, processes_like

POOL = {"SANDBOX_AUTH_MODE": "Pool"}


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with executing(tmp_path_factory.mktemp("executor") / "data", "--env", "GREETING=hello", "--memory", "1GiB") as one:
        yield one


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def as_server(executor: Executor, folder: Path) -> Server:
    return Server(process=executor.process, data_dir=folder)  # type: ignore[arg-type]  # only its number is looked at


def test_it_serves_one_sandbox_to_whoever_has_the_secret(executor: Executor) -> None:
    assert httpx.get(f"{executor.url}/health").json()["status"] == "ok"
    assert executor.ask("/run", {"cmd": "true"}, secret="another").status_code == 401
    assert executor.run("echo $GREETING; echo mine > /tmp/file") == "hello\n"
    assert executor.run("cat /tmp/file") == "mine\n"
    unknown = executor.ask("/nope")
    assert (unknown.status_code, unknown.text) == (404, "404 page not found\n")


def test_nothing_inside_can_see_the_secret_or_our_environment(executor: Executor) -> None:
    seen = executor.run("env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'; true")
    assert "hello" in seen
    assert SECRET not in seen
    assert "PROXY_PORT" not in seen
    with open(f"/proc/{executor.process.pid}/cmdline", "rb") as file:
        assert SECRET.encode() not in file.read()


def test_the_proxy_s_port_leads_to_whichever_port_is_bound(executor: Executor) -> None:
    server = "import socket; s = socket.create_server(('127.0.0.1', 8123)); c, _ = s.accept(); c.sendall(b'it is me')"
    assert executor.ask("/start_process", {"cmd": f'python3 -c "{server}"'}).status_code == 201
    assert executor.ask("/bind_port", {"port": "8123"}).json()["success"]

    def heard() -> bytes:
        with socket.create_connection(("127.0.0.1", executor.proxy_port), 10) as connection:
            return connection.recv(100)

    until(lambda: heard() == b"it is me")


def test_a_port_that_is_taken_ends_it_with_1(executor: Executor, tmp_path: Path) -> None:
    taken = {"PORT": executor.url.rpartition(":")[2], "PROXY_PORT": str(executor.proxy_port)}
    for name, port in taken.items():
        variables = variables_of(SANDBOX_SECRET=SECRET, **{name: port})
        ended = subprocess.run(arguments(tmp_path / name), env=variables, capture_output=True, timeout=START_S)
        assert (ended.returncode, ended.stdout) == (1, b"")
        assert f"port {port}".encode() in ended.stderr


def test_a_signal_lets_open_requests_end_and_then_ends_everything(tmp_path: Path) -> None:
    with nothing_left(tmp_path / "data") as note, executing(tmp_path / "data") as executor:
        executor.ask("/start_process", {"cmd": "setsid sleep 1234 & sleep 1234"})
        note(as_server(executor, tmp_path / "data"))
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(executor.ask, "/run", {"cmd": "echo begun > /tmp/begun; sleep 1; echo done"})
            until(lambda: executor.ask("/read_file", {"path": "/tmp/begun"}).json().get("content") == "begun\n")
            assert executor.end(signal.SIGINT) == 0
            assert asked.result().json() == {"stdout": "done\n", "stderr": "", "code": 0}


def test_after_a_kill_the_next_one_finds_the_sandbox_and_its_processes(tmp_path: Path) -> None:
    with executing(tmp_path) as first:
        process = first.ask("/start_process", {"cmd": "echo printed before; sleep 1000"}).json()
        first.run("echo kept > /tmp/file")
        first.end(signal.SIGKILL)
        with executing(tmp_path) as second:
            (found,) = second.ask("/list_processes").json()["processes"]
            assert (found["id"], found["pid"], found["status"]) == (process["id"], process["pid"], "running")
            assert second.run("cat /tmp/file") == "kept\n"
            assert second.ask("/kill_process", {"id": process["id"]}).json()["success"]
            assert "printed before" in second.ask(f"/process_logs_streaming?id={process['id']}").text
            second.end(signal.SIGKILL)
            with executing(tmp_path, SANDBOX_SECRET="of-somebody-else") as third:
                asked = third.ask("/list_processes", secret="of-somebody-else")
                assert asked.json() == {"processes": []}
                assert b"executor.other_sandbox_ended" in third.log


def test_when_its_sandbox_is_ended_by_others_it_ends_with_1(tmp_path: Path) -> None:
    with executing(tmp_path / "data") as executor:
        executor.ask("/start_process", {"cmd": "exec sleep 4321"})
        (process,) = processes_like("sleep 4321")
        above = [process]
        while not command_of(above[-1]).startswith("stockade-warden"):
            above.append(parent(above[-1]))
        end_process(above[-2])
        assert executor.process.wait(START_S) == 1
        assert b"executor.sandbox_ended" in executor.log


def test_in_pool_mode_the_first_secret_is_the_one_for_good(tmp_path: Path) -> None:
    path = tmp_path / "not yet there" / "secret"
    with executing(tmp_path / "data", **POOL, SANDBOX_SECRET_PATH=str(path)) as executor:
        assert httpx.get(f"{executor.url}/health", headers={"Authorization": "Bearer x"}).status_code == 200
        for malformed in ("bearer a", "Bearer", "Basic a", "a"):
            answer = httpx.post(f"{executor.url}/run", json={"cmd": "true"}, headers={"Authorization": malformed})
            assert answer.status_code == 401
        assert not path.exists()

        def first(number: int) -> int:
            return executor.ask("/run", {"cmd": 5}, secret=f"token-{number}").status_code

        with ThreadPoolExecutor(20) as pool:
            statuses = list(pool.map(first, range(20)))
        assert Counter(statuses) == {401: 19, 400: 1}  # it is authorised, even if it then fails validation
        winner = f"token-{statuses.index(400)}"
        assert path.read_text() == winner
        assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
        executor.ask("/run", {"cmd": "echo kept > /tmp/file"}, secret=winner)
        executor.end(signal.SIGKILL)
        with executing(tmp_path / "data", **POOL, SANDBOX_SECRET_PATH=str(path)) as again:
            assert again.ask("/run", {"cmd": "true"}, secret="token-x").status_code == 401
            assert again.ask("/read_file", {"path": "/tmp/file"}, secret=winner).json() == {"content": "kept\n"}


def test_in_pool_mode_a_secret_that_cannot_be_written_is_refused_with_500(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    path = tmp_path / "a file" / "secret"
    with executing(tmp_path / "data", **POOL, SANDBOX_SECRET_PATH=str(path)) as executor:
        answer = executor.ask("/run", {"cmd": "true"}, secret="first")
        assert (answer.status_code, answer.text) == (500, "Internal Server Error\n")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_in_pool_mode_the_secret_is_written_by_whom_the_server_becomes() -> None:
    with tempfile.TemporaryDirectory(prefix="stockade-executor-") as name:  # pytest's own lets nobody else pass
        folder = Path(name)
        folder.chmod(0o711)
        path = folder / "pool" / "secret"
        variables = {**POOL, "SANDBOX_SECRET_PATH": str(path), "STOCKADE_SERVER_USER": "nobody"}
        with executing(folder / "data", **variables) as executor:
            assert executor.ask("/run", {"cmd": "true"}, secret="first").status_code == 200
            assert path.stat().st_uid == pwd.getpwnam("nobody").pw_uid
            assert path.read_text() == "first"
