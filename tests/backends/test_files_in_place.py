"""Writing in place, as a shell's `>` does, and the system's own error behind what an agent refuses."""

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from stockade.backends.native.files import NativeFiles
from stockade.errors import Denied, Invalid, LimitExceeded, NotFound, StockadeError
from stockade.warden import kernel
from tests.warden.agents import NOBODY, agent_process, needs_root, private_mounts, tenants_directory

pytestmark = pytest.mark.anyio

MIB = 1 << 20


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


@pytest.fixture
def here() -> Iterator[Path]:
    """A directory that is the agent's own."""
    with tenants_directory() as directory:
        yield directory


@pytest.fixture
async def files() -> AsyncIterator[NativeFiles]:
    with agent_process() as (connection, _):
        access = NativeFiles(connection)
        yield access
        access.close()


async def put(files: NativeFiles, path: object, content: bytes = b"x", mode: int = 0o644) -> int:
    return await files.write(str(path), pieces(content), mode=mode, in_place=True)


def owned(path: Path) -> Path:
    """*path*, made over to the agent's user."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    return path


async def test_a_file_is_made_with_its_mode_and_later_only_its_content_changes(files: NativeFiles, here: Path) -> None:
    assert await put(files, here / "file", b"long content", mode=0o640) == 12
    os.link(here / "file", here / "other-name")
    before = (here / "file").stat()
    assert await put(files, here / "file", b"short", mode=0o755) == 5
    after = (here / "file").stat()
    assert (here / "other-name").read_bytes() == b"short"
    assert (after.st_ino, stat.S_IMODE(after.st_mode)) == (before.st_ino, 0o640)
    assert await put(files, here / "file", b"") == 0
    assert (here / "file").stat().st_size == 0


async def test_large_content_arrives_whole(files: NativeFiles, here: Path) -> None:
    content = os.urandom(5 * MIB + 3)
    assert await put(files, here / "file", content) == len(content)
    assert (here / "file").read_bytes() == content


async def test_links_are_written_through_and_one_to_nothing_makes_its_end(files: NativeFiles, here: Path) -> None:
    (here / "real").touch()
    owned(here / "real")
    (here / "link").symlink_to("real")
    (here / "dangling").symlink_to("made")
    await put(files, here / "link", b"through")
    await put(files, here / "dangling", b"made")
    assert (here / "real").read_bytes() == b"through"
    assert (here / "made").read_bytes() == b"made"
    assert (here / "link").is_symlink()


async def test_nothing_above_is_made(files: NativeFiles, here: Path) -> None:
    with pytest.raises(NotFound) as caught:
        await put(files, here / "missing/file")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert os.listdir(here) == []


async def test_what_is_no_file_is_left_alone_and_wakes_nobody(files: NativeFiles, here: Path) -> None:
    """A writer that opened the FIFO would let its reader go on."""
    os.mkfifo(here / "fifo")
    (here / "link").symlink_to("fifo")
    reader = os.open(here / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for name in ("fifo", "link"):
            with pytest.raises(Invalid, match="no regular file"):
                await put(files, here / name)
        assert os.read(reader, 1) == b""  # nobody has it open
    finally:
        os.close(reader)
    with pytest.raises((Invalid, Denied, NotFound)):
        await put(files, "/dev/ptmx")


async def test_the_devices_that_swallow_all_may_be_written_to(files: NativeFiles) -> None:
    assert await put(files, "/dev/null", bytes(MIB)) == MIB
    with pytest.raises(LimitExceeded, match="no space left"):
        await put(files, "/dev/full")


@pytest.mark.parametrize("path", ["/proc/self/oom_score_adj", "/proc/thread-self/comm", "/proc/self/fd/0"])
async def test_what_is_about_the_agent_is_not_written_to(files: NativeFiles, path: str) -> None:
    with pytest.raises((Denied, Invalid)):
        await put(files, path, b"500")


@needs_root
async def test_a_disk_that_fills_is_said_and_keeps_what_fitted(here: Path) -> None:
    def mount() -> None:
        private_mounts()
        kernel.mount("disk", str(here), "tmpfs", 0, "size=1m,mode=1777")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)

    with agent_process(mount) as (connection, _):
        files = NativeFiles(connection)
        async with asyncio.timeout(20):
            with pytest.raises(LimitExceeded) as caught:
                await files.write(f"{here}/file", endless(), in_place=True)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert (await files.stat(f"{here}/file")).size == MIB
        await put(files, here / "file", b"short")
        assert (await files.stat(f"{here}/file")).size == 5
        files.close()


async def test_what_is_refused_has_the_systems_own_error_behind_it(files: NativeFiles, here: Path) -> None:
    (here / "file").write_bytes(b"x")
    owned(here / "file").chmod(0o400)
    (here / "folder").mkdir()
    owned(here / "folder")
    (here / "folder/x").touch()
    (here / "loop").symlink_to("loop")
    (here / "shut").mkdir(0o700)
    if os.geteuid() != 0:
        (here / "shut").chmod(0o000)
    attempts: list[tuple[Callable[[], Awaitable[object]], int]] = [
        (lambda: files.read(f"{here}/missing"), errno.ENOENT),
        (lambda: files.stat(f"{here}/missing"), errno.ENOENT),
        (lambda: files.delete(f"{here}/missing"), errno.ENOENT),
        (lambda: files.list(f"{here}/missing"), errno.ENOENT),
        (lambda: files.read(f"{here}/folder"), errno.EISDIR),
        (lambda: files.read(f"{here}/file/below"), errno.ENOTDIR),
        (lambda: files.read(f"{here}/loop"), errno.ELOOP),
        (lambda: files.read(f"{here}/{'x' * 300}"), errno.ENAMETOOLONG),
        (lambda: files.read("/" + "x/" * 2500), errno.ENAMETOOLONG),
        (lambda: files.read("/a\0b"), errno.EINVAL),
        (lambda: files.read("/proc/self/environ"), errno.EACCES),
        (lambda: files.list(f"{here}/file"), errno.ENOTDIR),
        (lambda: files.delete(f"{here}/folder"), errno.ENOTEMPTY),
        (lambda: files.delete(f"{here}/file/below"), errno.ENOTDIR),
        (lambda: files.delete("/", recursive=True), errno.EINVAL),
        (lambda: files.mkdir(f"{here}/file"), errno.EEXIST),
        (lambda: files.mkdir(f"{here}/file/below"), errno.ENOTDIR),
        (lambda: files.mkdir(f"{here}/folder", parents=False), errno.EEXIST),
        (lambda: put(files, here / "folder"), errno.EISDIR),
        (lambda: put(files, f"{here}/new/"), errno.EISDIR),
        (lambda: put(files, "/"), errno.EISDIR),
        (lambda: put(files, f"{here}/file/below"), errno.ENOTDIR),
        (lambda: put(files, here / "file"), errno.EACCES),
        (lambda: put(files, here / "shut/file"), errno.EACCES),
        (lambda: put(files, here / "loop"), errno.ELOOP),
        (lambda: put(files, f"{here}/{'x' * 300}"), errno.ENAMETOOLONG),
        (lambda: files.write(f"{here}/folder", pieces(b"x")), errno.EISDIR),
    ]
    for attempt, number in attempts:
        with pytest.raises(StockadeError) as caught:
            await attempt()
        cause = caught.value.__cause__
        assert isinstance(cause, OSError), caught.value
        assert cause.errno == number, caught.value


async def test_what_no_system_call_refused_has_none(files: NativeFiles, here: Path) -> None:
    os.mkfifo(here / "fifo")
    with pytest.raises(Invalid) as caught:
        await files.read(f"{here}/fifo")
    assert caught.value.__cause__ is None
