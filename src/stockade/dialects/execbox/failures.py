"""Every error as execbox's clients see it: a status, a `code`, and a text."""

import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from stockade import errors
from stockade.wire.bodies import BodyTimeout, BodyTooLarge

__all__ = ["Failure", "FileTooLarge", "NoRange", "RateExceeded", "Unauthorized", "from_error"]

INTERNAL = "internal server error"


class Unauthorized(errors.Denied):
    """No key, or none that is valid now. Which of these is not told."""

    code = "execbox.unauthorized"

    def __init__(self) -> None:
        super().__init__("unauthorized")


class RateExceeded(errors.LimitExceeded):
    """Too many requests, or too many connections."""

    code = "execbox.rate_limit_exceeded"


class FileTooLarge(errors.Invalid):
    """The sandbox's disk has no room for what was uploaded."""

    code = "execbox.file_too_large"


class NoRange(errors.Invalid):
    """The file ends before the range begins."""

    code = "execbox.no_range"

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"the file has {size} bytes and none in that range")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an error is answered."""

    status: int
    code: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """`error` and `code` are the protocol's; the rest is for clients made from the reference's OpenAPI."""
        title = HTTPStatus(self.status).phrase
        return {
            "error": self.message,
            "code": self.code,
            "status": self.status,
            "title": title,
            "detail": self.message,
        }


def from_error(error: errors.StockadeError) -> Failure:
    """The status, code and text for *error*."""
    status, code = _kind(error)
    headers: dict[str, str] = {}
    if isinstance(error, errors.LimitExceeded | errors.Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, NoRange):
        headers["Content-Range"] = f"bytes */{error.size}"
    # What broke on our side is for the log: it may name paths and other innards.
    message = INTERNAL if status == HTTPStatus.INTERNAL_SERVER_ERROR else str(error)
    return Failure(status=status, code=code, message=message, headers=headers)


def _kind(error: errors.StockadeError) -> tuple[int, str]:
    match error:
        case BodyTooLarge() | FileTooLarge():
            return 413, "PAYLOAD_TOO_LARGE"
        case BodyTimeout():
            return 408, "REQUEST_TIMEOUT"
        case NoRange():
            return 416, "RANGE_NOT_SATISFIABLE"
        case errors.Invalid():
            return 400, "BAD_REQUEST"
        case Unauthorized():
            return 401, "UNAUTHORIZED"
        case errors.Denied():
            return 403, "FORBIDDEN"
        case errors.NotFound():
            return 404, "NOT_FOUND"
        case errors.Conflict():
            return 409, "CONFLICT"
        case RateExceeded():
            return 429, "RATE_LIMIT_EXCEEDED"
        case errors.LimitExceeded():
            return 429, "QUOTA_EXCEEDED"
        case errors.Unsupported():
            return 501, "NOT_IMPLEMENTED"
        case errors.Unavailable():
            return 503, "UNAVAILABLE"
    return 500, "INTERNAL"
