"""Clients: their addresses, and work that ends when they leave."""

import asyncio
from typing import Any

import pytest

from stockade.wire.clients import ClientGone, normal_address, while_connected


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


@pytest.mark.anyio
async def test_work_that_ends_first_gives_its_result() -> None:
    async def work() -> int:
        return 5

    assert await while_connected(_never, work()) == 5


@pytest.mark.anyio
async def test_the_works_error_is_the_callers() -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await while_connected(_never, work())


@pytest.mark.anyio
@pytest.mark.parametrize("clumsy", [False, True])
async def test_work_has_ended_when_the_client_is_gone(clumsy: bool) -> None:
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
        await while_connected(_gone, work())
    assert cleaned


@pytest.mark.anyio
async def test_cancelling_the_caller_cancels_the_work() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await _never()
        finally:
            ended.set()

    caller = asyncio.create_task(while_connected(_never, work()))
    await started.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()
