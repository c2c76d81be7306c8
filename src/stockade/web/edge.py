"""Around every request of the portal's API: whose page sent it, who is logged in, how often; how errors are told."""

import hmac
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TypeVar, cast

import structlog
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from stockade.accounts import Accounts
from stockade.accounts.inputs import UserLocked
from stockade.accounts.sessions import csrf_token
from stockade.config_portal import PortalConfig
from stockade.errors import LimitExceeded, StockadeError
from stockade.model import Actor
from stockade.model.users import User, UserSession
from stockade.web.failures import (
    AdminRequired,
    CsrfRefused,
    Failure,
    FieldInvalid,
    OriginRefused,
    SessionRequired,
    TooManyRequests,
    from_error,
)
from stockade.web.security import CSRF_HEADER, Cookies, is_own_origin, pre_session_token
from stockade.web.wire import checked
from stockade.wire.bodies import has_json_type, parse_object, read_body
from stockade.wire.clients import ClientGone, address, request_id
from stockade.wire.rates import Concurrency, RateLimiter

__all__ = ["Caller", "Edge", "json_response"]

log = structlog.get_logger()
Body = TypeVar("Body", bound=BaseModel)

CLIENT_CLOSED_REQUEST = 499
MOST_BODY_BYTES = 2 * 1024 * 1024
"""Of JSON: a program with its input."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_CRASHED = Failure(status=500, code="fault", message="something went wrong on the server; its log has details")
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Whatever a browser makes of an answer that somebody opens by itself, it is no page of ours.
    "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, by a log-in of theirs."""

    user: User
    session: UserSession
    secret: str
    """Of the log-in; never logged."""
    actor: Actor


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """*body* as JSON; nothing at all for `None`."""
    if body is None:
        return Response(status_code=204 if status == 200 else status, headers=dict(headers or {}))
    # Programs of other protocols may hold lone surrogates, which no UTF-8 has.
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    return Response(content, status_code=status, headers=dict(headers or {}), media_type="application/json")


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What the routes share."""

    accounts: Accounts
    cookies: Cookies
    config: PortalConfig
    public_url: str
    rates: RateLimiter
    public_rates: RateLimiter
    streams: Concurrency
    body_timeout_s: float

    async def call(
        self, request: Request, work: Callable[[Caller], Awaitable[object]], *, status: int = 200
    ) -> Response:
        """Answer who is logged in with what *work* gives: an object to be written as JSON, or a response."""

        async def answer() -> object:
            self._check_origin(request)
            caller = await self.caller(request)
            self._take(self.rates, caller.actor)
            if request.method not in _SAFE and not self._is_token_of(request, caller.secret):
                raise CsrfRefused
            return await work(caller)

        return await self._respond(request, answer, status)

    async def admin(
        self, request: Request, work: Callable[[Caller], Awaitable[object]], *, status: int = 200
    ) -> Response:
        """As `call`, for admins."""

        async def checked_work(caller: Caller) -> object:
            if not caller.actor.is_admin:
                raise AdminRequired
            return await work(caller)

        return await self.call(request, checked_work, status=status)

    async def public(
        self,
        request: Request,
        work: Callable[[], Awaitable[object]],
        *,
        status: int = 200,
        from_elsewhere: bool = False,
    ) -> Response:
        """Answer anybody, with what *work* gives.

        Args:
            from_elsewhere: another site leads here: it only reads, and its own checks are in *work*.
        """

        async def answer() -> object:
            if not from_elsewhere:
                self._check_origin(request)
            self._take(self.public_rates, Actor(id=f"anonymous:{address(request)}"))
            if request.method not in _SAFE:
                secret = self.cookies.read(request, self.cookies.session)
                if not (self._is_pre_session_token(request) or (secret and self._is_token_of(request, secret))):
                    raise CsrfRefused
            return await work()

        return await self._respond(request, answer, status)

    async def stream(self, socket: WebSocket, work: Callable[[Caller], Awaitable[None]]) -> None:
        """Let *work* serve a WebSocket connection, which it accepts when all is well.

        What it raises before that is answered as over plain HTTP. What fails afterwards is for it to tell.
        """
        name = request_id(cast(Request, socket))
        try:
            if not is_own_origin(socket.headers, self.public_url, is_required=True):
                raise OriginRefused
            caller = await self.caller(socket)
            self._take(self.rates, caller.actor)
            with self.hold(caller):
                await work(caller)
        except (ClientDisconnect, WebSocketDisconnect):
            return
        except StockadeError as error:
            await _deny(socket, self._failed(error, name), name)
        except OSError:
            return  # the server's way to say that the client went away
        except Exception:
            log.exception("portal.crashed", request_id=name)
            await _deny(socket, _CRASHED, name)

    async def caller(self, request: HTTPConnection) -> Caller:
        """Who is logged in.

        Raises:
            SessionRequired: nobody.
        """
        secret = self.cookies.read(request, self.cookies.session)
        found = await self.accounts.sessions.find(secret) if secret else None
        if found is None:
            raise SessionRequired
        user, session = found
        try:
            actor = await self.accounts.users.actor(user)
        except UserLocked:
            raise SessionRequired from None
        return Caller(user=user, session=session, secret=secret, actor=actor)

    async def is_still_in(self, caller: Caller) -> bool:
        """Whether the log-in of a long stream has not been ended; a database that is away ends none."""
        try:
            return await self.accounts.sessions.find(caller.secret) is not None
        except StockadeError:
            return True

    def hold(self, caller: Caller) -> ExitStack:
        """Count a stream of the caller's until the stack is closed.

        Raises:
            TooManyRequests: as many are open already.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.streams.hold(caller.actor))
            except LimitExceeded as error:
                raise TooManyRequests(str(error)) from None
            return held.pop_all()

    async def read(self, request: Request, model: type[Body]) -> Body:
        """The request's JSON body.

        Raises:
            Invalid: it is no such thing; FieldInvalid names the input.
        """
        # Forms of other sites cannot send this type.
        if not has_json_type(request):
            raise FieldInvalid("", "the request's content type must be application/json")
        raw = await read_body(request, max_bytes=MOST_BODY_BYTES, timeout_s=self.body_timeout_s)
        return checked(model, parse_object(raw))

    def _check_origin(self, request: HTTPConnection) -> None:
        if not is_own_origin(request.headers, self.public_url):
            raise OriginRefused

    def _take(self, rates: RateLimiter, actor: Actor) -> None:
        rate = rates.take(actor)
        if not rate.allowed:
            raise TooManyRequests("too many requests; wait a moment", retry_after_s=rate.retry_after_s)

    def _is_token_of(self, request: Request, secret: str) -> bool:
        return _is_equal(request.headers.get(CSRF_HEADER, ""), csrf_token(secret))

    def _is_pre_session_token(self, request: Request) -> bool:
        secret = self.cookies.read(request, self.cookies.csrf)
        return bool(secret) and _is_equal(request.headers.get(CSRF_HEADER, ""), pre_session_token(secret))

    async def _respond(self, request: Request, answer: Callable[[], Awaitable[object]], status: int) -> Response:
        name = request_id(request)
        if request.method == "HEAD":  # comes with GET; of a stream there would be no end
            return Response(status_code=405, headers={"Allow": "GET"})
        try:
            result = await answer()
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except StockadeError as error:
            return _told(self._failed(error, name), name)
        except HTTPException:
            raise  # the application's own refusal
        except Exception:
            # The bug's text may hold anything, so the caller gets a name to ask for, and the log the rest.
            log.exception("portal.crashed", request_id=name)
            return _told(_CRASHED, name)
        response = result if isinstance(result, Response) else json_response(result, status)
        _add(response, name)
        return response

    def _failed(self, error: StockadeError, name: str) -> Failure:
        failure = from_error(error)
        if failure.status >= 500:
            log.warning("portal.failed", request_id=name, status=failure.status, code=error.code, reason=str(error))
        return failure


def _is_equal(presented: str, right: str) -> bool:
    return hmac.compare_digest(presented.encode(errors="replace"), right.encode())


def _told(failure: Failure, name: str) -> Response:
    response = json_response(failure.body(), failure.status, failure.headers)
    _add(response, name)
    return response


def _add(response: Response, name: str) -> None:
    for header, value in {**_HEADERS, "X-Request-ID": name}.items():
        response.headers.setdefault(header, value)


async def _deny(socket: WebSocket, failure: Failure, name: str) -> None:
    """Answer a WebSocket request that was not accepted; end one that was."""
    with suppress(OSError, RuntimeError, WebSocketDisconnect):  # the client went away meanwhile
        if socket.application_state is not WebSocketState.CONNECTING:
            await socket.close(1011)
            return
        await socket.send_denial_response(_told(failure, name))
