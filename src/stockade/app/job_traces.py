"""Spans of a job's path through a worker, in the trace of the request that submitted it.

    POST /v1/jobs                        the server, with `job.submit` inside
    ├── job.wait                         from the moment that it could start to its first claim
    ├── job.run                          one for each attempt
    │   ├── sandbox.compile              by `Runs`
    │   ├── sandbox.run
    │   └── job.store
    ├── job.reap                         instead of an end: every worker that had it died
    └── job.webhook                      one for each attempt

A worker that dies sends no span of what it had under way.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from opentelemetry import trace

from stockade.model.jobs import Job, JobFailure
from stockade.spans import NAMESPACE, OUTCOME, Attribute, inside, span, spanned
from stockade.worker import Observer
from stockade.worker.results import Finish, GiveBack, Verdict

__all__ = ["JobTraces"]

_OURS = frozenset((JobFailure.LOST, JobFailure.FAULT))
"""Failures that are the operator's business; others are the program's, or its author's."""


class JobTraces(Observer):
    """Makes the spans."""

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        """Args:
        tracer: makes the spans; by default the configured one, or none.
        """
        self._tracer = tracer or trace.get_tracer("stockade.worker")

    @contextmanager
    def attempting(self, job: Job) -> Iterator[None]:
        """See `Observer.attempting`."""
        parent = inside(job.trace)
        noted = _about(job)
        waited_s = max(0.0, (datetime.now(UTC) - job.run_at).total_seconds())
        if parent is not None and job.fence == 1:
            # Its beginning is by the clock of whoever took the request, its end by ours.
            now = time.time_ns()
            self._tracer.start_span(
                "job.wait", context=parent, attributes=noted, start_time=now - round(1e9 * waited_s)
            ).end(now)
        with spanned(self._tracer, "job.run", noted, parent=parent):
            yield

    def decided(self, job: Job, verdict: Verdict) -> None:
        """See `Observer.decided`."""
        one = trace.get_current_span()
        match verdict:
            case Finish(result=result):
                word = result.failure or result.outcome
                one.set_attribute(OUTCOME, word.value if word is not None else "none")
                one.set_attribute(NAMESPACE + "state", result.state.value)
                if result.failure in _OURS:
                    one.set_status(trace.StatusCode.ERROR)
            case GiveBack(reason=reason):
                one.set_attribute(NAMESPACE + "given_back", reason)
                if reason == "lost":
                    one.set_status(trace.StatusCode.ERROR)
            case _:
                one.set_attribute(OUTCOME, JobFailure.LOST.value)
                one.set_status(trace.StatusCode.ERROR)

    @contextmanager
    def storing(self, job: Job) -> Iterator[None]:
        """See `Observer.storing`."""
        with span("job.store", job_id=job.id):
            yield

    def reaped(self, queued_again: int, ended: Sequence[Job]) -> None:
        """See `Observer.reaped`."""
        for job in ended:
            noted = _about(job) | {NAMESPACE + "state": job.state.value}
            with spanned(self._tracer, "job.reap", noted, parent=inside(job.trace)) as one:
                if job.is_dead:
                    one.set_status(trace.StatusCode.ERROR)

    @contextmanager
    def telling(self, job: Job) -> Iterator[None]:
        """See `Observer.telling`."""
        noted: dict[str, Attribute] = {NAMESPACE + "job_id": job.id}
        if job.webhook is not None:
            noted[NAMESPACE + "attempt"] = job.webhook.attempts + 1
        with spanned(self._tracer, "job.webhook", noted, parent=inside(job.trace), kind=trace.SpanKind.CLIENT):
            yield

    def told(self, outcome: str) -> None:
        """See `Observer.told`."""
        one = trace.get_current_span()
        one.set_attribute(OUTCOME, outcome)
        if outcome != "delivered":
            one.set_status(trace.StatusCode.ERROR)


def _about(job: Job) -> dict[str, Attribute]:
    return {
        NAMESPACE + "job_id": job.id,
        NAMESPACE + "language": job.language,
        NAMESPACE + "dialect": job.dialect,
        NAMESPACE + "attempt": job.attempts,
        NAMESPACE + "worker_id": job.worker,
    }
