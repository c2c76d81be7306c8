"""Between the wire and the engine: pure functions, as tables."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.config import SandboxConfig
from stockade.dialects.code_sandbox.failures import Refused
from stockade.dialects.code_sandbox.shown import document, error_text, from_job
from stockade.dialects.code_sandbox.translate import Defaults, moment, timestamp, to_job, to_spec
from stockade.dialects.code_sandbox.wire import JobAnswer, JobBody, RecordAnswer, checked
from stockade.model import LimitOverrides, Outcome, RunSpec
from stockade.model.jobs import Job, JobFailure, JobResult, JobState, Webhook

NOW = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
DEFAULTS = Defaults.of(timeout_s=3.0, max_timeout_s=60.0, maximum=SandboxConfig().maximum)


def queued(**members: Any) -> Job:
    spec = RunSpec(language="JS", code="1", limits=LimitOverrides(wall_s=1.0))
    whole = {
        "id": "7b0f6f0e-3a52-4a7c-9d0a-0f6f2f2f4c11",
        "account_id": "",
        "key_id": "anonymous:::1",
        "dialect": "code-sandbox",
        "spec": spec,
        "language": "node",
        "created_at": NOW,
        "updated_at": NOW,
        "run_at": NOW,
        **members,
    }
    return Job(**whole)


def ended(result: JobResult, **members: Any) -> Job:
    at = NOW + timedelta(seconds=1)
    members = {"started_at": NOW, "ended_at": at, "updated_at": at + timedelta(seconds=5), **members}
    return queued(state=result.state, result=result, **members)


@pytest.mark.parametrize(
    ("fields", "status", "error"),
    [
        ({}, 400, "language is required"),
        ({"language": " \u2003", "code": "x"}, 400, "language is required"),
        ({"language": "rust"}, 400, "code is required"),
        ({"language": "python", "code": " \n"}, 400, "code is required"),
        ({"language": "rust", "code": "x", "timeout": "bad"}, 501, "unsupported language"),
        ({"language": " python", "code": "x"}, 501, "unsupported language"),
        ({"language": "python3", "code": "x"}, 501, "unsupported language"),
        ({"language": "python", "code": "x", "timeout": "5"}, 400, "invalid timeout value"),
        ({"language": "python", "code": "x", "timeout": "-5s"}, 400, "timeout must be greater than zero"),
        ({"language": "python", "code": "x", "timeout": "61s"}, 400, "timeout must not exceed 1m0s"),
    ],
)
def test_the_first_check_that_fails_decides(fields: dict[str, str], status: int, error: str) -> None:
    with pytest.raises(Refused) as refused:
        to_spec(fields, DEFAULTS)
    assert (refused.value.status, str(refused.value)) == (status, error)


@pytest.mark.parametrize(
    ("timeout", "seconds"), [("", 3.0), ("\n", 3.0), ("1.5s", 1.5), (" 2s ", 2.0), ("500µs", 0.0005), ("1m", 60.0)]
)
def test_the_time_is_the_program_s_own_and_the_only_one(timeout: str, seconds: float) -> None:
    spec = to_spec({"language": "Py", "code": "x", "timeout": timeout}, DEFAULTS)
    assert spec.language == "Py"
    assert spec.limits.wall_s == seconds
    assert spec.limits.cpu_s is not None
    assert spec.limits.cpu_s >= seconds


@given(st.integers(1, 60 * 10**9))
def test_every_time_comes_back_to_the_nanosecond(wall_ns: int) -> None:
    spec = to_spec({"language": "go", "code": "x", "timeout": f"{wall_ns}ns"}, DEFAULTS)
    assert document(queued(spec=spec), default_wall_s=9)["request"]["timeout"] == wall_ns


@pytest.mark.parametrize(
    ("result", "status", "code", "error"),
    [
        (JobResult(outcome=Outcome.EXITED, exit_code=0), "succeeded", 0, ""),
        (JobResult(outcome=Outcome.EXITED, exit_code=3), "failed", 3, "process exited with status 3"),
        (JobResult(outcome=Outcome.SIGNALED, signal=9), "failed", 137, "process exited with status 137"),
        (JobResult(outcome=Outcome.PROCESSES, exit_code=1), "failed", 1, "process exited with status 1"),
        (JobResult(outcome=Outcome.DISK, exit_code=28), "failed", 28, "process exited with status 28"),
        (
            JobResult(outcome=Outcome.WALL_TIME, signal=9, duration_ns=1_252_000_000),
            "failed",
            -1,
            "execution timed out: limit=1s runtime=1.252s overhead=0s",
        ),
        (
            JobResult(outcome=Outcome.CPU_TIME, signal=9, duration_ns=10**9),
            "failed",
            -1,
            "execution timed out: limit=1s runtime=1s overhead=0s",
        ),
        (JobResult(outcome=Outcome.MEMORY, signal=9), "failed", -1, "memory limit exceeded"),
        (JobResult(outcome=Outcome.OUTPUT, signal=9), "failed", -1, "output limit exceeded"),
        (JobResult(outcome=Outcome.CANCELLED, signal=9), "failed", -1, "execution cancelled"),
        (JobResult(outcome=None, failure=JobFailure.CANCELLED), "failed", -1, "execution cancelled"),
        (JobResult(outcome=None, failure=JobFailure.LOST), "failed", -1, "server restarted"),
        (JobResult(outcome=None, failure=JobFailure.FAULT, message="no"), "failed", -1, "execution error: no"),
    ],
)
def test_every_end_has_its_status_exit_code_and_words(result: JobResult, status: str, code: int, error: str) -> None:
    job = ended(result)
    shown = document(job, default_wall_s=3)
    assert (shown["status"], shown["result"]["exitCode"], shown.get("error", "")) == (status, code, error)
    assert error_text(job) == error
    assert shown["updatedAt"] == shown["completedAt"] == shown["result"]["completedAt"] == "2026-03-02T09:30:01Z"
    RecordAnswer.model_validate(shown)
    JobAnswer.model_validate(from_job(job, default_wall_s=3, whole=True))


def test_what_does_not_apply_is_absent() -> None:
    waiting = document(queued(started_at=NOW), default_wall_s=3)
    assert waiting.keys() == {"id", "status", "createdAt", "updatedAt", "request"}
    running = document(queued(state=JobState.RUNNING, started_at=NOW), default_wall_s=3)
    assert running.keys() == {*waiting, "startedAt"}
    assert waiting["request"] == {"language": "JS", "code": "1", "stdin": "", "timeout": 10**9}
    done = document(ended(JobResult(outcome=Outcome.EXITED, exit_code=0)), default_wall_s=3)
    assert done.keys() == {*running, "completedAt", "result"}


def test_a_job_of_another_dialect_is_shown_with_the_time_that_it_has() -> None:
    job = queued(spec=RunSpec(language="python", code="1"))
    assert document(job, default_wall_s=30.0)["request"]["timeout"] == 30 * 10**9


def test_bytes_that_are_no_text_are_replaced() -> None:
    job = ended(JobResult(outcome=Outcome.EXITED, exit_code=0, stdout=b"\xff", stderr=b"\x00\xe2\x82"))
    result = document(job, default_wall_s=3)["result"]
    assert (result["stdout"], result["stderr"]) == ("\ufffd", "\0\ufffd")


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (NOW, "2026-03-02T09:30:00Z"),
        (NOW.replace(microsecond=120_000), "2026-03-02T09:30:00.12Z"),
        (NOW.replace(microsecond=1), "2026-03-02T09:30:00.000001Z"),
        (NOW.astimezone(timezone(timedelta(hours=2))), "2026-03-02T09:30:00Z"),
        (NOW.replace(hour=10, minute=0, second=0), "2026-03-02T10:00:00Z"),
    ],
)
def test_moments_are_utc_without_trailing_zeros(at: datetime, text: str) -> None:
    assert timestamp(at) == text
    assert moment(text, "x") == at


def wanted(**members: Any) -> Any:
    body = checked(JobBody, {"language": "python", "code": "1", **members})
    return to_job(body, DEFAULTS, trace="t", now=NOW)


def test_our_own_request_says_everything() -> None:
    request = wanted(
        stdin="é",
        args=["a b"],
        limits={"wall_s": 2.5, "memory_bytes": 1 << 20},
        template="none",
        priority=7,
        delay="1m",
        labels={"a": "b"},
        webhook="https://example.org/x",
    )
    assert request.spec.stdin == "é".encode()
    assert request.spec.args == ("a b",)
    assert request.spec.template == "none"
    assert (request.spec.limits.wall_s, request.spec.limits.memory_bytes) == (2.5, 1 << 20)
    assert (request.priority, request.labels, request.trace) == (7, {"a": "b"}, "t")
    assert request.run_at == NOW + timedelta(minutes=1)
    assert request.webhook_url == "https://example.org/x"
    assert wanted(runAt="2026-03-02T10:30:00+01:00").run_at == NOW
    assert wanted().run_at is None


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"language": ""}, "language"),
        ({"code": ""}, "code"),
        ({"language": 1}, "language"),
        ({"extra": 1}, "extra"),
        ({"limits": {"memory_bytes": 0}}, "limits.memory_bytes"),
        ({"limits": {"wall_s": 1}, "timeout": "1s"}, "timeout"),
        ({"limits": {"wall_s": 61}}, "timeout"),
        ({"timeout": "x"}, "timeout"),
        ({"delay": "x"}, "delay"),
        ({"delay": "-1s"}, "delay"),
        ({"delay": "2562047h"}, "delay"),
        ({"delay": "1s", "runAt": "2026-03-02T10:30:00Z"}, "delay"),
        ({"runAt": "tomorrow"}, "runAt"),
        ({"runAt": "2026-03-02T10:30:00"}, "runAt"),
        ({"priority": 101}, "priority"),
        ({"args": ["a", 1]}, "args.1"),
    ],
)
def test_what_is_wrong_with_our_own_request_is_named(members: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as refused:
        wanted(**members)
    assert refused.value.field == field
    assert refused.value.status == 400


def test_a_list_leaves_out_code_and_output() -> None:
    job = ended(
        JobResult(outcome=Outcome.EXITED, exit_code=0, stdout=b"secret"),
        webhook=Webhook(url="https://example.org", attempts=2, error="timed out"),
        batch_id="b",
        retry_of="r",
    )
    short = from_job(job, default_wall_s=3, whole=False)
    whole = from_job(job, default_wall_s=3, whole=True)
    assert not {"code", "stdin"} & short["request"].keys()
    assert not {"stdout", "stderr"} & short["result"].keys()
    assert whole["result"]["stdout"] == "secret"
    assert whole["webhook"] == {"url": "https://example.org", "attempts": 2, "error": "timed out"}
    assert (whole["batchId"], whole["retryOf"]) == ("b", "r")
    JobAnswer.model_validate(short)


def test_an_own_status_tells_of_a_cancelled_job() -> None:
    job = ended(JobResult(outcome=None, failure=JobFailure.CANCELLED))
    assert from_job(job, default_wall_s=3, whole=True)["status"] == "cancelled"
    assert document(job, default_wall_s=3)["status"] == "failed"
    assert "startedAt" not in document(replace(job, started_at=None), default_wall_s=3)
