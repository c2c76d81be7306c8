"""Every error as isobox's clients see it: a status, and a JSON object with a string `error`."""

import math

from stockade import errors
from stockade.dialects.isobox.service import DownloadFailed
from stockade.dialects.isobox.translate import LimitTooHigh, NetworkRefused
from stockade.dialects.isobox.wire import BadValue, MissingField, WrongType
from stockade.engine.templates import UnknownTemplate
from stockade.wire.auth import (
    KeyInvalid,
    KeyMissing,
    TokenInvalid,
    TokenMalformed,
    TokenMissing,
)
from stockade.wire.bodies import BodyTimeout, BodyTooLarge, NotJson

__all__ = ["INVALID_JSON", "Failure", "from_error", "retry_after"]

INVALID_JSON = "Invalid JSON in request body"
_SHOWN_NAME = 200
"""Characters of a caller's own word that an error repeats."""

Failure = tuple[int, str, str]
"""Status, `error`, and `message` (empty: left out)."""


def from_error(error: errors.StockadeError) -> Failure:
    """The status and body for *error*."""
    return _body_failure(error) or _denial(error) or _run_failure(error)


def retry_after(error: errors.StockadeError) -> str | None:
    """The `Retry-After` header for *error*, in whole seconds; `None` where repeating does not help."""
    if isinstance(error, errors.LimitExceeded | errors.Unavailable):
        return str(max(1, math.ceil(error.retry_after_s)))
    return None


def _body_failure(error: errors.StockadeError) -> Failure | None:
    match error:
        case NotJson():
            return 400, INVALID_JSON, error.reason
        case WrongType():
            return 400, INVALID_JSON, str(error)
        case MissingField():
            return 400, f"Missing required field: {error.name}", ""
        case BadValue():
            return 400, f"Invalid value: {error.name}", str(error)
        case BodyTooLarge():
            return 413, "Request body too large", str(error)
        case BodyTimeout():
            return 408, "Request timeout", str(error)
    return None


def _denial(error: errors.StockadeError) -> Failure | None:
    match error:
        case KeyMissing():
            return 401, "API Key not provided", str(error)
        case KeyInvalid():
            return 401, "Invalid API Key", str(error)
        case TokenMissing():
            return 401, "Authorization header not provided", str(error)
        case TokenMalformed():
            return 401, "Invalid Authorization header format", str(error)
        case TokenInvalid():
            return (
                401,
                "Invalid JWT token" if error.kind == "jwt" else "Invalid OAuth2 token",
                str(error),
            )
        case errors.Denied():
            return 403, "Not allowed", str(error)
    return None


def _run_failure(error: errors.StockadeError) -> Failure:
    match error:
        case errors.UnknownLanguage() | errors.LanguageUnavailable():
            return (
                400,
                f"Unsupported language: {error.name[:_SHOWN_NAME]}",
                _languages(error),
            )
        case UnknownTemplate():
            return 400, f"Unknown template: {error.name[:_SHOWN_NAME]}", f"known templates: {', '.join(error.known)}"
        case LimitTooHigh():
            return 400, f"Limit too high: {error.name}", str(error)
        case errors.InvalidLimit():
            return 400, f"Invalid limit: {error.name}", str(error)
        case NetworkRefused():
            return 400, "Limit not supported: enable_network", str(error)
        case DownloadFailed():
            return 400, "Failed to download test case", str(error)
        case errors.Invalid():
            return 400, "Invalid request", str(error)
        case errors.Unsupported():
            return 400, "Not supported by this server", str(error)
        case errors.LimitExceeded():
            return 429, "Rate limit exceeded", str(error)
        case errors.QueueFull():
            return 503, "Server busy", str(error)
        case errors.BackendLost():
            return 500, "Execution failed", str(error)
        case errors.Unavailable():
            return 503, "Service unavailable", str(error)
    return 500, "Execution failed", str(error)


def _languages(error: errors.UnknownLanguage | errors.LanguageUnavailable) -> str:
    if isinstance(error, errors.UnknownLanguage):
        return f"known languages: {', '.join(error.known)}"
    return str(error)
