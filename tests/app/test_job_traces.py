"""Spans of a job's path: what they belong to, and what they say of how it went."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stockade.app.job_traces import JobTraces
from stockade.model import Outcome
from stockade.model.jobs import JobFailure, JobResult, JobState
from stockade.spans import inside, span, traceparent
from stockade.worker import Observer, Observers
from stockade.worker.results import Finish, Forget, GiveBack, Verdict
from tests.worker.working import a_job

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"
DONE = Finish(result=JobResult(outcome=Outcome.EXITED, exit_code=0))
LOST = Finish(result=JobResult(outcome=None, failure=JobFailure.LOST), is_dead=True)


@pytest.fixture
def collected() -> Iterator[tuple[JobTraces, InMemorySpanExporter]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield JobTraces(provider.get_tracer("test")), exporter
    provider.shutdown()


def parent_of(one: ReadableSpan) -> str:
    return f"{one.parent.span_id:016x}" if one.parent is not None else ""


def trace_of(one: ReadableSpan) -> str:
    assert one.context is not None
    return f"{one.context.trace_id:032x}"


def noted(one: ReadableSpan, name: str) -> object:
    assert one.attributes is not None
    return one.attributes.get(f"stockade.{name}")


def test_a_job_waits_runs_and_is_told_of_in_the_trace_of_its_request(
    collected: tuple[JobTraces, InMemorySpanExporter],
) -> None:
    traces, exporter = collected
    job = a_job(
        "print('secret')",
        trace=TRACEPARENT,
        attempts=1,
        fence=1,
        worker="w",
        run_at=datetime.now(UTC) - timedelta(seconds=5),
        url="http://x/?k=secret",
    )
    observer = Observers(traces, Observer())
    with observer.attempting(job):
        with observer.running(job):
            pass
        observer.decided(job, DONE)
        with observer.storing(job):
            pass
    with observer.telling(job):
        observer.told("failed")
    spans = {one.name: one for one in exporter.get_finished_spans()}
    assert list(spans) == ["job.wait", "job.run", "job.webhook"]  # a store's is made by the configured tracer alone
    for one in spans.values():
        assert (trace_of(one), parent_of(one), noted(one, "job_id")) == (TRACE_ID, SPAN_ID, job.id)
        assert "secret" not in one.to_json()
    wait = spans["job.wait"]
    assert wait.start_time is not None
    assert wait.end_time is not None
    assert 5e9 <= wait.end_time - wait.start_time < 65e9
    assert (noted(spans["job.run"], "outcome"), noted(spans["job.run"], "worker_id")) == ("exited", "w")
    assert noted(spans["job.webhook"], "outcome") == "failed"
    assert not spans["job.webhook"].status.is_ok


@pytest.mark.parametrize(
    ("verdict", "said", "is_ok"),
    [
        (DONE, {"outcome": "exited", "state": "succeeded"}, True),
        (Finish(result=JobResult(outcome=Outcome.EXITED, exit_code=1)), {"outcome": "exited", "state": "failed"}, True),
        (LOST, {"outcome": "lost", "state": "failed"}, False),
        (GiveBack(after_s=0, refund=True, reason="busy"), {"given_back": "busy"}, True),
        (GiveBack(after_s=0, refund=False, reason="lost"), {"given_back": "lost"}, False),
        (Forget(), {"outcome": "lost"}, False),
    ],
)
def test_an_attempt_says_how_it_went_and_is_an_error_where_that_is_ours(
    collected: tuple[JobTraces, InMemorySpanExporter], verdict: Verdict, said: dict[str, str], is_ok: bool
) -> None:
    traces, exporter = collected
    job = a_job(trace=TRACEPARENT, fence=2, attempts=2)
    with traces.attempting(job):
        traces.decided(job, verdict)
    (one,) = exporter.get_finished_spans()  # it has waited before
    assert {name: noted(one, name) for name in said} == said
    assert one.status.is_ok is is_ok


def test_an_exception_leaves_its_type_and_not_its_message(collected: tuple[JobTraces, InMemorySpanExporter]) -> None:
    traces, exporter = collected
    with pytest.raises(ValueError, match="of a tenant"), traces.attempting(a_job()):
        raise ValueError("of a tenant")
    (one,) = exporter.get_finished_spans()
    assert one.attributes is not None
    assert one.attributes["error.type"] == "ValueError"
    assert "tenant" not in one.to_json()


def test_a_job_whose_workers_died_ends_visibly(collected: tuple[JobTraces, InMemorySpanExporter]) -> None:
    traces, exporter = collected
    dead = a_job(trace=TRACEPARENT, is_dead=True, state=JobState.FAILED, attempts=3)
    traces.reaped(1, [dead, replace(dead, is_dead=False, state=JobState.CANCELLED, trace="")])
    lost, cancelled = exporter.get_finished_spans()
    assert (lost.name, trace_of(lost), lost.status.is_ok, noted(lost, "attempt")) == ("job.reap", TRACE_ID, False, 3)
    assert (parent_of(cancelled), noted(cancelled, "state"), cancelled.status.is_ok) == ("", "cancelled", True)


@pytest.mark.anyio
async def test_jobs_that_run_at_once_keep_their_spans_apart(
    collected: tuple[JobTraces, InMemorySpanExporter],
) -> None:
    traces, exporter = collected
    both = asyncio.Barrier(2)

    async def attempt(number: int) -> None:
        job = a_job(trace=f"00-{number:032x}-{SPAN_ID}-01", fence=2)
        with traces.attempting(job):
            await both.wait()
            traces.decided(job, DONE)
            assert traceparent().split("-")[1] == f"{number:032x}"

    await asyncio.gather(attempt(1), attempt(2))
    assert sorted(trace_of(one) for one in exporter.get_finished_spans()) == [f"{number:032x}" for number in (1, 2)]


def test_without_a_trace_nothing_is_made() -> None:
    with span("sandbox.run", language="python") as one:
        assert one is trace.INVALID_SPAN
    assert (traceparent(), traceparent("no-trace")) == ("", "")
    assert traceparent(TRACEPARENT) == TRACEPARENT
    assert inside("") is None
    assert inside(f"{TRACEPARENT}-more") is None
