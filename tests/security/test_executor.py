"""Secrets that open sandboxes: where they are not to be found, what they do not open, and those who try them."""

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.app.traces import children
from tests.dialects.executor.serving import KEY, PREFIX, Executor, drop_in, platform, platform_sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden has one user id and few limits")
READABLE = "/etc /tmp /run /var /home /root /opt /srv /dev/shm"
UNAUTHORIZED = (401, "Unauthorized\n")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    folder = tmp_path_factory.mktemp("platform")
    with platform(folder / "data", STOCKADE_LOG_LEVEL="debug") as server:
        yield platform_sandbox(server)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with drop_in(tmp_path_factory.mktemp("drop-in") / "data", LOG_LEVEL="TRACE") as executor:
        yield executor


@pytest.fixture(params=["shared", "alone"])
def executor(request: pytest.FixtureRequest) -> Executor:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Executor)
    return found


def pattern(secret: str) -> str:
    """Matches the secret, and not the argument list or script that it is part of."""
    return f"{re.escape(secret[:-1])}[{secret[-1]}]"


def test_the_secret_is_nowhere_in_the_sandbox(executor: Executor) -> None:
    """Not in an environment, an argument list, or a file that a command can read; while all kinds of work go on."""
    process = executor.start("sleep 30; echo x")
    bait = secrets.token_urlsafe(24)
    executor.reply("/write_file", {"path": "/tmp/bait", "content": f"some {bait} text"})
    with executor.stream("POST", "/run_streaming", {"cmd": "sleep 20"}):
        script = (
            f"env; cat /proc/*/environ /proc/*/cmdline /proc/*/task/*/environ; echo; "
            f"timeout 20 grep -rlsE -e '{pattern(executor.secret)}' -e '{pattern(bait)}' {READABLE}; echo looked"
        )
        found = executor.run(script)["stdout"]
    assert "looked" in found
    assert "sleep" in found
    assert executor.secret not in found
    assert [line for line in found.splitlines() if line.startswith(tuple(READABLE.split()))] == ["/tmp/bait"]
    assert "SANDBOX_SECRET" not in found
    executor.kill(process)


@pytest.mark.parametrize("path", ["/proc/self/environ", "/proc/self/cmdline", "/proc/1/environ", "/proc/self/maps"])
def test_the_file_operations_do_not_tell_it_either(executor: Executor, path: str) -> None:
    """They are done by a process inside, which knows nothing but what it is to do."""
    answer = executor.reply("/read_file", {"path": path})
    assert executor.secret not in str(answer)
    assert "stockade" not in answer.get("content", "").lower() or path.endswith("maps")


@pytest.mark.parametrize("path", ["/proc/self/mem", "/proc/self/fd/3", "/proc/self/oom_score_adj", "/proc/1/mem"])
def test_what_does_the_file_operations_cannot_be_changed_by_them(executor: Executor, path: str) -> None:
    answer = executor.reply("/write_file", {"path": path, "content": "x"})
    assert answer["success"] is False
    assert executor.reply("/list_dir", {"path": "/"})["entries"]


def test_the_secret_is_not_on_the_host_either(executor: Executor) -> None:
    """Neither in the data directory, nor in the log, nor with the processes that the server has started."""
    executor.run("exit 3")
    executor.ask("POST", "/run", content=b"{bad")
    executor.ask("GET", f"/process_logs_streaming?id={'x' * 50}")
    secret = executor.secret.encode()
    folder = executor.server.data_dir
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    assert not [path for path in files if secret in path.read_bytes()]
    log = "".join(executor.server.log)
    assert log
    assert executor.secret not in log
    assert executor.secret not in executor.server.banner
    for pid in below(executor.server.process.pid):
        for name in ("environ", "cmdline"):
            try:
                assert secret not in Path(f"/proc/{pid}/{name}").read_bytes(), (pid, name)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue


def below(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from below(child)


def test_the_database_holds_a_digest(shared: Executor) -> None:
    digest = hashlib.sha256(shared.secret.encode()).hexdigest().encode()
    assert any(digest in path.read_bytes() for path in shared.server.data_dir.rglob("*") if path.is_file()), (
        "else the test above proves nothing"
    )


def test_what_is_told_about_a_sandbox_is_without_its_secret(shared: Executor) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    sessions = shared.ask("GET", "/v1/sessions", headers=key)
    assert sessions.status_code == 200
    for session in sessions.json()["sessions"]:
        for path in ("", "/logs", "/stats"):
            answer = shared.ask("GET", f"/v1/sessions/{session['id']}{path}", headers=key)
            assert shared.secret not in answer.text
            assert hashlib.sha256(shared.secret.encode()).hexdigest() not in answer.text
    for path in ("/metrics", "/openapi.json", "/health", "/list_processes"):
        assert shared.secret not in shared.ask("GET", path).text


def test_a_secret_opens_its_own_sandbox_only(shared: Executor) -> None:
    other = platform_sandbox(shared.server)
    for number, one in enumerate((shared, other)):
        one.run(f"echo {number} > /tmp/mine")
    assert [one.stdout("cat /tmp/mine") for one in (shared, other)] == ["0\n", "1\n"]
    process = other.start("sleep 30")
    assert process not in shared.processes()
    assert shared.kill(process).json()["error"] == f"process not found: {process}"
    with shared.logs(process) as stream:
        assert [event.name for event in stream] == ["error"]
    assert other.status(process) == "running"
    assert shared.unbound().reply("/bind_port", {"port": "8080"})["success"]
    assert other.ask("GET", "/port_status").json() == {"success": True}
    shared.unbound()
    other.http.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda secret: secret[:-1],
        lambda secret: secret + "x",
        lambda secret: secret.swapcase(),
        lambda secret: secret[::-1],
        lambda secret: hashlib.sha256(secret.encode()).hexdigest(),
        lambda secret: "%",
        lambda secret: "' OR 1=1 --",
        lambda secret: "null",
        lambda secret: KEY,
    ],
)
def test_what_is_nearly_a_secret_is_none(executor: Executor, change: "object") -> None:
    assert callable(change)
    headers = {"Authorization": f"Bearer {change(executor.secret)}"}
    response = executor.ask("POST", "/run", json={"cmd": "true"}, headers=headers)
    assert (response.status_code, response.text) == UNAUTHORIZED


def test_a_secret_of_a_sandbox_is_no_key_of_the_server(shared: Executor) -> None:
    for method, path in (("GET", "/v1/sessions"), ("POST", "/v1/sessions"), ("GET", "/v1/account")):
        assert shared.ask(method, path, headers=shared.headers).status_code == 401


def test_a_secret_of_a_sandbox_that_has_ended_opens_nothing(shared: Executor) -> None:
    """And says so, in a way that no client repeats its request for."""
    gone = platform_sandbox(shared.server, command=["sh", "-c", "sleep 0.5"])
    key = {"Authorization": f"Bearer {KEY}"}
    sessions = shared.ask("GET", "/v1/sessions?limit=1", headers=key).json()["sessions"]
    assert shared.ask("DELETE", f"/v1/sessions/{sessions[0]['id']}", headers=key).status_code == 200
    for path in ("/run", "/start_process", "/write_file", "/bind_port"):
        response = gone.post(path, {"cmd": "true", "path": "/tmp/x", "port": "80"})
        assert response.status_code == 410
        assert response.headers["content-type"].startswith("text/plain")
    gone.http.close()


def test_secrets_cannot_be_chosen_twice_or_weak(shared: Executor) -> None:
    """Whoever made a second sandbox with somebody's secret would take requests that are meant for the first."""
    key = {"Authorization": f"Bearer {KEY}"}
    body = {"image": "host", "command": ["sleep", "30"], "network": "none"}
    for secret, status in (
        (shared.secret, 409),
        ("short", 400),
        ("white space in the middle", 400),
        ("\u00e4" * 20, 400),
    ):
        answer = shared.post("/v1/sessions", {**body, "executor": {"secret": secret}}, headers=key)
        assert answer.status_code == status, answer.text
        assert shared.secret not in answer.text
    assert shared.run("true")["code"] == 0


def test_those_who_try_secrets_are_slowed_down_and_nobody_else(executor: Executor) -> None:
    """By their address."""
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.9"), timeout=20) as thief:
        answers = [
            thief.post(f"{executor.url}/run", headers={"Authorization": f"Bearer {number:032}"}, json={"cmd": "true"})
            for number in range(200)
        ]
        assert {answer.status_code for answer in answers} == {401, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert executor.run("echo fine")["stdout"] == "fine\n"
        assert thief.get(f"{executor.url}{PREFIX}/health").status_code == 200


def test_no_page_of_another_site_is_let_in(executor: Executor) -> None:
    headers = {**executor.headers, "Origin": "https://evil.example"}
    for response in (
        executor.ask("POST", "/run", json={"cmd": "true"}, headers=headers),
        executor.ask("OPTIONS", "/run", headers={"Origin": "https://evil.example"}),
    ):
        assert not [name for name in response.headers if name.startswith("access-control-")]


def test_a_tenant_does_not_reach_the_server_itself(executor: Executor) -> None:
    """Neither its port nor the proxy's, by no address that leads to the host from elsewhere."""
    here = {"127.0.0.1", "10.0.2.2", "::1", *addresses_of_this_host()}
    ports = [urlsplit(executor.url).port, executor.proxy_port]
    script = f"""
import socket
for host in {sorted(here)!r}:
    for port in {ports!r}:
        try:
            with socket.create_connection((host, port), 1) as one:
                one.sendall(b"GET /health HTTP/1.0\\r\\n\\r\\n")
                print(host, port, one.recv(20))
        except OSError:
            pass
"""
    executor.reply("/write_file", {"path": "/tmp/reach.py", "content": script})
    executor.unbound()
    done = executor.run("python3 /tmp/reach.py")
    assert (done["stdout"], done["code"]) == ("", 0), done


def addresses_of_this_host() -> set[str]:
    found = {one[4][0] for one in socket.getaddrinfo(socket.gethostname(), None)}
    return {str(one) for one in found if ":" not in str(one)}
