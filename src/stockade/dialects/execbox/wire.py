"""The execbox wire: what clients send and get. docs/dialects/execbox.md has the whole protocol.

Session, file and port objects are written in camelCase, account, usage, key and quota objects in snake_case. Types are
strict: `true` is no number, `5` is no string. Unknown members are ignored, and `null` is the same as nothing.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from stockade.errors import Invalid

__all__ = [
    "AccountAnswer",
    "BadBody",
    "CreateAnswer",
    "CreateBody",
    "CreateKeyBody",
    "DirectoryAnswer",
    "EnhancedUsageAnswer",
    "EntryAnswer",
    "Error",
    "ExecutorAnswer",
    "ExecutorBody",
    "ExtendBody",
    "FileBody",
    "HistoryAnswer",
    "KeyAnswer",
    "KeysAnswer",
    "LimitsAnswer",
    "LimitsBody",
    "NetworkAnswer",
    "NewExecutorAnswer",
    "NewKeyAnswer",
    "PortAnswer",
    "PortBody",
    "QuotaRequestAnswer",
    "QuotaRequestBody",
    "ResourcesBody",
    "SessionAnswer",
    "SessionsAnswer",
    "StatsAnswer",
    "StatusAnswer",
    "UpdateKeyBody",
    "UploadAnswer",
    "UrlAnswer",
    "UsageAnswer",
    "WaitlistAnswer",
    "WaitlistBody",
    "checked",
]

Argument = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Path = Annotated[str, Field(min_length=1, max_length=4095, pattern=r"^[^\x00]*$")]
Email = Annotated[str, Field(max_length=254, pattern=r"^[^@\s\x00]+@[^@\s\x00]+\.[^@\s\x00.]+$")]
ShortText = Annotated[str, Field(max_length=500)]
LongText = Annotated[str, Field(max_length=5000)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
OrUnlimited = Annotated[int, Field(ge=-1, le=2**31 - 1, description="Above 0, or -1: no limit.")]


class BadBody(Invalid):
    """A member of the body is missing or wrong."""

    code = "execbox.bad_body"


class Wire(BaseModel):
    """What clients send, in snake_case."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class Camel(BaseModel):
    """What clients send, in camelCase."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


class ResourcesBody(Camel):
    """What a session may use. Above what the key's tier or the server allows: 400."""

    cpu_millis: Annotated[int, Field(ge=100)] | None = Field(default=None, description="1000 is one core; to 8000.")
    memory_mb: Annotated[int, Field(ge=128)] | None = Field(
        default=None, alias="memoryMB", description="Memory of all processes and files together; to 8192."
    )
    timeout_ms: Annotated[int, Field(ge=1000)] | None = Field(
        default=None, description="Life of the session, in milliseconds; to 300000. It is then killed."
    )
    compute_power: Any = Field(
        default=None, description="Legacy; has no effect.", json_schema_extra={"deprecated": True}
    )
    storage_mb: Annotated[int, Field(ge=1)] | None = Field(
        default=None, alias="storageMB", description="What may be written to the file system; cut to the maximum."
    )
    timeout: str | None = Field(
        default=None,
        max_length=32,
        description="Legacy: a duration like `30s`. `timeoutMs` wins.",
        json_schema_extra={"deprecated": True},
    )


class PortBody(Camel):
    container: Annotated[int, Field(ge=1, le=65535)]
    protocol: Literal["tcp", "udp"] | None = None


class FileBody(Camel):
    """A file that is built into the image."""

    path: Path = Field(description="Absolute, or relative to `workDir`.")
    content: str
    encoding: Literal["utf8", "base64"] | None = None
    mode: Annotated[int, Field(ge=0, le=0o777)] | None = Field(default=None, description="Permission bits; 420 if not.")


class ExecutorBody(Camel):
    """A session that the executor API reaches."""

    secret: str | None = Field(
        default=None,
        description="Opens this session alone: 16 to 256 printable ASCII characters, no space. Not set: one is made.",
        json_schema_extra={"minLength": 16, "maxLength": 256, "pattern": "^[!-~]+$"},
    )


def _executor(value: object) -> object:
    """`true` for one with a secret that we make, `false` for none."""
    if value is True:
        return ExecutorBody()
    if value is None or value is False:
        return None
    if not isinstance(value, dict | ExecutorBody):
        raise PydanticCustomError("executor", "must be true, false or an object")
    return value


class CreateBody(Camel):
    """A session to be created."""

    image: Annotated[str, Field(min_length=1, max_length=512)]
    command: list[Argument] | None = Field(
        default=None, description="argv; no shell. Not set: the image's own. `[]`: none; it lives until ended."
    )
    env: dict[str, Argument] | None = None
    work_dir: Path | None = Field(default=None, description="Absolute; made when it is missing.")
    resources: ResourcesBody | None = None
    network: Literal["none", "outgoing", "exposed"] | None = Field(default=None, description="Not set: `outgoing`.")
    ports: list[PortBody] | None = Field(default=None, max_length=64, description="Published if `exposed`.")
    allow_cidrs: list[str] | None = Field(
        default=None, max_length=128, description="Connect to these IPv4 networks only, and to `allowDomains`."
    )
    allow_domains: list[str] | None = Field(
        default=None,
        max_length=128,
        description="Resolve, and connect to, these names only; `*.example.org` for all below.",
    )
    backend: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="Name of the backend that it comes from. Not set: the usual one."
    )
    setup: list[Argument] | None = Field(default=None, description="Shell commands baked into the image, in order.")
    files: list[FileBody] | None = Field(default=None, description="Files baked into the image, before `setup`.")
    executor: Annotated[
        ExecutorBody | None, BeforeValidator(_executor, json_schema_input_type=bool | ExecutorBody | None)
    ] = Field(default=None, description="`true`, or an object: the executor API reaches the session, by a secret.")


class ExtendBody(Camel):
    timeout_ms: Annotated[int, Field(ge=1000)] = Field(description="Life that is left from now on, in milliseconds.")


class LimitsBody(Wire):
    """Any subset; the rest stays."""

    daily_requests_limit: OrUnlimited | None = None
    concurrent_requests_limit: OrUnlimited | None = None
    monthly_cost_limit_cents: Positive | None = None
    alert_threshold: Annotated[int, Field(ge=1, le=100)] | None = None
    billing_email: Email | None = None
    timezone: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(default=None, description="IANA name.")


class CreateKeyBody(Wire):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    description: ShortText | None = None
    expires_at: str | None = Field(default=None, description="RFC 3339; one in the past is taken too.")
    custom_daily_limit: Positive | None = None
    custom_concurrent_limit: Positive | None = None


class UpdateKeyBody(Wire):
    """Any subset; an empty `name` clears it."""

    name: Annotated[str, Field(max_length=100)] | None = None
    description: ShortText | None = None
    expires_at: str | None = None
    custom_daily_limit: Positive | None = None
    custom_concurrent_limit: Positive | None = None


class WaitlistBody(Wire):
    email: Email
    name: ShortText | None = None


class QuotaRequestBody(Wire):
    email: Email
    name: ShortText | None = None
    company: ShortText | None = None
    use_case: LongText | None = None
    requested_limits: LongText | None = None
    budget: ShortText | None = None


Body = TypeVar("Body", bound=BaseModel)


def checked(model: type[Body], value: dict[str, Any]) -> Body:
    """*value* as *model*.

    Raises:
        BadBody: it does not fit; the text names the first member that is wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = _place(first["loc"])
        if first["type"] == "missing":
            raise BadBody(f"{place} is required") from None
        raise BadBody(f"{place}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None


def _place(location: tuple[int | str, ...]) -> str:
    """`ports[0].container` for its location."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{str(part)[:100]}" if text else str(part)[:100]
    return text or "the body"


class Answer(BaseModel):
    """What clients get: only described here, and made as plain objects."""


class Error(Answer):
    error: str = Field(description="What is wrong, for a human.")
    code: str = Field(description="What is wrong, for a program.")
    status: int
    title: str
    detail: str = Field(description="The same as `error`.")


class PortAnswer(Answer):
    hostPort: int
    url: str


class NetworkAnswer(Answer):
    mode: Literal["exposed"]
    host: str
    ports: dict[str, PortAnswer] = Field(description="By the port inside.")


class ExecutorAnswer(Answer):
    url: str = Field(description="Base URL of the executor API.")
    proxyPort: int | None = Field(description="Port of the host that leads to the bound port; null if not `exposed`.")


class NewExecutorAnswer(ExecutorAnswer):
    secret: str = Field(description="What opens the session over that API; shown only here.")


class CreateAnswer(Answer):
    id: str
    status: str
    createdAt: str
    network: NetworkAnswer | None = None
    executor: NewExecutorAnswer | None = None


class SessionAnswer(Answer):
    id: str
    status: str
    createdAt: str
    network: NetworkAnswer | None = None
    executor: ExecutorAnswer | None = None
    image: str
    startedAt: str | None = None
    endedAt: str | None = None
    expiresAt: str | None = Field(default=None, description="When it is killed, while it runs.")
    exitCode: int | None = None
    endedBy: str | None = Field(default=None, description="itself, stop, kill, deadline, limit, failure or lost.")
    outcome: str | None = Field(default=None, description="Which limit ended it, if one did.")
    message: str | None = Field(default=None, description="Why it failed.")


class SessionsAnswer(Answer):
    sessions: list[SessionAnswer]
    cursor: str | None = Field(default=None, description="Where the next page begins; only with `limit`.")


class StatusAnswer(Answer):
    status: Literal["stopped", "killed"]


class UploadAnswer(Answer):
    path: str
    size: int


class EntryAnswer(Answer):
    name: str
    size: int
    isDir: bool
    mode: int


class DirectoryAnswer(Answer):
    path: str
    entries: list[EntryAnswer]


class UrlAnswer(Answer):
    containerPort: int
    hostPort: int
    url: str
    protocol: Literal["tcp", "udp"]


class StatsAnswer(Answer):
    wallSeconds: float
    cpuSeconds: float
    memoryPeakBytes: int
    memoryBytes: int | None = Field(default=None, description="Held now, while it runs.")


class AccountAnswer(Answer):
    tier: str
    email: str | None = None
    api_key_id: str
    api_key_preview: str
    created_at: str
    tier_expires_at: str | None = None


class UsageAnswer(Answer):
    sessions_today: int
    active_sessions: int
    quota_used: int
    quota_remaining: int
    tier: str
    concurrent_limit: int
    daily_limit: int
    max_duration_seconds: int
    max_memory_mb: int


class HourAnswer(Answer):
    hour: str
    executions: int
    cost_cents: int
    errors: int


class HistoryAnswer(Answer):
    date: str
    executions: int
    duration_ms: int
    cost_cents: int
    errors: int


class EnhancedUsageAnswer(UsageAnswer):
    account_id: str
    hourly_usage: list[HourAnswer] | None = None
    daily_history: list[HistoryAnswer] | None = None
    cost_estimate_cents: int
    monthly_cost_limit_cents: int | None = None
    alert_threshold: int


class LimitsAnswer(Answer):
    daily_requests_limit: int
    concurrent_requests_limit: int
    monthly_cost_limit_cents: int | None = None
    alert_threshold: int
    billing_email: str | None = None
    timezone: str


class KeyAnswer(Answer):
    id: str
    name: str | None = None
    description: str | None = None
    key_preview: str
    is_active: bool
    expires_at: str | None = None
    last_used_at: str | None = None
    custom_daily_limit: int | None = None
    custom_concurrent_limit: int | None = None
    created_at: str


class NewKeyAnswer(KeyAnswer):
    key: str = Field(description="The key itself; shown only here.")


class KeysAnswer(Answer):
    keys: list[KeyAnswer]


class WaitlistAnswer(Answer):
    id: str
    key: str
    tier: str
    message: str


class QuotaRequestAnswer(Answer):
    id: int
    status: str
    message: str
    created_at: str
