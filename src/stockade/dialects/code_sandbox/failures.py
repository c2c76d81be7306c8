"""Every error as clients see it. Routes of the contract have its words alone; ours have a stable `code`, too."""

import math
from collections.abc import Callable
from http import HTTPStatus

from starlette.responses import Response

from stockade import errors
from stockade.dialects.code_sandbox.gojson import BadPayload
from stockade.dialects.code_sandbox.replies import Failure, failure_reply
from stockade.store.jobs import TooManyJobs
from stockade.wire.bodies import BodyTimeout, BodyTooLarge

__all__ = [
    "JOB_NOT_FOUND",
    "METHOD_NOT_ALLOWED",
    "JobsMissing",
    "Refused",
    "Unauthorized",
    "Words",
    "from_error",
    "loading",
    "plain",
    "refusal",
    "submitting",
]

Words = Callable[[errors.StockadeError], Failure]
"""How a route words errors."""

METHOD_NOT_ALLOWED = Failure(status=405, error="method not allowed")
_NOT_FOUND = Failure(status=404, error="not found")
_TOO_LARGE = Failure(status=413, error="payload too large", headers={"connection": "close"})
JOB_NOT_FOUND = "job not found"


class Refused(errors.Invalid):
    """A request that breaks a rule of the protocol, which fixes status and words."""

    code = "invalid"

    def __init__(self, status: int, error: str, *, field: str = "") -> None:
        self.status = status
        self.field = field
        super().__init__(error)


class Unauthorized(errors.Denied):
    """No credentials, or none that are good here."""

    code = "auth.required"


class JobsMissing(errors.Unavailable):
    """This server keeps no jobs."""

    code = "jobs.missing"

    def __init__(self) -> None:
        super().__init__("this server keeps no jobs: there is no database, or no backend")


def from_error(error: errors.StockadeError) -> Failure:
    """The answer of a route of ours."""
    common = _common(error)
    if common is not None:
        return Failure(
            status=common.status,
            error=common.error,
            code=error.code,
            field=getattr(error, "field", ""),
            headers=common.headers,
        )
    statuses: tuple[tuple[type[errors.StockadeError], int], ...] = (
        (errors.NotFound, 404),
        (errors.Conflict, 409),
        (errors.LimitExceeded, 429),
        (errors.Unsupported, 501),
        (errors.Unavailable, 503),
        (errors.Denied, 403),
        (errors.Invalid, 400),
    )
    status = next((status for kind, status in statuses if isinstance(error, kind)), 500)
    return Failure(
        status=status,
        error=str(error) if status != HTTPStatus.INTERNAL_SERVER_ERROR else "internal error",
        code=error.code,
        field=_field(error),
        headers=_retry_after(error),
    )


def submitting(error: errors.StockadeError) -> Failure:
    """The answer of the contract's route that queues a job."""
    return _common(error) or plain(error, otherwise="execution failed")


def loading(error: errors.StockadeError) -> Failure:
    """The answer of the contract's route that reads a job."""
    if isinstance(error, errors.NotFound):
        return Failure(status=404, error=JOB_NOT_FOUND)
    return _common(error) or plain(error, otherwise="failed to load job")


def plain(error: errors.StockadeError, *, otherwise: str = "internal error") -> Failure:
    """As `from_error`, in words alone: what is nobody's fault but ours is a 500 and says *otherwise*."""
    if isinstance(error, JobsMissing):
        return Failure(status=503, error=str(error), headers=_retry_after(error))
    failure = from_error(error)
    if failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, errors.Unsupported):
        return Failure(status=500, error=otherwise)
    return Failure(status=failure.status, error=failure.error, headers=failure.headers)


def refusal(status: int) -> Response | None:
    """What the server refuses by itself, where it speaks nothing but this protocol."""
    worded = {404: _NOT_FOUND, 405: METHOD_NOT_ALLOWED, 413: _TOO_LARGE}
    return failure_reply(worded[status]) if status in worded else None


def _common(error: errors.StockadeError) -> Failure | None:
    """What all routes say alike."""
    match error:
        case Refused():
            return Failure(status=error.status, error=str(error))
        case BadPayload():
            return Failure(status=400, error="invalid JSON payload")
        case BodyTooLarge():
            return _TOO_LARGE
        case BodyTimeout():
            return Failure(status=408, error="request timeout", headers={"connection": "close"})
        case errors.UnknownLanguage() | errors.LanguageUnavailable():
            return Failure(status=501, error="unsupported language")
        case Unauthorized():
            return Failure(status=401, error=str(error))
        case TooManyJobs():
            return Failure(status=429, error="too many jobs", headers=_retry_after(error))
    return None


def _field(error: errors.StockadeError) -> str:
    return f"limits.{error.name}" if isinstance(error, errors.InvalidLimit) else ""


def _retry_after(error: errors.StockadeError) -> dict[str, str]:
    if isinstance(error, errors.LimitExceeded | errors.Unavailable):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    return {}
