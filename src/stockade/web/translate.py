"""From our records to what the portal's front end shows: pure functions. Members without a value are left out."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from stockade.model import FileInfo, Limits, NetworkMode, Outcome, Port, Sandbox
from stockade.model.accounts import ApiKey
from stockade.model.jobs import Job, JobResult, QueueDepth, WorkerRecord
from stockade.model.users import User, UserSession

__all__ = [
    "entry",
    "job",
    "key",
    "limits",
    "queue_depth",
    "sandbox",
    "session",
    "timestamp",
    "user",
    "without_none",
    "worker",
]

_NS = 1_000_000_000


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def without_none(members: Mapping[str, Any]) -> dict[str, Any]:
    """*members* that have a value."""
    return {name: value for name, value in members.items() if value is not None}


def _maybe(moment: datetime | None) -> str | None:
    return None if moment is None else timestamp(moment)


def user(found: User) -> dict[str, Any]:
    return {
        "id": found.id,
        "name": found.name,
        "email": found.email,
        "organization": found.organization,
        "role": str(found.role),
        "emailVerified": found.email_verified_at is not None,
        "hasPassword": found.has_password,
        "createdAt": timestamp(found.created_at),
        "updatedAt": timestamp(found.updated_at),
    }


def session(found: UserSession, *, current: UserSession) -> dict[str, Any]:
    """A log-in, and whether it is the one that asks."""
    return {
        "id": found.id,
        "address": found.address,
        "agent": found.agent,
        "createdAt": timestamp(found.created_at),
        "usedAt": timestamp(found.used_at),
        "isCurrent": found.id == current.id,
    }


def key(found: ApiKey) -> dict[str, Any]:
    """An API key: never its secret."""
    return without_none(
        {
            "id": found.id,
            "name": found.name,
            "description": found.description,
            "preview": found.preview,
            "isActive": found.is_active,
            "isPrimary": found.is_primary,
            "createdAt": timestamp(found.created_at),
            "expiresAt": _maybe(found.expires_at),
            "lastUsedAt": _maybe(found.last_used_at),
            "dailyLimit": found.custom_daily_limit,
            "concurrentLimit": found.custom_concurrent_limit,
        }
    )


def job(found: Job, names: Mapping[str, str], *, whole: bool = True) -> dict[str, Any]:
    """A job.

    Args:
        names: of the account's keys, by id.
        whole: with program, input and output.
    """
    spec = found.spec
    members: dict[str, Any] = {
        "id": found.id,
        "language": found.language,
        "requestedLanguage": spec.language,
        "state": found.state.value,
        "priority": found.priority,
        "createdAt": timestamp(found.created_at),
        "startedAt": _maybe(found.started_at),
        "endedAt": _maybe(found.ended_at),
        "runAt": timestamp(found.run_at),
        "expiresAt": _maybe(found.expires_at),
        "attempts": found.attempts,
        "labels": dict(found.labels),
        "batchId": found.batch_id,
        "retryOf": found.retry_of,
        "isDead": found.is_dead,
        "cancelRequested": found.cancel_requested,
        "keyId": found.key_id,
        "keyName": names.get(found.key_id),
        "args": list(spec.args),
        "limits": spec.limits.given(),
        "result": None if found.result is None else _result(found.result, whole=whole),
    }
    if whole:
        members |= {"code": spec.code, "stdin": _text(spec.stdin)}
    return without_none(members)


def _result(found: JobResult, *, whole: bool) -> dict[str, Any]:
    members: dict[str, Any] = {
        "outcome": (found.outcome or found.failure or Outcome.LOST).value,
        "exitCode": found.exit_code,
        "signal": found.signal,
        "stdoutTruncated": found.stdout_truncated,
        "stderrTruncated": found.stderr_truncated,
        "durationS": found.duration_ns / _NS,
        "cpuS": found.cpu_ns / _NS,
        "memoryPeakBytes": found.memory_peak_bytes,
        "compilationFailed": found.compilation_failed,
        "message": found.message,
    }
    if found.failure is not None:
        members["failure"] = found.failure.value
    if whole:
        members |= {"stdout": _text(found.stdout), "stderr": _text(found.stderr)}
    return members


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def sandbox(found: Sandbox, urls: Mapping[Port, str]) -> dict[str, Any]:
    """A sandbox.

    Args:
        urls: where browsers reach its ports.
    """
    shown = found.network.ports if found.network.mode is NetworkMode.EXPOSED else ()
    ports = [
        without_none({"port": port.container, "protocol": port.protocol.value, "url": urls.get(port)})
        for port in shown
        if port.container != Port.BOUND
    ]
    return without_none(
        {
            "id": found.id,
            "state": found.state.value,
            "image": found.image,
            "command": list(found.command),
            "cwd": found.cwd,
            "createdAt": timestamp(found.created_at),
            "startedAt": _maybe(found.started_at),
            "endedAt": _maybe(found.ended_at),
            "deadlineAt": _maybe(found.deadline_at),
            "endedBy": found.ended_by and found.ended_by.value,
            "outcome": found.outcome and found.outcome.value,
            "exitCode": found.exit_code,
            "message": found.message,
            "isDeleted": found.is_deleted,
            "limits": limits(found.limits),
            "network": {"mode": found.network.mode.value},
            "ports": ports,
            "labels": dict(found.labels),
            "keyId": found.key_id,
            "dialect": found.dialect,
        }
    )


def limits(found: Limits) -> dict[str, Any]:
    return {
        "wall_s": found.wall_s,
        "cpu_s": found.cpu_s,
        "cpus": found.cpus,
        "memory_bytes": found.memory_bytes,
        "disk_bytes": found.disk_bytes,
        "processes": found.processes,
        "output_bytes": found.output_bytes,
    }


def entry(info: FileInfo) -> dict[str, Any]:
    """An entry of a directory."""
    return without_none(
        {
            "name": info.name,
            "kind": info.kind.value,
            "sizeBytes": info.size,
            "modifiedAt": _moment(info.modified_at),
            "mode": info.mode & 0o7777,
            "target": info.target,
            "targetKind": info.target_kind and info.target_kind.value,
        }
    )


def _moment(seconds: float) -> str:
    """A tenant may set the time of a file to anything: what is no time we know is told as the epoch."""
    try:
        return timestamp(datetime.fromtimestamp(seconds, tz=UTC))
    except (ValueError, OverflowError, OSError):
        return timestamp(datetime.fromtimestamp(0, tz=UTC))


def worker(found: WorkerRecord) -> dict[str, Any]:
    return {
        "id": found.id,
        "host": found.host,
        "pid": found.pid,
        "languages": list(found.languages),
        "places": found.places,
        "running": found.running,
        "startedAt": timestamp(found.started_at),
        "seenAt": timestamp(found.seen_at),
        "isDraining": found.is_draining,
    }


def queue_depth(found: QueueDepth) -> dict[str, Any]:
    return without_none(
        {
            "queued": dict(found.queued),
            "delayed": found.delayed,
            "running": found.running,
            "dead": found.dead,
            "oldestQueuedAt": _maybe(found.oldest_queued_at),
        }
    )
