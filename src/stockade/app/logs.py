"""Logs: events with fields, on standard error. Never code, output or keys."""

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from opentelemetry import trace

from stockade.config import LogConfig

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

__all__ = ["configure"]

MOST_PLACES = 12
"""What frameworks put around our own code says nothing."""


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send structlog's events and the standard library's (uvicorn's, asyncio's) to *stream* in one format."""
    stream = stream or sys.stderr
    as_json = config.format == "json" or (config.format == "auto" and not stream.isatty())
    level = logging.getLevelNamesMapping()[config.level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _of_span,
        _trace,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_of_loop, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Others' events are for trouble only; what happens in the normal course is told by our own.
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)


def _of_loop(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    """Keep what the event loop says of a task that failed, or of a callback, and leave out what it shows of them: the
    error's message and the arguments may quote what a client sent.
    """
    record = event.get("_record")
    if isinstance(record, logging.LogRecord) and record.name == "asyncio":
        event["event"] = re.split(r"[\n<({\[]", str(event.get("event", "")), maxsplit=1)[0].strip()
    return event


def _of_span(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    """Name the span that is under way: a line in the log and a trace are found by each other."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        event["trace_id"] = trace.format_trace_id(span.trace_id)
        event["span_id"] = trace.format_span_id(span.span_id)
    return event


def _trace(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    """Replace an exception by its type and the places it passed.

    Its message is left out: a library's may quote what a client sent.
    """
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["error"] = type(error).__name__
        event["trace"] = places(error)
    return event


def places(error: BaseException) -> list[str]:
    """Where *error* came by, the innermost last: file:line function."""
    found = []
    passed = error.__traceback__
    while passed is not None:
        code = passed.tb_frame.f_code
        found.append(f"{code.co_filename}:{passed.tb_lineno} {code.co_qualname}")
        passed = passed.tb_next
    return found[-MOST_PLACES:]
