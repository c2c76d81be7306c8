"""Paths, queries, methods and headers that no client sends, on every route: nothing breaks, nothing forges the log."""

import json
import os
import re
from typing import Any

import httpx
import pytest

from tests.edge.conftest import KEY, Edge, Living
from tests.edge.raw import connected, exchanged, request
from tests.edge.test_pages import ROUTES

IS_LONG = bool(os.environ.get("STOCKADE_LONG_TESTS"))
SEGMENTS = [
    "%00", "%ff", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..;", "%252e%252e", "%5c..%5c..", "%c0%ae%c0%ae",
    "%ef%bc%8e%ef%bc%8e%ef%bc%8f", "a%2fb", "a;b=c", "%f0%9f%92%a9", "%ed%a0%80", "%0d%0aX-Forged:%20y", "%1b[31m",
    "9" * 400, "9223372036854775808", "%d9%a3", "a" * 3000, "%20", "*", "%25", "%u0000", "%7Bx%7D", "%0a", "~", "-",
]  # fmt: skip
VALUES = [
    "9" * 400, "9223372036854775808", "-9223372036854775809", "-1", "0", "1e400", "nan", "inf", "%00", "%ff",
    "%ed%a0%80", "%d9%a3", "", "%0d%0aX:y", "a" * 20000, "2024-13-45T99:99:99Z", "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999%2B14:00", "99999999999999999999h", "..%2f..%2fetc", "%2e%2e%2f", "true&a=b&a=c",
]  # fmt: skip
ENDLESS = {"follow"}
"""With it, an answer lasts as long as what it tells of."""
OPERATIONS = ("get", "put", "post", "delete", "patch", "head", "options", "trace")


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of everything in the OpenAPI document, and of the portal's API, which is not."""
    described = [
        (method.upper(), path, operation)
        for path, found in document["paths"].items()
        for method, operation in found.items()
        if method in OPERATIONS
    ]
    return described + [(method, path, {}) for path, methods in sorted(ROUTES.items()) for method in sorted(methods)]


def refused_well(answer: httpx.Response) -> bool:
    """Not a crash. 501 and 503 say that something is not there."""
    return answer.status_code < 500 or answer.status_code in (501, 503)


def asked(edge: Edge, living: Living, user: httpx.Client, method: str, target: str) -> httpx.Response:
    """As somebody who may ask there, so that what is asked is looked at."""
    body = b"{}" if method in ("POST", "PUT", "PATCH") else None
    headers = {"content-type": "application/json"}
    if target.startswith("/api/"):
        return user.request(method, target, content=body, headers=headers)
    if target.startswith("/koyeb-sandbox/"):
        headers["authorization"] = f"Bearer {living.secret}"
    return edge.ask(method, target, content=body, headers=headers)


def test_no_path_breaks_a_route(edge: Edge, living: Living, user: httpx.Client) -> None:
    """In the place of every parameter of every path."""
    count = 0
    for number, (method, path, _) in enumerate(operations(edge.document())):
        if "{" not in path or "{rest" in path:
            continue
        # Each route sees a part of them, and each of them some routes; all of them all in the long run.
        for segment in SEGMENTS if IS_LONG else SEGMENTS[number % 7 :: 7]:
            answer = asked(edge, living, user, method, re.sub(r"\{[^}]*\}", segment, path))
            assert refused_well(answer), (method, path, segment[:60], answer.status_code, answer.text[:300])
            assert "x-forged" not in answer.headers
            count += 1
    assert count > 200


def test_no_query_breaks_a_route(edge: Edge, living: Living, user: httpx.Client) -> None:
    count = 0
    for number, (method, path, operation) in enumerate(operations(edge.document())):
        names = [one["name"] for one in operation.get("parameters", []) if one.get("in") == "query"]
        for name in set(names) - ENDLESS:
            for value in VALUES if IS_LONG else VALUES[number % 5 :: 5]:
                answer = asked(edge, living, user, method, f"{re.sub(r'{[^}]*}', 'x1', path)}?{name}={value}")
                assert refused_well(answer), (method, path, name, value[:60], answer.status_code, answer.text[:300])
                count += 1
    assert count > 100


def test_every_method_of_every_path_is_answered(edge: Edge) -> None:
    """By what it is for, or by 405; never by an echo of what was sent."""
    for path in sorted({path for _, path, _ in operations(edge.document())}):
        target = re.sub(r"\{[^}]*\}", "x1", path)
        for method in ("HEAD", "OPTIONS", "TRACE", "PROPFIND", "PATCH") if IS_LONG else ("HEAD", "TRACE"):
            answer = edge.http.request(method, target, headers={"x-marked": "echo-me"})
            assert refused_well(answer), (method, path, answer.status_code)
            assert "echo-me" not in answer.text
            if method == "TRACE":
                assert answer.status_code in (401, 403, 404, 405, 429), (path, answer.status_code)
            if method == "HEAD":
                assert answer.content == b""


TRICKS = [
    "/assets/../index.html", "/assets/%2e%2e/index.html", "/assets/..%2f..%2f..%2fetc%2fpasswd", "/assets//etc/passwd",
    "/assets/..%5c..%5cpages.py", "/assets/%c0%ae%c0%ae/pages.py", "/assets/%ef%bc%8e%ef%bc%8e/pages.py",
    "/assets/%00", "/assets/.", "/assets/", "/static-offline-docs/../../app/http.py",
    "/static-offline-docs/%2e%2e/%2e%2e/__init__.py", "/static-offline-docs/..%2f..%2f__init__.py",
    "/static-offline-docs//etc/passwd", "/static-offline-docs/%00", "/static-offline-docs/%ff",
    "/static-offline-docs/" + "a" * 5000, "/favicon.ico/../../pages.py", "//evil.example/health", "/\\evil.example",
    "/sandboxes/x/ports/80/..%2f..%2fhealth", "/sandboxes/..%2f/ports/80/", "/sandboxes/x/ports/99999/",
    "/sandboxes/%78/ports/80/", "/sandboxes/x/ports/080/", "/.env", "/.git/config", "/%2e%2e/%2e%2e/etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("target", TRICKS)
def test_no_path_leads_out_of_what_is_served(edge: Edge, target: str) -> None:
    with connected(edge.url) as one:
        one.send(request(target.encode()))
        answer = one.read()
    assert answer is not None
    assert answer.status in (400, 404, 405), (target, answer.status)
    assert b"root:" not in answer.body
    assert b"import " not in answer.body
    assert b"location:" not in answer.head.lower()


@pytest.mark.parametrize(
    "ranges",
    [
        "bytes=" + ",".join(f"{n}-{n}" for n in range(5000)), "bytes=" + "0-," * 10000, "bytes=0-" + "9" * 400,
        "bytes=-0", "bytes=" + "9" * 4000 + "-", "bytes=5-1", "bytes=a-b", "lines=1-2", "bytes=\u0661-".encode(),
    ],
)  # fmt: skip
def test_ranges_cost_nothing(edge: Edge, ranges: str | bytes) -> None:
    """A list of a thousand ranges of one file would be a thousand copies of it."""
    document = edge.http.get("/docs").text
    found = re.search(r"/static-offline-docs/[^\"']*\.js", document)
    assert found
    whole = len(edge.http.get(found[0], headers={"accept-encoding": "identity"}).content)
    headers: dict[str, Any] = {"range": ranges, "accept-encoding": "identity"}
    answer = edge.http.get(found[0], headers=headers)
    assert answer.status_code in (200, 206, 400, 416)
    assert len(answer.content) <= 2 * whole


@pytest.mark.parametrize(
    "headers",
    [
        {"accept": "*/*," * 10000}, {"accept": "text/html;q=" + "9" * 10000}, {"accept-encoding": "gzip;q=," * 5000},
        {"accept-encoding": "br;q=0, gzip;q=0, identity;q=0"}, {"accept-language": "\u00e9".encode()},
        {"if-none-match": '"' * 10000}, {"if-modified-since": "Sat, 99 Foo 99999 99:99:99 GMT"},
        {"cookie": "a=b;" * 10000}, {"cookie": "stockade_session=" + "a" * 60000}, {"cookie": b"stockade_session=\xff"},
        {"authorization": "Bearer " + "a" * 60000}, {"authorization": b"Bearer \xff\xfe"}, {"authorization": "Basic ="},
        {"x-api-key": b"\xf0\x9f\x92\xa9"}, {"content-type": "application/json; charset=utf-7"},
        {"content-type": "multipart/form-data; boundary=" + "a" * 30000}, {"x-request-id": "a" * 10000},
        {"traceparent": "00-" + "z" * 32 + "-0-0"}, {"traceparent": "a" * 10000},
        {"x-forwarded-for": "1.2.3.4," * 5000},
        {"forwarded": 'for="[::1' * 3000}, {"origin": "http://["}, {"referer": "http://[::"},
        {"user-agent": "a" * 60000}, {"last-event-id": "9" * 5000}, {"upgrade": "websocket"},
    ],
)  # fmt: skip
def test_no_header_breaks_a_route(edge: Edge, headers: dict[str, Any]) -> None:
    for method, target in (
        ("GET", "/health"), ("GET", "/"), ("GET", "/api/session"), ("GET", "/v1/sessions"), ("GET", "/v1/boxes"),
        ("GET", "/v1/jobs"), ("GET", "/metrics"), ("POST", "/execute"), ("POST", "/koyeb-sandbox/run"),
    ):  # fmt: skip
        answer = edge.http.request(method, target, headers=headers)
        assert refused_well(answer), (method, target, answer.status_code, answer.text[:300])


def test_multipart_is_read_nowhere(edge: Edge) -> None:
    """Neither a body without an end, nor one of a hundred thousand parts, nor parts within parts."""
    bodies = [
        b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n" + b"x" * 100_000,
        b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n" * 20_000 + b"--b--\r\n",
        b"--b\r\n" + b"X: y\r\n" * 50_000 + b"\r\n\r\n--b--\r\n",
        b"--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" * 1000,
    ]
    targets = {path for method, path, operation in operations(edge.document()) if method == "POST" and "{" not in path}
    for target in sorted(targets):
        for body in bodies if IS_LONG else bodies[:1]:
            answer = edge.ask("POST", target, content=body, headers={"content-type": "multipart/form-data; boundary=b"})
            assert answer.status_code in (400, 401, 403, 404, 405, 413, 415, 422, 429, 501), (
                target,
                answer.status_code,
            )


def test_nothing_that_a_client_sends_forges_the_log(edge: Edge) -> None:
    marks = (b"forged-by-path", b"forged-by-agent", b"forged-by-id", b"forged-by-name")
    escape = b'%0d%0a%1b[2J{"event":"'
    fields = (
        b'User-Agent: {"event":"forged-by-agent"}\xc2\x85\xe2\x80\xa8',
        b'X-Request-ID: {"event":"forged-by-id"}',
        b"Authorization: Bearer " + KEY.encode(),
    )
    assert exchanged(edge.url, request(b"/v1/sessions/" + escape + marks[0], *fields))
    exchanged(edge.url, request(b"/\x1b[2J", *fields))
    edge.ask("POST", "/v1/account/keys", json={"name": '\r\n\x1b[2J{"event":"forged-by-name"}'})
    edge.ask("POST", "/v1/sessions", json={"image": '\r\n\x1b[2J{"event":"forged-by-name"}'})
    for line in list(edge.server.log):
        entry = json.loads(line)
        assert not str(entry["event"]).startswith("forged")
        assert "\x1b" not in line
        assert line.isascii() or "\u2028" not in line
    assert KEY not in "".join(edge.server.log)


def test_nothing_of_all_this_is_a_crash(edge: Edge) -> None:
    """Whatever the tests before have sent."""
    crashed = [
        one for one in edge.log_entries() if one.get("level") in ("error", "critical") or "crashed" in one["event"]
    ]
    assert crashed == []
