"""Which headers pass the proxy to a sandbox, and which of its own come back.

What is served by path shares its origin with the server's own API and documentation, and what one sandbox serves with
what all others do. So there:

| threat | mechanism |
|---|---|
| a page of a tenant's acts as the API's own origin, or as another tenant's | `Content-Security-Policy: sandbox` without `allow-same-origin` |
| a key for the API, or a cookie, ends up with a tenant | `Authorization`, `X-API-Key` and `Cookie` do not pass |
| a tenant changes how browsers treat the whole origin | `Set-Cookie`, HSTS, `Alt-Svc`, `Clear-Site-Data` and the like do not pass |

What is served by host has an origin of its own: there headers pass as they are, only that a cookie cannot be set for
the hosts beside it.
"""  # noqa: E501

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Headers", "Target", "first", "request_headers", "response_headers"]

Headers = list[tuple[bytes, bytes]]

# RFC 9110, section 7.6.1, and what is obsolete or our own business with the one side: Expect is answered by the server.
_HOP_BY_HOP = frozenset(
    {
        b"connection", b"expect", b"http2-settings", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
        b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
    }
)  # fmt: skip
_FORWARDED = frozenset(
    {
        b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix",
        b"x-forwarded-proto", b"x-forwarded-server", b"x-real-ip",
    }
)  # fmt: skip
_OURS = frozenset({b"authorization", b"cookie", b"x-api-key"})
"""What a request by path may carry for the API, or for the whole origin."""
_FOR_THE_ORIGIN = frozenset(
    {
        b"alt-svc", b"clear-site-data", b"nel", b"public-key-pins", b"report-to", b"reporting-endpoints",
        b"service-worker-allowed", b"set-cookie", b"strict-transport-security",
    }
)  # fmt: skip
_SANDBOX = (
    b"content-security-policy",
    b"sandbox allow-downloads allow-forms allow-modals allow-pointer-lock allow-popups allow-scripts",
)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_COOKIE_DOMAIN = re.compile(rb";\s*domain\s*=[^;]*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What of which sandbox a request is for."""

    sandbox_id: str
    port: int
    path: bytes
    """To ask for inside: as it was sent, with the query, without the prefix."""
    prefix: bytes = b""
    """What precedes the path outside; empty for a request by host."""


def first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of the first header of that name (lower case)."""
    return next((value for one, value in headers if one == name), None)


def request_headers(headers: Headers, target: Target, *, client: str, scheme: str) -> Headers:
    """What the service inside gets of a request's *headers* (names in lower case).

    Args:
        client: address of the peer. One on this host may be a reverse proxy: what it says of its own client is kept.
        scheme: `http` or `https`, as the peer came.
    """
    dropped = _dropped(headers, _HOP_BY_HOP | _FORWARDED) | (_OURS if target.prefix else frozenset())
    passed = [(name, value) for name, value in headers if name not in dropped]
    host = first(headers, b"host")
    if host is None:  # HTTP/1.0
        host = b"localhost:%d" % target.port
        passed.insert(0, (b"host", host))
    before = dict(headers) if _is_loopback(client) else {}
    chain = [before[b"x-forwarded-for"]] if b"x-forwarded-for" in before else []
    passed += [
        (b"x-forwarded-for", b", ".join([*chain, client.encode()])),
        (b"x-forwarded-host", before.get(b"x-forwarded-host", host)),
        (b"x-forwarded-proto", before.get(b"x-forwarded-proto", scheme.encode())),
    ]
    if target.prefix:
        passed.append((b"x-forwarded-prefix", before.get(b"x-forwarded-prefix", b"") + target.prefix))
    return passed


def response_headers(headers: Headers, target: Target, *, status: int, host: bytes | None) -> Headers:
    """What the client gets of an answer's *headers* (names in lower case).

    Args:
        host: the request's `Host`, to tell a redirect to the service itself from one elsewhere.
    """
    # Our server says itself when it answered.
    dropped = _dropped(headers, _HOP_BY_HOP) | {b"date"}
    if target.prefix:
        dropped |= _FOR_THE_ORIGIN
    if status in (204, 304):
        dropped |= {b"content-length"}  # of a body that does not come
    passed: Headers = []
    for name, value in headers:
        if name in dropped or _CONTROL.search(value):
            continue
        if name == b"set-cookie":
            value = _COOKIE_DOMAIN.sub(b"", value)
        elif name == b"location" and target.prefix:
            value = _located(value, target.prefix, host)
        passed.append((name, value))
    if target.prefix:
        passed.append(_SANDBOX)
    return passed


def _dropped(headers: Headers, always: frozenset[bytes]) -> frozenset[bytes]:
    """*always*, and what the sender names as meant for the next hop only."""
    named = (value for name, value in headers if name == b"connection")
    return always | {token.strip().lower() for value in named for token in value.split(b",")} - {b"host"}


def _located(value: bytes, prefix: bytes, host: bytes | None) -> bytes:
    """Where a redirect leads, seen from outside: the service does not know what its paths are preceded by."""
    if value.startswith(b"/") and not value.startswith(b"//"):
        return prefix + value
    for scheme in (b"http://", b"https://"):
        start = scheme + host if host else None
        if start and value.startswith(start) and value[len(start) : len(start) + 1] in (b"", b"/", b"?"):
            return prefix + (value[len(start) :] or b"/")
    return value


def _is_loopback(client: str) -> bool:
    try:
        return ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False
