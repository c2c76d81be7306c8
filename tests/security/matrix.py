"""Every endpoint of the merged server: what kind it is, behind which door, and with what it is to be asked.

What each asker is to be answered follows from the kind (`test_matrix.py`); nothing here says it endpoint by endpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

__all__ = ["ROWS", "Kind", "Row", "filled"]


class Kind(Enum):
    """Whose what is behind a path is."""

    OPEN = auto()
    """Nobody's: whoever asks is answered."""
    OWN = auto()
    """An object of an account, which its path names."""
    MINE = auto()
    """What the asker has: a list, a sum, something new."""
    ADMIN = auto()
    """For administrators."""
    SEALED = auto()
    """A proof that came by another way opens it: a password, a token from a letter. Who is logged in does not count."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One endpoint."""

    method: str
    path: str
    kind: Kind
    door: str
    """As `Asker.headers` has them."""
    body: Any = None
    query: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    ends: bool = False
    """It would end what the asker themselves is let in by, or has: nobody is asked whom it would let."""
    names: Mapping[str, str] = field(default_factory=dict)
    """For parameters of the path: which of the things is meant, where that is not the one of the parameter's name."""
    is_job: bool = False
    """Administrators may see everybody's."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(one.partition(":")[0] for one in re.findall(r"{([^}]+)}", self.path))

    @property
    def changes(self) -> bool:
        return self.method not in ("GET", "HEAD", "WEBSOCKET")

    def url(self, ids: Mapping[str, str]) -> str:
        """The path with what *ids* has for its parameters."""
        return filled(self.path, {one: ids[self.names.get(one, one)] for one in self.parameters})


def filled(path: str, values: Mapping[str, str]) -> str:
    """*path* with *values* for its parameters; `x` for one that is none of them."""

    def value(match: re.Match[str]) -> str:
        return values.get(match[1].partition(":")[0], "x").replace("/", "%2F").replace(":", "%3A")

    return re.sub(r"{([^}]+)}", value, path)


_BOX = "/v1/boxes/{box_id}"
_EXECUTION = f"{_BOX}/executions/{{execution_id}}"
_SESSION = "/v1/sessions/{session_id}"
_KEY = "/v1/account/keys/{key_id}"
_SANDBOX = "/api/sandboxes/{sandbox_id}"
_PROGRAM = {"language": "python", "code": "print(1)"}
_CASES = _PROGRAM | {"test_cases": [{"name": "n", "input": "1"}]}
_NEW_SESSION = {
    "image": "host",
    "command": ["true"],
    "network": "none",
    "resources": {"cpuMillis": 500, "memoryMB": 128, "timeoutMs": 10_000},
}
_PATH = {"path": "/tmp/kept"}
_ADA = {"email": "nobody@example.org", "password": "not the password"}


def _rows(kind: Kind, door: str, *listed: tuple[Any, ...], **more: Any) -> list[Row]:
    """A row for each `(method, path)`, `(method, path, body)` or `(method, path, body, further members)`."""
    found = []
    for method, path, *rest in listed:
        members = {"body": rest[0] if rest else None, **more, **(rest[1] if len(rest) > 1 else {})}
        found.append(Row(method=method, path=path, kind=kind, door=door, **members))
    return found


ROWS: tuple[Row, ...] = (
    # The server's own
    *_rows(
        Kind.OPEN,
        "open",
        ("GET", "/openapi.json"),
        ("HEAD", "/openapi.json"),
        ("GET", "/openapi.yaml"),
        ("GET", "/docs"),
        ("GET", "/docs/oauth2-redirect"),
        ("GET", "/static-offline-docs"),
        ("GET", "/health"),
        ("HEAD", "/health"),
    ),
    *_rows(Kind.ADMIN, "key", ("GET", "/metrics")),
    # isobox
    *_rows(Kind.OPEN, "open", ("GET", "/languages"), ("GET", "/auth/status")),
    *_rows(
        Kind.MINE,
        "key",
        ("POST", "/execute", _PROGRAM),
        ("POST", "/api/v1/execute", _PROGRAM),
        ("POST", "/api/v1/execute/test-cases", _CASES),
        ("POST", "/api/v1/execute/test-files", _PROGRAM | {"test_files": [{"name": "n", "content": "1"}]}),
        ("POST", "/api/v1/execute/test-urls", _PROGRAM | {"test_urls": [{"name": "n", "url": "https://h.example/i"}]}),
        ("GET", "/admin/dedup/stats"),
    ),
    # code-sandbox
    *_rows(
        Kind.SEALED,
        "key",
        ("POST", "/v1/auth/register", {"name": "", "email": "", "password": ""}),
        ("POST", "/v1/auth/login", _ADA),
    ),
    *_rows(Kind.MINE, "token", ("GET", "/v1/auth/validate")),
    *_rows(
        Kind.MINE,
        "key",
        ("POST", "/v1/execute", _PROGRAM),
        ("POST", "/v1/jobs", _PROGRAM),
        ("POST", "/v1/jobs/batch", {"jobs": [_PROGRAM]}),
        ("GET", "/v1/jobs/queue"),
        ("GET", "/v1/jobs/webhook-secret"),
    ),
    *_rows(Kind.MINE, "key", ("GET", "/v1/jobs"), is_job=True),
    *_rows(
        Kind.OWN,
        "key",
        ("GET", "/v1/execute/{id:path}"),
        ("GET", "/v1/jobs/{id}"),
        ("GET", "/v1/jobs/{id}/events"),
        ("POST", "/v1/jobs/{id}/cancel"),
        ("POST", "/v1/jobs/{id}/retry"),
        ("DELETE", "/v1/jobs/{id}", None, {"ends": True}),
        is_job=True,
    ),
    # execbox
    *_rows(
        Kind.MINE,
        "key",
        ("POST", "/v1/sessions", _NEW_SESSION),
        ("GET", "/v1/sessions"),
        ("GET", "/v1/account"),
        ("GET", "/v1/account/usage"),
        ("GET", "/v1/account/usage/enhanced"),
        ("GET", "/v1/account/usage/export"),
        ("GET", "/v1/account/limits"),
        ("PUT", "/v1/account/limits", {"alert_threshold": 70}),
        ("GET", "/v1/account/keys"),
        ("POST", "/v1/account/keys", {"name": "one more"}),
    ),
    *_rows(
        Kind.OPEN,
        "key",
        ("POST", "/v1/waitlist", {"email": "dev@example.org"}),
        ("POST", "/v1/quota-requests", {"email": "dev@example.org"}),
    ),
    *_rows(
        Kind.OWN,
        "key",
        ("GET", _SESSION),
        ("GET", f"{_SESSION}/url", None, {"query": {"port": "8080"}}),
        ("GET", f"{_SESSION}/stats"),
        ("GET", f"{_SESSION}/logs"),
        ("GET", f"{_SESSION}/files", None, {"query": _PATH}),
        ("POST", f"{_SESSION}/files", None, {"query": {"path": "/tmp/theirs"}, "content": b"theirs"}),
        ("DELETE", f"{_SESSION}/files", None, {"query": {"path": "/tmp/theirs"}}),
        ("POST", f"{_SESSION}/extend", {"timeoutMs": 60_000}),
        ("POST", f"{_SESSION}/stop", None, {"ends": True}),
        ("DELETE", _SESSION, None, {"ends": True}),
        ("WEBSOCKET", f"{_SESSION}/attach"),
        ("WEBSOCKET", f"{_SESSION}/exec", None, {"query": {"cmd": "true"}}),
        ("GET", _KEY),
        ("PUT", _KEY, {"description": "theirs now"}),
        ("POST", f"{_KEY}/rotate"),
        ("DELETE", _KEY, None, {"ends": True}),
    ),
    # Without an upgrade, both are refused, whoever's they are.
    *_rows(Kind.MINE, "key", ("GET", f"{_SESSION}/attach"), ("GET", f"{_SESSION}/exec")),
    # boxlite
    *_rows(Kind.OPEN, "open", ("GET", "/v1/config")),
    *_rows(
        Kind.SEALED,
        "key",
        ("POST", "/v1/oauth/tokens", None, {"content": b"grant_type=client_credentials&client_secret=guessed"}),
    ),
    *_rows(
        Kind.MINE,
        "key",
        ("GET", "/v1/me"),
        ("POST", "/v1/boxes", {"image": "host", "cpus": 1, "memory_mib": 128}),
        ("GET", "/v1/boxes"),
        ("POST", "/v1/boxes/import", None, {"content": b"no archive"}),
        ("GET", "/v1/metrics"),
        ("GET", "/v1/images/registries"),
        (
            "POST",
            "/v1/images/registries",
            {"registry_host": "other.example.org", "username": "u", "password": "p", "repository_prefix": "team"},
        ),
        ("POST", "/v1/volumes", {"name": "one-more"}),
        ("GET", "/v1/volumes"),
        ("GET", "/v1/images"),
        ("GET", "/v1/images/usage"),
        ("POST", "/v1/images/pull", {"reference": "host"}),
    ),
    *_rows(
        Kind.ADMIN,
        "key",
        ("POST", "/v1/images/prune", {"unused_s": 86400}),
        ("POST", "/v1/images/import", None, {"content": b"no archive", "query": {"reference": "app:1"}}),
    ),
    *_rows(
        Kind.OWN,
        "key",
        ("GET", _BOX),
        ("HEAD", _BOX),
        ("GET", f"{_BOX}/snapshots"),
        ("GET", f"{_BOX}/snapshots/{{name}}"),
        ("GET", f"{_BOX}/executions"),
        ("GET", _EXECUTION),
        ("GET", f"{_BOX}/files", None, {"query": {"path": "/tmp"}}),
        ("GET", f"{_BOX}/files/entry", None, {"query": {"path": "/tmp"}}),
        ("GET", f"{_BOX}/files/entries", None, {"query": {"path": "/tmp"}}),
        ("GET", f"{_BOX}/metrics"),
        ("WEBSOCKET", f"{_EXECUTION}/attach"),
        ("WEBSOCKET", f"{_BOX}/attach"),
        ("POST", f"{_BOX}/snapshots", {"name": "theirs"}),
        ("POST", f"{_BOX}/clone", {"name": "theirs"}),
        ("POST", f"{_BOX}/fork", {"count": 1, "start": False}),
        ("POST", f"{_BOX}/export"),
        ("POST", f"{_BOX}/start"),
        ("POST", f"{_BOX}/exec", {"command": "true"}),
        ("POST", f"{_EXECUTION}/input", None, {"content": b"theirs"}),
        ("POST", f"{_EXECUTION}/resize", {"cols": 80, "rows": 24}),
        ("POST", f"{_EXECUTION}/signal", {"signal": 18}),
        ("PUT", f"{_BOX}/files", None, {"query": {"path": "/tmp"}, "content": b"\0" * 1024}),
        ("POST", f"{_BOX}/files/directories", None, {"query": {"path": "/tmp/theirs"}}),
        ("DELETE", f"{_BOX}/files", None, {"query": {"path": "/tmp/theirs"}}),
        ("POST", f"{_BOX}/network/tunnel", None, {"query": {"port": "8080"}}),
        ("DELETE", f"{_BOX}/network/tunnel", None, {"query": {"port": "8080"}}),
        ("PUT", f"{_BOX}/network/outbound", {"mode": "enabled"}),
        ("PUT", f"{_BOX}/network/inbound", {"mode": "enabled"}),
        ("POST", f"{_BOX}/pause"),
        ("POST", f"{_BOX}/resume"),
        # Goes on until the execution ends.
        ("GET", f"{_EXECUTION}/output", None, {"names": {"execution_id": "ended_execution"}}),
        ("DELETE", _EXECUTION, None, {"ends": True}),
        ("POST", f"{_BOX}/stop", {}, {"ends": True}),
        ("POST", f"{_BOX}/snapshots/{{name}}/restore", None, {"ends": True}),
        ("DELETE", f"{_BOX}/snapshots/{{name}}", None, {"ends": True}),
        ("DELETE", _BOX, None, {"ends": True, "query": {"force": "true"}}),
        ("GET", "/v1/volumes/{volume_id}"),
        ("DELETE", "/v1/volumes/{volume_id}", None, {"ends": True}),
        ("DELETE", "/v1/images/registries/{registry}", None, {"ends": True}),
    ),
    *_rows(
        Kind.OWN,
        "key",
        ("GET", "/v1/images/{name}"),
        ("POST", "/v1/images/{name}/aliases", {"alias": "theirs"}),
        ("DELETE", "/v1/images/{name}/aliases/{alias}", None, {"ends": True}),
        ("DELETE", "/v1/images/{name}", None, {"ends": True}),
        names={"name": "image"},
    ),
    *_rows(Kind.MINE, "key", ("GET", f"{_EXECUTION}/attach"), ("GET", f"{_BOX}/attach")),
    # executor: the secret says which sandbox
    *_rows(Kind.OPEN, "open", ("GET", "/koyeb-sandbox/health"), ("HEAD", "/koyeb-sandbox/health")),
    *(
        row
        for prefix in ("/koyeb-sandbox", "")
        for row in _rows(
            Kind.MINE,
            "secret",
            ("POST", f"{prefix}/run", {"cmd": "true"}),
            ("POST", f"{prefix}/run_streaming", {"cmd": "true"}),
            ("POST", f"{prefix}/write_file", {"path": "/tmp/theirs", "content": "theirs"}),
            ("POST", f"{prefix}/read_file", _PATH),
            ("POST", f"{prefix}/delete_file", {"path": "/tmp/theirs"}),
            ("POST", f"{prefix}/make_dir", {"path": "/tmp/their-directory"}),
            ("POST", f"{prefix}/delete_dir", {"path": "/tmp/their-directory"}),
            ("POST", f"{prefix}/list_dir", {"path": "/tmp"}),
            ("POST", f"{prefix}/stat_file", _PATH),
            ("POST", f"{prefix}/start_process", {"cmd": "true"}),
            ("GET", f"{prefix}/list_processes"),
            ("POST", f"{prefix}/kill_process", {"id": "theirs"}),
            ("GET", f"{prefix}/process_logs_streaming", None, {"query": {"id": "theirs"}}),
            ("POST", f"{prefix}/bind_port", {"port": "9000"}),
            ("GET", f"{prefix}/port_status"),
            ("POST", f"{prefix}/unbind_port", {"port": "9000"}),
        )
    ),
    # The portal
    *_rows(
        Kind.OPEN,
        "open",
        ("GET", "/api/meta"),
        *(
            (method, path)
            for path in (
                "/",
                "/register",
                "/login",
                "/forgot",
                "/reset",
                "/verify",
                "/app",
                "/app/{rest:path}",
                "/assets/{path:path}",
                "/favicon.ico",
                "/favicon.svg",
                "/manifest.webmanifest",
                "/robots.txt",
            )
            for method in ("GET", "HEAD")
        ),
        names={"rest": "page", "path": "page"},
    ),
    *_rows(
        Kind.SEALED,
        "open",
        ("POST", "/api/session", _ADA),
        ("POST", "/api/register", {"name": "", "email": "", "password": ""}),
        ("GET", "/api/oidc/start"),
        ("GET", "/api/oidc/callback"),
        ("POST", "/api/password/forgot", {"email": "nobody@example.org"}),
        ("POST", "/api/password/reset", {"token": "guessed", "password": "a password of mine"}),
        ("POST", "/api/email/verify", {"token": "guessed"}),
    ),
    *_rows(
        Kind.MINE,
        "session",
        ("GET", "/api/session"),
        ("PATCH", "/api/account", {"organization": "theirs"}),
        ("GET", "/api/account/export"),
        ("GET", "/api/sessions"),
        ("GET", "/api/keys"),
        ("POST", "/api/keys", {"name": "one more"}),
        ("GET", "/api/languages"),
        ("GET", "/api/usage"),
        ("GET", "/api/usage.csv"),
        ("POST", "/api/jobs", _PROGRAM),
        ("GET", "/api/sandboxes"),
        ("POST", "/api/sandboxes", {"command": ["true"], "timeout_s": 10}),
        ("POST", "/api/email/verification", None, {"ends": True}),
        ("POST", "/api/password", {"old": "not the password", "new": "a password of mine"}, {"ends": True}),
        ("DELETE", "/api/account", {"password": "not the password"}, {"ends": True}),
        ("DELETE", "/api/sessions", None, {"ends": True}),
        ("DELETE", "/api/session", None, {"ends": True}),
    ),
    *_rows(Kind.MINE, "session", ("GET", "/api/jobs"), is_job=True),
    *_rows(
        Kind.OWN,
        "session",
        ("GET", "/api/jobs/{job_id}"),
        ("GET", "/api/jobs/{job_id}/events"),
        ("POST", "/api/jobs/{job_id}/cancel"),
        ("POST", "/api/jobs/{job_id}/retry"),
        ("DELETE", "/api/jobs/{job_id}", None, {"ends": True}),
        is_job=True,
    ),
    *_rows(
        Kind.OWN,
        "session",
        ("GET", _SANDBOX),
        ("GET", f"{_SANDBOX}/logs"),
        ("GET", f"{_SANDBOX}/files", None, {"query": {"path": "/tmp"}}),
        ("GET", f"{_SANDBOX}/files/content", None, {"query": {"path": "/etc/passwd"}}),
        ("PUT", f"{_SANDBOX}/files/content", None, {"query": {"path": "/tmp/theirs"}, "content": b"theirs"}),
        ("POST", f"{_SANDBOX}/files/directory", {"path": "/tmp/their-directory"}),
        ("DELETE", f"{_SANDBOX}/files", None, {"query": {"path": "/tmp/theirs"}}),
        ("POST", f"{_SANDBOX}/extend", {"seconds": 60}),
        ("WEBSOCKET", f"{_SANDBOX}/terminal"),
        ("POST", f"{_SANDBOX}/stop", None, {"ends": True}),
        ("POST", f"{_SANDBOX}/kill", None, {"ends": True}),
    ),
    *_rows(
        Kind.OWN,
        "session",
        ("PATCH", "/api/keys/{key_id}", {"description": "theirs now"}),
        ("POST", "/api/keys/{key_id}/rotate"),
        ("DELETE", "/api/keys/{key_id}", None, {"ends": True}),
        names={"key_id": "key_id_2"},
    ),
    *_rows(
        Kind.OWN,
        "session",
        ("DELETE", "/api/sessions/{session_id}", None, {"ends": True}),
        names={"session_id": "log_in"},
    ),
    *_rows(
        Kind.ADMIN,
        "session",
        ("GET", "/api/admin/usage"),
        ("GET", "/api/admin/users"),
        ("GET", "/api/admin/health"),
        ("GET", "/api/admin/nodes"),
        ("GET", "/api/admin/queue"),
        ("PATCH", "/api/admin/users/{user_id}", {"role": "user"}, {"ends": True}),
        ("DELETE", "/api/admin/users/{user_id}", None, {"ends": True}),
    ),
)
