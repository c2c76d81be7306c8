"""What web pages of others can do by the browser of somebody who uses this server: nothing."""

import ast
import itertools
import re
from pathlib import Path

import httpx
import pytest

from stockade import web
from tests.edge.conftest import FRIEND, PASSWORD, Edge
from tests.edge.raw import connected, exchanged, request

EVIL = "http://evil.example"
NOT_CHANGING = {"GET", "HEAD", "OPTIONS"}
_names = itertools.count()


def portal_routes() -> dict[str, set[str]]:
    """The methods of each path of the portal's API, as the code that adds them says."""
    found: dict[str, set[str]] = {}
    for file in Path(web.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in ("add_route", "add_api_route", "route", "api_route"):
                continue
            path = node.args[0]
            if file.name in ("pages.py", "unavailable.py"):
                continue
            assert isinstance(path, ast.Constant), f"{file.name}:{node.lineno}: a path that only the program knows"
            methods = next(keyword.value for keyword in node.keywords if keyword.arg == "methods")
            found.setdefault(str(path.value), set()).update(ast.literal_eval(methods))
    return found


ROUTES = portal_routes()
CHANGING = sorted((method, path) for path, methods in ROUTES.items() for method in methods - NOT_CHANGING)
READING = sorted(path for path, methods in ROUTES.items() if "GET" in methods)


def filled(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "x1", path)


def test_the_portal_has_the_routes_that_are_tested_here(user: httpx.Client) -> None:
    assert len(CHANGING) >= 25
    assert len(READING) >= 20
    for path in READING:
        if "{" not in path and "admin" not in path and "oidc" not in path:
            assert user.get(path).status_code == 200, path


@pytest.mark.parametrize(
    "origin", [EVIL, FRIEND, "null", "http://[", "http://127.0.0.1", "https://localhost.evil.example"]
)
def test_no_page_of_another_origin_changes_anything_by_the_portal(user: httpx.Client, origin: str) -> None:
    """With the cookie and even with the token; also where the other APIs are open to that origin."""
    for method, path in CHANGING:
        answer = user.request(method, filled(path), json={}, headers={"origin": origin})
        assert answer.status_code == 403, (method, path, answer.text)
    assert user.get("/api/session").status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_no_page_of_another_site_changes_or_reads_anything_by_the_portal(user: httpx.Client, site: str) -> None:
    for method, path in CHANGING:
        answer = user.request(method, filled(path), json={}, headers={"sec-fetch-site": site})
        assert answer.status_code == 403, (method, path, answer.text)
    for path in READING:
        if "oidc/callback" not in path:  # another site leads there
            assert user.get(filled(path), headers={"sec-fetch-site": site}).status_code == 403, path


@pytest.mark.parametrize("token", ["", "0" * 64, "\u00e9"])
def test_nothing_changes_without_the_page_s_token(user: httpx.Client, token: str) -> None:
    """What a form of another site could send is the cookie alone."""
    for method, path in CHANGING:
        for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = {"x-csrf-token": token.encode(), "content-type": kind}
            answer = user.request(method, filled(path), content=b"{}", headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 403, (method, path, kind, answer.text)
    assert user.get("/api/session").status_code == 200


def test_a_token_of_somebody_else_does_not_serve(edge: Edge, user: httpx.Client) -> None:
    with httpx.Client(base_url=edge.url, trust_env=False, timeout=60) as other:
        token = other.get("/api/meta").json()["csrf"]
    for method, path in CHANGING:
        if path not in ("/api/session", "/api/register"):
            answer = user.request(method, filled(path), json={}, headers={"x-csrf-token": token})
            assert answer.status_code == 403, (method, path)


def test_a_method_is_what_the_request_line_says(edge: Edge, user: httpx.Client) -> None:
    for name in ("x-http-method-override", "x-http-method", "x-method-override"):
        assert user.get("/api/session", headers={name: "DELETE"}).status_code == 200
    assert user.get("/api/session?_method=DELETE").status_code == 200
    assert edge.ask("GET", "/v1/jobs?_method=DELETE", headers={"x-http-method-override": "DELETE"}).status_code == 200


def test_a_key_opens_nothing_of_the_portal_and_a_cookie_nothing_else(edge: Edge, user: httpx.Client) -> None:
    assert edge.ask("GET", "/api/session").status_code == 401
    assert edge.ask("GET", "/api/jobs").status_code == 401
    assert user.get("/v1/sessions").status_code == 401
    assert user.get("/v1/account/keys").status_code == 401


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "0x7f.1",
        "[::1].evil.example",
    ],
)
@pytest.mark.parametrize("target", ["/health", "/", "/api/meta", "/docs", "/openapi.json", "/metrics", "/v1/sessions"])
def test_a_name_that_is_rebound_to_this_address_is_not_answered(edge: Edge, host: str, target: str) -> None:
    """DNS rebinding: a page on a name whose address changes to a loopback one would be of this server's own origin."""
    assert exchanged(edge.url, request(target.encode(), host=host.encode()))[:1] in ([421], [400])


def test_a_rebound_name_cannot_run_anything(edge: Edge) -> None:
    for path, body in (("/execute", {"language": "python", "code": "1"}), ("/v1/execute", {"language": "python"})):
        headers = {"host": "evil.example", "origin": "http://evil.example"}
        assert edge.http.post(path, json=body, headers=headers).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "[::1]", "192.0.2.1"])
def test_the_names_of_this_machine_are_answered(edge: Edge, host: str) -> None:
    port = httpx.URL(edge.url).port
    assert edge.http.get("/health", headers={"host": f"{host}:{port}"}).status_code == 200


def test_pages_of_other_origins_run_nothing_without_a_key(edge: Edge) -> None:
    body = {"language": "python", "code": "print(1)"}
    for origin in (EVIL, "null", "http://localhost:1"):
        answer = edge.http.post("/execute", json=body, headers={"origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    assert edge.http.post("/execute", json=body, headers={"origin": edge.url}).status_code == 200
    allowed = edge.http.post("/execute", json=body, headers={"origin": FRIEND})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == FRIEND
    assert "access-control-allow-credentials" not in allowed.headers


def test_a_preflight_answers_allowed_origins_alone(edge: Edge) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    assert edge.http.options("/execute", headers={"origin": FRIEND, **asked}).status_code == 200
    refused = edge.http.options("/execute", headers={"origin": EVIL, **asked})
    assert refused.status_code in (400, 403)
    assert refused.headers.get("access-control-allow-origin", "") in ("", FRIEND)


WEBSOCKETS = ("/api/sandboxes/x1/terminal", "/v1/sessions/x1/attach", "/v1/sessions/x1/exec?cmd=sh")


@pytest.mark.parametrize("target", WEBSOCKETS)
@pytest.mark.parametrize("origin", [EVIL, "null"])
def test_a_page_of_another_origin_opens_no_websocket(edge: Edge, user: httpx.Client, target: str, origin: str) -> None:
    """They know no CORS, and browsers send cookies along."""
    cookies = "; ".join(f"{one.name}={one.value}" for one in user.cookies.jar)
    fields = (
        b"Origin: " + origin.encode(),
        b"Cookie: " + cookies.encode(),
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )
    with connected(edge.url) as one:
        one.send(request(target.encode(), *fields))
        answer = one.read()
        assert answer is not None
        assert answer.status in (403, 401, 404)


@pytest.mark.parametrize(
    "path",
    ["/", "/login", "/app/jobs", "/docs", "/openapi.json", "/health", "/nowhere", "/v1/jobs", "/api/meta", "/metrics"],
)
def test_every_answer_says_how_it_may_be_used(edge: Edge, path: str) -> None:
    headers = edge.http.get(path).headers
    for name in (
        "content-security-policy",
        "x-content-type-options",
        "referrer-policy",
        "x-frame-options",
        "cross-origin-resource-policy",
    ):
        assert len(headers.get_list(name)) == 1, (path, name)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    policy = headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert policy.startswith("default-src ")
    assert "*" not in policy
    assert "server" not in headers
    if headers["content-type"].startswith("text/html"):
        assert "camera=()" in headers["permissions-policy"]
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "base-uri 'none'" in policy


def test_cookies_are_out_of_reach_of_scripts_and_of_other_sites(edge: Edge) -> None:
    with httpx.Client(base_url=edge.url, trust_env=False, timeout=60) as http:
        answers = [http.get("/api/meta")]
        token = answers[0].json()["csrf"]
        body = {"name": "Ada", "email": f"edge{next(_names)}@example.org", "password": PASSWORD}
        answers.append(http.post("/api/register", json=body, headers={"x-csrf-token": token}))
        cookies = [cookie for answer in answers for cookie in answer.headers.get_list("set-cookie")]
    assert len(cookies) >= 2
    for cookie in cookies:
        flags = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=lax", "path=/"} <= flags, cookie
        assert not [flag for flag in flags if flag.startswith("domain")]
