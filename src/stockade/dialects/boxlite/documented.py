"""Pieces of the OpenAPI description that the routes share."""

from typing import Any

from fastapi import Response, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from stockade.dialects.boxlite.wire import Error
from stockade.wire.openapi import request_body

__all__ = ["BINARY", "BOOLEAN", "INTEGER", "STRING", "operation", "parameter"]

STRING = {"type": "string"}
INTEGER = {"type": "integer"}
BOOLEAN = {"type": "boolean"}
BINARY = {"schema": {"type": "string", "format": "binary"}}

_BEARER = [Security(HTTPBearer(scheme_name="boxlite", auto_error=False, description="An API key: `sk_…`."))]
"""Only described by this; `edge` asks for the key."""
_TEXTS = {
    400: "The request is wrong, or asks for what is not to be had here.",
    401: "No key, or none that is valid.",
    403: "The key may not do this.",
    404: "There is no such thing, or it is not yours.",
    408: "The body did not come in time.",
    409: "It exists already, or is in a state that does not allow it.",
    413: "It is too large.",
    422: "The image cannot be had.",
    429: "A quota is used up; see `Retry-After`.",
    500: "Something broke here.",
    503: "No room now, or a part is away; see `Retry-After`.",
    504: "It took too long.",
}
_OF_ALL = (401, 429, 500, 503, 504)


def operation(
    name: str,
    summary: str,
    *,
    status: int = 200,
    answer: type[BaseModel] | None = None,
    text: str = "Done.",
    errors: tuple[int, ...] = (),
    body: tuple[type[BaseModel], dict[str, Any]] | None = None,
    parameters: tuple[dict[str, Any], ...] = (),
    content: dict[str, Any] | None = None,
    upload: str = "",
    is_public: bool = False,
) -> dict[str, Any]:
    """Arguments of a route's that describe it.

    Args:
        answer: its JSON; `content` where it is something else.
        text: what the answer means, where it has no body.
        errors: beside those that every route can answer.
        body: the model of its JSON body, which may be left out, and an example.
        upload: media type of a body that is streamed.
        is_public: no key is asked for.
    """
    found: dict[str, Any] = {"description": text}
    if answer is not None:
        found["model"] = answer
    if content is not None:
        found["content"] = content
    reads = (400, 408, 413) if body is not None or upload else ()
    extra: dict[str, Any] = {}
    if body is not None:
        extra = request_body(*body)
        extra["requestBody"]["required"] = False
    if upload:
        extra = {"requestBody": {"required": True, "content": {upload: BINARY}}}
    if parameters:
        extra["parameters"] = list(parameters)
    return {
        "operation_id": f"boxlite_{name}",
        "summary": summary,
        "status_code": status,
        "response_class": Response,
        "responses": {
            status: found,
            **{one: {"model": Error, "description": _TEXTS[one]} for one in sorted({*errors, *reads, *_OF_ALL})},
        },
        "openapi_extra": extra,
        "dependencies": [] if is_public else _BEARER,
    }


def parameter(name: str, text: str, schema: dict[str, Any] = STRING, *, required: bool = False) -> dict[str, Any]:
    """A parameter of the query."""
    return {"name": name, "in": "query", "description": text, "schema": schema, "required": required}
