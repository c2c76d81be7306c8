"""Pieces of the OpenAPI description that the routes share."""

from typing import Any

from fastapi import Security
from fastapi.security import HTTPBearer

from stockade.dialects.execbox.wire import Error

__all__ = ["BEARER", "MESSAGES", "Responses", "failing", "query", "upgrading"]

Responses = dict[int | str, dict[str, Any]]

BEARER = [Security(HTTPBearer(scheme_name="bearerAuth", auto_error=False, description="An API key: `sk_…`."))]
"""Only described by this; `edge` asks for the key."""

MESSAGES = """

Each binary message holds one frame: `01` Stdin, `02` Stdout, `03` Stderr and `05` Error have a length (32 bit, big
endian) and that many bytes; `04` Exit has the exit code in place of the length; `06` StdinClose stands alone. All
output is sent first, then one Exit, then the connection is closed (1000).
"""

_TEXTS = {
    400: "The request is wrong.",
    401: "No key, or none that is valid.",
    404: "There is no such thing, or it is not yours.",
    403: "The session's user may not do this.",
    408: "The body did not come in time.",
    409: "The session has ended.",
    413: "It is too large.",
    416: "The file has nothing in that range.",
    429: "Too many requests, or a quota is used up; see `Retry-After`.",
    500: "Something broke here.",
    501: "This host cannot do it.",
    503: "No room now; see `Retry-After`.",
}


def failing(*statuses: int) -> Responses:
    """The errors of a route, beside those that every route can answer."""
    return {status: {"model": Error, "description": _TEXTS[status]} for status in (*statuses, 401, 429, 500, 503)}


def query(*parameters: tuple[str, str, dict[str, Any]], required: str = "") -> dict[str, Any]:
    """`openapi_extra` with query parameters: name, description, schema."""
    return {
        "parameters": [
            {"name": name, "in": "query", "description": text, "schema": schema, "required": name == required}
            for name, text, schema in parameters
        ]
    }


def upgrading() -> Responses:
    """The answers of a route that becomes a WebSocket connection."""
    return {101: {"description": "The connection becomes a WebSocket."}, **failing(400, 404, 409)}
