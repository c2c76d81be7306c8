"""Archives into real sandboxes and out again, as `cp` does, and what a layer becomes there."""

import io
import os
import tarfile
from collections.abc import AsyncIterator

import pytest

from stockade.backends.base import Backend
from stockade.backends.sandboxing import Sandboxing
from stockade.errors import Invalid, LimitExceeded, NotFound
from tests.backends.living import living, ran
from tests.backends.sandboxes import MB
from tests.warden.archives import DIRECTORY, LINK, archive, pieces, whole

pytestmark = pytest.mark.anyio


@pytest.fixture
def sandboxing(backend: Backend) -> Sandboxing:
    found: Sandboxing | None = getattr(backend, "sandboxing", None)
    if found is None:
        pytest.skip("this backend's sandboxes do not live")
    return found


async def test_what_is_copied_in_is_the_users_and_comes_out_again(sandboxing: Sandboxing) -> None:
    sent = archive(
        ("d/", {**DIRECTORY, "mode": 0o750}, b""),
        ("d/tool", {"mode": 0o6755, "uid": 0}, b"#!/bin/sh\necho ran\n"),
        ("d/link", {**LINK, "linkname": "tool"}, b""),
    )
    async with living(sandboxing) as name:
        files = await sandboxing.files(name)
        assert await files.copy_in("/tmp/new", pieces(sent), is_directory=True) == 3
        assert await files.copy_in("/tmp/new", pieces(sent), is_directory=True) == 3
        look = "stat -c '%a %U %n' /tmp/new /tmp/new/tool /tmp/new/d/tool; /tmp/new/d/link"
        out, _, _ = await ran(sandboxing, name, "sh", "-c", look)
        assert out.decode().splitlines() == [
            "750 user /tmp/new", "755 user /tmp/new/tool", "755 user /tmp/new/d/tool", "ran"
        ]  # fmt: skip
        is_directory, stream = await files.copy_out("/tmp/new")
        with tarfile.open(fileobj=io.BytesIO(await whole(stream))) as found:
            assert is_directory
            assert found.getnames() == [".", "./d", "./link", "./tool", "./d/link", "./d/tool"]
        is_directory, stream = await files.copy_out("/tmp/new/link")
        with tarfile.open(fileobj=io.BytesIO(await whole(stream))) as found:
            assert (is_directory, found.getnames()) == (False, ["link"])
            assert found.getmember("link").isreg()  # as `cp` without further words
        with pytest.raises(NotFound):
            await files.copy_out("/tmp/none")
        files.close()


async def test_what_may_not_be_written_is_not_and_nothing_leaves_the_directory(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        await ran(sandboxing, name, "sh", "-c", "mkdir /tmp/top; ln -s /srv /tmp/top/out; ln -s /srv /tmp/link")
        files = await sandboxing.files(name)
        for member in ("../evil", "out/evil", "/srv/evil"):
            with pytest.raises(Invalid):
                await files.copy_in("/tmp/top", pieces(archive((member, {}, b"x"))))
        assert await files.copy_in("/tmp/link", pieces(archive(("good", {}, b"x")))) == 1
        out, _, _ = await ran(sandboxing, name, "sh", "-c", "ls /srv /tmp")
        assert out.split() == [b"/srv:", b"good", b"/tmp:", b"link", b"top"]
        files.close()


async def test_much_passes_through_with_little_memory(sandboxing: Sandboxing) -> None:
    """More than the disk holds is refused, and what fits is the same again."""

    async def large(size: int) -> AsyncIterator[bytes]:
        head = tarfile.TarInfo("large")
        head.size = size
        yield head.tobuf()
        piece = os.urandom(MB)
        for _ in range(size // MB):
            yield piece
        yield bytes(1024)

    async with living(sandboxing, disk_bytes=96 * MB, memory_bytes=256 * MB) as name:
        files = await sandboxing.files(name)
        assert await files.copy_in("/tmp/file", large(80 * MB)) == 1
        _, stream = await files.copy_out("/tmp/file")
        assert sum([len(piece) async for piece in stream]) >= 80 * MB
        with pytest.raises(LimitExceeded):
            await files.copy_in("/tmp/another", large(80 * MB))
        out, _, _ = await ran(sandboxing, name, "sh", "-c", "ls -A /tmp; stat -c %s /tmp/file")
        assert out.split() == [b"file", b"%d" % (80 * MB)]
        files.close()
