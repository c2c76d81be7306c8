"""Around every execbox route: who asks, how often, the body, errors and how they are worded, request ids.

In this order: key, rate, query and body, quota, image, backend. Who has no key learns nothing about the rest.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import structlog
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from stockade.dialects.execbox.failures import Failure, RateExceeded, Unauthorized, from_error
from stockade.dialects.execbox.settings import ExecboxSettings
from stockade.dialects.execbox.wire import BadBody, checked
from stockade.errors import LimitExceeded, StockadeError
from stockade.model import Actor
from stockade.wire.bodies import parse_object, read_body
from stockade.wire.clients import ClientGone, address, request_id
from stockade.wire.rates import Concurrency, Rate

__all__ = ["Edge", "Headers", "Verifier", "json_response"]

log = structlog.get_logger()
Body = TypeVar("Body", bound=BaseModel)
Headers = dict[str, str]

CLIENT_CLOSED_REQUEST = 499
"""nginx's number for a client that did not wait; nobody reads it."""
_SERVER_ERRORS = 500
_TOO_LARGE = 413
_CRASHED = Failure(status=500, code="INTERNAL", message="internal server error")


class Verifier(Protocol):
    """Knows the keys."""

    async def verify(self, secret: str) -> Actor | None:
        """Whose key *secret* is; `None` when it is none that is valid now."""
        ...


class Rates(Protocol):
    """Counts requests."""

    def take(self, actor: Actor) -> Rate: ...


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """*body* as JSON; nothing at all for `None`."""
    content = b"" if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    media = None if body is None else "application/json"
    return Response(content, status_code=status, headers=dict(headers or {}), media_type=media)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What the routes share."""

    keys: Verifier
    rates: Rates
    public_rates: Rates
    streams: Concurrency
    settings: ExecboxSettings
    body_timeout_s: float

    async def call(
        self, request: Request, work: Callable[[Actor], Awaitable[object]], *, status: int = 200
    ) -> Response:
        """Answer with what *work* gives: an object to be written as JSON, or a response."""

        async def answer(headers: Headers) -> object:
            return await work(await self._actor(request, headers))

        return await self._respond(request, answer, status)

    async def call_with(
        self,
        request: Request,
        model: type[Body],
        work: Callable[[Actor, Body], Awaitable[object]],
        *,
        status: int = 200,
    ) -> Response:
        """As `call`, with the request's body as *model*."""

        async def answer(headers: Headers) -> object:
            actor = await self._actor(request, headers)
            return await work(actor, await self._read(request, model))

        return await self._respond(request, answer, status)

    async def public(
        self,
        request: Request,
        model: type[Body],
        work: Callable[[Actor | None, Body], Awaitable[object]],
        *,
        status: int = 200,
    ) -> Response:
        """As `call_with`, for who has no key. One that is sent and good is passed on."""

        async def answer(headers: Headers) -> object:
            self._take(self.public_rates, Actor(id=f"anonymous:{address(request)}"), headers)
            secret = _secret(request)
            actor = await self.keys.verify(secret) if secret else None
            return await work(actor, await self._read(request, model))

        return await self._respond(request, answer, status)

    async def refuse(self, request: Request, error: StockadeError) -> Response:
        """Answer with *error*, whoever asks."""

        async def answer(_headers: Headers) -> object:
            raise error

        return await self._respond(request, answer, 200)

    async def stream(self, socket: WebSocket, work: Callable[[Actor], Awaitable[None]]) -> None:
        """Let *work* serve a WebSocket connection, which it accepts when all is well.

        What it raises before that is answered as over plain HTTP. What fails afterwards is for it to tell.
        """
        name = request_id(cast(Request, socket))
        headers = {"X-Request-ID": name}
        try:
            actor = await self._actor(socket, headers)
            with ExitStack() as held:
                try:
                    held.enter_context(self.streams.hold(actor))
                except LimitExceeded as error:
                    raise RateExceeded(str(error)) from None
                await work(actor)
        except (ClientDisconnect, WebSocketDisconnect):
            return
        except StockadeError as error:
            await _deny(socket, self._failed(error, name, headers), headers)
        except OSError:
            return  # the server's way to say that the client went away
        except Exception:
            log.exception("execbox.crashed", request_id=name)
            await _deny(socket, _CRASHED, headers)

    async def _actor(self, request: HTTPConnection, headers: Headers) -> Actor:
        secret = _secret(request)
        actor = await self.keys.verify(secret) if secret else None
        if actor is None:
            raise Unauthorized
        self._take(self.rates, actor, headers)
        return actor

    def _take(self, rates: Rates, actor: Actor, headers: Headers) -> None:
        rate = rates.take(actor)
        headers.update(rate.headers())
        if not rate.allowed:
            raise RateExceeded(
                f"rate limit exceeded: {rate.limit} requests per second", retry_after_s=rate.retry_after_s
            )

    async def _read(self, request: Request, model: type[Body]) -> Body:
        raw = await read_body(request, max_bytes=self.settings.max_body_bytes, timeout_s=self.body_timeout_s)
        if not raw:
            raise BadBody("a JSON object is required as the body")
        return checked(model, parse_object(raw))

    async def _respond(self, request: Request, answer: Callable[[Headers], Awaitable[object]], status: int) -> Response:
        name = request_id(request)
        headers = {"X-Request-ID": name}
        try:
            result = await answer(headers)
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except StockadeError as error:
            failure = self._failed(error, name, headers)
            return json_response(failure.body(), failure.status, headers)
        except HTTPException:
            raise  # the application's own refusal
        except Exception:
            # The bug's text may hold anything, so the caller gets a name to ask for, and the log the rest.
            log.exception("execbox.crashed", request_id=name)
            return json_response(_CRASHED.body(), _CRASHED.status, headers)
        if isinstance(result, Response):
            result.headers.update(headers)
            return result
        return json_response(result, status, headers)

    def _failed(self, error: StockadeError, name: str, headers: Headers) -> Failure:
        failure = from_error(error)
        for key, value in failure.headers.items():
            headers.setdefault(key, value)
        if failure.status == _TOO_LARGE:
            headers["Connection"] = "close"  # the rest of the body will not be read
        if failure.status >= _SERVER_ERRORS:
            log.warning("execbox.failed", request_id=name, status=failure.status, code=error.code, reason=str(error))
        return failure


def _secret(request: HTTPConnection) -> str:
    """The key in `Authorization: Bearer <key>`; empty when there is none."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret if scheme.lower() == "bearer" else ""


async def _deny(socket: WebSocket, failure: Failure, headers: Headers) -> None:
    """Answer a WebSocket request that was not accepted; end one that was."""
    with suppress(OSError, RuntimeError, WebSocketDisconnect):  # the client went away meanwhile
        if socket.application_state is not WebSocketState.CONNECTING:
            await socket.close(1011)
            return
        await socket.send_denial_response(json_response(failure.body(), failure.status, headers))
