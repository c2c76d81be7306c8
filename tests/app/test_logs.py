"""Logs are events with fields and hold nothing of a tenant's."""

import asyncio
import gc
import io
import json
import logging

import structlog
from opentelemetry import trace

from stockade.app.logs import configure
from stockade.config import LogConfig


def _written(config: LogConfig) -> tuple[io.StringIO, structlog.typing.FilteringBoundLogger]:
    stream = io.StringIO()
    configure(config, stream)
    return stream, structlog.get_logger()


def test_an_event_is_one_line_of_json() -> None:
    stream, log = _written(LogConfig(format="json"))
    log.info("server.started", port=1)
    event = json.loads(stream.getvalue())
    assert (event["event"], event["port"], event["level"]) == ("server.started", 1, "info")


def test_an_event_names_the_span_that_is_under_way() -> None:
    stream, log = _written(LogConfig(format="json"))
    traced = trace.SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=False)
    with trace.use_span(trace.NonRecordingSpan(traced)):
        log.info("job.ended")
        logging.getLogger("uvicorn.error").error("of a library")
    log.info("later")
    *within, after = (json.loads(line) for line in stream.getvalue().splitlines())
    for event in within:
        assert (event["trace_id"], event["span_id"]) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert "trace_id" not in after


def test_events_below_the_level_are_left_out() -> None:
    stream, log = _written(LogConfig(level="warning", format="json"))
    log.info("quiet")
    log.warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_an_error_is_logged_by_type_and_place_and_not_by_message() -> None:
    stream, log = _written(LogConfig(format="json"))
    try:
        raise ValueError("print('a tenant wrote this')")
    except ValueError as error:
        log.error("request.crashed", exc_info=error)
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=error)
    for line in stream.getvalue().splitlines():
        event = json.loads(line)
        assert event["error"] == "ValueError"
        assert "test_logs.py" in event["trace"][-1]
        assert "tenant" not in line


def test_a_task_that_nobody_awaited_is_logged_without_what_it_failed_of() -> None:
    """The event loop's own words show the error, and a callback's arguments."""
    stream, _ = _written(LogConfig(format="json"))

    async def fail(text: str) -> None:
        raise ValueError(text)

    def call(text: str) -> None:
        raise ValueError(text)

    async def main() -> None:
        task = asyncio.ensure_future(fail("of a tenant's"))
        asyncio.get_running_loop().call_soon(call, "of a tenant's")
        await asyncio.wait([task])
        del task
        gc.collect()

    asyncio.run(main())
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["error"] for event in events] == ["ValueError", "ValueError"]
    assert "tenant" not in stream.getvalue()
