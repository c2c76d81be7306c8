"""Reads a request's JSON by the reference's lenient rules; whatever is sent, the worst is `BadRequest`.

Data after the first value is ignored, of equal keys the last counts, what is no UTF-8 and half a character becomes
U+FFFD, `null` is an empty object. `wire.bodies.parse_object` refuses all of these.
"""

import json
import re
from typing import NoReturn

from stockade.dialects.executor.encoding import decode
from stockade.dialects.executor.operation import BadRequest, Fields

__all__ = ["parse"]

_SPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse(raw: bytes) -> Fields:
    """The object in *raw*.

    Raises:
        BadRequest: there is none, or it is no JSON.
    """
    text = decode(raw)
    start = _SPACE.match(text)
    assert start is not None
    try:
        # RecursionError: nested deeper than the interpreter's stack. ValueError also covers integers with more digits
        # than the interpreter agrees to convert.
        value, _ = _DECODER.raw_decode(text, start.end())
    except (ValueError, RecursionError):
        raise BadRequest("Invalid request") from None
    if value is None:
        return Fields({})
    if not isinstance(value, dict):
        raise BadRequest("Invalid request")
    # What was decoded strictly has none, so only an escape can bring one in.
    return Fields(value, may_hold_surrogates=_SURROGATE.search(text) is not None)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
