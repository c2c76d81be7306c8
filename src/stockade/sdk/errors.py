"""Everything the client can fail at, in one tree.

    SdkError
    ├── ApiError              the server answered, with an error: `status`, `code`, `message`
    │   ├── BadRequest        400, 413: the request is wrong; repeating it does not help
    │   ├── Unauthorized      401: the API key is missing, unknown, expired or switched off
    │   ├── NotFound          404: there is no such thing, or it belongs to another account
    │   ├── Conflict          409: the sandbox is in a state that does not allow it
    │   ├── LimitExceeded     429: a quota or a rate is used up; `retry_after_s`
    │   └── ServerError       5xx: nothing is wrong with the request
    ├── ConnectionFailed      the server was not reached, or was lost; `ConnectionLost`, `TimedOut` are kinds of it
    │   ├── ConnectionLost
    │   └── TimedOut
    ├── StreamFailed          the server gave up a process's stream, and said why
    ├── ProtocolError         what answered does not speak execbox
    └── UnsafeArchive         an archive holds what must not be unpacked

How a program ended is never an error: it is the process's `exit_code`.
"""

import json
from collections.abc import Mapping

__all__ = [
    "ApiError",
    "BadRequest",
    "Conflict",
    "ConnectionFailed",
    "ConnectionLost",
    "LimitExceeded",
    "NotFound",
    "ProtocolError",
    "SdkError",
    "ServerError",
    "StreamFailed",
    "TimedOut",
    "Unauthorized",
    "UnsafeArchive",
    "api_error",
]


class SdkError(Exception):
    """Base of all errors of the client."""


class ApiError(SdkError):
    """The server answered with an error."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        self.status = status
        """HTTP status."""
        self.code = code
        """Stable; programs branch on it: `NOT_FOUND`, `QUOTA_EXCEEDED`, …"""
        self.message = message
        """For people."""
        self.retry_after_s = retry_after_s
        """Seconds after which the server wants to be asked again, where it said so."""
        super().__init__(message)


class BadRequest(ApiError):
    """The request is wrong."""


class Unauthorized(ApiError):
    """The API key is missing, unknown, expired or switched off."""


class NotFound(ApiError):
    """There is no such thing, or it belongs to another account."""


class Conflict(ApiError):
    """The sandbox is in a state that does not allow it: most often it has ended."""


class LimitExceeded(ApiError):
    """A quota or a rate is used up."""


class ServerError(ApiError):
    """The server failed, or cannot do it now."""


class ConnectionFailed(SdkError):
    """The server was not reached, or was lost."""


class ConnectionLost(ConnectionFailed):
    """The connection to a process broke, and could not be resumed."""


class TimedOut(ConnectionFailed):
    """The server did not answer in time."""


class StreamFailed(SdkError):
    """The server gave up a process's stream, and said why."""


class ProtocolError(SdkError):
    """What answered does not speak execbox."""


class UnsafeArchive(SdkError):
    """An archive holds what must not be unpacked: nothing of that entry was written."""


KINDS: Mapping[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    404: NotFound,
    409: Conflict,
    413: BadRequest,
    422: BadRequest,
    429: LimitExceeded,
}


def api_error(status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """The error that a response with *status* means, whatever its body looks like."""
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    message = code = ""
    if isinstance(document, dict):
        code = str(document.get("code") or "")
        # BoxLite's bodies, which the commands on boxes and images meet, have an object where others have the text.
        texts = (document.get(name) for name in ("error", "message", "detail", "title"))
        message = next((text for text in texts if isinstance(text, str) and text), "")
    kind = KINDS.get(status, ServerError if status >= 500 else ApiError)
    return kind(
        status,
        code,
        message or f"the server answered with status {status}",
        retry_after_s=_seconds(headers.get("retry-after") or headers.get("Retry-After")),
    )


def _seconds(text: str | None) -> float | None:
    """A Retry-After header's seconds; its other form, a date, is not used by servers of this protocol."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
