"""What keeps other sites' pages, and tenants' programs, from acting as somebody who is logged in.

| threat | mechanism |
|---|---|
| another site's page sends a request along with our cookie (CSRF) | `SameSite=Lax`; a token in a header that only our pages can read; `Origin` and `Sec-Fetch-Site` are ours |
| a page that a sandbox serves on a host beside ours does | the same: `Origin` is compared as a whole, and "same-site" is not enough |
| it reads an answer (CORS that the operator opened for the other APIs) | a request with another `Origin` is refused, reading ones too |
| it opens a terminal (WebSockets know no CORS) | `Origin` must be there, and ours |
| somebody plants a cookie of theirs (session fixation, a neighbouring host) | each log-in makes a new secret; with HTTPS the names have the prefix `__Host-`, which only this host can set |
| script in our page reads the cookie | `HttpOnly`; a Content-Security-Policy without inline scripts |
| our pages inside a frame of another site | `frame-ancestors 'none'` |
"""  # noqa: E501

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import Response

__all__ = [
    "CSRF_HEADER",
    "Cookies",
    "is_own_origin",
    "new_secret",
    "page_headers",
    "path_of_ours",
    "pre_session_token",
]

CSRF_HEADER = "x-csrf-token"
_SECRET_BYTES = 32
_LONGEST_COOKIE = 4096
_PURPOSE = b"stockade portal: before the log-in"


@dataclass(frozen=True, kw_only=True)
class Cookies:
    """Our cookies: the log-in, the token before it, and a log-in by a provider that is under way."""

    is_secure: bool
    """Browsers reach us by HTTPS."""
    session_s: float
    """Life of a log-in."""

    @property
    def session(self) -> str:
        return self._name("stockade_session")

    @property
    def csrf(self) -> str:
        return self._name("stockade_csrf")

    @property
    def oidc(self) -> str:
        return self._name("stockade_oidc")

    def read(self, request: HTTPConnection, name: str) -> str:
        """The value of a cookie; empty where there is none that can be ours."""
        value = request.cookies.get(name, "")
        return value if value.isascii() and len(value) <= _LONGEST_COOKIE else ""

    def write(self, response: Response, name: str, value: str, *, life_s: float | None = None) -> None:
        """Have the browser keep it: for a log-in's life, or *life_s*."""
        response.set_cookie(
            name,
            value,
            max_age=int(self.session_s if life_s is None else life_s),
            path="/",
            secure=self.is_secure,
            httponly=True,
            samesite="lax",
        )

    def clear(self, response: Response, name: str) -> None:
        """Have the browser forget it."""
        response.delete_cookie(name, path="/", secure=self.is_secure, httponly=True, samesite="lax")

    def _name(self, name: str) -> str:
        return f"__Host-{name}" if self.is_secure else name


def new_secret() -> str:
    """A random value for a cookie."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def pre_session_token(secret: str) -> str:
    """The CSRF token that belongs to the cookie from before the log-in."""
    return hmac.new(secret.encode(), _PURPOSE, hashlib.sha256).hexdigest()


def is_own_origin(headers: Mapping[str, str], public_url: str, *, is_required: bool = False) -> bool:
    """Whether a request comes from a page of ours, as far as the browser says; others than browsers say nothing.

    Args:
        public_url: where browsers reach us, if that is not what `Host` says.
        is_required: who says nothing is refused.
    """
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return not is_required
    origin = origin.lower()
    if public_url and origin == _origin_of(public_url):
        return True
    try:
        # The scheme is not compared: a reverse proxy that ends TLS speaks plain HTTP to us.
        parsed = urlsplit(origin)
    except ValueError:  # "http://[", which no browser sends
        return False
    return (
        parsed.scheme in ("http", "https") and bool(parsed.netloc) and parsed.netloc == headers.get("host", "").lower()
    )


def _origin_of(url: str) -> str:
    parsed = urlsplit(url.lower())
    return f"{parsed.scheme}://{parsed.netloc}"


def path_of_ours(path: str, *, default: str = "/app") -> str:
    """*path* where it is one of the portal's pages, to go on to after a log-in; else *default*.

    Browsers read `//host`, `/\\host` and tabs between slashes as another host's address: so only what cannot be one.
    """
    bare = path.partition("?")[0].partition("#")[0]
    is_page = bare == "/app" or bare.startswith("/app/")
    is_plain = path.isascii() and path.isprintable() and "\\" not in path and "//" not in bare and ".." not in bare
    return path if is_page and is_plain and len(path) <= 2000 else default


def page_headers(nonce: str) -> dict[str, str]:
    """Headers of a page. Only style elements that have the *nonce*, which differs each time, count."""
    policy = (
        "default-src 'none'; script-src 'self'; "
        f"style-src 'self' 'nonce-{nonce}'; "
        "img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    }
