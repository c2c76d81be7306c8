"""The isobox wire: what clients send and get. `docs/dialects/isobox.md` has the whole protocol.

The models check bodies and describe them in OpenAPI. Types are strict: `true` is no number, `5` is no string.
Unknown members are ignored, as in the reference.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stockade.errors import Invalid

__all__ = [
    "AuthStatus",
    "BadValue",
    "CasesBody",
    "DedupStats",
    "Error",
    "ExecuteAnswer",
    "ExecuteBody",
    "FilesBody",
    "LanguageEntry",
    "MissingField",
    "ProgramBody",
    "ResourceLimits",
    "TestCase",
    "TestCaseResult",
    "TestFile",
    "TestUrl",
    "UrlsBody",
    "WrongType",
    "checked",
]

UInt32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
UInt64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Positive32 = Annotated[int, Field(ge=1, le=2**32 - 1)]
Positive64 = Annotated[int, Field(ge=1, le=2**64 - 1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Argument = Annotated[str, Field(pattern=r"^[^\x00]*$")]


class MissingField(Invalid):
    """A member that must be there is not."""

    code = "isobox.missing_field"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"missing required field: {name}")


class WrongType(Invalid):
    """A member has another type."""

    code = "isobox.wrong_type"


class BadValue(Invalid):
    """A member has the right type and a value that it cannot have."""

    code = "isobox.bad_value"

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(reason)


class Wire(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class ResourceLimits(Wire):
    """Limits by the names of the gRPC message; 0 means the default. Above the server's maximum: 400."""

    cpu_time_limit_seconds: UInt32 = 0
    wall_time_limit_seconds: UInt32 = 0
    memory_limit_bytes: UInt64 = 0
    stack_limit_bytes: UInt64 = 0
    max_processes: UInt32 = 0
    max_files: UInt32 = 0
    enable_network: bool = Field(default=False, description="Refused: a run has no network.")


class TestCase(Wire):
    """One input for the program."""

    __test__ = False  # pytest takes every class named Test… for one of its own

    name: str
    input: str = Field(description="Standard input of this case.")
    expected_output: str | None = Field(
        default=None,
        description="Compared with standard output after trimming white space at both ends.",
    )
    timeout_seconds: Positive32 | None = Field(default=None, description="Wall and CPU limit of this case.")
    memory_limit_mb: Positive64 | None = Field(default=None, description="Memory limit of this case.")


class TestFile(Wire):
    """A named input; nothing is expected of the output."""

    __test__ = False

    name: str
    content: str


class TestUrl(Wire):
    """A named input that the server fetches."""

    __test__ = False

    name: str
    url: str


class ProgramBody(Wire):
    """What every body has. The first two members are required, and looked for in this order."""

    language: str = Field(description="A name from `GET /languages`.")
    code: str = Field(description="The program's text; may be empty.")
    args: list[Argument] | None = Field(default=None, description="Arguments; never passed through a shell.")
    timeout_seconds: Seconds | None = Field(default=None, description="Wall-clock limit, cut to the server's maximum.")
    memory_limit_mb: Positive64 | None = Field(default=None, description="Memory limit, cut to the server's maximum.")
    resource_limits: ResourceLimits | None = None
    template: str | None = Field(
        default=None,
        description="Name of the template to begin from, as the operator configured it; the language's default when "
        'left out or empty, "none" for a start from nothing.',
    )
    backend: str | None = Field(
        default=None,
        description="Name of the backend that the sandbox shall come from, of those that the operator offers; the "
        "usual one when left out or empty.",
    )


class ExecuteBody(ProgramBody):
    """A program to run once; or, with `test_cases`, once for each."""

    stdin: str | None = Field(default=None, description="Standard input, followed by end-of-file.")
    test_cases: list[TestCase] | None = None


class CasesBody(ProgramBody):
    """A program and the cases that it is run with."""

    test_cases: list[TestCase]


class FilesBody(ProgramBody):
    """A program and the inputs that it is run with."""

    test_files: list[TestFile]


class UrlsBody(ProgramBody):
    """A program and where to fetch the inputs that it is run with."""

    test_urls: list[TestUrl]


class TestCaseResult(BaseModel):
    """What came of one test case."""

    __test__ = False

    name: str
    passed: bool
    stdout: str
    stderr: str
    exit_code: int
    time_taken: float
    memory_used: int | None
    error_message: str | None
    input: str
    expected_output: str | None
    actual_output: str
    outcome: str = Field(description="How the program ended; names the limit that ended it.")
    truncated: bool


class ExecuteAnswer(BaseModel):
    """What came of a program. One that fails, or runs into a limit, is a 200 all the same."""

    stdout: str
    stderr: str = Field(description="The compiler's messages when the compilation failed.")
    exit_code: int = Field(
        description="The program's status; 128 + n when signal n ended it; 124 for a time limit, 137 for memory or "
        "output. The compiler's status when the compilation failed. With test cases: 0 when all passed, else 1."
    )
    time_taken: float | None = Field(description="Wall-clock seconds of the program.")
    memory_used: int | None = Field(description="Peak bytes.")
    test_results: list[TestCaseResult] | None
    outcome: (
        Literal[
            "exited",
            "signaled",
            "wall_time",
            "cpu_time",
            "memory",
            "output",
            "processes",
            "disk",
            "cancelled",
            "lost",
        ]
        | None
    ) = Field(description="How it ended; null where test cases have outcomes of their own.")
    truncated: bool = Field(description="Whether output is missing because of the output limit.")


class Error(BaseModel):
    """Why a request was refused."""

    error: str
    message: str | None = None


class LanguageEntry(BaseModel):
    """A language that can be asked for."""

    name: str
    display_name: str
    requires_compilation: bool
    file_extensions: list[str]
    version: str | None
    available: bool = Field(description="Whether its runtime is installed here.")
    packages: list[str] = Field(description="Debian packages that bring it.")


class AuthStatus(BaseModel):
    """Whether credentials are demanded, and whether those that were sent are good."""

    authenticated: bool
    auth_enabled: bool
    auth_type: str
    message: str
    token_url: str | None = Field(default=None, description="Where to get a token (OAuth 2).")


class DedupStats(BaseModel):
    """State of the deduplication of requests."""

    dedup_enabled: bool
    message: str
    cache_type: str | None = None
    ttl_seconds: float | None = None
    entries: int | None = None
    hits: int | None = None
    misses: int | None = None


Body = TypeVar("Body", bound=Wire)

_BAD_VALUES = {
    "finite_number",
    "greater_than",
    "greater_than_equal",
    "less_than_equal",
    "string_pattern_mismatch",
}


def checked(model: type[Body], members: dict[str, Any]) -> Body:
    """*members* as a *model*.

    Raises:
        MissingField: the first required member that is missing, before anything that is wrong with the others.
        WrongType: a member has another type (or is null where it must not be).
        BadValue: a number is out of range, or an argument holds a NUL.
    """
    try:
        return model.model_validate(members)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False, include_context=False, include_input=False)
    for error in errors:
        if error["type"] == "missing":
            raise MissingField(_path(error["loc"]))
    first = errors[0]
    name = _path(first["loc"])
    if first["type"] == "string_pattern_mismatch":
        raise BadValue(name, "must not hold a NUL character")
    reason = first["msg"].replace("Input should be", "must be")
    if first["type"] in _BAD_VALUES:
        raise BadValue(name, reason)
    raise WrongType(f"{name}: {reason}")


def _path(location: tuple[int | str, ...]) -> str:
    """`test_cases[0].name`"""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
