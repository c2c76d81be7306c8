"""What sandboxes serve, through the server's own port: by host (`8080-<id>.<domain>`) and by path.

The outermost layer: a request for a sandbox is none for the server's own application, whose limits and headers are not
meant for it. Whoever can reach the server can reach an exposed port here, as through the port of the host that leads
there: what needs a login has to ask for one itself.
"""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from stockade.app.hosts import is_answered, name_of
from stockade.errors import LimitExceeded, NotFound, Unavailable
from stockade.wire.bodies import discard_body
from stockade.wire.clients import HANG_UP
from stockade.wire.proxy import AnswerBroken, BadAnswer, BadRequest, Exchange
from stockade.wire.proxy_headers import Headers, Target, first
from stockade.wire.proxy_websockets import Refused, WebSocketExchange

__all__ = ["Exposed", "Proxy"]

log = structlog.get_logger()

_BY_PATH = re.compile(rb"/sandboxes/([a-z0-9_-]{1,64})/ports/([0-9]{1,5})(/.*)?", re.DOTALL)
_BY_HOST = re.compile(r"([0-9]{1,5})-([a-z0-9_-]{1,64})")


class Exposed(Protocol):
    """The ports of sandboxes that can be reached from outside: `engine.ports.Ports`."""

    def exposes(self, sandbox_id: str, port: int) -> bool: ...

    def connected(self, sandbox_id: str, port: int) -> contextlib.AbstractAsyncContextManager[socket.socket]:
        """Raises NotFound, LimitExceeded, Unavailable, TimeoutError."""
        ...


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why there is no answer from inside."""

    status: int
    error: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """Answers what is for a sandbox's port; all else is *app*'s."""

    app: ASGIApp
    ports: Exposed
    domain: str = "localhost"
    """Names of the form `<port>-<sandbox id>.<domain>` are sandboxes'; empty for none."""
    by_path: bool = True
    """Whether `/sandboxes/<id>/ports/<port>/…` leads there, too."""
    hosts: Collection[str] | None = field(default=None)
    """Names that requests by path may come by, beside IP addresses: as `Guard.hosts`."""
    answer_s: float = 60.0
    """Time that a service has for the head of its answer."""
    idle_s: float = 3600.0
    """Time in which something must pass."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = self._target(scope) if scope["type"] in ("http", "websocket") else None
        if target is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._http(scope, receive, send, target)
            except asyncio.CancelledError:
                # Only a server that ends cancels requests, and this is the outermost frame of the request's task.
                await _hang_up(scope)
        else:
            await self._websocket(scope, receive, send, target)

    def _target(self, scope: Scope) -> Target | None:
        """What the request is for; `None` for the server itself."""
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        query: bytes = scope.get("query_string", b"")
        asked = path + b"?" + query if query else path
        if self.domain:
            name = name_of(first(scope["headers"], b"host") or b"")
            label, dot, domain = name.partition(".")
            if dot and domain == self.domain and (found := _BY_HOST.fullmatch(label)):
                port, sandbox_id = int(found[1]), self._spelt(found[2], int(found[1]))
                return Target(sandbox_id=sandbox_id, port=port, path=asked)
        if self.by_path and path.startswith(b"/sandboxes/") and (by_path := _BY_PATH.fullmatch(path)):
            rest = by_path[3] or b""
            return Target(
                sandbox_id=by_path[1].decode("ascii"),
                port=int(by_path[2]),
                path=rest + asked[len(path) :],
                prefix=path[: len(path) - len(rest)],
            )
        return None

    def _spelt(self, label: str, port: int) -> str:
        """The sandbox's id: host names with an underscore are not taken everywhere, so a hyphen may stand for it."""
        other = label.replace("-", "_")
        return other if not self.ports.exposes(label, port) and self.ports.exposes(other, port) else label

    async def _http(self, scope: Scope, receive: Receive, send: Send, target: Target) -> None:
        problem = self._refusal(scope, target)
        if problem is None and not target.path.startswith(b"/"):
            await _redirect(scope, send, target)  # else a page's relative links would lead elsewhere
            return
        exchange: Exchange | None = None
        try:
            if problem is None:
                async with self.ports.connected(target.sandbox_id, target.port) as connection:
                    exchange = Exchange(
                        scope, receive, send, connection, target, answer_s=self.answer_s, idle_s=self.idle_s
                    )
                    await exchange.run()
                return
        except AnswerBroken:
            await _hang_up(scope)
            return
        except (NotFound, LimitExceeded, Unavailable, TimeoutError, BadRequest, BadAnswer) as error:
            problem = _problem(error, target)
        if exchange is None or not exchange.has_read_all:
            await discard_body(receive)
        await _answer(send, problem)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send, target: Target) -> None:
        await receive()  # websocket.connect
        problem = self._refusal(scope, target)
        try:
            if problem is None:
                async with self.ports.connected(target.sandbox_id, target.port) as connection:
                    await WebSocketExchange(
                        scope, receive, send, connection, target, answer_s=self.answer_s, idle_s=self.idle_s
                    ).run()
                return
        except Refused as refused:
            await _deny(scope, send, refused.status, refused.headers, refused.body)
            return
        except (NotFound, LimitExceeded, Unavailable, TimeoutError, BadRequest, BadAnswer) as error:
            problem = _problem(error, target)
        headers, body = _rendered(problem)
        await _deny(scope, send, problem.status, headers, body)

    def _refusal(self, scope: Scope, target: Target) -> Problem | None:
        if target.prefix and not is_answered(first(scope["headers"], b"host") or b"", self.hosts):
            return Problem(
                status=421,
                error="Unknown host",
                message="this server does not answer to the name in the Host header; server.trusted_hosts adds names",
            )
        if scope.get("method") == "CONNECT":
            return Problem(status=405, error="Method Not Allowed", message="CONNECT is not passed on to sandboxes")
        return None


def _problem(error: Exception, target: Target) -> Problem:
    where = f"port {target.port} of sandbox {target.sandbox_id}"
    match error:
        case NotFound():
            return Problem(status=404, error="not_found", message=f"{where} is not exposed, or has ended")
        case LimitExceeded():
            return Problem(status=503, error=error.code, message=str(error))
        case TimeoutError():
            return Problem(status=504, error="port.timeout", message=f"{where} did not answer in time")
        case BadRequest():
            return Problem(status=400, error="invalid", message=f"the request cannot be passed on: {error}")
        case BadAnswer():
            return Problem(status=502, error="port.bad_answer", message=f"{where} gave no answer: {error}")
        case _:
            return Problem(status=502, error="port.unreachable", message=str(error))


def _rendered(problem: Problem) -> tuple[Headers, bytes]:
    body = json.dumps({"error": problem.error, "message": problem.message}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    if problem.status in (502, 503):
        headers.append((b"retry-after", b"1"))
    return headers, body


async def _answer(send: Send, problem: Problem) -> None:
    headers, body = _rendered(problem)
    headers.append((b"connection", b"close"))  # what is left of a body must not be taken for the next request
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _redirect(scope: Scope, send: Send, target: Target) -> None:
    query: bytes = scope.get("query_string", b"")
    location = target.prefix + b"/" + (b"?" + query if query else b"")
    headers = [(b"location", location), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _deny(scope: Scope, send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Answer a WebSocket's handshake in plain HTTP (ASGI extension `websocket.http.response`)."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1011})
        return
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _hang_up(scope: Scope) -> None:
    """Cut the client off in the middle of its answer, so that it does not take the part for the whole.

    Our server's connections offer it; any other server does so by itself when an application returns early, and then
    complains about the application.
    """
    connection = scope.get("extensions", {}).get(HANG_UP, {})
    if "cut" in connection:
        connection["cut"]()
        await connection["left"]()
