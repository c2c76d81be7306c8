"""One server to which secrets of every kind are told, and which is then used, also in ways that fail: none of them is
in a log, an error, a metric, a span, a process's arguments or environment, or in clear in any of its files.
"""

import base64
import contextlib
import os
import secrets
import signal
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.serving import Server, command, environment, serving
from tests.app.test_tracing import collector
from tests.redis_server import RedisServer, redis_server

DENIED = 400
WITHIN_S = 60.0
_CHUNK = 1 << 22
NAME = f"name-{secrets.token_hex(16)}"
"""No secret: what is found where it is kept shows that the search finds."""


def _canaries(*names: str) -> dict[str, str]:
    # In base 16, so that no encoding on the way changes them.
    return {name: f"{name}-{secrets.token_hex(16)}" for name in names}


GIVEN = _canaries("jwt", "redis", "oidc", "smtp", "preset")
"""What the operator tells the server, by its environment."""
TOLD = _canaries("password", "other", "wrong", "value", "login", "env", "stdin", "code", "bearer", "header", "file")
"""What clients tell it."""


@dataclass(kw_only=True)
class Used:
    """A server that was used."""

    server: Server
    http: httpx.Client
    data: Path
    secrets: dict[str, str]
    """All that it was told, and all that it made, by name."""
    refusals: list[httpx.Response] = field(default_factory=list)
    spans: list[Any] = field(default_factory=list)
    metrics: str = ""
    documents: str = ""
    environs: dict[str, bytes] = field(default_factory=dict)
    """Of each process, the arguments and the environment, while all lived."""
    found: set[tuple[str, str]] = field(default_factory=set)
    """In which files which secrets stood, while all lived."""

    def ask(self, method: str, path: str, *, key: str = "", **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", "X-API-Key": key} if key else {}
        headers |= options.pop("headers", {})
        answer = self.http.request(method, path, headers=headers, **options)
        self.http.cookies.clear()
        if answer.status_code >= DENIED:
            self.refusals.append(answer)
        return answer

    def made(self, method: str, path: str, **options: Any) -> Any:
        answer = self.ask(method, path, key=GIVEN["preset"], **options)
        assert answer.is_success, (path, answer.status_code, answer.text)
        return answer.json() if answer.content else None


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis"), has_port=True) as server:
        server.command("CONFIG", "SET", "requirepass", GIVEN["redis"])
        yield server


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Used]:
    data = tmp_path_factory.mktemp("secrets") / "data"
    with collector() as (address, spans):
        variables = {
            "STOCKADE_API_KEY": GIVEN["preset"],
            "JWT_SECRET": GIVEN["jwt"],
            "REDIS_URL": f"redis://:{GIVEN['redis']}@127.0.0.1:{redis.port}/0",
            "STOCKADE_USERS_SIGN_UP": "open",
            "STOCKADE_USERS_PUBLIC_URL": "http://127.0.0.1",
            "STOCKADE_USERS_OIDC_ISSUER": "http://127.0.0.1:9",
            "STOCKADE_USERS_OIDC_CLIENT_ID": "stockade",
            "STOCKADE_USERS_OIDC_CLIENT_SECRET": GIVEN["oidc"],
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": "9",
            "SMTP_FROM": "stockade@example.org",
            "SMTP_PASSWORD": GIVEN["smtp"],
            "STOCKADE_LOG_LEVEL": "debug",
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
        }
        with (
            serving(data, **variables) as server,
            httpx.Client(base_url=server.url, timeout=WITHIN_S, trust_env=False) as http,
        ):
            used = Used(server=server, http=http, data=data, secrets=GIVEN | TOLD, spans=spans)
            try:
                _use(used)
                used.environs = _environs(server)
                used.metrics = _text(used, "/metrics")
                used.documents = _text(used, "/openapi.json") + _text(used, "/docs")
                _break(used)
                used.found = _in_files(used)
            finally:
                server.end(signal.SIGINT)  # and so its sandboxes
        yield used


def _text(used: Used, path: str) -> str:
    return used.ask("GET", path, key=GIVEN["preset"]).text


def _use(used: Used) -> None:
    """Tell it secrets, in every way that is meant for them; then in wrong ones."""
    person = {"name": "Ada", "email": "ada@example.org", "password": TOLD["password"]}
    used.secrets["token"] = used.ask("POST", "/v1/auth/register", json=person).json()["token"]
    log_in = {"email": person["email"], "password": TOLD["password"]}
    used.secrets["token 2"] = used.ask("POST", "/v1/auth/login", json=log_in).json()["token"]
    used.secrets["webhook"] = used.ask("GET", "/v1/jobs/webhook-secret", key=used.secrets["token"]).json()["secret"]
    used.secrets["key"] = used.made("POST", "/v1/account/keys", json={"name": "ci"})["key"]
    login = {"registry_host": "registry.example.org", "username": NAME, "password": TOLD["login"]}
    used.made("POST", "/v1/images/registries", json=login)
    _portal(used, log_in)
    _sandboxes(used)
    program = {"language": "python", "code": f"print(len('{TOLD['code']}' + input()))", "stdin": TOLD["stdin"]}
    for path in ("/execute", "/v1/execute", "/v1/jobs"):
        used.made("POST", path, json=program)
    used.made("POST", "/execute", json=program | {"code": f"raise ValueError('{TOLD['code']}')"})
    used.made("POST", "/execute", json=program | {"code": "while True: pass", "timeout_seconds": 1})
    used.made("POST", "/execute", json=program | {"language": "c", "code": f"int {TOLD['code'].replace('-', '_')}("})
    _misuse(used, person, log_in, login, program)


def _portal(used: Used, log_in: Mapping[str, str]) -> None:
    with httpx.Client(base_url=used.server.url, timeout=WITHIN_S, trust_env=False) as browser:
        csrf = browser.get("/api/meta").json()["csrf"]
        headers = {"X-CSRF-Token": csrf, "Origin": used.server.url}
        begun = browser.post("/api/session", json=dict(log_in), headers=headers)
        assert begun.status_code == 200, begun.text
        used.secrets["cookie"] = browser.cookies["stockade_session"]
        headers["X-CSRF-Token"] = begun.json()["csrf"]
        used.secrets["portal key"] = browser.post("/api/keys", json={"name": "p"}, headers=headers).json()["secret"]
        changed = {"old": TOLD["wrong"], "new": TOLD["other"]}
        used.refusals.append(browser.post("/api/password", json=changed, headers=headers))
        browser.post("/api/password/forgot", json={"email": log_in["email"]}, headers=headers)
        for token in (TOLD["bearer"], [TOLD["bearer"]]):
            body = {"token": token, "password": TOLD["other"]}
            used.refusals.append(browser.post("/api/password/reset", json=body, headers=headers))
        used.refusals.append(browser.get("/api/oidc/start"))


def _sandboxes(used: Used) -> None:
    body = {
        "image": "host",
        "command": ["sleep", "600"],
        "env": {"SECRET": TOLD["env"]},
        "network": "none",
        "resources": {"cpuMillis": 500, "memoryMB": 128, "timeoutMs": 120_000},
        "executor": True,
    }
    session = used.made("POST", "/v1/sessions", json=body)
    secret = used.secrets["sandbox"] = session["executor"]["secret"]
    written = {"path": "/tmp/file", "content": TOLD["file"]}
    for path, asked in (
        ("write_file", written),
        ("write_file", written | {"path": "/nowhere/file"}),
        ("run", {"cmd": f"false {TOLD['code']}", "env": {"SECRET": TOLD["env"]}}),
        ("run", {"cmd": "/nowhere/program", "env": {"SECRET": TOLD["env"]}}),
        ("run", {"cmd": "true", "env": [TOLD["env"]]}),
        ("write_file", {"path": 1, "content": TOLD["file"]}),
    ):
        used.ask("POST", f"/koyeb-sandbox/{path}", key=secret, json=asked)
    used.ask("POST", "/koyeb-sandbox/run", key=f"{secret}x", json={"cmd": "true"})
    rule = {"name": "API_KEY", "value": TOLD["value"], "placeholder": "<SECRET:API_KEY>", "hosts": ["h.example.org"]}
    members = {"image": "host", "cpus": 1, "memory_mib": 128, "cmd": ["sleep", "600"], "env": {"MORE": TOLD["env"]}}
    box = used.made("POST", "/v1/boxes", json=members | {"secrets": [rule]})["box_id"]
    used.made("POST", f"/v1/boxes/{box}/start")
    content = used.ask("POST", f"/v1/boxes/{box}/export", key=GIVEN["preset"]).content
    assert content
    assert TOLD["value"].encode() not in content
    for wrong in ([rule | {"value": [TOLD["value"]]}], [rule | {"name": ""}], [rule | {"hosts": [1]}], TOLD["value"]):
        used.ask("POST", "/v1/boxes", key=GIVEN["preset"], json=members | {"secrets": wrong})


def _misuse(used: Used, *bodies: Mapping[str, Any]) -> None:
    """Each body wrong in every member, as a list of itself, cut off; each secret where none belongs."""
    paths = (
        "/v1/auth/register",
        "/v1/auth/login",
        "/v1/images/registries",
        "/execute",
        "/v1/jobs",
        "/v1/jobs/batch",
        "/v1/oauth/tokens",
        "/v1/sessions",
        "/v1/boxes",
        "/api/session",
    )
    for path, body in zip(
        paths, (*bodies, bodies[3], bodies[3], bodies[2], bodies[3], bodies[3], bodies[1]), strict=False
    ):
        whole = str(body).replace("'", '"').encode()
        for name, value in body.items():
            for wrong in ([value], {"x": value}, {value: value}):
                used.ask("POST", path, key=GIVEN["preset"], json={**body, name: wrong})
        for content in (whole[:-3], b"[" + whole + b"]", b"\xff" + whole):
            used.ask("POST", path, key=GIVEN["preset"], content=content, headers={"Content-Type": "application/json"})
    used.ask("POST", "/v1/auth/login", json={"email": "ada@example.org", "password": TOLD["wrong"]})
    for path in ("/v1/boxes", "/v1/sessions", "/v1/jobs", "/execute", "/metrics", "/koyeb-sandbox/run", "/api/keys"):
        for method in ("GET", "POST"):
            used.ask(method, path, key=TOLD["bearer"], headers={"X-Whatever": TOLD["header"]})
        basic = base64.b64encode(f"me:{TOLD['bearer']}".encode()).decode()
        used.ask(
            "GET", path, headers={"Authorization": f"Basic {basic}", "Cookie": f"stockade_session={TOLD['bearer']}"}
        )


def _break(used: Used) -> None:
    """Take the tables away, so that what comes next fails with the database's own words, which quote what was asked."""
    with closing(sqlite3.connect(used.data / "state" / "stockade.db", timeout=WITHIN_S)) as database:
        for table in ("users", "user_sessions", "registry_credentials", "api_keys"):
            with contextlib.suppress(sqlite3.OperationalError):
                database.execute(f"alter table {table} rename to {table}_gone")
        database.commit()
    before = len(used.refusals)
    used.ask("POST", "/v1/auth/login", json={"email": "ada@example.org", "password": TOLD["wrong"]})
    used.ask("POST", "/v1/auth/register", json={"name": "Eve", "email": "e@e.org", "password": TOLD["password"]})
    for key in (TOLD["bearer"], used.secrets["token"], used.secrets["sandbox"], used.secrets["key"]):
        used.ask("GET", "/v1/jobs", key=key)
        used.ask("GET", "/v1/me", key=key)
        used.ask("GET", "/api/keys", headers={"Cookie": f"stockade_session={key}"})
    assert any(answer.status_code >= 500 for answer in used.refusals[before:]), "nothing was broken"


def _environs(server: Server) -> dict[str, bytes]:
    """What `/proc` shows of the server and of all that runs below it."""
    found: dict[str, bytes] = {}
    waiting = [server.process.pid]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            found[f"{pid} {name} cmdline"] = Path(f"/proc/{pid}/cmdline").read_bytes()
            if pid != server.process.pid:  # which was given the operator's secrets just there
                found[f"{pid} {name} environ"] = Path(f"/proc/{pid}/environ").read_bytes()
    assert len(found) > 4, found
    return found


def told(text: str | bytes, used: Used) -> list[str]:
    """Which secrets stand in *text*."""
    content = text.encode(errors="replace") if isinstance(text, str) else text
    return [name for name, value in used.secrets.items() if value.encode() in content]


def test_no_log_has_a_secret(used: Used) -> None:
    log = "".join(used.server.log)
    assert "debug" in log
    assert told(log, used) == []
    assert told(used.server.banner, used) == []
    warden = next(iter(used.data.rglob("warden.log")), None)
    assert warden is None or told(warden.read_bytes(), used) == []


def test_no_error_repeats_a_secret(used: Used) -> None:
    assert len(used.refusals) > 100
    wrong = [
        (str(answer.request.url.path), answer.status_code, names)
        for answer in used.refusals
        if (names := told(answer.content, used) + told(str(answer.headers), used))
    ]
    assert wrong == []


def test_no_metric_and_no_description_has_a_secret(used: Used) -> None:
    assert "stockade_places" in used.metrics
    assert told(used.metrics, used) == []
    assert told(used.documents, used) == []


def test_no_span_has_a_secret(used: Used) -> None:
    assert used.spans
    assert [names for one in used.spans if (names := told(one.SerializeToString(), used))] == []


def test_no_process_shows_a_secret(used: Used) -> None:
    """In its arguments, or in its environment, which is inherited. Programs of tenants have their own."""
    tenants = ("env", "code")
    shown = {
        process: names
        for process, content in used.environs.items()
        if (names := [name for name in told(content, used) if name not in tenants])
    }
    assert shown == {}


def test_no_file_has_a_secret_in_clear(used: Used) -> None:
    """But tenants' programs and files, which are there to be run, and what is kept to make other secrets of it."""
    found = used.found | _in_files(used)
    places = {path for path, name in found if name == "name"}
    assert places
    assert all(path.startswith("state/stockade.db") for path in places)
    assert {one for one in found if one[1] != "name"} == set()


def _in_files(used: Used) -> set[tuple[str, str]]:
    """The path of a file of the server's, and the name of a secret in it."""
    tenants = {"code", "stdin", "env", "file"}
    sought = {name: value for name, value in used.secrets.items() if name not in tenants} | {"name": NAME}
    found: set[tuple[str, str]] = set()
    for path in used.data.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            if path.is_file() and not path.is_symlink():
                found.update((str(path.relative_to(used.data)), name) for name in _in_file(path, sought))
    return found


def _in_file(path: Path, sought: Mapping[str, str]) -> set[str]:
    """Names of those of *sought* that are written in a file, which may be a sparse one of any size."""
    found: set[str] = set()
    longest = max(map(len, sought.values()))
    with path.open("rb") as file, contextlib.suppress(OSError):  # the end of the data
        while True:
            begin = os.lseek(file.fileno(), file.tell(), os.SEEK_DATA)
            file.seek(begin)
            end, kept = os.lseek(file.fileno(), begin, os.SEEK_HOLE), b""
            file.seek(begin)
            while file.tell() < end and (chunk := file.read(min(_CHUNK, end - file.tell()))):
                found.update(name for name, value in sought.items() if value.encode() in kept + chunk)
                kept = chunk[-longest:]
    return found


def test_nobody_reads_the_servers_memory(tmp_path: Path) -> None:
    """Not another process of its user; and no core file is made of it, however it ends."""
    with serving(tmp_path / "data", STOCKADE_API_KEY=GIVEN["preset"]) as server:
        pid = server.process.pid
        probe = f"""
import ctypes, struct
libc = ctypes.CDLL(None)
assert libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0
for name in ("mem", "environ"):
    try:
        with open("/proc/{pid}/" + name, "rb", 0) as file:
            file.read(1) if name == "environ" else None
        print("opened", name)
    except OSError:
        pass
"""
        done = subprocess.run(["python3", "-c", probe], capture_output=True, text=True, timeout=WITHIN_S, check=True)
        assert done.stdout == ""


@pytest.mark.parametrize(
    "url",
    [
        "postgres://me:{}@127.0.0.1:1/x",
        "postgres://me:{}@[::1/x",
        "mysql://me:{}@h/x",
    ],
)
def test_a_database_that_cannot_be_had_is_told_without_its_password(tmp_path: Path, url: str) -> None:
    secret = secrets.token_hex(16)
    given = environment(DATABASE_URL=url.format(secret), STOCKADE_DATABASE_TIMEOUT_S="1")
    done = subprocess.Popen(
        command("keys", "list", "--data-dir", str(tmp_path)),
        env=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        out, _ = done.communicate(timeout=WITHIN_S)
    finally:
        done.kill()
        done.wait()
    assert done.returncode != 0
    assert out
    assert secret.encode() not in out
