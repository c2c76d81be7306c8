"""Around every boxlite route: who asks, how often, the body, errors and how they are worded.

The protocol's clients never ask twice: who asks faster than their key may is made to wait, and refused only when that
would take too long.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, cast

import structlog
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from stockade.dialects.boxlite.access import Access
from stockade.dialects.boxlite.failures import CRASHED, Failure, from_error
from stockade.dialects.boxlite.wire import checked
from stockade.errors import LimitExceeded, NoAnswer, StockadeError
from stockade.model import Actor
from stockade.wire.bodies import discard_body, parse_object, read_body
from stockade.wire.clients import ClientGone, request_id
from stockade.wire.rates import Concurrency, RateLimiter

__all__ = ["Edge", "json_response"]

log = structlog.get_logger()
Body = TypeVar("Body", bound=BaseModel)

CLIENT_CLOSED_REQUEST = 499
"""nginx's number for a client that did not wait; nobody reads it."""
PACED_S = 10.0
"""The longest that a request waits because its key may not ask more often."""
_SERVER_ERRORS = 500
_TOO_LARGE = 413


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """*body* as JSON; nothing at all for `None`."""
    content = b"" if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    media = None if body is None else "application/json"
    return Response(content, status_code=status, headers=dict(headers or {}), media_type=media)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What the routes share."""

    access: Access
    rates: RateLimiter
    streams: Concurrency
    max_body_bytes: int
    body_timeout_s: float

    @staticmethod
    def json(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """See `json_response`."""
        return json_response(body, status, headers)

    async def actor(self, connection: HTTPConnection) -> Actor:
        """Who asks, once it is their turn.

        Raises:
            Unauthenticated: nobody whom this server knows.
            LimitExceeded: they ask much more often than their key may.
            Unavailable: it cannot be told now.
        """
        actor = await self.access.actor(connection)
        if actor.rate_limit_rps is None:
            return actor
        waited_s = 0.0
        while not (rate := self.rates.take(actor)).allowed:
            if waited_s >= PACED_S:
                raise LimitExceeded(
                    f"rate limit exceeded: {rate.limit} requests per second", retry_after_s=rate.retry_after_s
                )
            waited_s += rate.retry_after_s
            await asyncio.sleep(rate.retry_after_s)
        return actor

    async def call(
        self, request: Request, work: Callable[[Actor], Awaitable[object]], *, status: int = 200
    ) -> Response:
        """Answer with what *work* gives: an object to be written as JSON, a response, or `None` for an empty one."""

        async def answer() -> object:
            return await work(await self.actor(request))

        return await self.respond(request, answer, status=status)

    async def call_with(
        self,
        request: Request,
        model: type[Body],
        work: Callable[[Actor, Body], Awaitable[object]],
        *,
        status: int = 200,
    ) -> Response:
        """As `call`, with the request's body as *model*; one that is empty counts as `{}`."""

        async def answer() -> object:
            actor = await self.actor(request)
            return await work(actor, await self.read(request, model))

        return await self.respond(request, answer, status=status)

    async def read(self, request: Request, model: type[Body]) -> Body:
        """The request's body as *model*.

        Raises:
            Invalid: it does not fit, or is too large, or did not come in time.
        """
        raw = await read_body(request, max_bytes=self.max_body_bytes, timeout_s=self.body_timeout_s)
        return checked(model, parse_object(raw) if raw else {})

    async def respond(
        self, request: Request, answer: Callable[[], Awaitable[object]], *, status: int = 200
    ) -> Response:
        """As `call`, for what needs no credential."""
        name = request_id(request)
        headers = {"X-Request-ID": name}
        try:
            result = await answer()
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except StockadeError as error:
            failure = _failed(error, name)
        except TimeoutError:
            failure = _failed(NoAnswer("it took too long"), name)
        except HTTPException:
            raise  # the application's own refusal
        except Exception:
            # The bug's text may hold anything, so the caller gets a name to ask for, and the log the rest.
            log.exception("boxlite.crashed", request_id=name)
            failure = CRASHED
        else:
            if isinstance(result, Response):
                result.headers.update(headers)
                return result
            return json_response(result, status, headers)
        return _refusal(failure, name, request.method)

    async def refuse(self, request: Request, error: StockadeError) -> Response:
        """Answer whoever has a key with *error*."""

        async def work(_actor: Actor) -> object:
            raise error

        response = await self.call(request, work)
        await discard_body(request.receive)
        return response

    async def stream(self, socket: WebSocket, work: Callable[[Actor], Awaitable[None]]) -> None:
        """Let *work* serve a WebSocket connection, which it accepts when all is well.

        What it raises before that is answered as over plain HTTP. What fails afterwards is for it to tell.
        """
        name = request_id(cast(Request, socket))
        try:
            actor = await self.actor(socket)
            with self.streams.hold(actor):
                await work(actor)
        except (ClientDisconnect, WebSocketDisconnect):
            return
        except StockadeError as error:
            await _deny(socket, _failed(error, name), name)
        except TimeoutError:
            await _deny(socket, _failed(NoAnswer("it took too long"), name), name)
        except OSError:
            return  # the server's way to say that the client went away
        except Exception:
            log.exception("boxlite.crashed", request_id=name)
            await _deny(socket, CRASHED, name)


def _failed(error: StockadeError, name: str) -> Failure:
    failure = from_error(error)
    if failure.status >= _SERVER_ERRORS:
        log.warning("boxlite.failed", request_id=name, status=failure.status, code=error.code, reason=str(error))
    return failure


def _refusal(failure: Failure, name: str, method: str = "") -> Response:
    headers = {**failure.headers, "X-Request-ID": name}
    if failure.status == _TOO_LARGE:
        headers["Connection"] = "close"  # the rest of the body will not be read
    return json_response(None if method == "HEAD" else failure.body(name), failure.status, headers)


async def _deny(socket: WebSocket, failure: Failure, name: str) -> None:
    """Answer a WebSocket request that was not accepted; end one that was."""
    with suppress(OSError, RuntimeError, WebSocketDisconnect):  # the client went away meanwhile
        if socket.application_state is not WebSocketState.CONNECTING:
            await socket.close(1011)
            return
        await socket.send_denial_response(_refusal(failure, name))
