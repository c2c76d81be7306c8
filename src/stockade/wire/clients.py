"""The client at the other end: its address, its request's id, and whether it is still there."""

import asyncio
import functools
import ipaddress
import os
import re
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Receive

__all__ = ["HANG_UP", "ClientGone", "address", "normal_address", "request_id", "while_connected"]

T = TypeVar("T")
HANG_UP = "stockade.hang_up"
"""ASGI extension of our server's connections: `left()` gives a future that is done once the client has hung up. To
learn that by `receive` takes a task for each request. `wait_for_reader(however_long=True)` keeps a client that takes
nothing of its answer, for streams without an end that hold next to nothing in memory."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ClientGone(Exception):
    """The client went away before its answer was ready. Nobody is left to be told, so it is no `StockadeError`."""


def address(request: Request) -> str:
    """The client's address, as rate limits and the fairness of the queue go by it; see `normal_address`."""
    return normal_address(request.client.host if request.client is not None else "")


@functools.lru_cache(maxsize=1024)
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
    return sent if _REQUEST_ID.fullmatch(sent) else os.urandom(16).hex()


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of *work*; when the client disconnects first, *work* is cancelled at once and has ended on return.

    *work* goes on in the caller's own task. The request's body must have been read already.

    Raises:
        ClientGone: the client disconnected.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = over = False

    def leave(_left: object) -> None:
        nonlocal gone
        if not over:  # a callback that is on its way cannot be taken back
            gone = True
            task.cancel()

    connection = request.scope.get("extensions", {}).get(HANG_UP)
    left: asyncio.Future[None]
    left = connection["left"]() if connection else asyncio.ensure_future(_disconnected(request.receive))
    left.add_done_callback(leave)
    try:
        return await work
    finally:
        over = True
        left.remove_done_callback(leave)
        if not connection:
            left.cancel()
        # Somebody else's cancellation counts beside ours, and then goes on.
        if gone and task.uncancel() == 0:
            raise ClientGone


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
