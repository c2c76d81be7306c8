"""The client at the other end: its address, its request's id, and whether it is still there."""

import asyncio
import ipaddress
import re
import uuid
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

__all__ = ["ClientGone", "address", "normal_address", "request_id", "while_connected"]

T = TypeVar("T")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ClientGone(Exception):
    """The client went away before its answer was ready. Nobody is left to be told, so it is no `StockadeError`."""


def address(request: Request) -> str:
    """The client's address, as rate limits and the fairness of the queue go by it; see `normal_address`."""
    return normal_address(request.client.host if request.client is not None else "")


def normal_address(host: str) -> str:
    """*host* as one client counts: an IPv6 client by its /64, for a subscriber is usually given a whole one.

    A peer without an address (a UNIX socket) is `local`.
    """
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "local"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def request_id(request: Request) -> str:
    """The `X-Request-ID` that the client sent where it is fit to be logged and echoed, else a new one."""
    sent = request.headers.get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of *work*; when the client disconnects first, *work* is cancelled at once and has ended on return.

    The request's body must have been read already.

    Raises:
        ClientGone: the client disconnected.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
            # Its clean-up kills a sandbox, which has a deadline of its own below.
            await asyncio.wait({working})
            if not working.cancelled():
                working.exception()  # looked at, so that asyncio does not report it as forgotten


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
