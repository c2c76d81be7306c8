"""Disks and layers in workshops: what an archive says is what a sandbox on them sees."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from stockade.backends.base import Backend
from stockade.backends.disks import Disks
from stockade.backends.sandboxing import FileAccess, Sandboxing
from stockade.errors import StockadeError
from stockade.model import DiskMount
from tests.backends.living import live_spec, ran
from tests.backends.sandboxes import MB
from tests.warden.archives import DIRECTORY, HARD_LINK, LINK, archive, pieces, whole

pytestmark = pytest.mark.anyio
TREE = f"{DiskMount.WORKSHOP}/upper"
_numbers = itertools.count(1)


@pytest.fixture
def sandboxing(backend: Backend) -> Sandboxing:
    found: Sandboxing | None = getattr(backend, "sandboxing", None)
    if found is None:
        pytest.skip("this backend's sandboxes do not live")
    return found


@pytest.fixture
async def disks(backend: Backend) -> Disks:
    found: Disks | None = getattr(backend, "disks", None)
    if found is None:
        pytest.skip("this backend has no disks")
    facts = await found.facts()
    if facts.kind == "none":
        pytest.skip(f"there are no disks here: {facts.why}")
    return found


@contextlib.asynccontextmanager
async def workshop(sandboxing: Sandboxing, disk: str, *, read_only: bool = False) -> AsyncIterator[FileAccess]:
    name = f"workshop-{next(_numbers)}"
    mount = DiskMount(disk=disk, path=DiskMount.WORKSHOP, read_only=read_only, is_whole=True)
    await sandboxing.create(name, replace(live_spec(cwd="/"), mounts=(mount,)))
    files = await sandboxing.files(name, user="root")
    try:
        yield files
    finally:
        files.close()
        await sandboxing.remove(name)


@contextlib.asynccontextmanager
async def standing(sandboxing: Sandboxing, *layers: str, disk: str) -> AsyncIterator[str]:
    """A sandbox on layers, the host's own programs being the lowest of all."""
    name = f"standing-{next(_numbers)}"
    await sandboxing.create(name, replace(live_spec(cwd="/"), disk=disk, layers=layers))
    try:
        yield name
    finally:
        await sandboxing.remove(name)


async def has_one_id(sandboxing: Sandboxing, name: str) -> bool:
    """Whether all in it is one user's, as with an ordinary user's warden."""
    return bool((await ran(sandboxing, name, "/no/program", user="root", cwd="/"))[2] == 126)


@pytest.fixture
async def made(disks: Disks) -> AsyncIterator[list[str]]:
    """Names of new disks; gone at the end."""
    names = [f"files{next(_numbers)}" for _ in range(4)]
    for name in names:
        await disks.make(name, size_bytes=64 * MB)
    yield names
    for name in names:
        with contextlib.suppress(StockadeError):
            await disks.delete(name)


async def test_a_disk_that_was_saved_is_the_same_in_another(
    sandboxing: Sandboxing, disks: Disks, made: list[str]
) -> None:
    """With what was deleted of the image, owners, set-id bits, links and holes."""
    first, second, *_ = made
    change = (
        "set -e; rm /etc/passwd; "
        "echo x > /srv/tool; {own} chmod 4755 /srv/tool; ln /srv/tool /srv/twin; "
        "ln -s tool /srv/link; truncate -s 1M /srv/sparse; touch -d 2001-02-03T04:05:06Z /srv/sparse"
    )
    look = (
        "test -e /etc/passwd; echo $?; stat -c '%a %u:%g %h %s %b %Y' /srv/sparse; "
        "stat -c '%a %u:%g %h' /srv/tool; readlink /srv/link; cat /srv/twin"
    )
    async with standing(sandboxing, disk=first) as name:
        user, owner, own = "root", "7:8", "chown 7:8 /srv/tool;"
        if await has_one_id(sandboxing, name):
            user, owner, own = "user", "1000:1000", ""
        _, err, code = await ran(sandboxing, name, "sh", "-c", change.format(own=own), user=user, cwd="/")
        assert code == 0, err
        before, _, _ = await ran(sandboxing, name, "sh", "-c", look, user=user, cwd="/")
    async with workshop(sandboxing, first, read_only=True) as files:
        saved = await whole(await files.save_tree(TREE))
    assert len(saved) < MB
    async with workshop(sandboxing, second) as files:
        assert await files.load_tree(TREE, pieces(saved)) > 0
    async with standing(sandboxing, disk=second) as name:
        after, _, _ = await ran(sandboxing, name, "sh", "-c", look, user=user, cwd="/")
    assert before.splitlines()[0] == b"1"
    assert f"4755 {owner} 2".encode() in before
    assert after == before


async def test_layers_are_what_a_sandbox_stands_on(sandboxing: Sandboxing, disks: Disks, made: list[str]) -> None:
    lower, upper, disk, copy = made
    # Programs are the host's: a tree with just enough in it.
    base = archive(
        ("bin", {**LINK, "linkname": "usr/bin"}, b""),
        ("etc/", {**DIRECTORY, "mode": 0o755}, b""),
        ("etc/gone", {}, b"below"),
        ("etc/kept", {"uid": 33, "gid": 44, "mode": 0o640}, b"below"),
        ("hidden/below", {}, b"below"),
        ("both", {}, b"below"),
    )
    change = archive(
        ("etc/.wh.gone", {}, b""),
        ("hidden/.wh..wh..opq", {}, b""),
        ("hidden/above", {}, b"above"),
        ("both", {}, b"above"),
        ("twin", {**HARD_LINK, "linkname": "both"}, b""),
    )
    for layer, members in ((lower, base), (upper, change)):
        async with workshop(sandboxing, layer) as files:
            await files.write_layer(TREE, pieces(members))
        await disks.seal(layer)
    async with standing(sandboxing, upper, lower, disk=disk) as name:
        files = await sandboxing.files(name, user="root")
        assert [info.name for info in await files.list("/etc") if info.name in ("gone", "kept")] == ["kept"]
        kept = await files.stat("/etc/kept")
        owner = (1000, 1000) if await has_one_id(sandboxing, name) else (33, 44)
        assert (kept.uid, kept.gid, kept.mode) == (*owner, 0o640)
        assert [info.name for info in await files.list("/hidden")] == ["above"]
        _, content = await files.read("/twin")
        assert await whole(content) == b"above"
        # What is changed of it is on the disk alone.
        await files.delete("/hidden", recursive=True)
        await files.mkdir("/hidden")
        await files.write("/hidden/new", pieces(b"new"))
        await files.delete("/both")
        files.close()
    async with workshop(sandboxing, disk, read_only=True) as files:
        saved = await whole(await files.save_tree(TREE))
    async with workshop(sandboxing, copy) as files:
        await files.load_tree(TREE, pieces(saved))
    async with standing(sandboxing, upper, lower, disk=copy) as name:
        files = await sandboxing.files(name, user="root")
        assert [info.name for info in await files.list("/hidden")] == ["new"]
        found = {info.name for info in await files.list("/")}
        assert "twin" in found
        assert "both" not in found
        files.close()
