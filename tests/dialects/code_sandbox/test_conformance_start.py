"""The contract's case about what the server is started with, and the variables of the reference in a real server."""

import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.serving import command, environment, serving
from tests.dialects.code_sandbox.serving import CodeSandbox, code_sandbox
from tests.dialects.executor.serving import free_port


@pytest.mark.parametrize("text", ["golang", "=python:"])
def test_runners_that_are_malformed_refuse_the_start(tmp_path: Path, text: str) -> None:
    """Case 30."""
    arguments = command("serve", "--port", "0", "--data-dir", str(tmp_path / "data"))
    environ = environment(SANDBOX_LANGUAGE_CONTAINERS=text)
    ended = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "SANDBOX_LANGUAGE_CONTAINERS" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_reference_s_variables_are_understood_or_answered(tmp_path: Path) -> None:
    """Case 30, and §10."""
    port = free_port()
    variables = {
        "HTTP_HOST": "127.0.0.1",
        "HTTP_PORT": str(port),
        "HTTP_WRITE_TIMEOUT": "20s",
        "SANDBOX_TIMEOUT": "abc",
        "SANDBOX_MAX_TIMEOUT": "2h",
        "SANDBOX_JOB_DIR": "/tmp/jobs",
        "JOB_TTL": "1h",
        "AUTH_REQUIRED": "",
        "CORS_ORIGIN": "https://example.org",
    }
    with serving(tmp_path / "data", **variables) as server:
        sandbox = CodeSandbox(url=f"http://127.0.0.1:{port}", server=server)
        assert server.address("code-sandbox") == sandbox.url
        job = sandbox.run("python", "print(1)")
        assert job["request"]["timeout"] == 3_000_000_000
        expires_in_s = _seconds_kept(sandbox.own(job["id"]))
        assert 3590 <= expires_in_s <= 3610
        long = sandbox.read(sandbox.queued("python", "print(1)", timeout="1h30m"))  # case 14
        assert long["request"]["timeout"] == 5_400_000_000_000
        assert sandbox.ended(long["id"])["status"] == "succeeded"
        body = b'{"language":"py","code":"print(1)"}'
        page = sandbox.raw(body, headers={"origin": "https://example.org"})
        assert (page.status_code, page.headers["access-control-allow-origin"]) == (202, "https://example.org")
        assert sandbox.raw(body, headers={"origin": "https://example.com"}).status_code == 403
        told = "".join(server.log)
        assert server.end() == 0
        sandbox.http.close()
    assert "SANDBOX_TIMEOUT" in told
    assert "SANDBOX_JOB_DIR has no effect" in told


def _seconds_kept(job: dict[str, Any]) -> float:
    ended, expires = (datetime.fromisoformat(job[name]) for name in ("completedAt", "expiresAt"))
    return (expires - ended).total_seconds()


def test_credentials_are_demanded_where_the_operator_asks_for_them(tmp_path: Path) -> None:
    """§9: `AUTH_REQUIRED`."""
    key = "sk_" + "d6" * 32
    body = json.dumps({"language": "python", "code": "print(1)"})
    with code_sandbox(tmp_path / "data", AUTH_REQUIRED="true", STOCKADE_API_KEY=key) as sandbox:

        def submit(**headers: str) -> httpx.Response:
            return sandbox.raw(body.encode(), headers=headers)

        missing = "missing or invalid authorization header"
        assert sandbox.is_error(submit(), 401, missing)
        assert sandbox.is_error(submit(authorization="Basic x"), 401, missing)
        assert sandbox.is_error(submit(authorization=f"Bearer  {key}"), 401, missing)
        assert sandbox.is_error(submit(authorization="Bearer sk_wrong"), 401, "invalid token")
        assert sandbox.is_error(submit(**{"x-api-key": "sk_wrong"}), 401, "invalid token")
        assert sandbox.is_error(sandbox.ask("GET", "/v1/execute"), 405, "method not allowed")
        assert sandbox.is_error(sandbox.ask("GET", "/v1/execute/abc"), 401, missing)
        queued = submit(authorization=f"bearer {key}")
        assert queued.status_code == 202
        path = f"/v1/execute/{queued.json()['id']}"
        assert sandbox.is_error(sandbox.ask("GET", path), 401, missing)
        assert sandbox.ask("GET", path, headers={"x-api-key": key}).status_code == 200
        assert sandbox.ask("GET", "/v1/jobs").status_code == 401
        assert sandbox.ask("OPTIONS", "/v1/execute").status_code == 200
        assert sandbox.ask("GET", "/health").status_code == 200
        tokens = [_registered(sandbox, name) for name in ("ada", "bob")]
        queued = submit(authorization=f"Bearer {tokens[0]}")
        assert queued.status_code == 202
        path = f"/v1/execute/{queued.json()['id']}"
        ada, bob = ({"authorization": f"Bearer {token}"} for token in tokens)
        assert sandbox.ask("GET", path, headers=ada).status_code == 200
        assert sandbox.is_error(sandbox.ask("GET", path, headers=bob), 404, "job not found")
        assert sandbox.ask("GET", path, headers={"x-api-key": key}).status_code == 200  # the operator's
        assert [len(sandbox.ask("GET", "/v1/jobs", headers=one).json()["jobs"]) for one in (ada, bob)] == [1, 0]
        assert sandbox.is_error(submit(authorization=f"Bearer {tokens[0][:-1]}"), 401, "invalid token")


def _registered(sandbox: CodeSandbox, name: str) -> str:
    """The token of a new user."""
    body = {"name": name, "email": f"{name}@example.com", "password": "correct horse battery"}
    response = sandbox.ask("POST", "/v1/auth/register", json=body)
    assert response.status_code == 201, response.text
    token: str = response.json()["token"]
    return token
