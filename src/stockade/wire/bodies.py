"""Request bodies, read by ourselves: bounded in size and time, and with JSON rules that the dialect chooses.

The frameworks' own readers keep a body of any size in memory, take the last of two equal keys, and let NaN and
lone surrogates through; each of these ends in a 500 or in two programs that disagree about one request.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from stockade.errors import Invalid

__all__ = [
    "BodyTimeout",
    "BodyTooLarge",
    "NotJson",
    "Upload",
    "discard_body",
    "has_json_type",
    "parse_object",
    "read_body",
]

MAX_DISCARDED_BYTES = 64 * 1024 * 1024
DISCARD_TIMEOUT_S = 5.0

MOST_DIGITS = 100
"""Of an integer: with more than 308, arithmetic with floating-point numbers raises OverflowError."""
_LONG_INTEGER = re.compile(rf"[0-9]{{{MOST_DIGITS + 1}}}")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class BodyTooLarge(Invalid):
    """The request body is larger than the server takes."""

    code = "body.too_large"

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        super().__init__(f"the request body must not be larger than {maximum} bytes")


class BodyTimeout(Invalid):
    """The client did not send the whole body in time."""

    code = "body.timeout"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request body did not arrive within {timeout_s:g} s")


class NotJson(Invalid):
    """The body is no JSON object. `reason` says more where the text is JSON by the letter and refused all the same."""

    code = "body.not_json"

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason or "the request body is not JSON")


def has_json_type(request: Request) -> bool:
    """Whether the content type is `application/json` or `application/<something>+json`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body.

    Raises:
        BodyTooLarge: it has (or announces) more than *max_bytes*; what was too much is not kept.
        BodyTimeout: it took longer than *timeout_s*.
        ClientDisconnect: the client went away in the middle (starlette's).
    """
    announced = request.headers.get("content-length", "")
    parts: list[bytes] = []
    size = int(announced[:20]) if announced.isdecimal() else 0
    try:
        async with asyncio.timeout(timeout_s):
            has_more = True
            if size <= max_bytes:
                size = 0
                while has_more and size <= max_bytes:
                    message = await request.receive()
                    if message["type"] != "http.request":
                        raise ClientDisconnect
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    has_more = message.get("more_body", False)
            if size > max_bytes:
                parts.clear()
                if has_more:  # else there is nothing to come that one could wait for
                    await discard_body(request.receive)
                raise BodyTooLarge(max_bytes)
    except TimeoutError:
        raise BodyTimeout(timeout_s) from None
    except HTTPException as error:  # the application's own guard counts too, and may come first
        if error.status_code == 413:
            raise BodyTooLarge(max_bytes) from None
        raise
    return b"".join(parts)


class Upload:
    """A request's body as it comes, of any size or *most*. A client that sends nothing for too long is given up."""

    def __init__(self, request: Request, patience_s: float, *, most: int | None = None) -> None:
        self._request = request
        self._patience_s = patience_s
        self._most = most
        announced = request.headers.get("content-length", "")
        self._announced = int(announced[:19]) if announced.isdecimal() else None
        self._stream = request.stream()
        self.is_read = self._announced == 0
        """To its end; nothing more may be asked of the connection then."""

    async def parts(self) -> AsyncIterator[bytes]:
        """The body, once.

        Raises:
            BodyTimeout: nothing came for too long.
            BodyTooLarge: it is, or announces that it will be; or the server takes none as large as this.
            ClientDisconnect: the client went away in the middle (starlette's).
        """
        if self._most is not None and (self._announced or 0) > self._most:
            raise BodyTooLarge(self._most)
        size = 0
        while True:
            try:
                async with asyncio.timeout(self._patience_s):
                    part = await anext(self._stream, None)
            except TimeoutError:
                raise BodyTimeout(self._patience_s) from None
            except HTTPException as error:  # the application's own guard
                if error.status_code == 413:
                    raise BodyTooLarge(self._announced or 0 if self._most is None else self._most) from None
                raise
            if part is None:
                self.is_read = True
                return
            size += len(part)
            if self._announced is not None:
                self.is_read = size >= self._announced  # also when who reads stops here
            if self._most is not None and size > self._most:
                raise BodyTooLarge(self._most)
            if part:
                yield part

    async def discard(self) -> None:
        """Throw away what is left of it, before the request is refused; see `discard_body`."""
        if self.is_read:
            return
        left = MAX_DISCARDED_BYTES
        # Not by `receive`: the end may have come with what was read last, and after it nothing comes for long.
        with suppress(TimeoutError, HTTPException, ClientDisconnect):
            async with asyncio.timeout(DISCARD_TIMEOUT_S):
                async for part in self._stream:
                    left -= len(part)
                    if left <= 0:
                        return


async def discard_body(receive: Receive) -> None:
    """Read the rest of a request's body and throw it away, within bounds, before the request is refused.

    A connection that is closed while its peer still sends is reset, and a reset takes our answer with it (RFC 9112,
    section 9.6): the client would see a broken connection instead of the 413.
    """
    left = MAX_DISCARDED_BYTES
    try:
        async with asyncio.timeout(DISCARD_TIMEOUT_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in *raw*: UTF-8, no duplicate keys, numbers that can be reckoned with, no lone surrogates.

    Raises:
        NotJson: it is anything else.
    """
    try:
        text = raw.decode()
        # RecursionError: nested deeper than the interpreter's stack. ValueError also covers integers with more
        # digits than the interpreter agrees to convert.
        value = (_CAREFUL if _LONG_INTEGER.search(text) else _DECODER).decode(text)
    except (ValueError, RecursionError):
        raise NotJson from None
    if not isinstance(value, dict):
        raise NotJson("the request body must be a JSON object")
    if _SURROGATE_ESCAPE.search(text):  # strict UTF-8 has none, so only an escape can bring one in
        _refuse_lone_surrogates(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise NotJson(f"duplicate key {key[:100]!r}")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is not a JSON number")


def _short_integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer may have at most {MOST_DIGITS} digits")
    return int(digits)


def _refuse_lone_surrogates(value: object) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                raise NotJson("a string holds a lone surrogate, which is no character") from None
        elif isinstance(item, dict):
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
_CAREFUL = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_short_integer)
"""Slower: it calls a function of ours for each integer."""
