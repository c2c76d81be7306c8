"""What the protocol can be asked to do: one record an operation, and what each is given."""

import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from stockade.errors import Invalid
from stockade.model import Actor

__all__ = ["BadRequest", "Caller", "Fields", "Operation", "Work"]

_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRequest(Invalid):
    """The request is wrong; the message is the whole text that the client gets (status 400)."""

    code = "executor.bad_request"


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks, and the sandbox that their secret opens."""

    actor: Actor
    sandbox_id: str
    has_bound_port: bool = False
    """Whether a port of this host leads to whichever port of the sandbox is bound."""


class Fields:
    """The members of a request's body, by the protocol's rules.

    One that is missing or `null` has its zero value, one of the wrong type makes the request wrong, unknown ones count
    for nothing.
    """

    __slots__ = ("_may_hold_surrogates", "_members")

    def __init__(self, members: Mapping[str, Any], *, may_hold_surrogates: bool = True) -> None:
        self._members = members
        self._may_hold_surrogates = may_hold_surrogates

    def text(self, name: str, default: str = "") -> str:
        """A string; half a character (a lone surrogate) in it is U+FFFD.

        Raises:
            BadRequest: it is something else.
        """
        value = self._members.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise _INVALID
        return self._clean(value)

    def strings(self, name: str) -> dict[str, str]:
        """A map of strings to strings. Raises BadRequest."""
        value = self._members.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _INVALID
        found: dict[str, str] = {}
        for key, text in value.items():
            if text is None:
                text = ""
            elif not isinstance(text, str):
                raise _INVALID
            found[self._clean(key)] = self._clean(text)
        return found

    def env(self) -> dict[str, str]:
        """The variables in `env`. Raises BadRequest."""
        return self.strings("env")

    def number(self, name: str) -> float | None:
        """A finite number; `None` where there is none. Raises BadRequest."""
        value = self._members.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _INVALID
        try:
            number = float(value)
        except OverflowError:
            raise _INVALID from None
        if not math.isfinite(number):
            raise _INVALID
        return number

    def flag(self, name: str) -> bool:
        """A boolean. Raises BadRequest."""
        value = self._members.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise _INVALID
        return value

    def word(self, name: str) -> str | int | None:
        """A string or a whole number; `None` where there is none. Raises BadRequest."""
        value = self._members.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise _INVALID
        return self._clean(value) if isinstance(value, str) else value

    def _clean(self, text: str) -> str:
        return _SURROGATE.sub("\ufffd", text) if self._may_hold_surrogates else text


_INVALID = BadRequest("Invalid request")

Work = Callable[[Caller, Fields, Request], Awaitable[Response]]
"""Does what is asked, and makes the answer. What it raises is answered by the edge: `BadRequest` with its own text, a
sandbox that has ended with 410, `Unavailable` with 503 – so that only before anything has had an effect."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One path of the protocol."""

    method: str
    """`GET` or `POST`; any other is answered with 405."""
    work: Work
    summary: str
    """For the API's description."""
    description: str = ""
    has_body: bool = True
    """Whether a JSON object is read; else `Fields` is empty, whatever is sent."""
    responses: Mapping[int | str, dict[str, Any]] = field(default_factory=dict)
    """OpenAPI, beside what the edge can answer."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """OpenAPI of the request."""
