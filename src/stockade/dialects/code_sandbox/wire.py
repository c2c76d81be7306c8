"""What clients of our own routes, `/v1/jobs`, send and get; and, for the description, what those of the contract do.

Bodies of the contract's routes are read by `gojson`; these here are strict: types are not converted, and members that
nobody knows are refused.
"""

from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from stockade.dialects.code_sandbox.failures import Refused
from stockade.wire.crowds import is_crowded

__all__ = [
    "Accepted",
    "BatchAnswer",
    "BatchBody",
    "DepthAnswer",
    "ExecuteBody",
    "JobAnswer",
    "JobBody",
    "LimitsBody",
    "ListAnswer",
    "RecordAnswer",
    "SecretAnswer",
    "checked",
    "checked_batch",
]

Body = TypeVar("Body", bound=BaseModel)
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
MOST_MEMBERS = 2000
"""Of a job, its arguments and labels included."""
_DURATION = "Go duration, like `1500ms` or `1m30s`."


class Wire(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=False
    )


class ExecuteBody(BaseModel):
    """A program, by the contract. Names match in any letter case; further members are ignored."""

    language: str = Field(description="`go`, `golang`, `python`, `py`, `javascript`, `js`, `node`, `nodejs`; any case.")
    code: str
    stdin: str | None = None
    timeout: str | None = Field(default=None, description=f"{_DURATION} Empty: the server's default.")


class LimitsBody(Wire):
    """Limits by the names of the server's settings (`sandbox.maximum`); what is left out has its default."""

    model_config = ConfigDict(alias_generator=None)

    wall_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    cpu_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    cpus: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    memory_bytes: int | None = Field(default=None, ge=1, lt=2**63)
    processes: int | None = Field(default=None, ge=1, lt=2**31)
    disk_bytes: int | None = Field(default=None, ge=1, lt=2**63)
    disk_inodes: int | None = Field(default=None, ge=1, lt=2**63)
    open_files: int | None = Field(default=None, ge=1, lt=2**31)
    stack_bytes: int | None = Field(default=None, ge=1, lt=2**63)
    output_bytes: int | None = Field(default=None, ge=1, lt=2**63)


class JobBody(Wire):
    """A job."""

    language: str = Field(min_length=1, max_length=64, description="Name or alias of any language of the server.")
    code: str = Field(min_length=1)
    stdin: str = ""
    args: list[str] = Field(default_factory=list, max_length=1000)
    timeout: str | None = Field(default=None, description=f"{_DURATION} Not beside `limits.wall_s`.")
    limits: LimitsBody = Field(default_factory=LimitsBody)
    template: str | None = Field(default=None, max_length=64, description="Name of the template to begin from.")
    backend: str | None = Field(default=None, max_length=64, description="Name of the backend to come from.")
    priority: int = Field(default=0, ge=-100, le=100, description="Of the jobs of an account, higher ones first.")
    delay: str | None = Field(default=None, description=f"Time before which it does not start. {_DURATION}")
    run_at: str | None = Field(
        default=None, description="Moment (RFC 3339) before which it does not start. Not beside `delay`."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Kept with the job.", max_length=32)
    webhook: str | None = Field(default=None, max_length=2048, description="URL that is told of the job's end.")


class BatchBody(Wire):
    """Jobs that are queued together: all of them or none."""

    jobs: list[JobBody] = Field(min_length=1)


class Answer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid")


class Accepted(Answer):
    """A job that has been queued."""

    id: str
    status: Literal["queued"]
    created_at: datetime


class UsageAnswer(Answer):
    """What a run used."""

    cpu_time: int = Field(description="Nanoseconds.")
    peak_memory: int = Field(description="Bytes.")


class RecordResult(Answer):
    """What came of a program, by the contract."""

    stdout: str
    stderr: str
    exit_code: int = Field(description="-1 where it did not end by itself.")
    duration: int = Field(description="Nanoseconds of wall time around the run.")
    completed_at: datetime
    usage: UsageAnswer = Field(default=None, description="Not in the reference.")  # type: ignore[assignment]


class RecordRequest(Answer):
    """What was asked for, by the contract."""

    language: str
    code: str
    stdin: str
    timeout: int = Field(description="Nanoseconds.")


class RecordAnswer(Answer):
    """A job, by the contract. Members that do not apply are absent."""

    id: str
    status: Literal["queued", "running", "succeeded", "failed"]
    created_at: datetime
    updated_at: datetime
    started_at: datetime = Field(default=None)  # type: ignore[assignment]
    completed_at: datetime = Field(default=None)  # type: ignore[assignment]
    result: RecordResult = Field(default=None)  # type: ignore[assignment]
    error: str = Field(default="")
    request: RecordRequest


class JobRequestAnswer(Answer):
    """What was asked for. Code and standard input only of a single job."""

    language: str
    timeout: int = Field(description="Nanoseconds.")
    args: list[str]
    limits: dict[str, float]
    template: str = Field(default="")
    backend: str = Field(default="")
    code: str = Field(default="")
    stdin: str = Field(default="")


class JobResultAnswer(Answer):
    """What came of a program. Output only of a single job."""

    outcome: str | None = Field(description="`exited`, `wall_time`, `memory`, …; `null`: nothing was run.")
    exit_code: int | None
    signal: int | None
    stdout: str = Field(default="")
    stderr: str = Field(default="")
    stdout_truncated: bool
    stderr_truncated: bool
    compilation_failed: bool
    duration: int = Field(description="Nanoseconds of wall time, compilation included.")
    completed_at: datetime
    usage: UsageAnswer
    failure: str | None = Field(description="Why nothing came of it: `lost`, `refused`, `fault`, `cancelled`.")
    message: str


class WebhookAnswer(Answer):
    """Whom the end is told, and how far that has come."""

    url: str
    attempts: int
    delivered_at: datetime = Field(default=None)  # type: ignore[assignment]
    next_at: datetime = Field(default=None)  # type: ignore[assignment]
    error: str = Field(default="")


class JobAnswer(Answer):
    """A job. Members that do not apply are absent."""

    id: str
    status: Status
    language: str = Field(description="The language's own name; `request.language` is how it was spelled.")
    priority: int
    labels: dict[str, str]
    attempts: int
    created_at: datetime
    updated_at: datetime
    run_at: datetime
    started_at: datetime = Field(default=None)  # type: ignore[assignment]
    completed_at: datetime = Field(default=None)  # type: ignore[assignment]
    expires_at: datetime = Field(default=None)  # type: ignore[assignment]
    batch_id: str = Field(default="")
    retry_of: str = Field(default="")
    is_dead: bool = Field(description="In the dead-letter list: every worker that had it died.")
    cancel_requested: bool
    request: JobRequestAnswer
    result: JobResultAnswer = Field(default=None)  # type: ignore[assignment]
    error: str = Field(default="", description="As the contract words it.")
    webhook: WebhookAnswer = Field(default=None)  # type: ignore[assignment]


class ListAnswer(Answer):
    """Some jobs, newest first, without code and output."""

    jobs: list[JobAnswer]
    cursor: str | None = Field(description="For the next page; `null` at the end.")


class BatchAnswer(Answer):
    """Jobs that have been queued together."""

    batch_id: str
    jobs: list[Accepted]


class DepthAnswer(Answer):
    """How many jobs of everybody wait."""

    queued: dict[str, int] = Field(description="Jobs that could start now, by language.")
    delayed: int
    running: int
    dead: int
    oldest_queued_at: datetime = Field(default=None)  # type: ignore[assignment]


class SecretAnswer(Answer):
    """What signs the messages about the account's jobs."""

    secret: str


def checked_batch(members: dict[str, Any], *, most: int) -> list[JobBody]:
    """The jobs of a batch, checked one by one: the first that is wrong ends it.

    Raises:
        Refused: as `checked`; or there are none, or more than *most*.
    """
    jobs = members.get("jobs")
    if not isinstance(jobs, list) or len(members) != 1 or not 1 <= len(jobs) <= most:
        raise Refused(400, f"jobs: must be a list of 1 to {most} jobs, and the only member", field="jobs")
    found = []
    for number, one in enumerate(jobs):
        if not isinstance(one, dict):
            raise Refused(400, f"jobs.{number}: must be an object", field=f"jobs.{number}")
        try:
            found.append(checked(JobBody, one))
        except Refused as error:
            name = f"jobs.{number}"
            text = f"{name}.{error}" if error.field else f"{name}: {error}"
            raise Refused(400, text, field=f"{name}.{error.field}" if error.field else name) from None
    return found


def checked(model: type[Body], members: dict[str, Any]) -> Body:
    """*members* as *model*.

    Raises:
        Refused: they do not fit; the first thing that is wrong is named.
    """
    if is_crowded(members, most=MOST_MEMBERS):
        raise Refused(400, f"the body has more than {MOST_MEMBERS} members")
    try:
        return model.model_validate(members)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:200]
        raise Refused(400, f"{field}: {first['msg']}" if field else first["msg"], field=field) from None
