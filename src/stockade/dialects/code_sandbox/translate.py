"""What clients ask for, as the engine has it: pure functions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from stockade.dialects.code_sandbox.durations import SECOND_NS, BadDuration, format_ns, parse_ns
from stockade.dialects.code_sandbox.failures import Refused
from stockade.dialects.code_sandbox.gojson import is_blank, trimmed
from stockade.dialects.code_sandbox.wire import JobBody
from stockade.engine.jobs import JobRequest
from stockade.model import LimitOverrides, Limits, RunSpec

__all__ = [
    "NAME",
    "SPELLINGS",
    "Defaults",
    "moment",
    "timestamp",
    "to_job",
    "to_request",
    "to_spec",
    "wanted_ns",
]

NAME = "code-sandbox"
"""The dialect's."""
SPELLINGS: Mapping[str, str] = {
    "go": "go",
    "golang": "go",
    "python": "python",
    "py": "python",
    "javascript": "node",
    "js": "node",
    "node": "node",
    "nodejs": "node",
}
"""Languages of the contract, by how clients may spell them, in lower case."""
_FURTHEST = timedelta(days=3650)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a request for time is measured by."""

    timeout_ns: int
    """What it has when it asks for none."""
    longest_ns: int
    """The most that it may ask for."""
    maximum: Limits
    """The server's."""

    @classmethod
    def of(cls, *, timeout_s: float, max_timeout_s: float, maximum: Limits) -> Self:
        """Those of the settings, under the server's *maximum*."""
        return cls(
            timeout_ns=_nanoseconds(min(timeout_s, maximum.wall_s)),
            longest_ns=_nanoseconds(min(max_timeout_s, maximum.wall_s)),
            maximum=maximum,
        )


def to_spec(fields: Mapping[str, str], defaults: Defaults, *, known: Mapping[str, str] | None = SPELLINGS) -> RunSpec:
    """The run that the contract's request asks for; what is wrong is looked for in the contract's order.

    Args:
        known: languages by their spellings; `None`: whatever the engine takes.

    Raises:
        Refused: in the contract's words.
    """
    language, code = fields.get("language", ""), fields.get("code", "")
    if is_blank(language):
        raise Refused(400, "language is required")
    if is_blank(code):
        raise Refused(400, "code is required")
    if known is not None and language.lower() not in known:
        raise Refused(501, "unsupported language")
    wall_ns = wanted_ns(fields.get("timeout", ""), defaults)
    return RunSpec(
        language=language,
        code=code,
        stdin=fields.get("stdin", "").encode(errors="replace"),
        limits=LimitOverrides(wall_s=wall_ns / SECOND_NS, cpu_s=_cpu_s(wall_ns, defaults.maximum)),
    )


def wanted_ns(text: str, defaults: Defaults) -> int:
    """The time that a request asks for; the default where it says nothing.

    Raises:
        Refused: it is no duration, not above zero, or above the maximum.
    """
    if is_blank(text):
        return defaults.timeout_ns
    try:
        wall_ns = parse_ns(trimmed(text))
    except BadDuration:
        raise Refused(400, "invalid timeout value", field="timeout") from None
    if wall_ns <= 0:
        raise Refused(400, "timeout must be greater than zero", field="timeout")
    _check_longest(wall_ns, defaults)
    return wall_ns


def to_job(body: JobBody, defaults: Defaults, *, trace: str, now: datetime) -> JobRequest:
    """What our own request asks for.

    Raises:
        Refused: members contradict each other, or say something impossible.
    """
    limits = body.limits
    if limits.wall_s is not None and body.timeout is not None:
        raise Refused(400, "timeout and limits.wall_s say the same: send one of them", field="timeout")
    if limits.wall_s is None:
        wall_ns = wanted_ns(body.timeout or "", defaults)
    else:
        wall_ns = _nanoseconds(limits.wall_s)
        _check_longest(wall_ns, defaults)
    values = limits.model_dump(exclude_none=True)
    values["wall_s"] = wall_ns / SECOND_NS
    values.setdefault("cpu_s", _cpu_s(wall_ns, defaults.maximum))
    spec = RunSpec(
        language=body.language,
        code=body.code,
        stdin=body.stdin.encode(),
        args=tuple(body.args),
        template=body.template or None,
        backend=body.backend or "",
        limits=LimitOverrides(**values),
    )
    return JobRequest(
        spec=spec,
        dialect=NAME,
        priority=body.priority,
        run_at=_run_at(body, now),
        webhook_url=body.webhook or "",
        labels=body.labels,
        trace=trace,
    )


def to_request(spec: RunSpec, *, trace: str) -> JobRequest:
    """The contract's job."""
    return JobRequest(spec=spec, dialect=NAME, trace=trace)


def moment(text: str, field: str) -> datetime:
    """A moment by RFC 3339.

    Raises:
        Refused: *text* is none, or has no time zone.
    """
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise Refused(400, f"{field}: must be a moment like 2026-03-02T09:30:00Z", field=field)


def timestamp(moment: datetime) -> str:
    """*moment* by RFC 3339, UTC, without trailing zeros."""
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    return f"{text.rstrip('0').rstrip('.')}Z"


def _run_at(body: JobBody, now: datetime) -> datetime | None:
    if body.delay is not None and body.run_at is not None:
        raise Refused(400, "delay and runAt say the same: send one of them", field="delay")
    if body.run_at is not None:
        return moment(body.run_at, "runAt")
    if body.delay is None:
        return None
    try:
        delay = timedelta(microseconds=parse_ns(trimmed(body.delay)) / 1000)
    except BadDuration:
        raise Refused(400, "delay: must be a duration like 30s", field="delay") from None
    if not timedelta(0) <= delay <= _FURTHEST:
        raise Refused(400, "delay: must not be negative, nor as long", field="delay")
    return now + delay


def _check_longest(wall_ns: int, defaults: Defaults) -> None:
    if wall_ns > defaults.longest_ns:
        raise Refused(400, f"timeout must not exceed {format_ns(defaults.longest_ns)}", field="timeout")


def _cpu_s(wall_ns: int, maximum: Limits) -> float:
    """CPU time that never ends a program before its wall time does: the contract knows no other limit of time."""
    return min(maximum.cpu_s, math.ceil(wall_ns / SECOND_NS + 1) * max(1.0, maximum.cpus))


def _nanoseconds(seconds: float) -> int:
    return round(seconds * SECOND_NS)
