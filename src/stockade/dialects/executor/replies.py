"""Answers as the protocol words them: JSON in ASCII with a newline at its end, or one line of plain text.

ASCII, because the Python client splits streams at characters that Unicode takes for line ends, and the JavaScript
client decodes each piece that the network brings by itself.
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

__all__ = ["JSON", "TEXT", "json_reply", "text_reply"]

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


def json_reply(content: Mapping[str, Any], status: int = 200) -> Response:
    """*content* as JSON."""
    body = json.dumps(content, separators=(",", ":")).encode("ascii") + b"\n"
    return Response(body, status_code=status, headers={"content-type": JSON})


def text_reply(text: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """*text* and a newline. (`X-Content-Type-Options` is the server's own to say, with every answer.)"""
    body = f"{text}\n".encode(errors="replace")
    return Response(body, status_code=status, headers={"content-type": TEXT, **(headers or {})})
