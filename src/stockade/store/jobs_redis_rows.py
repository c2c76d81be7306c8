"""From jobs to hashes in Redis and back; see `jobs_redis_scripts` for where they are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from stockade.model.jobs import Job, JobResult, WorkerRecord
from stockade.model.runs import RunSpec
from stockade.store.job_rows import (
    PLAIN,
    ended,
    job_from_row,
    job_to_row,
    owner_of,
    result_to_json,
    webhook_to_json,
    worker_to_row,
)

__all__ = [
    "LISTED",
    "Document",
    "job_from_hash",
    "microseconds",
    "moment",
    "pairs",
    "result_arguments",
    "sample",
    "to_add",
    "with_result",
    "worker_from_json",
    "worker_to_json",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MOVING = ("updated_at", "run_at", "started_at", "ended_at", "expires_at", "lease_until")
_FIXED = tuple(
    name
    for name in PLAIN
    if name not in (*_MOVING, "created_at", "attempts", "fence", "worker", "cancel_requested", "is_dead")
)
LISTED = (
    "state",
    "fixed",
    "created",
    *_MOVING,
    "attempts",
    "fence",
    "worker",
    "cancel",
    "dead",
    "webhook",
    "webhook_at",
    "result",
    "forgotten",
)
"""What lists show of a job."""

Document = Mapping[str, Any]
"""A job as the protocol that jobs in Redis come from has it."""


def microseconds(at: datetime) -> int:
    """Whole microseconds since 1970."""
    return (at - EPOCH) // _MICROSECOND


def moment(text: bytes | str | None) -> datetime | None:
    """The moment of microseconds since 1970; `None` of an empty text."""
    return EPOCH + int(text) * _MICROSECOND if text else None


def to_add(job: Job, document: Document) -> list[Any]:
    """The arguments of the script that adds a job: as many as it says."""
    row = job_to_row(job, is_ready=True)
    fixed = {name: row[name] for name in _FIXED} | {"spec": row["spec"]}
    # The rest of the document is appended by the scripts, which know what becomes of the job.
    told = json.dumps({"id": document["id"], "request": document["request"]})[:-1]
    return [
        job.id,
        _bytes(owner_of(job.account_id, job.key_id)),
        job.language,
        job.priority,
        microseconds(job.run_at),
        microseconds(job.created_at),
        _bytes(job.account_id),
        _bytes(job.batch_id or ""),
        "" if job.webhook is None else json.dumps(webhook_to_json(job.webhook)),
        told,
        job.spec.code.encode(errors="surrogatepass"),
        job.spec.stdin,
        json.dumps(fixed),
    ]


def job_from_hash(values: Mapping[str, bytes | None]) -> Job | None:
    """The job of a hash, whole or without programs and output; `None` of one that is not there, or forgotten."""
    if not values.get("state") or values.get("forgotten"):
        return None
    fixed = json.loads(values["fixed"] or b"{}")
    row = {name: fixed[name] for name in (*_FIXED, "spec")}
    row |= {name: moment(values.get(name)) for name in _MOVING}
    webhook, result = values.get("webhook"), values.get("result")
    row |= {
        "created_at": moment(values["created"]),
        "state": _text(values["state"]),
        "attempts": int(values["attempts"] or 0),
        "fence": int(values["fence"] or 0),
        "worker": _text(values.get("worker")),
        "cancel_requested": values.get("cancel") == b"1",
        "is_dead": values.get("dead") == b"1",
        "webhook": json.loads(webhook) if webhook else None,
        "webhook_at": moment(values.get("webhook_at")),
        "result": json.loads(result) if result else None,
        **{name: values.get(name) for name in ("code", "stdin", "stdout", "stderr")},
    }
    return job_from_row(SimpleNamespace(_mapping=row))


def result_arguments(result: JobResult, document: Document) -> tuple[str, str, str]:
    """What the scripts are told of a result: ours without output, the document's, and the document's error.

    Args:
        document: of a job that has ended with it. When that was, the script says.
    """
    told = {name: value for name, value in document["result"].items() if name != "completedAt"}
    error = document.get("error", "")
    return json.dumps(result_to_json(result)), json.dumps(told)[:-1], json.dumps(error) if error else ""


def worker_to_json(worker: WorkerRecord) -> str:
    row = worker_to_row(worker)
    row["started_at"] = microseconds(worker.started_at)
    del row["seen_at"]
    return json.dumps(row)


def worker_from_json(text: bytes, seen: bytes) -> WorkerRecord:
    values = json.loads(text)
    members = {one.name: values[one.name] for one in fields(WorkerRecord) if one.name != "seen_at"}
    members |= {"languages": tuple(values["languages"]), "started_at": moment(str(values["started_at"]))}
    return WorkerRecord(**members, seen_at=EPOCH + int(seen) * _MICROSECOND)


def sample(result: JobResult) -> Job:
    """A job that has ended with *result*, of which the document's words for it can be had."""
    job = Job(
        id="",
        account_id="",
        key_id="",
        dialect="",
        spec=RunSpec(language="", code=""),
        language="",
        created_at=EPOCH,
        updated_at=EPOCH,
        run_at=EPOCH,
    )
    return ended(job, result, now=EPOCH, keep_s=None)


def with_result(job: Job, result: JobResult) -> Job:
    """*job* as if it had ended with *result* now."""
    return ended(job, result, now=EPOCH, keep_s=None)


def pairs(values: Sequence[bytes]) -> dict[str, bytes]:
    """A hash, as scripts return it."""
    return {name.decode(): value for name, value in zip(values[::2], values[1::2], strict=True)}


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="surrogatepass")
