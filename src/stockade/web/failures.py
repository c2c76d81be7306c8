"""Every error as the portal's front end sees it: a status, a stable code, words for the user, perhaps a field."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from stockade import errors
from stockade.wire.bodies import BodyTimeout, BodyTooLarge

__all__ = [
    "AdminRequired",
    "CsrfRefused",
    "Failure",
    "FieldInvalid",
    "LogInRefused",
    "OriginRefused",
    "SessionRequired",
    "TooManyRequests",
    "from_error",
]


class SessionRequired(errors.Denied):
    """Nobody is logged in, or no more."""

    code = "auth.required"

    def __init__(self) -> None:
        super().__init__("log in first")


class LogInRefused(errors.Denied):
    """Somebody wanted to log in, and is not let in; *why* says it."""

    def __init__(self, why: errors.Denied) -> None:
        self.code = why.code
        super().__init__(str(why))


class AdminRequired(errors.Denied):
    """The user is no admin."""

    code = "auth.admin_required"

    def __init__(self) -> None:
        super().__init__("this is for admins of this server")


class OriginRefused(errors.Denied):
    """Another site's page sent the request."""

    code = "origin.refused"

    def __init__(self) -> None:
        super().__init__("this may only be asked for by the portal's own pages; users.public_url says where they are")


class CsrfRefused(errors.Denied):
    """The request lacks the token that only our own pages know."""

    code = "csrf.refused"

    def __init__(self) -> None:
        super().__init__("the page is out of date; load it again")


class TooManyRequests(errors.LimitExceeded):
    """More requests than one user, or address, may send."""

    code = "rate.exceeded"


class FieldInvalid(errors.Invalid):
    """One input is wrong."""

    code = "invalid"

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an error is answered."""

    status: int
    code: str
    message: str
    field: str = ""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        body = {"error": self.code, "message": self.message}
        return body | {"field": self.field} if self.field else body


_INTERNAL = "something went wrong on the server; its log has details"
_NAMED = re.compile(r"([a-z][A-Za-z_]{0,40}): ")
_AS_SENT = {
    "custom_daily_limit": "dailyLimit",
    "custom_concurrent_limit": "concurrentLimit",
    "expires_at": "expiresAt",
    "lifetime_s": "seconds",
}
"""What the front end calls inputs that have another name inside."""


def from_error(error: errors.StockadeError) -> Failure:
    """The status, code and words for *error*."""
    status = _status(error)
    headers: dict[str, str] = {}
    if isinstance(error, errors.LimitExceeded | errors.Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == 413:
        headers["Connection"] = "close"  # the rest of the body will not be read
    return Failure(
        status=status,
        code=error.code,
        # What broke on our side is for the log: it may name paths and other innards.
        message=_INTERNAL if status == 500 else str(error),
        field=_field(error),
        headers=headers,
    )


def _status(error: errors.StockadeError) -> int:
    match error:
        case BodyTooLarge():
            return 413
        case BodyTimeout():
            return 408
        case errors.Invalid():
            return 400
        case SessionRequired() | LogInRefused():
            return 401
        case errors.Denied():
            return 403
        case errors.NotFound():
            return 404
        case errors.Conflict():
            return 409
        case errors.LimitExceeded():
            return 429
        case errors.Unsupported():
            return 501
        case errors.Unavailable():
            return 503
    return 500


def _field(error: errors.StockadeError) -> str:
    """Which input is wrong, where that is one."""
    if not isinstance(error, errors.Invalid | errors.Conflict):
        return ""
    named = getattr(error, "field", "") or (error.name if isinstance(error, errors.InvalidLimit) else "")
    if not named and isinstance(error, errors.Invalid) and (match := _NAMED.match(str(error))):
        named = match[1]
    return _AS_SENT.get(named, named)
