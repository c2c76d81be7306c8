"""The server as a process: its start, what a new user sees, its end, and what it gives up."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.app.serving import START_S, Server, command, environment, serving

HELLO = {"language": "python", "code": "print(6*7)"}
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give up")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    with serving(directory / "data", "--dialect", "isobox=127.0.0.1:0") as server:
        yield server


def until(fact: Callable[[], object], within_s: float = 30.0) -> None:
    """Poll until *fact* holds."""
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)


def post(url: str, body: object = HELLO, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/execute", json=body, headers=headers, timeout=30)


def test_the_line_that_a_new_user_pastes_works(server: Server) -> None:
    done = subprocess.run(shlex.split(server.curl), capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["stdout"] == "42\n"


def test_a_first_start_shows_a_key_that_works_and_a_second_one_none(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        found = re.search(r"sk_[0-9a-f]{64}", first.banner)
        assert found
        assert found[0] in first.curl
        assert post(first.url, **{"X-API-Key": found[0]}).json()["stdout"] == "42\n"
        assert found[0] not in "".join(first.log)
        assert first.end() == 0
    with serving(tmp_path) as second:
        assert "sk_" not in second.banner
        assert post(second.url, **{"X-API-Key": found[0]}).status_code == 200


def test_the_key_can_be_preset(tmp_path: Path) -> None:
    with serving(tmp_path, STOCKADE_API_KEY="chosen-by-the-operator") as server:
        assert "chosen-by-the-operator" not in server.banner  # which ends in a log
        assert "YOUR_KEY" in server.curl
        key = {"Authorization": "Bearer chosen-by-the-operator"}
        assert httpx.get(f"{server.url}/v1/sessions", headers=key, trust_env=False).status_code == 200
        kept = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
        assert b"chosen-by-the-operator" not in kept


def test_where_others_can_reach_the_server_a_key_is_needed(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0", STOCKADE_API_KEY="chosen-by-the-operator") as server:
        assert post(server.url).status_code == 401
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        key = {"X-API-Key": "chosen-by-the-operator"}
        assert post(server.url, **key).status_code == 200
        assert httpx.get(f"{server.url}/metrics", headers=key).status_code == 200
        bearer = {"Authorization": "Bearer chosen-by-the-operator"}
        assert httpx.get(f"{server.url}/metrics", headers=bearer).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_health_is_a_superset_on_the_merged_address_and_exact_on_a_dialect_s_own(server: Server) -> None:
    merged = httpx.get(f"{server.url}/health").json()
    alone = httpx.get(f"{server.address('isobox')}/health").json()
    assert alone == {"status": "healthy", "service": "isobox", "version": alone["version"]}
    assert merged.items() >= alone.items()
    assert "isobox" in merged["dialects"]


def test_what_does_not_exist_is_answered_in_json(server: Server) -> None:
    missing = httpx.get(f"{server.url}/nope")
    assert (missing.status_code, type(missing.json()["error"])) == (404, str)
    wrong = httpx.get(f"{server.url}/execute")
    assert (wrong.status_code, wrong.headers["allow"], type(wrong.json()["error"])) == (405, "POST", str)


def test_the_documentation_needs_nothing_from_elsewhere(server: Server) -> None:
    page = httpx.get(f"{server.url}/docs")
    assert page.status_code == 200
    sources = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert sources
    for source in sources:
        assert httpx.get(httpx.URL(server.url).join(source)).status_code == 200
        assert source.startswith("/")
    assert "/execute" in httpx.get(f"{server.url}/openapi.json").json()["paths"]


def test_metrics_cover_both_addresses_and_the_queue(server: Server) -> None:
    post(server.address("isobox"))
    text = httpx.get(f"{server.url}/metrics").text
    assert "stockade_places" in text
    assert re.search(r'^isobox_executions_total\{.*language="python".*\} [1-9]', text, re.MULTILINE)


def test_a_web_page_can_neither_send_requests_nor_rebind_its_name(server: Server) -> None:
    assert post(server.url, Origin="http://evil.example").status_code == 403
    assert post(server.url, Host="evil.example").status_code == 421


def test_a_second_server_on_the_data_directory_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as first:
        refused = subprocess.run(
            command("serve", "--port", "0", "--data-dir", str(tmp_path)),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=START_S,
        )
        assert refused.returncode == 1
        assert f"process {first.process.pid} uses the data directory" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = subprocess.run(
            command("serve", "--port", str(port), "--data-dir", str(tmp_path)),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=START_S,
        )
    assert refused.returncode == 1
    assert f"port {port}: the port is in use" in refused.stderr
    assert "Traceback" not in refused.stderr


def _running(server: Server) -> int:
    return int(httpx.get(f"{server.url}/health").json()["running"])


def test_sigterm_lets_running_requests_end_and_takes_no_new_ones(tmp_path: Path) -> None:
    with serving(tmp_path) as server, ThreadPoolExecutor() as pool:
        slow = pool.submit(
            post, server.url, {"language": "python", "code": "import time; time.sleep(1.5); print('done')"}
        )
        until(lambda: _running(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: any("server.draining" in line for line in server.log))

        def refused() -> bool:
            try:
                httpx.get(f"{server.url}/health")
            except httpx.TransportError:
                return True
            return False

        until(refused)
        assert slow.result(60).json()["stdout"] == "done\n"
        assert server.process.wait(START_S) == 0


def test_after_the_drain_time_requests_are_cancelled_and_told_so(tmp_path: Path) -> None:
    with serving(tmp_path, STOCKADE_SERVER_DRAIN_S="1") as server, ThreadPoolExecutor() as pool:
        endless = pool.submit(post, server.url, {"language": "python", "code": "import time; time.sleep(9)"})
        until(lambda: _running(server) == 1)
        assert server.end() == 0
        assert endless.result(60).status_code == 503


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, STOCKADE_SERVER_DRAIN_S="300") as server, ThreadPoolExecutor() as pool:
        body = {"language": "python", "code": "import time; time.sleep(100)", "timeout_seconds": 100}
        endless = pool.submit(post, server.url, body)
        until(lambda: _running(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: any("server.draining" in line for line in server.log))

        def taken_for_a_second_one() -> bool:
            # Signals that come close together count as one, so it may take more than one more.
            if any("server.stopping_at_once" in line for line in server.log):
                return True
            server.process.send_signal(signal.SIGTERM)
            return False

        until(taken_for_a_second_one)
        assert server.process.wait(START_S) == 0
        assert endless.result(60).status_code == 503


def test_a_key_file_that_is_damaged_ends_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("{")
    refused = subprocess.run(
        command("serve", "--port", "0", "--data-dir", str(tmp_path)),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("stockade: ")
    assert "keys.json" in refused.stderr


@root_only
def test_the_server_keeps_no_privilege_in_any_thread(server: Server) -> None:
    post(server.url)
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        assert not any(sets.values()), sets
        assert status["NoNewPrivs"].strip() == "1"


@root_only
@pytest.mark.parametrize("user", ["", "nobody"])
def test_a_warden_that_is_killed_is_replaced(tmp_path: Path, user: str) -> None:
    """Also where the server, without privileges and as another user, could not start one itself."""
    tmp_path.chmod(0o711)
    tmp_path.parent.chmod(0o711)
    tmp_path.parent.parent.chmod(0o711)
    with serving(tmp_path / "data", *(["--user", user] if user else [])) as server:
        assert post(server.url).json()["stdout"] == "42\n"
        os.kill(_warden(server), signal.SIGKILL)
        until(lambda: post(server.url).status_code == 200)
        uids = Path(f"/proc/{server.process.pid}/status").read_text()
        assert ("Uid:\t0\t" not in uids) == bool(user)
        assert server.end() == 0


@root_only
def test_a_server_that_is_killed_takes_its_warden_along(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        warden = _warden(server)
        server.end(signal.SIGKILL)
        until(lambda: not Path(f"/proc/{warden}").exists())
    with serving(tmp_path) as server:
        assert post(server.url).json()["stdout"] == "42\n"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _warden(server: Server) -> int:
    """Process id of the server's warden: the child of its keeper."""
    (keeper,) = _children(server.process.pid)
    (warden,) = _children(keeper)
    return warden
