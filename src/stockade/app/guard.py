"""The outermost layer: what is refused before any dialect sees it, and headers that every answer carries.

Pure ASGI, so that a request costs a few comparisons and no further task.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stockade.app.hosts import is_answered
from stockade.wire.bodies import discard_body

__all__ = ["Guard", "Refusal"]

log = structlog.get_logger()

Headers = list[tuple[bytes, bytes]]

_SECURITY: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    # Pages of others may not load it as a picture or a script either, and find out by that what it is.
    (b"cross-origin-resource-policy", b"same-origin"),
]
_POLICY: Headers = [(b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")]
# Swagger UI starts itself by an inline script and sets styles inline; all else comes from this server.
_INLINE = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)
_DOCS_POLICY: Headers = [
    (b"content-security-policy", _INLINE + b"; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An answer that ends the request here."""

    status: int
    error: str
    message: str

    def body(self) -> bytes:
        return json.dumps({"error": self.error, "message": self.message}).encode()


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Checks `Host`, `Origin` and the size of the body, adds security headers, and logs a crash."""

    app: ASGIApp
    max_body_bytes: int
    open_access: bool
    """Whether requests are answered without a key. Then a web page in somebody's browser must not be able to send
    them: neither across origins nor by rebinding its own name to this address. With keys there is nothing to steal."""
    hosts: frozenset[str] | None
    """Names in `Host` that are answered, beside IP addresses (which cannot be rebound); `None` for any."""
    largest_body: Callable[[str], int | None] = lambda _: None
    """Of a path that has a limit of its own; `None` for any other."""
    origins: frozenset[str] = field(default=frozenset())
    """Origins that CORS allows; `*` allows any."""

    @staticmethod
    def names(host: str, trusted: Iterable[str], *, open_access: bool) -> frozenset[str] | None:
        """The names that a listener on *host* answers to; `None` for any."""
        trusted = frozenset(name.lower() for name in trusted)
        if "*" in trusted or not (trusted or open_access):
            return None
        return trusted | {"localhost", socket.gethostname().lower(), host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal = self._refuse(headers)
        if scope["type"] == "websocket":
            if refusal is not None:
                await send({"type": "websocket.close", "code": 1008, "reason": refusal.error})
                return
            await self.app(scope, receive, send)
            return
        await self._http(scope, receive, send, headers, refusal)

    async def _http(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes], refusal: Refusal | None
    ) -> None:
        policy = _DOCS_POLICY if scope["path"].startswith(("/docs", "/static-offline-docs")) else _POLICY
        started = False
        received = 0
        own = self.largest_body(scope["path"])
        most = self.max_body_bytes if own is None else own

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                given = message.get("headers", ())
                # Pages of ours say themselves what they may load, and to whom they say where they come from.
                named = {name for name, _ in given}
                message["headers"] = [*given, *(one for one in (*_SECURITY, *policy) if one[0] not in named)]
            await send(message)

        async def guarded_receive() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > most:
                    if message.get("more_body", False):
                        await discard_body(receive)
                    # Of the kind that FastAPI lets through its own body reading and answers by its handler.
                    raise HTTPException(413, _too_large(most))
            return message

        announced = headers.get(b"content-length", b"")
        counted = announced.isdigit()  # by the HTTP parser: no more than that comes
        if refusal is None and counted and int(announced[:19]) > most:
            refusal = Refusal(status=413, error="Request body too large", message=_too_large(most))
        if refusal is None:
            try:
                await self.app(scope, receive if counted else guarded_receive, guarded_send)
            except asyncio.CancelledError:
                # Only a server that ends cancels requests, and this is the outermost frame of the request's task:
                # the client is told, and nobody waits for the cancellation to go on.
                refusal = Refusal(status=503, error="Server stopping", message="the server is shutting down; retry")
            except Exception as error:
                # The application has answered 500 already; Starlette raises the error once more for the server's log.
                log.error("request.crashed", method=scope["method"], path=_route(scope), exc_info=error)
                refusal = Refusal(status=500, error="Internal error", message="the server's log has details")
        if refusal is not None and not started:
            if refusal.status == 413 and headers.get(b"expect", b"").lower() != b"100-continue":
                await discard_body(receive)  # who waits for our word sends none
            await _answer(refusal, guarded_send)

    def _refuse(self, headers: dict[bytes, bytes]) -> Refusal | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not is_answered(headers.get(b"host", b""), self.hosts):
            return Refusal(
                status=421,
                error="Unknown host",
                message="this server does not answer to the name in the Host header; server.trusted_hosts adds names",
            )
        if self.open_access and self._is_of_another_page(headers, host):
            return Refusal(
                status=403,
                error="Origin not allowed",
                message="web pages of other origins may not use this server; server.cors_allowed_origins adds origins",
            )
        return None

    def _is_of_another_page(self, headers: dict[bytes, bytes], host: str) -> bool:
        """Whether a browser sent it for a page that is none of ours and none that may.

        What is no browser says nothing of that.
        """
        origin = headers.get(b"origin")
        if origin is not None:
            return not self._same_origin(origin.decode("latin-1").lower(), host)
        # Pictures, scripts and the like are asked for without an origin; by a link one may come (W3C Fetch Metadata).
        site, mode = headers.get(b"sec-fetch-site", b"none"), headers.get(b"sec-fetch-mode", b"navigate")
        return site in (b"cross-site", b"same-site") and mode != b"navigate" and not self.origins

    def _same_origin(self, origin: str, host: str) -> bool:
        try:
            netloc = urlsplit(origin).netloc
        except ValueError:  # "http://[", which no browser sends
            return False
        return netloc == host or origin in self.origins or "*" in self.origins


def _route(scope: Scope) -> str:
    """The path of the route, not of the request: that one may hold anything."""
    return getattr(scope.get("route"), "path", "")


async def _answer(refusal: Refusal, send: Send) -> None:
    body = refusal.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # the rest of a body that nobody reads must not be taken for the next request
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _too_large(most: int) -> str:
    return f"the body may have at most {most} bytes"
