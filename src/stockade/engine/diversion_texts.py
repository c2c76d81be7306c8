"""Puts secrets in the place of their placeholders, in what a request consists of.

How a value is written depends on where it stands: as it is in headers and plain text, percent-encoded in an address
and a form, with JSON's escapes in JSON. A placeholder is found in each way in which clients write it there. What was
put in is not looked at again: a value that holds a placeholder stays as it is.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote

from stockade.model import SecretRule

__all__ = ["Replacement", "Streamed", "Writing", "writing_of"]


class Writing(Enum):
    """How text is written where a placeholder may stand."""

    PLAIN = "plain"
    PERCENT = "percent"
    """With percent-encoding: the target of a request, a form."""
    JSON = "json"


_TEXT = re.compile(r"text/.*|application/(?:.*\+)?(?:xml|yaml|toml|graphql|javascript|x-ndjson)|multipart/form-data")
_JSON = re.compile(r"application/(?:.*\+)?json")
_FORM = "application/x-www-form-urlencoded"
_UNRESERVED_TOO = "-._~:@!*'()$,"
"""Left as they are in a path and a query alike, and never a delimiter in one."""
_BASIC = re.compile(rb"(\s*basic\s+)([A-Za-z0-9+/]+=*)\s*", re.IGNORECASE)


def writing_of(content_type: str) -> Writing | None:
    """How a body of this type is written; `None` for one that is no text, in which nothing is looked for."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == _FORM:
        return Writing.PERCENT
    if _JSON.fullmatch(kind):
        return Writing.JSON
    return Writing.PLAIN if _TEXT.fullmatch(kind) else None


class Replacement:
    """The secrets that are meant for one host."""

    def __init__(self, rules: Iterable[SecretRule]) -> None:
        # Of two rules with one placeholder the first holds.
        self._values = {rule.placeholder: rule.value for rule in reversed(list(rules))}
        self._finders = {writing: _Finder.of(self._values, writing) for writing in Writing if self._values}

    def __bool__(self) -> bool:
        return bool(self._values)

    def target(self, target: bytes) -> bytes:
        """A request's target, with the values in it."""
        return self._replace(target, Writing.PERCENT)

    def header(self, value: bytes) -> bytes:
        """A header's value, with the values in it, also inside the credentials of the scheme `Basic`."""
        if (basic := _BASIC.fullmatch(value)) is not None:
            try:
                credentials = base64.b64decode(basic[2], validate=True)
            except binascii.Error:
                credentials = b""
            replaced = self._replace(credentials, Writing.PLAIN)
            if replaced != credentials:
                return basic[1] + base64.b64encode(replaced)
        return self._replace(value, Writing.PLAIN)

    def body(self, writing: Writing) -> "Streamed | None":
        """For a body that comes in parts; `None` where there is nothing to replace."""
        finder = self._finders.get(writing)
        return None if finder is None else Streamed(finder)

    def _replace(self, text: bytes, writing: Writing) -> bytes:
        streamed = self.body(writing)
        return text if streamed is None else streamed.feed(text) + streamed.end()


class Streamed:
    """One text, as its parts come: what might be the beginning of a placeholder is held back until it is known."""

    def __init__(self, finder: "_Finder") -> None:
        self._finder = finder
        self._held = b""

    def feed(self, part: bytes) -> bytes:
        """What can be passed on, now that *part* has come."""
        text = self._held + part
        # A match is looked for only where the longest would fit: a shorter one may be the beginning of a longer one.
        return self._pass_on(text, len(text) - self._finder.longest + 1)

    def end(self) -> bytes:
        """What was held back."""
        return self._pass_on(self._held, len(self._held) + 1)

    def _pass_on(self, text: bytes, before: int) -> bytes:
        done = bytearray()
        at = 0
        for found in self._finder.pattern.finditer(text):
            if found.start() >= before:
                break
            done += text[at : found.start()]
            done += self._finder.values[found.lastindex or 0]
            at = found.end()
        end = min(max(at, before), len(text))
        done += text[at:end]
        self._held = text[end:]
        return bytes(done)


@dataclass(frozen=True)
class _Finder:
    """Finds placeholders as they are written in one way."""

    pattern: "re.Pattern[bytes]"
    """With a group for each placeholder."""
    values: Mapping[int, bytes]
    """By group, as they are written there."""
    longest: int
    """Bytes of the longest match."""

    @classmethod
    def of(cls, secrets: Mapping[str, str], writing: Writing) -> "_Finder":
        # The longest first: of two that begin alike it is the one that is meant.
        ordered = sorted(secrets, key=len, reverse=True)
        return cls(
            pattern=re.compile(b"|".join(b"(" + _pattern(one, writing) + b")" for one in ordered)),
            values={group: _written(secrets[one], writing) for group, one in enumerate(ordered, start=1)},
            longest=max(len(one) for one in ordered) * _WIDEST[writing],
        )


_WIDEST = {Writing.PLAIN: 1, Writing.PERCENT: 3, Writing.JSON: 6}
"""Bytes that one character of a placeholder may take."""


def _pattern(placeholder: str, writing: Writing) -> bytes:
    match writing:
        case Writing.PLAIN:
            return _literal(placeholder)
        case Writing.PERCENT:
            ways = (_either(*_percent_literals(one), rb"(?i:%%%02x)" % ord(one)) for one in placeholder)
        case Writing.JSON:
            ways = (_either(*_json_literals(one), rb"\\u(?i:%04x)" % ord(one)) for one in placeholder)
    return b"".join(ways)


def _percent_literals(one: str) -> list[bytes]:
    return [] if one in "%+" else [_literal(one)]  # as they are, they stand for something else there


def _json_literals(one: str) -> list[bytes]:
    escaped = _literal(f"\\{one}")
    if one in '"\\':  # without a backslash before it, it is none of the text's
        return [escaped]
    return [_literal(one), escaped] if one == "/" else [_literal(one)]


def _literal(text: str) -> bytes:
    return re.escape(text.encode())


def _either(*ways: bytes) -> bytes:
    return b"(?:" + b"|".join(ways) + b")"


def _written(value: str, writing: Writing) -> bytes:
    match writing:
        case Writing.PLAIN:
            return value.encode()
        case Writing.PERCENT:
            return quote(value, safe=_UNRESERVED_TOO).encode()
        case Writing.JSON:
            return json.dumps(value, ensure_ascii=False)[1:-1].encode()
