"""Real servers that speak the Code Sandbox API, in processes of their own, and what clients do with them."""

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.app.serving import Server, serving

__all__ = ["KEY", "MOMENT", "WITHIN_S", "CodeSandbox", "code_sandbox"]

KEY = "sk_" + "c5" * 32
"""The operator's."""
WITHIN_S = 60.0
MOMENT = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$")
_FINAL = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class CodeSandbox:
    """A server, as its clients see it."""

    url: str
    server: Server
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60, trust_env=False))

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.http.request(method, self.url + path, **options)

    def raw(self, body: bytes, **options: Any) -> httpx.Response:
        """POST /v1/execute with any body."""
        return self.ask("POST", "/v1/execute", content=body, **options)

    def execute(self, language: str = "python", code: str = "print(1)", **members: Any) -> httpx.Response:
        return self.ask("POST", "/v1/execute", json={"language": language, "code": code, **members})

    def queued(self, language: str = "python", code: str = "print(1)", **members: Any) -> str:
        """The id of a new job."""
        response = self.execute(language, code, **members)
        assert response.status_code == 202, (response.status_code, response.text)
        job_id: str = response.json()["id"]
        return job_id

    def read(self, job_id: str) -> dict[str, Any]:
        response = self.ask("GET", f"/v1/execute/{job_id}")
        assert response.status_code == 200, (response.status_code, response.text)
        job: dict[str, Any] = response.json()
        return job

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended."""
        deadline = time.monotonic() + WITHIN_S
        while (job := self.read(job_id))["status"] not in _FINAL:
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        return job

    def run(self, language: str = "python", code: str = "print(1)", **members: Any) -> dict[str, Any]:
        return self.ended(self.queued(language, code, **members))

    def job(self, **members: Any) -> dict[str, Any]:
        """A new job by our own routes."""
        response = self.ask("POST", "/v1/jobs", json={"language": "python", "code": "print(1)", **members})
        assert response.status_code == 202, (response.status_code, response.text)
        job: dict[str, Any] = response.json()
        return job

    def own(self, job_id: str, wait: str = "") -> dict[str, Any]:
        """A job by our own routes."""
        response = self.ask("GET", f"/v1/jobs/{job_id}", params={"wait": wait} if wait else {})
        assert response.status_code == 200, (response.status_code, response.text)
        job: dict[str, Any] = response.json()
        return job

    def own_ended(self, job_id: str) -> dict[str, Any]:
        deadline = time.monotonic() + WITHIN_S
        while (job := self.own(job_id, wait="5s"))["status"] not in _FINAL:
            assert time.monotonic() < deadline, job
        return job

    def merged(self) -> "CodeSandbox":
        """The same server where it speaks every dialect."""
        return CodeSandbox(url=self.server.url, server=self.server, http=self.http)

    def is_error(self, response: httpx.Response, status: int, error: str) -> bool:
        """Whether it is a failure as the contract words it, to the letter."""
        assert (response.status_code, response.json()) == (status, {"error": error}), response.text
        assert response.headers["content-type"] == "application/json"
        assert response.content.endswith(b"\n")
        return True


@contextlib.contextmanager
def code_sandbox(folder: Path, *arguments: str, **variables: str) -> Iterator[CodeSandbox]:
    """`stockade serve` with this dialect alone on an address of its own; ended with the block."""
    with serving(folder, "--dialect", "code-sandbox=127.0.0.1:0", *arguments, **variables) as server:
        sandbox = CodeSandbox(url=server.address("code-sandbox").rstrip("/"), server=server)
        try:
            yield sandbox
        finally:
            sandbox.http.close()
            if server.process.poll() is None:
                server.end(signal.SIGINT)
