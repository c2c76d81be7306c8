"""Disks through the warden: the methods of `stockade.backends.disks.Disks`, and what they refuse to whom."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest

from stockade.backends.base import Backend
from stockade.backends.disks import Disks
from stockade.backends.native.sandboxes import NativeSandboxes
from stockade.errors import Conflict, Invalid, NotFound
from stockade.model import DiskMount
from tests.backends.living import living, ran
from tests.backends.sandboxes import MB

pytestmark = pytest.mark.anyio

_numbers = itertools.count(1)


@pytest.fixture
async def disks(backend: Backend) -> AsyncIterator[Disks]:
    """They are gone at the end."""
    found: Disks | None = getattr(backend, "disks", None)
    if found is None:
        pytest.skip("this backend has no disks")
    facts = await found.facts()
    if facts.kind == "none":
        pytest.skip(f"this host has no disks: {facts.why}")
    before = {one.name for one in await found.list()}
    yield found
    for one in await found.list():
        if one.name not in before:
            await found.delete(one.name)


@pytest.fixture
def sandboxing(backend: Backend) -> NativeSandboxes:
    return backend.sandboxing  # type: ignore[attr-defined,no-any-return]  # of the one backend that has disks


@pytest.fixture
def name() -> str:
    """Of no disk yet."""
    return f"own{next(_numbers)}"


async def write(sandboxing: NativeSandboxes, disk: str, text: str) -> None:
    async with living(sandboxing, disk=disk) as sandbox:
        assert (await ran(sandboxing, sandbox, "sh", "-c", f"echo {text} > /home/user/text"))[2] == 0


async def content(sandboxing: NativeSandboxes, disk: str) -> str:
    async with living(sandboxing, disk=disk) as sandbox:
        out: bytes = (await ran(sandboxing, sandbox, "cat", "/home/user/text"))[0]
        return out.decode().strip()


async def test_disks_are_made_described_and_deleted(disks: Disks, name: str) -> None:
    await disks.make(name, size_bytes=16 * MB)
    with pytest.raises(Conflict):
        await disks.make(name, size_bytes=16 * MB)
    facts, info = await disks.facts(), await disks.info(name)
    assert info.size_bytes == (16 * MB if facts.enforces_size else 0)
    assert not info.is_layer
    assert info.used_bytes < MB
    await disks.resize(name, size_bytes=32 * MB)
    assert [one for one in await disks.list() if one.name == name] == [await disks.info(name)]
    await disks.delete(name)
    await disks.delete(name)
    with pytest.raises(NotFound):
        await disks.info(name)
    with pytest.raises(NotFound):
        await disks.resize(name, size_bytes=MB)
    with pytest.raises(Invalid):
        await disks.make("../x", size_bytes=MB)


async def test_a_copy_a_replacement_and_a_layer(disks: Disks, sandboxing: NativeSandboxes, name: str) -> None:
    await disks.make(name, size_bytes=16 * MB)
    await write(sandboxing, name, "first")
    copied = await disks.copy(name, f"{name}copy")
    assert copied.name == f"{name}copy"
    await write(sandboxing, name, "second")
    assert await content(sandboxing, f"{name}copy") == "first"
    await disks.replace(name, f"{name}copy")
    assert await content(sandboxing, name) == "first"
    with pytest.raises(NotFound):
        await disks.copy(f"{name}none", f"{name}more")
    with pytest.raises(NotFound):
        await disks.replace(name, f"{name}none")
    assert (await disks.seal(f"{name}copy")).is_layer
    with pytest.raises(NotFound):
        await content(sandboxing, f"{name}copy")


async def test_what_a_sandbox_uses_is_left_to_it(disks: Disks, sandboxing: NativeSandboxes, name: str) -> None:
    volume = f"{name}volume"
    for one in (name, volume, f"{name}other"):
        await disks.make(one, size_bytes=16 * MB)
    async with living(sandboxing, disk=name, mounts=(DiskMount(disk=volume, path="/data", read_only=True),)) as sandbox:
        for refused in (
            disks.delete(name),
            disks.delete(volume),
            disks.replace(name, f"{name}other"),
            disks.replace(f"{name}other", name),
            disks.seal(name),
            disks.copy(name, f"{name}copy"),
            disks.copy(name, f"{name}copy", sandbox="another"),
        ):
            with pytest.raises(Conflict):
                await refused
        await disks.copy(volume, f"{name}copy")  # nobody writes to it
        await disks.resize(name, size_bytes=20 * MB)
        assert (await ran(sandboxing, sandbox, "true"))[2] == 0
    await disks.delete(name)


async def test_many_copies_of_one_are_made_at_once(disks: Disks, name: str) -> None:
    await disks.make(name, size_bytes=16 * MB)
    copies = [f"{name}x{number}" for number in range(20)]
    await asyncio.gather(*(disks.copy(name, copy) for copy in copies))
    assert {one.name for one in await disks.list()} >= set(copies)
    await asyncio.gather(*(disks.delete(copy) for copy in copies))


async def test_who_is_cancelled_leaves_the_others_alone(disks: Disks, name: str) -> None:
    making = asyncio.ensure_future(disks.make(name, size_bytes=MB))
    await asyncio.sleep(0)
    making.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await making
    await disks.make(f"{name}next", size_bytes=MB)
