"""From jobs to rows and back."""

from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import Any

from stockade.model.jobs import Job, JobFailure, JobResult, JobState, Webhook, WorkerRecord
from stockade.model.limits import LimitOverrides
from stockade.model.outcomes import Outcome
from stockade.model.processes import OnOutputLimit
from stockade.model.runs import RunSpec

__all__ = [
    "CANCELLED",
    "LOST",
    "PLAIN",
    "ended",
    "is_storable",
    "job_from_row",
    "job_to_row",
    "owner_of",
    "payload_to_row",
    "result_to_json",
    "webhook_from_json",
    "webhook_to_json",
    "worker_from_row",
    "worker_to_row",
]

CANCELLED = JobResult(outcome=None, failure=JobFailure.CANCELLED, message="cancelled before it had ended")
LOST = JobResult(outcome=None, failure=JobFailure.LOST, message="every worker that took it died or fell silent")

PLAIN = (
    "id",
    "account_id",
    "key_id",
    "dialect",
    "language",
    "priority",
    "labels",
    "batch_id",
    "retry_of",
    "trace",
    "created_at",
    "updated_at",
    "run_at",
    "started_at",
    "ended_at",
    "expires_at",
    "attempts",
    "fence",
    "worker",
    "lease_until",
    "cancel_requested",
    "is_dead",
)
"""Members of a job that have a column of their own."""

_RESULT = tuple(one.name for one in fields(JobResult) if one.name not in ("stdout", "stderr"))


def owner_of(account_id: str, key_id: str) -> str:
    """Who takes turns, and who has a quota: the account, or the key of those who have none."""
    return f"account {account_id}" if account_id else f"key {key_id}"


def is_storable(value: str | None) -> bool:
    """Whether a database could hold *value* as text: what it cannot, it does not have either."""
    try:
        return value is None or (b"\0" not in value.encode())
    except UnicodeEncodeError:
        return False


def job_to_row(job: Job, *, is_ready: bool) -> dict[str, Any]:
    """The columns of a new job."""
    row = {name: getattr(job, name) for name in PLAIN}
    # PostgreSQL's text holds neither; these two are the only ones whose every character is a client's.
    row["trace"], row["batch_id"] = _text(job.trace), None if job.batch_id is None else _text(job.batch_id)
    return row | {
        "owner": owner_of(job.account_id, job.key_id),
        "labels": dict(job.labels),
        "spec": _spec_to_json(job.spec),
        "state": job.state.value,
        "is_ready": is_ready,
        "result": None if job.result is None else result_to_json(job.result),
        "webhook": None if job.webhook is None else webhook_to_json(job.webhook),
        "webhook_at": None if job.webhook is None else job.webhook.next_at,
        "noted": 0,
    }


def payload_to_row(job: Job) -> dict[str, Any]:
    """The columns of its program."""
    return {"job_id": job.id, "code": job.spec.code.encode(errors="surrogatepass"), "stdin": job.spec.stdin}


def job_from_row(row: Any) -> Job:
    """The job of a row that has `PLAIN`, `spec`, `state`, `result`, `webhook` and `webhook_at`; where it has them,
    with `code`, `stdin`, `stdout` and `stderr` too.
    """
    columns: Mapping[str, Any] = row._mapping
    result = None if columns["result"] is None else _result_from_json(columns["result"], columns)
    webhook = None
    if columns["webhook"] is not None:
        webhook = webhook_from_json(columns["webhook"], next_at=columns["webhook_at"])
    return Job(
        **{name: columns[name] for name in PLAIN},
        state=JobState(columns["state"]),
        spec=_spec_from_json(columns["spec"], columns),
        result=result,
        webhook=webhook,
    )


def ended(job: Job, result: JobResult, *, now: datetime, keep_s: float | None, is_dead: bool = False) -> Job:
    """*job* as it is once it has ended with *result*."""
    return replace(
        job,
        state=result.state,
        result=result,
        ended_at=now,
        updated_at=now,
        expires_at=None if keep_s is None else now + timedelta(seconds=keep_s),
        lease_until=None,
        is_dead=is_dead,
        webhook=None if job.webhook is None else replace(job.webhook, next_at=now),
    )


def result_to_json(result: JobResult) -> dict[str, Any]:
    """All of it but the output."""
    return {name: getattr(result, name) for name in _RESULT}


def _result_from_json(values: Mapping[str, Any], output: Mapping[str, Any]) -> JobResult:
    outcome, failure = values["outcome"], values["failure"]
    return JobResult(
        **{
            **values,
            "outcome": None if outcome is None else Outcome(outcome),
            "failure": None if failure is None else JobFailure(failure),
            "stdout": output.get("stdout") or b"",
            "stderr": output.get("stderr") or b"",
        }
    )


def webhook_to_json(webhook: Webhook) -> dict[str, Any]:
    """All of it but the moment of the next attempt, which is a column."""
    at = webhook.delivered_at
    return {
        "url": webhook.url,
        "attempts": webhook.attempts,
        "delivered_at": None if at is None else at.isoformat(),
        "error": webhook.error,
    }


def webhook_from_json(values: Mapping[str, Any], *, next_at: datetime | None) -> Webhook:
    at = values["delivered_at"]
    return Webhook(**{**values, "delivered_at": None if at is None else datetime.fromisoformat(at), "next_at": next_at})


def worker_to_row(worker: WorkerRecord) -> dict[str, Any]:
    row = {one.name: getattr(worker, one.name) for one in fields(WorkerRecord)}
    return row | {"languages": list(worker.languages)}


def worker_from_row(row: Any) -> WorkerRecord:
    members = {one.name: getattr(row, one.name) for one in fields(WorkerRecord)}
    return WorkerRecord(**{**members, "languages": tuple(row.languages)})


def _spec_to_json(spec: RunSpec) -> dict[str, Any]:
    return {
        "language": spec.language,
        "args": list(spec.args),
        "template": spec.template,
        "backend": spec.backend,
        # Infinite ones are none of JSON, though Python writes them.
        "limits": {name: str(value) if value == float("inf") else value for name, value in spec.limits.given().items()},
        "on_output_limit": spec.on_output_limit.value,
    }


def _spec_from_json(values: Mapping[str, Any], payload: Mapping[str, Any]) -> RunSpec:
    code: bytes = payload.get("code") or b""
    limits: dict[str, Any] = {
        name: float(value) if isinstance(value, str) else value for name, value in values["limits"].items()
    }
    return RunSpec(
        language=values["language"],
        code=code.decode(errors="surrogatepass"),
        stdin=payload.get("stdin") or b"",
        args=tuple(values["args"]),
        template=values["template"],
        backend=values.get("backend", ""),  # of jobs from before there were several: none
        limits=LimitOverrides(**limits),
        on_output_limit=OnOutputLimit(values["on_output_limit"]),
    )


def _text(value: str) -> str:
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
