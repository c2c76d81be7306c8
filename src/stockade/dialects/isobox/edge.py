"""Around every isobox route: who asks, how often, the body, the client's presence, errors, request id, counting."""

import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from stockade.config import ServerConfig
from stockade.dialects.isobox.access import Access
from stockade.dialects.isobox.failures import from_error, retry_after
from stockade.dialects.isobox.metrics import Metrics
from stockade.dialects.isobox.settings import IsoboxSettings
from stockade.dialects.isobox.wire import Wire, checked
from stockade.engine import Queue
from stockade.errors import LimitExceeded, QueueFull, StockadeError
from stockade.model import Actor
from stockade.wire.auth import Credentials
from stockade.wire.bodies import NotJson, has_json_type, parse_object, read_body
from stockade.wire.clients import ClientGone, address, request_id, while_connected
from stockade.wire.rates import RateLimiter

__all__ = ["Edge"]

log = structlog.get_logger()
Body = TypeVar("Body", bound=Wire)
Headers = dict[str, str]

CLIENT_CLOSED_REQUEST = 499
"""nginx's number for a client that did not wait; nobody reads it but the metrics."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What the routes share."""

    access: Access
    settings: IsoboxSettings
    server: ServerConfig
    metrics: Metrics
    rates: RateLimiter | None
    queue: Queue | None
    """Where it has no room, requests are refused before their bodies are read. `None`: a request may be answered
    without a place, too."""

    def credentials(self, request: Request) -> Credentials:
        """What the caller presents."""
        headers = request.headers
        return Credentials(
            address=address(request),
            api_key=headers.get(self.settings.api_key_header) or headers.get("x-api-key"),
            authorization=headers.get("authorization"),
        )

    async def program(
        self,
        request: Request,
        model: type[Body],
        work: Callable[[Actor, Body], Coroutine[Any, Any, bytes]],
    ) -> Response:
        """Answer a route that runs programs.

        In this order: the key, the rate, room in the queue, the body. Callers without a key learn nothing about the
        rest. When the client hangs up, *work* is cancelled, which kills its sandbox.
        """

        async def answer(headers: Headers) -> bytes:
            actor = await self.access.authenticator.actor(self.credentials(request))
            self._take_token(actor, headers)
            if self.queue is not None:
                self.queue.check(actor)
            body = checked(model, await self._read(request))
            return await while_connected(request, work(actor, body))

        return await self._respond(request, answer)

    async def plain(
        self,
        request: Request,
        work: Callable[[], Awaitable[object]],
        *,
        guarded: bool = False,
    ) -> Response:
        """Answer a route without a body; *guarded*: only to who may run programs."""

        async def answer(_headers: Headers) -> bytes:
            if guarded:
                await self.access.authenticator.actor(self.credentials(request))
            return json.dumps(await work(), ensure_ascii=False).encode()

        return await self._respond(request, answer)

    async def _respond(self, request: Request, answer: Callable[[Headers], Awaitable[bytes]]) -> Response:
        name = request_id(request)
        headers = {"X-Request-ID": name}
        try:
            content = await answer(headers)
            status = 200
        except (ClientGone, ClientDisconnect):
            content, status = b"", CLIENT_CLOSED_REQUEST
        except StockadeError as error:
            content, status = self._failed(error, name, headers)
        except HTTPException:
            raise  # the application's own refusal, worded by its own handler
        except Exception:
            # The bug's text may hold anything, so the caller gets a name to ask for, and the log the rest.
            log.exception("isobox.crashed", request_id=name)
            content = _error(
                "Execution failed",
                f"internal error; the server's log has details under {name}",
            )
            status = 500
        self.metrics.requests(_route(request), status).inc()
        return Response(content, status_code=status, headers=headers, media_type="application/json")

    def _failed(self, error: StockadeError, name: str, headers: Headers) -> tuple[bytes, int]:
        status, title, message = from_error(error)
        wait = retry_after(error)
        if wait is not None:
            headers.setdefault("Retry-After", wait)
        if status == 413:
            headers["Connection"] = "close"  # the rest of the body will not be read
        if status == 429:
            self.metrics.rate_limited.inc()
        # Refusals of a busy server are counted, not logged: they have to cost next to nothing.
        if status >= 500 and not isinstance(error, QueueFull):
            log.warning(
                "isobox.failed",
                request_id=name,
                status=status,
                code=error.code,
                reason=str(error),
            )
        return _error(title, message), status

    def _take_token(self, actor: Actor, headers: Headers) -> None:
        if self.rates is None:
            return
        rate = self.rates.take(actor)
        headers.update(rate.headers())
        if not rate.allowed:
            raise LimitExceeded(
                f"more than {self.settings.rate_limit_per_minute} requests a minute",
                retry_after_s=rate.retry_after_s,
            )

    async def _read(self, request: Request) -> dict[str, Any]:
        if not has_json_type(request):
            raise NotJson("Content-Type must be application/json")
        raw = await read_body(
            request,
            max_bytes=self.server.max_body_bytes,
            timeout_s=self.server.body_timeout_s,
        )
        return parse_object(raw)


def _error(title: str, message: str) -> bytes:
    body = {"error": title, "message": message} if message else {"error": title}
    return json.dumps(body, ensure_ascii=False).encode(errors="replace")


def _route(request: Request) -> str:
    """The route's path, not the request's: labels must be few."""
    return getattr(request.scope.get("route"), "path", "unknown")
