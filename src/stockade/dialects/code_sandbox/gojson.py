"""Request bodies as Go's `encoding/json` reads them into a record of strings.

The first JSON value counts and what follows is ignored; names match without regard to letter case; of several the last
one wins; `null` changes nothing; bytes that are no UTF-8, and halves of surrogate pairs, become U+FFFD. Clients of the
reference may depend on any of it.
"""

import codecs
import json
import re
from collections.abc import Collection
from typing import Any, NoReturn

from stockade.errors import Invalid

__all__ = ["BadPayload", "is_blank", "parse_strings", "trimmed"]

_REPLACEMENT = "\ufffd"
_ERRORS = "stockade.code_sandbox.go"
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""What Go's `unicode.IsSpace` takes for white space. `str.strip` takes some control characters besides."""
_JSON_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadPayload(Invalid):
    """The body is no JSON object, or one with members of other types."""

    code = "payload.invalid"

    def __init__(self) -> None:
        super().__init__("invalid JSON payload")


def parse_strings(raw: bytes, names: Collection[str]) -> dict[str, str]:
    """The members of the object in *raw* that have one of *names*, which are in lower case. Others are ignored.

    Raises:
        BadPayload: there is no JSON, it is neither an object nor `null`, or a member is no string.
    """
    text = raw.decode(errors=_ERRORS)
    begin = _JSON_SPACE.match(text)
    assert begin is not None
    try:
        value, _end = _DECODER.raw_decode(text, begin.end())
    except (ValueError, RecursionError):
        # Go refuses what is nested deeper than 10,000 levels; the interpreter's stack ends sooner.
        raise BadPayload from None
    if value is None:
        return {}
    if not isinstance(value, _Object):
        raise BadPayload
    found: dict[str, str] = {}
    for name, member in value.pairs:
        folded = _folded(name)
        if folded not in names or member is None:
            continue
        if not isinstance(member, str):
            raise BadPayload
        found[folded] = _SURROGATE.sub(_REPLACEMENT, member)
    return found


def is_blank(text: str) -> bool:
    """Whether there is nothing but white space."""
    return not trimmed(text)


def trimmed(text: str) -> str:
    """*text* without the white space around it."""
    return text.strip(_SPACES)


class _Object:
    """A JSON object, with repeated names."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        self.pairs = pairs


def _folded(name: str) -> str:
    """*name* in lower case, character by character: Go folds none into several."""
    if name.isascii():
        return name.lower()
    return "".join(folded if len(folded := one.casefold()) == 1 else one for one in name)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    # Go replaces each byte by itself; Python's own "replace" would take those of a broken character together.
    return _REPLACEMENT * (error.end - error.start), error.end


def _refused(_name: str) -> NoReturn:
    raise ValueError


codecs.register_error(_ERRORS, _replaced)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_Object,
    parse_constant=_refused,  # NaN and Infinity are Python's own
    # No member that counts is a number: of any length, it is only looked at as far as its end.
    parse_int=lambda _: 0,
    parse_float=lambda _: 0.0,
)
