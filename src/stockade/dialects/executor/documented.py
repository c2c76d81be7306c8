"""Pieces of the OpenAPI description that the routes share."""

from collections.abc import Mapping
from typing import Any

from fastapi import Response, Security
from fastapi.security import HTTPBearer

from stockade.dialects.executor.operation import Operation
from stockade.dialects.executor.replies import JSON

__all__ = ["BOOLEAN", "COMMAND", "EVENTS_ANSWER", "INTEGER", "NUMBER", "STRING", "answer", "body", "documented"]

STRING = {"type": "string"}
NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}
BOOLEAN = {"type": "boolean"}
COMMAND: Mapping[str, dict[str, Any]] = {
    "cmd": {**STRING, "description": "For `sh -c`."},
    "cwd": {**STRING, "description": "Working directory; the sandbox's own if not set."},
    "env": {
        "type": "object",
        "additionalProperties": STRING,
        "description": "Laid over the sandbox's own environment.",
    },
}
"""What a command is asked for with."""
_SECRET = Security(HTTPBearer(scheme_name="executorSecret", auto_error=False, description="The sandbox's own secret."))
"""Only described by this; `access` asks for it."""
_PLAIN = {"text/plain": {"schema": STRING}}
_REFUSALS = {
    400: "The request is wrong.",
    401: "No secret, or none that opens anything.",
    408: "The body did not come in time.",
    410: "The sandbox has ended.",
    413: "The body is too large.",
    429: "Too many wrong secrets from this address; see `Retry-After`.",
    500: "Something broke here.",
    503: "Nothing was done, and it may work later; see `Retry-After`.",
}
_EVENT = {"type": "object", "properties": {"event": STRING, "data": STRING}}

EVENTS_ANSWER: Mapping[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {"schema": _EVENT}}}
}


def body(properties: Mapping[str, object], *, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """`Operation.extra` of one that reads an object."""
    schema: dict[str, Any] = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


def answer(status: int = 200, /, **properties: object) -> dict[int | str, dict[str, Any]]:
    """`Operation.responses` of one that answers with an object."""
    schema = {"type": "object", "properties": properties}
    return {status: {"description": "What came of it.", "content": {JSON: {"schema": schema}}}}


def documented(path: str, operation: Operation) -> dict[str, Any]:
    """Arguments of a route's that describe *operation*."""
    responses: dict[int | str, dict[str, Any]] = dict(operation.responses)
    success = next((int(status) for status in responses if int(status) < 300), 200)
    for status, text in _REFUSALS.items():
        content = responses.get(status, {}).get("content", {})
        responses[status] = {"description": text, "content": {**_PLAIN, **content}}
    return {
        "operation_id": f"executor_{path.strip('/')}",
        "summary": operation.summary,
        "description": f"{operation.description}\n\nAlso without the prefix.".strip(),
        "status_code": success,
        "response_class": Response,
        "responses": responses,
        "openapi_extra": dict(operation.extra),
        "dependencies": [_SECRET],
    }
