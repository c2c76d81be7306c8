"""Bytes that a tenant produced, as text and as JSON.

UTF-8 is decoded with one U+FFFD for each byte that is none, as the reference does; Python's own decoder writes one for
each *sequence* that was cut off. JSON is ASCII. All of it works on whole pieces in C: a loop over lines would cost more
than the sandbox.
"""

import json
import re
from json.encoder import encode_basestring_ascii

__all__ = ["decode", "json_array_of", "json_lines", "json_text"]

_CUT_OFF = re.compile(
    rb"[\xe0-\xf4][\x80-\xbf](?:(?![\x80-\xbf])|(?<=[\xf0-\xf4][\x80-\xbf])[\x80-\xbf](?![\x80-\xbf]))"
)
"""Two or three bytes that would begin a character and are not followed by its last (table 3-7 of the Unicode standard).

Those of them that cannot begin any are decoded one by one in any case, so they need not be told apart.
"""
_SIMPLE = bytes(range(0x20, 0x7F)) + b"\t\n"
_ESCAPES = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\t", b"\\t"))
"""In this order: the first is in what the others become."""


def decode(data: bytes) -> str:
    """*data* as text, with one U+FFFD for each byte that is not part of a character's UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        # A byte FF is never part of anything, so each becomes one U+FFFD, and nothing around it changes.
        return _CUT_OFF.sub(_all_ff, data).decode(errors="replace")


def _all_ff(found: "re.Match[bytes]") -> bytes:
    return b"\xff" * len(found[0])


def json_text(data: bytes) -> bytes:
    """*data* as a JSON string, without its quotes."""
    escaped = json_lines(data)
    if escaped is not None:
        return escaped.replace(b"\n", b"\\n")
    return encode_basestring_ascii(decode(data))[1:-1].encode("ascii")


def json_lines(data: bytes) -> bytes | None:
    """*data* as `json_text` writes it, but for line feeds, which stay; `None` where it holds more than printable ASCII,
    tabs and line feeds.

    Most output holds no more, and this takes a fifth of the time.
    """
    if data.translate(None, _SIMPLE):
        return None
    for plain, escaped in _ESCAPES:
        if plain in data:
            data = data.replace(plain, escaped)
    return data


def json_array_of(lines: list[str], *, between: str) -> str:
    """*lines* as JSON strings with the text *between* them: thousands of events by one call into C."""
    return json.dumps(lines, separators=(between, ":"))[1:-1]
