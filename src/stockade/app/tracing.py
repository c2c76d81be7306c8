"""An id for every request, and, where the operator wants them, traces (OpenTelemetry)."""

import contextlib
import logging
import re
import secrets
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import structlog
from opentelemetry import propagate, trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stockade import __version__
from stockade.config import TracingConfig
from stockade.errors import Unsupported
from stockade.spans import spanned

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Traced", "tracing"]

log = structlog.get_logger()

HEADER = b"x-request-id"
LAST_S = 3.0
"""Time that the collector has for the last spans."""
SERVERS_FAULT = 500
"""Answers with this status, or a higher one, are not the client's doing."""
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


@contextlib.contextmanager
def tracing(config: TracingConfig) -> Iterator[None]:
    """Send spans to the configured collector during the block; what has not been sent at its end is sent then, if the
    collector takes it within `LAST_S`.

    Raises:
        Unsupported: a collector is configured, and the extra `otel` is not installed.
    """
    if not config.endpoint:
        yield
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise Unsupported("tracing.endpoint needs: pip install 'stockade[otel]'") from None
    url = config.endpoint.rstrip("/")
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.ratio)),
        resource=Resource.create({"service.name": config.service, "service.version": __version__}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(
        endpoint=url if url.endswith("/v1/traces") else f"{url}/v1/traces", timeout=config.timeout_s
    )
    # While the collector is away: one line for what is given up, none for each attempt.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        _end(provider)


def _end(provider: "TracerProvider") -> None:
    """Send the rest. A collector that is away holds up nobody's end: its library would try for many times as long."""
    ending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
    ending.start()
    ending.join(LAST_S)
    if ending.is_alive():
        log.warning("tracing.spans_not_sent")


class Traced:
    """Gives each request an id, which is in its answer and in all that is logged on its behalf, and a span."""

    def __init__(self, app: ASGIApp, *, has_spans: bool) -> None:
        """*has_spans*: somebody collects them; else none is made."""
        self._app = app
        self._tracer = trace.get_tracer("stockade.server") if has_spans else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == HEADER]
        if len(given) == 1 and _ID.fullmatch(given[0]):
            id = given[0]  # the caller's own, which may stand in a log
        else:
            id = secrets.token_hex(16).encode()
            # Whoever looks for it further in finds this one.
            others = (header for header in scope["headers"] if header[0] != HEADER)
            scope = {**scope, "headers": [*others, (HEADER, id)]}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                if all(name.lower() != HEADER for name, _ in headers):
                    message["headers"] = [*headers, (HEADER, id)]
            await send(message)

        tokens = structlog.contextvars.bind_contextvars(request_id=id.decode())
        try:
            if self._tracer is None:
                await self._app(scope, receive, send_with_id)
            else:
                await self._spanned(self._tracer, scope, receive, send_with_id, id=id.decode())
        finally:
            structlog.contextvars.reset_contextvars(**tokens)

    async def _spanned(
        self,
        tracer: trace.Tracer,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        id: str,
    ) -> None:
        headers = dict(scope["headers"])
        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in headers
        }
        method = scope.get("method", "WEBSOCKET")
        with spanned(tracer, method, {}, parent=propagate.extract(carrier), kind=trace.SpanKind.SERVER) as span:

            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= SERVERS_FAULT:
                        span.set_status(trace.StatusCode.ERROR)
                await send(message)

            try:
                await self._app(scope, receive, send_noted)
            finally:
                # The route, not the path: that one may hold anything.
                route = getattr(scope.get("route"), "path", "")
                span.update_name(f"{method} {route}".rstrip())
                span.set_attributes({"http.request.method": method, "http.route": route, "stockade.request_id": id})
