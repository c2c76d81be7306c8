"""The code-sandbox dialect: programs are queued, and read later; accounts; jobs with every option.

Clients of the Go "Code Sandbox API" work unchanged.  Wire: docs/dialects/code-sandbox.md

| module | holds |
|---|---|
| `durations`, `gojson` | durations and JSON as Go reads and writes them |
| `wire`, `translate`, `shown` | what our own routes are sent and answer; pure functions to the engine, and from it |
| `execute_routes`, `auth_routes` | the contract's routes |
| `job_routes`, `job_operations`, `events` | our own: `/v1/jobs` |
| `edge`, `access`, `failures`, `replies`, `documented`, `metrics` | what surrounds all of them |
| `variables` | the reference's environment variables as settings of ours |
| `settings`, `service`, `routes`, `assembly` | what an operator can set; how it all is put together |
"""

from fastapi import APIRouter, Response

from stockade.dialects.code_sandbox.assembly import edge_of, sandbox_of
from stockade.dialects.code_sandbox.failures import refusal
from stockade.dialects.code_sandbox.job_routes import is_stream
from stockade.dialects.code_sandbox.routes import make_router
from stockade.dialects.code_sandbox.settings import CodeSandboxSettings
from stockade.dialects.code_sandbox.translate import NAME
from stockade.dialects.code_sandbox.variables import translate_environment
from stockade.wire.dialect import Dialect, Services

__all__ = ["dialect"]

_ANY_SIZE = 2**62
_OWN = ("/v1/execute", "/v1/auth/", "/v1/jobs")


def router(services: Services) -> APIRouter:
    """The HTTP routes."""
    return make_router(sandbox_of(services), edge_of(services), services.accounts, is_alone=services.is_alone)


def largest_body(_services: Services, path: str) -> int | None:
    """No bound of the server's for our own paths: `Edge.read` has one, and refuses in the protocol's words."""
    return _ANY_SIZE if path.startswith(_OWN) else None


def bounds_itself(_services: Services, path: str) -> bool:
    """Whether *path* is a stream of events, which lasts as long as its job."""
    return is_stream(path)


def worded(status: int) -> Response | None:
    """What the server refuses by itself, where it speaks nothing but this protocol."""
    return refusal(status)


dialect = Dialect(
    name=NAME,
    summary="Programs are queued and read later: /v1/execute, /v1/jobs, /v1/auth; Code Sandbox API's clients work "
    "unchanged.",
    router=router,
    settings=CodeSandboxSettings,
    largest_body=largest_body,
    bounds_itself=bounds_itself,
    refusal=worded,
    variables=translate_environment,
)
