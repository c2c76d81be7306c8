"""Clients: their addresses, and work that ends when they leave."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request

from stockade.wire.clients import HANG_UP, ClientGone, normal_address, while_connected


@pytest.mark.parametrize(
    ("host", "counts_as"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "local"),
        ("testclient", "local"),
    ],
)
def test_a_client_counts_as_its_address(host: str, counts_as: str) -> None:
    assert normal_address(host) == counts_as


async def _never() -> Any:
    await asyncio.Event().wait()


async def _gone() -> dict[str, str]:
    return {"type": "http.disconnect"}


def of_any_server(*, gone: bool) -> Request:
    """Tells by `receive` alone."""
    return Request({"type": "http"}, _gone if gone else _never)


def of_our_server(*, gone: bool) -> Request:
    """Tells by the extension, and must not be asked by `receive`."""
    left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    if gone:
        left.set_result(None)
    return Request({"type": "http", "extensions": {HANG_UP: {"left": lambda: left}}})


SERVERS = pytest.mark.parametrize("server", [of_any_server, of_our_server])
Server = Callable[..., Request]


@pytest.mark.anyio
@SERVERS
async def test_work_that_ends_first_gives_its_result(server: Server) -> None:
    async def work() -> int:
        return 5

    assert await while_connected(server(gone=False), work()) == 5


@pytest.mark.anyio
@SERVERS
async def test_the_works_error_is_the_callers(server: Server) -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await while_connected(server(gone=False), work())


@pytest.mark.anyio
@SERVERS
@pytest.mark.parametrize("clumsy", [False, True])
async def test_work_has_ended_when_the_client_is_gone(server: Server, clumsy: bool) -> None:
    """Also when its clean-up fails."""
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await _never()
        finally:
            await asyncio.sleep(0)
            cleaned = True
            if clumsy:
                raise RuntimeError("clean-up failed")

    with pytest.raises(ClientGone):
        await while_connected(server(gone=True), work())
    assert cleaned


@pytest.mark.anyio
@SERVERS
async def test_cancelling_the_caller_cancels_the_work(server: Server) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await _never()
        finally:
            ended.set()

    caller = asyncio.create_task(while_connected(server(gone=False), work()))
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()


@pytest.mark.anyio
@SERVERS
async def test_whoever_cancels_the_caller_while_the_client_leaves_is_heard(server: Server) -> None:
    cleaning, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await _never()
        finally:
            cleaning.set()
            await cancelled.wait()

    caller = asyncio.create_task(while_connected(server(gone=True), work()))
    await cleaning.wait()
    caller.cancel()
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
