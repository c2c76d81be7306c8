"""How our own routes are described."""

from collections.abc import Mapping

from stockade.dialects.code_sandbox.documented import STRING, Described, answer, body, path_id, query
from stockade.dialects.code_sandbox.wire import (
    BatchAnswer,
    BatchBody,
    DepthAnswer,
    JobAnswer,
    JobBody,
    ListAnswer,
    SecretAnswer,
)

__all__ = ["ABOUT"]

_JOB = {
    "language": "python",
    "code": "print(input()[::-1])",
    "stdin": "abc\n",
    "timeout": "2s",
    "labels": {"course": "intro"},
}
_EVENT = {"type": "object", "properties": {"event": STRING, "id": STRING, "data": STRING}}
_FILTERS = [
    query("status", "Of these states (several with commas): queued, running, succeeded, failed, cancelled."),
    query("language", "Of this language."),
    query("batch", "Of this batch."),
    query("key", "Submitted with the key of this id."),
    query("account", "Of this account; for administrators."),
    query("dead", "In the dead-letter list, or not.", {"type": "string", "enum": ["true", "false"]}),
    query("after", "Submitted after this moment (RFC 3339).", {"type": "string", "format": "date-time"}),
    query("before", "Submitted before this moment (RFC 3339).", {"type": "string", "format": "date-time"}),
    query("limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}),
    query("cursor", "Where to go on: `cursor` of the page before."),
]

ABOUT: Mapping[str, Described] = {
    "submit": Described(
        name="submit_job",
        summary="Queue a program, with every option",
        description="Any language of the server; arguments, limits, priority, a later start, labels, a webhook.",
        responses=answer(202, JobAnswer, "It is queued."),
        extra=body(JobBody, _JOB),
    ),
    "submit_batch": Described(
        name="submit_batch",
        summary="Queue several programs, all or none",
        description="`jobs.most_of_batch` programs at most.",
        responses=answer(202, BatchAnswer, "All of them are queued."),
        extra=body(BatchBody, {"jobs": [_JOB, _JOB]}),
    ),
    "list": Described(
        name="list_jobs",
        summary="List jobs",
        description="Those of the account, newest first, without code and output.",
        responses=answer(200, ListAnswer, "A page of them."),
        extra={"parameters": _FILTERS},
    ),
    "depth": Described(
        name="queue_depth",
        summary="How many jobs wait",
        responses=answer(200, DepthAnswer, "Those of everybody."),
    ),
    "webhook_secret": Described(
        name="webhook_secret",
        summary="What signs webhooks",
        description="Of the account's jobs; 404 without an account.",
        responses=answer(200, SecretAnswer, "The secret."),
    ),
    "read": Described(
        name="job",
        summary="Read a job",
        responses=answer(200, JobAnswer, "The job."),
        extra={"parameters": [path_id(), query("wait", "Wait for its end, up to this Go duration.")]},
    ),
    "forget": Described(
        name="forget_job",
        summary="Remove a job that has ended",
        responses=answer(204, None, "It is gone, with its output."),
        extra={"parameters": [path_id()]},
    ),
    "cancel": Described(
        name="cancel_job",
        summary="End a job",
        description="At once while it waits, soon while it runs. One that has ended stays as it is.",
        responses=answer(200, JobAnswer, "The job as it is then."),
        extra={"parameters": [path_id()]},
    ),
    "retry": Described(
        name="retry_job",
        summary="Run a job that has ended once more",
        description="As a new job, with another id.",
        responses=answer(202, JobAnswer, "The new job."),
        extra={"parameters": [path_id()]},
    ),
    "events": Described(
        name="job_events",
        summary="Follow a job",
        description="`state`: the job, at first and with every change; `output`: what its program prints, as it comes. "
        "The last event is the state of the ended job. `Last-Event-ID` leaves out output that the client has.",
        responses={200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": _EVENT}}}},
        extra={"parameters": [path_id()]},
    ),
}
