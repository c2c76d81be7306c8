"""What somebody's server is told when a job has ended: the text, its signature, and when to try again."""

import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from stockade.errors import Invalid
from stockade.model.jobs import Job, JobResult

__all__ = ["SIGNATURE_HEADER", "check_url", "describe", "retry_in", "secret_of", "signature"]

SIGNATURE_HEADER = "Stockade-Signature"
MOST_OUTPUT_BYTES = 64 * 1024
"""Of each stream; who wants more asks for the job."""
MOST_URL_CHARACTERS = 2048
JITTER = 0.2
"""So much more or less than planned: receivers that were away are not met by all at once."""


def check_url(url: str) -> None:
    """Refuse what is no address that a webhook could be sent to. Whether it may be reached is seen when it is.

    Raises:
        Invalid: it is not `http://…` or `https://…`, names no host or a user, or is too long.
    """
    if len(url) > MOST_URL_CHARACTERS:
        raise Invalid(f"webhook: must have at most {MOST_URL_CHARACTERS} characters")
    if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        raise Invalid("webhook: must be a URL of ASCII characters, without blanks")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid(f"webhook: is not a URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise Invalid("webhook: must begin with https:// or http://")
    if not parts.hostname or port == 0:
        raise Invalid("webhook: must name a host")
    if "@" in parts.netloc:
        raise Invalid("webhook: must not hold a user or password")


def describe(job: Job) -> bytes:
    """The body for an ended job, as JSON: all about it but its program and input. Members that do not apply are absent.

    Output is cut to 64 KiB a stream; `stdoutTruncated` and `stderrTruncated` say so.
    """
    told: dict[str, Any] = {
        "event": "job.ended",
        "id": job.id,
        "state": job.state.value,
        "language": job.language,
        "labels": dict(job.labels),
        "attempts": job.attempts,
        "isDead": job.is_dead,
        "createdAt": _moment(job.created_at),
    }
    optional: dict[str, Any] = {
        "batchId": job.batch_id,
        "retryOf": job.retry_of,
        "startedAt": _moment(job.started_at) if job.started_at else None,
        "endedAt": _moment(job.ended_at) if job.ended_at else None,
        "result": _result(job.result) if job.result else None,
    }
    told |= {name: value for name, value in optional.items() if value is not None}
    return json.dumps(told, separators=(",", ":")).encode()


def _result(result: JobResult) -> dict[str, Any]:
    told: dict[str, Any] = {
        "stdout": _text(result.stdout),
        "stderr": _text(result.stderr),
        "stdoutTruncated": result.stdout_truncated or len(result.stdout) > MOST_OUTPUT_BYTES,
        "stderrTruncated": result.stderr_truncated or len(result.stderr) > MOST_OUTPUT_BYTES,
        "durationS": result.duration_ns / 1e9,
        "cpuS": result.cpu_ns / 1e9,
        "memoryPeakBytes": result.memory_peak_bytes,
        "compilationFailed": result.compilation_failed,
        "message": result.message,
    }
    optional: dict[str, Any] = {
        "outcome": result.outcome.value if result.outcome else None,
        "exitCode": result.exit_code,
        "signal": result.signal,
        "failure": result.failure.value if result.failure else None,
    }
    return told | {name: value for name, value in optional.items() if value is not None}


def _text(output: bytes) -> str:
    return output[:MOST_OUTPUT_BYTES].decode(errors="replace")


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def secret_of(secret: str, account_id: str) -> str:
    """What signs messages about jobs of an account, made of the server's own *secret*: who checks messages can sign
    them, too, and must not be able to sign others'. Those about jobs of nobody are signed with *secret* itself.
    """
    if not account_id:
        return secret
    return hmac.new(secret.encode(), f"stockade webhooks of {account_id}".encode(), hashlib.sha256).hexdigest()


def signature(secret: str, body: bytes, *, at: int) -> str:
    """The value of the signature's header: `t=<Unix time>,v1=<HMAC-SHA256 of "<time>.<body>" in hexadecimal>`.

    The time is signed along, so that a receiver can refuse what somebody recorded and sends again.
    """
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def retry_in(attempts: int, *, first_s: float, longest_s: float, chance: float) -> float:
    """Seconds to wait after so many attempts have failed: doubles each time.

    Args:
        chance: a random number from 0 to 1.
    """
    # Past 2^40 everything is longer than the longest; the power must not overflow.
    planned_s = min(longest_s, first_s * 2.0 ** min(attempts - 1, 40))
    return planned_s * (1 + JITTER * (2 * chance - 1))
