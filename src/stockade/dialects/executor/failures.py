"""Every refusal as the protocol's clients see it: a status and one line of plain text."""

import math

from starlette.responses import Response

from stockade import errors
from stockade.dialects.executor.operation import BadRequest
from stockade.dialects.executor.replies import text_reply
from stockade.wire.bodies import BodyTimeout, BodyTooLarge

__all__ = ["CRASHED", "Ended", "TooManyWrong", "Unauthorized", "from_error", "refusal", "reply"]

CRASHED = "Internal Server Error"
_WORDS = {
    404: "404 page not found",
    405: "Method not allowed",
    408: "Request timeout",
    413: "Request body too large",
    500: CRASHED,
    503: "Service unavailable",
}


class Unauthorized(errors.Denied):
    """The request shows no secret that opens anything."""

    code = "executor.unauthorized"

    def __init__(self) -> None:
        super().__init__("Unauthorized")


class TooManyWrong(errors.LimitExceeded):
    """Too many wrong secrets came from the client's address."""

    code = "executor.wrong_secrets"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("Too many wrong secrets from this address", retry_after_s=retry_after_s)


class Ended(errors.Conflict):
    """The secret's sandbox has ended."""

    code = "executor.ended"


def refusal(status: int) -> Response | None:
    """What the server itself refuses with a status, in the protocol's words; `None` where it has none."""
    words = _WORDS.get(status)
    return None if words is None else text_reply(words, status)


def from_error(error: errors.StockadeError) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers for *error*.

    Clients repeat what is answered with 5xx, so only what may work when it is repeated, and has had no effect, is.
    """
    headers: dict[str, str] = {}
    if isinstance(error, errors.LimitExceeded | errors.Unavailable):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    match error:
        case BodyTooLarge():
            return 413, _WORDS[413], {"connection": "close"}  # the rest of the body will not be read
        case BodyTimeout():
            return 408, _WORDS[408], {"connection": "close"}
        case Unauthorized():
            return 401, str(error), headers
        case BadRequest() | errors.Invalid() | errors.Unsupported():
            return 400, str(error), headers
        case errors.Denied():
            return 403, str(error), headers
        case errors.NotFound() | errors.Conflict():
            return 410, str(error), headers  # all of it is about one sandbox, and that is what it says
        case errors.LimitExceeded():
            return 429, str(error), headers
        case errors.Unavailable():
            return 503, str(error), headers
    return 500, CRASHED, headers


def reply(error: errors.StockadeError) -> Response:
    """The answer for *error*."""
    status, text, headers = from_error(error)
    return text_reply(text, status, headers)
