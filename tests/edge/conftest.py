"""One server for all of this directory: the merged one, as an operator starts it, with bounds low enough to reach."""

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.serving import Server, serving

KEY = "edge-test-key-0123456789"
MOST_CONNECTIONS = 300
PATIENCE_S = 4
FRIEND = "http://friend.example"
"""An origin whose pages may use the APIs."""
PASSWORD = "correct horse battery"
QUEUE_LENGTH = 4
PLACES = 4


@dataclass(kw_only=True)
class Edge:
    """The server, and what can be seen of it from outside."""

    server: Server
    http: httpx.Client
    rpc_port: int
    """Of the gRPC service; 0 where it is not installed."""

    @property
    def url(self) -> str:
        return self.server.url

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found
        return int(found[1]) * 1024

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """With the server's key."""
        headers = {"authorization": f"Bearer {KEY}", "x-api-key": KEY, **options.pop("headers", {})}
        return self.http.request(method, path, headers=headers, **options)

    def answers(self) -> bool:
        """Whether somebody new is served."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as other:
            return other.get("/health").status_code == 200

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("GET", "/openapi.json").raise_for_status().json()
        return found

    def log_entries(self) -> list[dict[str, Any]]:
        """What it has said, which must be one JSON object a line."""
        return [json.loads(line) for line in self.server.log if line.strip()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    rpc_port = free_port() if find_spec("grpc") else 0
    settings = {
        "STOCKADE_API_KEY": KEY,
        "STOCKADE_SERVER_MAX_CONNECTIONS": str(MOST_CONNECTIONS),
        "STOCKADE_SERVER_BODY_TIMEOUT_S": str(PATIENCE_S),
        "STOCKADE_SERVER_DRAIN_S": "2",
        "STOCKADE_QUEUE_PLACES": str(PLACES),
        "STOCKADE_QUEUE_LENGTH": str(QUEUE_LENGTH),
        "STOCKADE_LOG_FORMAT": "json",
        "STOCKADE_DIALECTS_ISOBOX_GRPC_PORT": str(rpc_port),
        "STOCKADE_PORTAL_REQUESTS_PER_S": "1000",
        "STOCKADE_SERVER_CORS_ENABLED": "true",
        "STOCKADE_SERVER_CORS_ALLOWED_ORIGINS": FRIEND,
    }
    with (
        serving(tmp_path_factory.mktemp("edge"), **settings) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http,
    ):
        yield Edge(server=server, http=http, rpc_port=rpc_port)
        server.end(signal.SIGINT)  # nothing that lives is left


@dataclass(frozen=True, kw_only=True)
class Living:
    """What there is on the server to ask about."""

    session_id: str
    secret: str
    """Opens the session by the executor protocol."""
    box_id: str
    job_id: str


@pytest.fixture(scope="module")
def living(edge: Edge) -> Living:
    """A session, a box and a job of a module's own: what is made up may end them."""
    body = {
        "image": "host",
        "command": ["sleep", "infinity"],
        "executor": True,
        "resources": {"memoryMB": 256, "timeoutMs": 300_000},
    }
    session = edge.ask("POST", "/v1/sessions", json=body).raise_for_status().json()
    box = edge.ask("POST", "/v1/boxes", json={"image": "host", "memory_mib": 256}).raise_for_status().json()
    job = edge.ask("POST", "/v1/jobs", json={"language": "python", "code": "print(1)"}).raise_for_status().json()
    return Living(
        session_id=session["id"], secret=session["executor"]["secret"], box_id=box["box_id"], job_id=job["id"]
    )


@pytest.fixture(scope="session")
def user(edge: Edge) -> Iterator[httpx.Client]:
    """Somebody's browser, logged in to the portal, with their page's token."""
    with httpx.Client(base_url=edge.url, trust_env=False, timeout=60) as http:
        token = http.get("/api/meta").raise_for_status().json()["csrf"]
        body = {"name": "Ada", "email": "edge@example.org", "password": PASSWORD}
        answer = http.post("/api/register", json=body, headers={"x-csrf-token": token}).raise_for_status()
        http.headers["x-csrf-token"] = answer.json()["csrf"]
        yield http
