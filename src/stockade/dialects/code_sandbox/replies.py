"""Answers as the protocol words them: JSON, and a newline at its end."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

__all__ = ["JSON", "Failure", "empty_reply", "failure_reply", "json_reply"]

JSON = "application/json"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A request that was refused, or failed."""

    status: int
    error: str
    """In words, as the contract has them."""
    code: str = ""
    """Stable name, for clients of our own routes; empty where the contract allows no further member."""
    field: str = ""
    """The member or parameter that is wrong, where it is one."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


def json_reply(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """*content* as JSON."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"
    return Response(body, status_code=status, headers={"content-type": JSON, **(headers or {})})


def failure_reply(failure: Failure) -> Response:
    """*failure* as JSON."""
    more = {"code": failure.code, "field": failure.field}
    content = {"error": failure.error, **{name: text for name, text in more.items() if text}}
    return json_reply(content, failure.status, failure.headers)


def empty_reply(status: int) -> Response:
    """No body at all."""
    return Response(status_code=status)
