"""Jobs, as clients are shown them: pure functions."""

from collections.abc import Mapping
from typing import Any

from stockade.dialects.code_sandbox.durations import SECOND_NS, format_ns
from stockade.dialects.code_sandbox.translate import timestamp
from stockade.model import Outcome
from stockade.model.jobs import Job, JobFailure, JobResult, JobState, QueueDepth

__all__ = ["accepted", "document", "error_text", "exit_code", "from_depth", "from_job"]

_NONE = -1
"""Exit code of what did not end by itself."""
_SIGNALED = 128


def accepted(job: Job) -> dict[str, Any]:
    """The answer to who has queued *job*."""
    return {"id": job.id, "status": "queued", "createdAt": timestamp(job.created_at)}


def document(job: Job, *, default_wall_s: float) -> dict[str, Any]:
    """*job* as the contract has it.

    Args:
        default_wall_s: the time that it has, where it was submitted otherwise and names none.
    """
    wall_s = job.spec.limits.wall_s
    found: dict[str, Any] = {"id": job.id, "status": _status(job), **_moments(job)}
    if job.result is not None:
        found["result"] = _result(job, job.result)
        if error := error_text(job):
            found["error"] = error
    found["request"] = {
        "language": job.spec.language,
        "code": job.spec.code,
        "stdin": job.spec.stdin.decode(errors="replace"),
        "timeout": _nanoseconds(default_wall_s if wall_s is None else wall_s),
    }
    return found


def from_job(job: Job, *, default_wall_s: float, whole: bool) -> dict[str, Any]:
    """*job* as our own routes have it.

    Args:
        whole: with code, standard input and output.
    """
    spec, wall_s = job.spec, job.spec.limits.wall_s
    request: dict[str, Any] = {
        "language": spec.language,
        "timeout": _nanoseconds(default_wall_s if wall_s is None else wall_s),
        "args": list(spec.args),
        "limits": spec.limits.given(),
    }
    if spec.template is not None:
        request["template"] = spec.template
    if spec.backend:
        request["backend"] = spec.backend
    if whole:
        request |= {"code": spec.code, "stdin": spec.stdin.decode(errors="replace")}
    found: dict[str, Any] = {
        "id": job.id,
        "status": job.state.value,
        "language": job.language,
        "priority": job.priority,
        "labels": dict(job.labels),
        "attempts": job.attempts,
        **_moments(job),
        "runAt": timestamp(job.run_at),
        "isDead": job.is_dead,
        "cancelRequested": job.cancel_requested,
        "request": request,
    }
    if job.expires_at is not None:
        found["expiresAt"] = timestamp(job.expires_at)
    if job.batch_id is not None:
        found["batchId"] = job.batch_id
    if job.retry_of is not None:
        found["retryOf"] = job.retry_of
    if job.result is not None:
        found["result"] = _own_result(job, job.result, whole=whole)
        if error := error_text(job):
            found["error"] = error
    if job.webhook is not None:
        found["webhook"] = _webhook(job)
    return found


def from_depth(depth: QueueDepth) -> dict[str, Any]:
    """How many jobs wait."""
    found: dict[str, Any] = {
        "queued": dict(depth.queued),
        "delayed": depth.delayed,
        "running": depth.running,
        "dead": depth.dead,
    }
    if depth.oldest_queued_at is not None:
        found["oldestQueuedAt"] = timestamp(depth.oldest_queued_at)
    return found


def exit_code(result: JobResult) -> int:
    """The contract's exit code: -1 where the program was not let end by itself."""
    if result.failure is not None or result.outcome in _STOPPED or result.outcome is None:
        return _NONE
    if result.signal is not None:
        return _SIGNALED + result.signal
    return _NONE if result.exit_code is None else result.exit_code


def error_text(job: Job) -> str:
    """Why an ended job has failed, as the contract words it; empty for one that has succeeded."""
    result = job.result
    if result is None or result.state is JobState.SUCCEEDED:
        return ""
    if result.failure is JobFailure.CANCELLED or result.outcome is Outcome.CANCELLED:
        return "execution cancelled"
    if result.failure is JobFailure.LOST or result.outcome is Outcome.LOST:
        return "server restarted"
    if result.failure is not None:
        return f"execution error: {result.message}"
    if result.outcome in (Outcome.WALL_TIME, Outcome.CPU_TIME):
        limit = format_ns(_nanoseconds(job.spec.limits.wall_s or 0))
        # The program's own time is measured: nothing is added for what comes before it.
        return f"execution timed out: limit={limit} runtime={format_ns(result.duration_ns)} overhead=0s"
    if result.outcome in _STOPPED:
        return _STOPPED[result.outcome]
    return f"process exited with status {exit_code(result)}"


_STOPPED: Mapping[Outcome | None, str] = {
    Outcome.WALL_TIME: "",
    Outcome.CPU_TIME: "",
    Outcome.MEMORY: "memory limit exceeded",
    Outcome.OUTPUT: "output limit exceeded",
    Outcome.CANCELLED: "",
    Outcome.LOST: "",
}
"""Outcomes of programs that something stopped, with the text where it is a fixed one."""


def _status(job: Job) -> str:
    return "failed" if job.state is JobState.CANCELLED else job.state.value


def _moments(job: Job) -> dict[str, str]:
    # Of an ended job `updated_at` may tell of a webhook; the contract has it end with the job.
    found = {"createdAt": timestamp(job.created_at), "updatedAt": timestamp(job.ended_at or job.updated_at)}
    if job.started_at is not None and job.state is not JobState.QUEUED:
        found["startedAt"] = timestamp(job.started_at)
    if job.ended_at is not None:
        found["completedAt"] = timestamp(job.ended_at)
    return found


def _result(job: Job, result: JobResult) -> dict[str, Any]:
    found: dict[str, Any] = {
        "stdout": result.stdout.decode(errors="replace"),
        "stderr": result.stderr.decode(errors="replace"),
        "exitCode": exit_code(result),
        "duration": result.duration_ns,
        "completedAt": timestamp(job.ended_at or job.updated_at),
    }
    if result.outcome is not None:
        found["usage"] = _usage(result)
    return found


def _own_result(job: Job, result: JobResult, *, whole: bool) -> dict[str, Any]:
    output = {"stdout": result.stdout.decode(errors="replace"), "stderr": result.stderr.decode(errors="replace")}
    return {
        "outcome": result.outcome.value if result.outcome is not None else None,
        "exitCode": result.exit_code,
        "signal": result.signal,
        **(output if whole else {}),
        "stdoutTruncated": result.stdout_truncated,
        "stderrTruncated": result.stderr_truncated,
        "compilationFailed": result.compilation_failed,
        "duration": result.duration_ns,
        "completedAt": timestamp(job.ended_at or job.updated_at),
        "usage": _usage(result),
        "failure": result.failure.value if result.failure is not None else None,
        "message": result.message,
    }


def _usage(result: JobResult) -> dict[str, int]:
    return {"cpuTime": result.cpu_ns, "peakMemory": result.memory_peak_bytes}


def _webhook(job: Job) -> dict[str, Any]:
    webhook = job.webhook
    assert webhook is not None
    found: dict[str, Any] = {"url": webhook.url, "attempts": webhook.attempts}
    if webhook.delivered_at is not None:
        found["deliveredAt"] = timestamp(webhook.delivered_at)
    if webhook.next_at is not None:
        found["nextAt"] = timestamp(webhook.next_at)
    if webhook.error:
        found["error"] = webhook.error
    return found


def _nanoseconds(seconds: float) -> int:
    return round(seconds * SECOND_NS)
