"""A job can be followed from the request that submitted it to its end, through the processes that had it."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.app.posting import posted_to
from tests.app.serving import START_S, serving
from tests.app.test_tracing import PARENT, collector
from tests.worker.processes import worker_process

TRACE_ID, CLIENTS = PARENT.split("-")[1:3]
HIDDEN = "neither-in-spans-nor-in-the-log"
PROGRAM = f'#include <stdio.h>\nint main(void) {{ puts("{HIDDEN}"); return 0; }}'


@contextmanager
def receiver() -> Iterator[tuple[str, list[str]]]:
    """Somebody who wants to know of a job's end, and the ids of the jobs that came."""
    came: list[str] = []

    with posted_to(lambda headers, _: came.append(headers["Stockade-Job"]), status=204) as address:
        yield f"{address}/{HIDDEN}", came


def all_spans(came: list[ExportTraceServiceRequest]) -> list[Span]:
    return [span for one in came for each in one.resource_spans for scope in each.scope_spans for span in scope.spans]


def said(span: Span) -> dict[str, str | int]:
    return {one.key.removeprefix("stockade."): one.value.string_value or one.value.int_value for one in span.attributes}


def tree(spans: list[Span]) -> dict[str, str]:
    """The name of each span's parent, by its own name."""
    names = {span.span_id.hex(): span.name for span in spans}
    return {span.name: names.get(span.parent_span_id.hex(), span.parent_span_id.hex()) for span in spans}


def events(log: list[str]) -> dict[str, dict[str, Any]]:
    """Lines of a log by event; the last counts."""
    return {one["event"]: one for one in map(json.loads, log)}


def becomes_told(came: list[str]) -> None:
    async def told() -> None:
        async with asyncio.timeout(START_S):
            while not came:  # noqa: ASYNC110  # nothing tells us
                await asyncio.sleep(0.02)

    asyncio.run(told())


def test_a_job_is_one_trace_and_a_line_for_each_event_through_server_and_worker(tmp_path: Path) -> None:
    """The server runs no jobs itself: a worker beside it does."""
    with collector() as (address, spans_came), receiver() as (hook, told):
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "STOCKADE_LOG_LEVEL": "debug",
            "STOCKADE_LOG_FORMAT": "json",
            "STOCKADE_JOBS_WEBHOOKS_PERMIT_PRIVATE": "127.0.0.0/8",
        }
        with (
            serving(tmp_path, STOCKADE_JOBS_PLACES="0", **variables) as server,
            worker_process(tmp_path, "--places", "1", **variables) as worker,
            httpx.Client(base_url=server.url, trust_env=False, timeout=START_S) as client,
        ):
            body = {"language": "c", "code": PROGRAM, "stdin": HIDDEN, "labels": {"a": HIDDEN}, "webhook": hook}
            answer = client.post("/v1/jobs", json=body, headers={"traceparent": PARENT, "X-Request-Id": "mine"})
            assert answer.status_code == 202, answer.text
            id = answer.json()["id"]
            ended = client.get(f"/v1/jobs/{id}?wait=50s").json()
            assert ended["status"] == "succeeded", ended
            becomes_told(told)
            again = client.post(f"/v1/jobs/{id}/retry", headers={"traceparent": PARENT.replace("0af7", "1af7")}).json()
            client.get(f"/v1/jobs/{again['id']}?wait=50s")
            worker.process.send_signal(signal.SIGTERM)
            assert worker.process.wait(START_S) == 0
            assert server.end() == 0
        log = server.log + worker.log
    spans = all_spans(spans_came)
    ours = [span for span in spans if span.trace_id.hex() == TRACE_ID]
    request = "POST /v1/jobs"
    assert tree(ours) == {
        request: CLIENTS,
        "job.submit": request,
        "job.wait": request,
        "job.run": request,
        "sandbox.compile": "job.run",
        "sandbox.run": "job.run",
        "job.store": "job.run",
        "job.webhook": request,
    }
    by_name = {span.name: said(span) for span in ours}
    assert by_name[request]["request_id"] == "mine"
    for name in ("job.submit", "job.wait", "job.run", "job.store", "job.webhook"):
        assert by_name[name]["job_id"] == id
    run = by_name["job.run"]
    assert (run["language"], run["outcome"], run["state"], run["attempt"]) == ("c", "exited", "succeeded", 1)
    assert str(run["worker_id"]) in "".join(worker.log)
    assert by_name["sandbox.run"]["outcome"] == by_name["sandbox.compile"]["outcome"] == "exited"
    assert by_name["job.webhook"]["outcome"] == "delivered"
    # What is repeated belongs to whoever repeated it.
    (repeated,) = [span for span in spans if span.name == "job.run" and said(span)["job_id"] == again["id"]]
    assert repeated.trace_id.hex() == TRACE_ID.replace("0af7", "1af7")

    first = [line for line in log if id in line]
    lines = events(first)
    for event in ("job.queued", "job.claimed", "job.ended", "webhook.delivered"):
        assert (lines[event]["job_id"], lines[event]["trace_id"]) == (id, TRACE_ID), event
        assert len([line for line in first if f'"{event}"' in line]) == 1
    assert lines["job.queued"]["request_id"] == "mine"
    assert lines["job.ended"]["span_id"] in {span.span_id.hex() for span in ours if span.name == "job.store"}
    assert (lines["job.ended"]["level"], lines["job.queued"]["level"]) == ("info", "debug")
    assert HIDDEN not in "".join(log)
    assert HIDDEN not in "".join(str(one) for one in spans_came)


def test_without_a_collector_the_log_names_the_trace_that_a_client_sent(tmp_path: Path) -> None:
    with serving(tmp_path, STOCKADE_LOG_FORMAT="json") as server:
        ids = []
        with httpx.Client(base_url=server.url, trust_env=False, timeout=START_S) as client:
            for headers in ({}, {"traceparent": PARENT}):
                job = client.post("/v1/jobs", json={"language": "python", "code": "1"}, headers=headers).json()
                client.get(f"/v1/jobs/{job['id']}?wait=50s")
                ids.append(job["id"])
        assert server.end() == 0
    found = [json.loads(line) for line in server.log]
    ended = [event for event in found if event["event"] == "job.ended"]
    assert [(one["job_id"], one.get("trace_id")) for one in ended] == [(ids[0], None), (ids[1], TRACE_ID)]
    assert "job.queued" not in {event["event"] for event in found}  # as a service usually logs
