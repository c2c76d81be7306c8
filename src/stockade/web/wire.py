"""What the portal's front end sends. Types are strict; an unknown member is refused: it is a mistake of ours."""

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from stockade.web.failures import FieldInvalid
from stockade.wire.crowds import is_crowded

__all__ = [
    "AccountBody",
    "ChangeKeyBody",
    "DeleteAccountBody",
    "DirectoryBody",
    "EmailBody",
    "ExtendBody",
    "JobBody",
    "KeyBody",
    "LogInBody",
    "PasswordBody",
    "RegisterBody",
    "ResetBody",
    "ResizeBody",
    "SandboxBody",
    "TokenBody",
    "UserBody",
    "checked",
]

MOST_MEMBERS = 1000
Model = TypeVar("Model", bound=BaseModel)


def _moment(value: object) -> object:
    """Strict types take no text for a moment; JSON has nothing else."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
Text = Annotated[str, Field(max_length=1000)]
Secret = Annotated[str, Field(max_length=4096)]
Argument = Annotated[str, Field(max_length=64 * 1024, pattern=r"^[^\x00]*$")]
Path = Annotated[str, Field(min_length=1, max_length=4095, pattern=r"^/[^\x00]*$")]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Bytes = Annotated[int, Field(ge=1, le=2**62)]
Seconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
LabelKey = Annotated[str, Field(min_length=1, max_length=63)]
LabelValue = Annotated[str, Field(max_length=255)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class _Snake(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class LogInBody(_Body):
    email: Text = ""
    password: Secret = ""


class RegisterBody(_Body):
    name: Text = ""
    email: Text = ""
    organization: Text = ""
    password: Secret = ""


class PasswordBody(_Body):
    old: Secret
    new: Secret


class EmailBody(_Body):
    email: Text


class ResetBody(_Body):
    token: Text
    password: Secret


class TokenBody(_Body):
    token: Text


class AccountBody(_Body):
    name: Text | None = None
    organization: Text | None = None


class DeleteAccountBody(_Body):
    password: Secret = ""
    email: Text = ""


class KeyBody(_Body):
    name: Text
    description: Text = ""
    expires_at: Moment | None = None
    daily_limit: Positive | None = None
    concurrent_limit: Positive | None = None


class ChangeKeyBody(_Body):
    """What is not sent stays; `null` takes an expiry or a limit away."""

    name: Text | None = None
    description: Text | None = None
    expires_at: Moment | None = None
    daily_limit: Positive | None = None
    concurrent_limit: Positive | None = None


class JobLimitsBody(_Snake):
    wall_s: Seconds | None = None
    cpu_s: Seconds | None = None
    memory_bytes: Bytes | None = None


class JobBody(_Snake):
    language: Annotated[str, Field(min_length=1, max_length=100)]
    code: str
    stdin: str = ""
    args: Annotated[list[Argument], Field(max_length=256)] = []
    limits: JobLimitsBody = JobLimitsBody()
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    delay_s: Annotated[float, Field(ge=0, le=365 * 86400, allow_inf_nan=False)] = 0
    labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] = {}


class PortBody(_Snake):
    port: Annotated[int, Field(ge=1, le=65535)]
    protocol: Literal["tcp", "udp"] = "tcp"


def _port(value: object) -> object:
    """A bare number is a TCP port."""
    return {"port": value} if isinstance(value, int) else value


class SandboxBody(_Snake):
    image: Annotated[str, Field(min_length=1, max_length=255)] = "host"
    command: Annotated[list[Argument], Field(max_length=256)] = []
    """None: it lives until it is ended."""
    timeout_s: Seconds | None = None
    memory_bytes: Bytes | None = None
    network: Literal["none", "outgoing", "exposed"] = "none"
    ports: Annotated[list[Annotated[PortBody, BeforeValidator(_port)]], Field(max_length=64)] = []
    backend: Annotated[str, Field(max_length=64)] = ""
    """Empty for the usual one."""


class ExtendBody(_Snake):
    seconds: Seconds


class DirectoryBody(_Snake):
    path: Path


class ResizeBody(_Snake):
    cols: Annotated[int, Field(ge=1, le=0xFFFF)]
    rows: Annotated[int, Field(ge=1, le=0xFFFF)]


class UserBody(_Body):
    role: Literal["user", "admin"] | None = None
    tier: Text | None = None
    is_locked: bool | None = None


def checked(model: type[Model], members: dict[str, Any]) -> Model:
    """*members* as *model*.

    Raises:
        FieldInvalid: one is missing, unknown or wrong; the first is told.
    """
    if is_crowded(members, most=MOST_MEMBERS):
        raise FieldInvalid("", f"the body has more than {MOST_MEMBERS} members")
    try:
        return model.model_validate(members)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise FieldInvalid(str(first["loc"][0]) if first["loc"] else "", f"{name}: {message}") from None
