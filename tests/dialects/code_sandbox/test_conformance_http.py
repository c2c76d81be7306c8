"""The contract's cases about requests: what is accepted, what is refused, and in which words."""

import uuid

import httpx
import pytest

from tests.dialects.code_sandbox.serving import MOMENT, CodeSandbox

CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, POST, PUT, DELETE, OPTIONS",
    "access-control-allow-headers": "Content-Type, Authorization",
    "access-control-max-age": "86400",
}


def has_cors(response: httpx.Response) -> bool:
    return {name: response.headers.get(name) for name in CORS} == CORS


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_health_is_ok_whatever_the_method(sandbox: CodeSandbox, method: str) -> None:
    """Case 1."""
    response = sandbox.ask(method, "/health")
    assert (response.status_code, response.content) == (200, b'{"status":"ok"}')
    assert response.headers["content-type"] == "application/json"


def test_the_merged_server_s_health_says_more(sandbox: CodeSandbox) -> None:
    """Case 1, beside other dialects."""
    health = sandbox.merged().ask("GET", "/health").json()
    assert health["status"] == "healthy"
    assert "code-sandbox" in health["dialects"]


def test_a_program_is_queued(either: CodeSandbox) -> None:
    """Case 2."""
    response = either.execute("javascript", 'console.log("hi")')
    assert response.status_code == 202
    assert response.headers["content-type"] == "application/json"
    assert response.content.endswith(b"\n")
    body = response.json()
    assert body.keys() == {"id", "status", "createdAt"}
    assert body["status"] == "queued"
    assert MOMENT.match(body["createdAt"])
    assert uuid.UUID(body["id"]).version == 4
    assert str(uuid.UUID(body["id"])) == body["id"]


@pytest.mark.parametrize(
    "spelling",
    ["go", "golang", "GO", "python", "py", "PY", "javascript", "js", "node", "nodejs", "NodeJS"],
)
def test_the_record_keeps_the_spelling_of_the_language(sandbox: CodeSandbox, spelling: str) -> None:
    """Case 5."""
    assert sandbox.read(sandbox.queued(spelling, "x"))["request"]["language"] == spelling


@pytest.mark.parametrize("language", [" python", "python ", "rust", "python3", "c"])
def test_other_languages_are_not_supported(either: CodeSandbox, language: str) -> None:
    """Case 6."""
    assert either.is_error(either.execute(language, "x"), 501, "unsupported language")


def test_the_order_of_the_checks_is_the_reference_s(either: CodeSandbox) -> None:
    """Case 7."""
    assert either.is_error(either.execute("rust", ""), 400, "code is required")
    assert either.is_error(either.execute("rust", "x", timeout="bad"), 501, "unsupported language")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{}", "language is required"),
        (b"null", "language is required"),
        (b'{"language":" ","code":"x"}', "language is required"),
        (b'{"language":"python","code":" \\n"}', "code is required"),
        (b'{"language":"python"}', "code is required"),
    ],
)
def test_what_is_missing_is_named(either: CodeSandbox, body: bytes, error: str) -> None:
    """Case 8."""
    assert either.is_error(either.raw(body), 400, error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b'{"language":1,"code":"x"}',
        b'{"language":"go","code":"x","timeout":5}',
        b'{"language":"go","code":"x","stdin":[]}',
        b"{" * 100_000,
    ],
    ids=lambda body: body[:20].decode(),
)
def test_other_bodies_are_no_payload(either: CodeSandbox, body: bytes) -> None:
    """Case 9."""
    assert either.is_error(either.raw(body), 400, "invalid JSON payload")


@pytest.mark.parametrize(
    "body",
    [
        b'{"LANGUAGE":"py","Code":"print(1)","extra":1} trailing',
        b'{"language":"go","language":"py","code":"print(1)"}',
        b'\n {"language":"py","code":"print(1)","stdin":null,"timeout":null}',
    ],
)
def test_the_body_is_read_as_go_reads_it(either: CodeSandbox, body: bytes) -> None:
    """Case 10."""
    assert either.raw(body).status_code == 202


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {"content-type": "x/y; a"}])
def test_the_content_type_does_not_matter(either: CodeSandbox, headers: dict[str, str]) -> None:
    """Case 11."""
    assert either.raw(b'{"language":"py","code":"print(1)"}', headers=headers).status_code == 202


@pytest.mark.parametrize("timeout", ["5", "-1", "1d", "2S", "1 s", "1e3s", "\uff11s", "9223372036854775808ns"])
def test_what_is_no_duration_is_refused(sandbox: CodeSandbox, timeout: str) -> None:
    """Case 12."""
    assert sandbox.is_error(sandbox.execute(timeout=timeout), 400, "invalid timeout value")


@pytest.mark.parametrize("timeout", ["0", "0s", "-5s", "0.3ns"])
def test_a_time_must_be_above_zero(sandbox: CodeSandbox, timeout: str) -> None:
    """Case 13."""
    assert sandbox.is_error(sandbox.execute(timeout=timeout), 400, "timeout must be greater than zero")


@pytest.mark.parametrize(
    ("timeout", "wall_ns"),
    [
        ("1.5s", 1_500_000_000),
        (".5s", 500_000_000),
        ("500µs", 500_000),
        ("+2s", 2_000_000_000),
        (" 2s ", 2_000_000_000),
        ("1m", 60_000_000_000),
        ("", 3_000_000_000),
        ("  ", 3_000_000_000),
    ],
)
def test_the_record_has_the_time_in_nanoseconds(sandbox: CodeSandbox, timeout: str, wall_ns: int) -> None:
    """Case 14."""
    assert sandbox.read(sandbox.queued(timeout=timeout))["request"]["timeout"] == wall_ns


def test_a_time_above_the_server_s_maximum_is_refused(sandbox: CodeSandbox) -> None:
    """Case 14, where an hour and a half is too much; and the first of the settled questions."""
    assert sandbox.is_error(sandbox.execute(timeout="1h30m"), 400, "timeout must not exceed 1m0s")


@pytest.mark.parametrize(
    "path", ["00000000-0000-4000-8000-000000000000", "abc", "", "a/b", "%20", "/a", "a%2Fb", "%00", "a" * 5000]
)
def test_a_job_that_there_is_not_is_not_found(either: CodeSandbox, path: str) -> None:
    """Case 21."""
    assert either.is_error(either.ask("GET", f"/v1/execute/{path}"), 404, "job not found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/execute"),
        ("DELETE", "/v1/execute"),
        ("PUT", "/v1/execute"),
        ("PATCH", "/v1/execute"),
        ("POST", "/v1/execute/abc"),
        ("DELETE", "/v1/execute/abc"),
        ("POST", "/v1/execute/"),
    ],
)
def test_other_methods_are_not_allowed(either: CodeSandbox, method: str, path: str) -> None:
    """Case 22."""
    response = either.ask(method, path)
    assert either.is_error(response, 405, "method not allowed")
    assert "allow" not in response.headers


@pytest.mark.parametrize("path", ["/v1/execute", "/v1/execute/abc"])
def test_head_is_another_method(either: CodeSandbox, path: str) -> None:
    """Case 22."""
    response = either.ask("HEAD", path)
    assert response.status_code == 405
    assert "allow" not in response.headers


@pytest.mark.parametrize("path", ["/v1/execute", "/v1/execute/a", "/v1/jobs"])
def test_options_are_answered_with_what_pages_may_do(either: CodeSandbox, path: str) -> None:
    """Case 36."""
    response = either.ask("OPTIONS", path)
    assert (response.status_code, response.content) == (200, b"")
    assert has_cors(response)


@pytest.mark.parametrize("path", ["/", "/nowhere", "/health", "/metrics"])
def test_options_are_answered_anywhere_where_the_dialect_is_alone(sandbox: CodeSandbox, path: str) -> None:
    """Case 36."""
    response = sandbox.ask("OPTIONS", path)
    assert (response.status_code, response.content) == (200, b"")
    assert has_cors(response)


def test_every_answer_says_what_pages_may_do(either: CodeSandbox) -> None:
    assert has_cors(either.execute())
    assert has_cors(either.raw(b"x"))
    assert has_cors(either.ask("GET", "/v1/execute/abc"))
    assert has_cors(either.ask("DELETE", "/v1/execute"))


def test_a_page_of_another_origin_is_refused_while_nobody_needs_a_key(sandbox: CodeSandbox) -> None:
    response = sandbox.raw(b'{"language":"py","code":"1"}', headers={"origin": "https://example.org"})
    assert response.status_code == 403


def test_a_body_beyond_the_limit_is_refused(either: CodeSandbox) -> None:
    """§2, ours."""
    body = b'{"language":"py","code":"%s"}' % (b"#" * (1 << 20))
    assert either.is_error(either.raw(body), 413, "payload too large")
    pieces = either.ask("POST", "/v1/execute", content=iter([body[:100], body[100:], b"#" * 65536]))
    assert either.is_error(pieces, 413, "payload too large")


def test_any_other_path_is_not_found(sandbox: CodeSandbox) -> None:
    for method in ("GET", "POST", "DELETE"):
        response = sandbox.ask(method, "/nowhere")
        assert (response.status_code, response.json()) == (404, {"error": "not found"})
