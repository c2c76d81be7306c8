"""Around every operation: who asks, the method, the body, errors and how they are worded, counting.

In this order, which the protocol fixes: secret, method, JSON, fields, the operation. Who has no secret learns nothing
about the rest.
"""

from contextlib import ExitStack
from dataclasses import dataclass

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from stockade.dialects.executor.access import Access
from stockade.dialects.executor.bounds import Bounds, NoPlace
from stockade.dialects.executor.failures import CRASHED, Unauthorized, from_error
from stockade.dialects.executor.metrics import Metrics
from stockade.dialects.executor.operation import Fields, Operation
from stockade.dialects.executor.parsing import parse
from stockade.dialects.executor.replies import text_reply
from stockade.dialects.executor.sending import Streaming
from stockade.errors import StockadeError
from stockade.wire.bodies import discard_body, read_body
from stockade.wire.clients import ClientGone

__all__ = ["Edge"]

log = structlog.get_logger()

CLIENT_CLOSED_REQUEST = 499
"""nginx's number for a client that did not wait; nobody reads it but the metrics."""
_NONE = Fields({})


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What the routes share."""

    access: Access
    metrics: Metrics
    bounds: Bounds
    max_body_bytes: int
    body_timeout_s: float

    async def answer(self, request: Request, path: str, operation: Operation) -> Response:
        """What *operation* makes of the request, or why it was not asked."""
        with ExitStack() as held:
            response = await self._answer(request, path, operation, held)
            if isinstance(response, Streaming):
                response.hold(held.pop_all())
        self.metrics.requests(path, response.status_code).inc()
        return response

    async def _answer(self, request: Request, path: str, operation: Operation, held: ExitStack) -> Response:
        try:
            return await self._work(request, operation, held)
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except StockadeError as error:
            return self._failed(error, path)
        except Exception:
            # The bug's text may hold anything, so it is for the log alone.
            log.exception("executor.crashed", operation=path)
            return text_reply(CRASHED, 500)

    async def _work(self, request: Request, operation: Operation, held: ExitStack) -> Response:
        caller = await self.access.caller(request)
        if request.method != operation.method:
            return text_reply("Method not allowed", 405, {"allow": operation.method})
        held.enter_context(self.bounds.request(caller.sandbox_id))
        fields = _NONE
        if operation.has_body:
            announced = request.headers.get("content-length", "")
            size = int(announced[:19]) if announced.isdecimal() else self.max_body_bytes
            try:
                held.enter_context(self.bounds.body(min(size, self.max_body_bytes)))
            except NoPlace:
                await discard_body(request.receive)  # else a reset overtakes the answer
                raise
            body = await read_body(request, max_bytes=self.max_body_bytes, timeout_s=self.body_timeout_s)
            fields = parse(body)
            del body  # it can be large, and the operation takes its time
        return await operation.work(caller, fields, request)

    def _failed(self, error: StockadeError, path: str) -> Response:
        status, text, headers = from_error(error)
        if isinstance(error, Unauthorized):
            self.metrics.wrong_secrets.inc()
        elif status >= 500:
            log.warning("executor.failed", operation=path, status=status, code=error.code, reason=str(error))
        return text_reply(text, status, headers)
