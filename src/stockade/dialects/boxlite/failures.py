"""Every error as BoxLite's clients see it: by one body for the clients of all generations.

Those up to 0.9.5 read `error.code`, which has to be the status; later ones refuse such a body and then read `code`
beside it, which has to be a word.
"""

import math
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from stockade import errors
from stockade.wire.bodies import BodyTimeout, BodyTooLarge

__all__ = ["CRASHED", "Failure", "Refused", "Unauthenticated", "from_error"]

INTERNAL = "internal server error"


class Unauthenticated(errors.Denied):
    """No key, or none that is valid now. Which of these is not told."""

    code = "boxlite.unauthenticated"

    def __init__(self, message: str = "an API key is required: Authorization: Bearer <key>") -> None:
        super().__init__(message)


class Refused(errors.Invalid):
    """What the protocol has a status, a type and a code of its own for."""

    code = "boxlite.refused"

    def __init__(self, status: int, type: str, word: str, message: str) -> None:
        self.status = status
        self.type = type
        self.word = word
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How an error is answered."""

    status: int
    type: str
    """For clients up to 0.9.5, which tell some of one status apart by it."""
    code: str
    """For clients from 0.9.7 on."""
    message: str
    headers: dict[str, str] = field(default_factory=dict)

    def body(self, request_id: str = "") -> dict[str, Any]:
        error: dict[str, Any] = {"message": self.message, "type": self.type, "code": self.status}
        if request_id:
            error["request_id"] = request_id
        return {"error": error, "message": self.message, "code": self.code}


CRASHED = Failure(status=500, type="InternalError", code="internal", message=INTERNAL)


def from_error(error: errors.StockadeError) -> Failure:
    """The status, type, code and text for *error*."""
    status, type_, code = _kind(error)
    headers: dict[str, str] = {}
    if isinstance(error, errors.LimitExceeded | errors.Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    # What broke on our side is for the log: it may name paths and other innards.
    message = INTERNAL if status == HTTPStatus.INTERNAL_SERVER_ERROR else str(error)
    return Failure(status=status, type=type_, code=code, message=message, headers=headers)


def _kind(error: errors.StockadeError) -> tuple[int, str, str]:
    if isinstance(error, Refused):
        return error.status, error.type, error.word
    if isinstance(error, errors.UnknownImage) or error.code.startswith("image."):
        return _of_image(error)
    if isinstance(error, errors.Conflict):
        return _of_conflict(error)
    for kind, answer in _KINDS:
        if isinstance(error, kind):
            return answer
    return 500, "InternalError", "internal"


def _of_image(error: errors.StockadeError) -> tuple[int, str, str]:
    match error:
        case errors.NotFound():
            return 404, "NotFoundError", "not_found"
        case errors.Conflict():
            return 409, "InvalidStateError", "invalid_state"
        case errors.LimitExceeded():
            return 429, "ResourceExhaustedError", "resource_exhausted"
    return 422, "ImageError", "image_pull_failed"


def _of_conflict(error: errors.Conflict) -> tuple[int, str, str]:
    if error.code.endswith("exists"):
        return 409, "AlreadyExistsError", "already_exists"
    if error.code.endswith("stopped"):
        return 409, "StoppedError", "stopped"
    return 409, "InvalidStateError", "invalid_state"


_KINDS: tuple[tuple[type[errors.StockadeError], tuple[int, str, str]], ...] = (
    (BodyTooLarge, (413, "InvalidArgumentError", "invalid_argument")),
    (BodyTimeout, (408, "TimeoutError", "timeout")),
    (errors.Invalid, (400, "InvalidArgumentError", "invalid_argument")),
    (Unauthenticated, (401, "AuthError", "unauthenticated")),
    (errors.Denied, (403, "AuthError", "permission_denied")),
    (errors.NotFound, (404, "NotFoundError", "not_found")),
    (errors.LimitExceeded, (429, "ResourceExhaustedError", "resource_exhausted")),
    # A 501 would read as a fault of the server's; the protocol has a word for what is not to be had.
    (errors.Unsupported, (400, "UnsupportedError", "unsupported")),
    (errors.NoAnswer, (504, "TimeoutError", "timeout")),
    (errors.BackendLost, (503, "EngineError", "engine_unavailable")),
    (errors.Unavailable, (503, "UpstreamUnavailableError", "upstream_unavailable")),
)
