"""Around every route: methods, the deadline, errors and how they are worded, CORS, counting."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from stockade.dialects.code_sandbox.access import Access
from stockade.dialects.code_sandbox.documented import Described, documented
from stockade.dialects.code_sandbox.failures import METHOD_NOT_ALLOWED, Words, from_error
from stockade.dialects.code_sandbox.metrics import Metrics
from stockade.dialects.code_sandbox.replies import Failure, empty_reply, failure_reply
from stockade.dialects.code_sandbox.settings import CodeSandboxSettings
from stockade.errors import NoAnswer, StockadeError
from stockade.wire.bodies import read_body
from stockade.wire.clients import ClientGone
from stockade.wire.routes import DirectRoute

__all__ = ["METHODS", "Edge", "Operation"]

log = structlog.get_logger()

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
CLIENT_CLOSED_REQUEST = 499
"""nginx's number for a client that did not wait; nobody reads it but the metrics."""
_SERVER_ERRORS = 500
_SHARE = 0.9
"""Of the time for an answer, what the work may take: the rest is for saying that it took too long."""
_CRASHED = Failure(status=500, error="internal error")

Work = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What is done for one method of a path."""

    method: str
    work: Work
    about: Described
    words: Words = from_error
    takes_its_time: bool = False
    """Whether it bounds its time itself: it waits, or reads a body, which has a time of its own."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What the routes share."""

    access: Access
    settings: CodeSandboxSettings
    metrics: Metrics
    body_timeout_s: float
    cors: Mapping[str, str] = field(default_factory=dict)
    """Headers of every answer."""

    def add(self, router: APIRouter, path: str, operations: Sequence[Operation], *, shown: str = "") -> None:
        """Answer *path* with *operations*; other methods with 405, as the protocol words it, and OPTIONS with 200.

        Args:
            shown: the path as the description has it, where that differs.
        """
        route_class = DirectRoute if "{" not in path else router.route_class
        name = shown or path
        for one in operations:
            handler = self._handler(name, one)
            router.add_api_route(
                path, handler, methods=[one.method], route_class_override=route_class, **documented(one.about)
            )
        others = sorted(METHODS - {one.method for one in operations})
        refuse = self._refuser(name)
        router.add_api_route(path, refuse, methods=others, route_class_override=route_class, include_in_schema=False)

    async def read(self, request: Request, *, max_bytes: int | None = None) -> bytes:
        """The request's body.

        Raises:
            BodyTooLarge, BodyTimeout: see `wire.bodies.read_body`.
        """
        most = self.settings.max_body_bytes if max_bytes is None else max_bytes
        return await read_body(request, max_bytes=most, timeout_s=self.body_timeout_s)

    @property
    def answer_s(self) -> float:
        """Seconds that the work for an answer may take."""
        return _SHARE * self.settings.write_timeout_s

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Bound what is done in the block to `answer_s`.

        Raises:
            NoAnswer: it has taken longer.
        """
        try:
            async with asyncio.timeout(self.answer_s):
                yield
        except TimeoutError:
            raise NoAnswer("it took too long") from None

    def finished(self, response: Response) -> Response:
        """*response* with the headers that all have."""
        for header, text in self.cors.items():
            response.headers[header] = text
        return response

    def _handler(self, route: str, operation: Operation) -> Work:
        async def handler(request: Request) -> Response:
            response = await self._answer(request, operation, route)
            self.metrics.answered(route, response.status_code)
            return self.finished(response)

        return handler

    def _refuser(self, route: str) -> Work:
        async def refuse(request: Request) -> Response:
            if request.method == "OPTIONS":
                return self.finished(empty_reply(200))
            self.metrics.answered(route, METHOD_NOT_ALLOWED.status)
            return self.finished(failure_reply(METHOD_NOT_ALLOWED))

        return refuse

    async def _answer(self, request: Request, operation: Operation, route: str) -> Response:
        try:
            if operation.takes_its_time:
                return await operation.work(request)
            async with self.deadline():
                return await operation.work(request)
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except StockadeError as error:
            failure = operation.words(error)
            if failure.status >= _SERVER_ERRORS:
                log.warning(
                    "code_sandbox.failed",
                    route=route,
                    status=failure.status,
                    code=error.code,
                    reason=str(error),
                )
            return failure_reply(failure)
        except HTTPException:
            raise  # the application's own refusal, worded by its own handler
        except Exception:
            # The bug's text may hold anything, so it is for the log alone.
            log.exception("code_sandbox.crashed", route=route)
            return failure_reply(_CRASHED)
