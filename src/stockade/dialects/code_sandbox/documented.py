"""Pieces of the OpenAPI description that the routes share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response
from pydantic import BaseModel

from stockade.dialects.code_sandbox.replies import JSON
from stockade.wire.openapi import request_body

__all__ = ["INTEGER", "STRING", "Described", "answer", "body", "documented", "path_id", "query"]

STRING = {"type": "string"}
INTEGER = {"type": "integer"}

Responses = dict[int | str, dict[str, Any]]

_REFUSALS = {
    400: "The request is wrong; `error` says how.",
    401: "No credentials, or none that are good.",
    404: "There is no such job, or it is another account's.",
    405: "The path has other methods.",
    408: "The body did not come in time.",
    409: "The job is in a state that does not allow it.",
    413: "The body is too large.",
    429: "Too many jobs of yours wait; see `Retry-After`.",
    500: "Something broke here.",
    501: "The language is not to be had here.",
    503: "Nothing was done, and it may work later; see `Retry-After`.",
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {**STRING, "description": "What is wrong, in words."},
        "code": {**STRING, "description": "Stable name; routes below `/v1/jobs` only."},
        "field": {**STRING, "description": "What it is wrong with, where it is one member or parameter."},
    },
    "required": ["error"],
}


@dataclass(frozen=True, kw_only=True)
class Described:
    """How an operation is described."""

    name: str
    """Of the operation; unique within the dialect."""
    summary: str
    description: str = ""
    responses: Responses
    """When all is well."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Parameters and body."""


def documented(about: Described) -> dict[str, Any]:
    """Arguments of a route's that describe it."""
    responses: Responses = dict(about.responses)
    success = next((int(status) for status in responses if int(status) < 300), 200)
    for status, text in _REFUSALS.items():
        responses.setdefault(status, {"description": text, "content": {JSON: {"schema": _ERROR}}})
    return {
        "operation_id": f"code_sandbox_{about.name}",
        "summary": about.summary,
        "description": about.description,
        "status_code": success,
        "response_class": Response,
        "responses": responses,
        "openapi_extra": dict(about.extra),
    }


def answer(status: int, model: type[BaseModel] | None, text: str) -> Responses:
    """The answer when all is well; without a body where there is no *model*."""
    return {status: {"description": text} if model is None else {"description": text, "model": model}}


def body(model: type[BaseModel], example: dict[str, Any], *parameters: dict[str, Any]) -> dict[str, Any]:
    """`Described.extra` of an operation that reads an object."""
    return {**request_body(model, example), **({"parameters": list(parameters)} if parameters else {})}


def path_id() -> dict[str, Any]:
    """The parameter that is the id of a job."""
    return {"name": "id", "in": "path", "required": True, "schema": STRING, "description": "Id of a job."}


def query(name: str, text: str, schema: Mapping[str, Any] = STRING) -> dict[str, Any]:
    """A parameter of the query."""
    return {"name": name, "in": "query", "required": False, "schema": dict(schema), "description": text}
