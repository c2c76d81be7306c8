"""Files by way of an agent: what is written is read, and what is in the way hangs and harms nobody."""

import asyncio
import contextlib
import io
import os
import signal
import socket
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from pathlib import Path

import pytest

from stockade.backends.native.files import NativeFiles
from stockade.errors import (
    Conflict,
    Denied,
    Invalid,
    LimitExceeded,
    NotFound,
    StockadeError,
    Unavailable,
    Unsupported,
)
from stockade.model import FileKind
from stockade.warden import agent, agent_channel, kernel
from tests.warden.agents import NOBODY, agent_process, needs_root, private_mounts, tenants_directory

pytestmark = pytest.mark.anyio

MIB = 1 << 20


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


async def whole(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


async def read(files: NativeFiles, path: object, **part: int) -> bytes:
    _, content = await files.read(str(path), **part)
    return await whole(content)


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


async def answers(files: NativeFiles, here: Path) -> None:
    """The channel is in order after whatever happened."""
    await files.write(f"{here}/.probe", pieces(b"still here"))
    assert await read(files, here / ".probe") == b"still here"
    await files.delete(f"{here}/.probe")


# ── reading and writing ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 1, 5, agent_channel.CHUNK, agent_channel.MOST_DATA + 1, 5 * MIB + 3])
async def test_what_is_written_is_read(files: NativeFiles, here: Path, size: int) -> None:
    content = os.urandom(size)
    assert await files.write(f"{here}/a/b/file.bin", pieces(content[:7], b"", content[7:])) == size
    assert (here / "a/b/file.bin").read_bytes() == content
    assert await read(files, here / "a/b/file.bin") == content
    assert stat.S_IMODE((here / "a").stat().st_mode) == 0o755
    assert os.listdir(here / "a/b") == ["file.bin"]


async def test_modes_are_as_given_less_what_would_gain_privileges(files: NativeFiles, here: Path) -> None:
    await files.write(f"{here}/tool", pieces(b"x"), mode=0o6751)
    assert stat.S_IMODE((here / "tool").stat().st_mode) == 0o751
    await files.write(f"{here}/tool", pieces(b"x"))
    assert stat.S_IMODE((here / "tool").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 3, b"012"), (7, None, b"789"), (8, 100, b"89"), (10, None, b""), (99, 5, b""), (3, 0, b"")],
)
async def test_a_part_is_read(files: NativeFiles, here: Path, offset: int, length: int | None, expected: bytes) -> None:
    (here / "digits").write_bytes(b"0123456789")
    info, content = await files.read(f"{here}/digits", offset=offset, length=length)
    assert info.size == 10
    assert await whole(content) == expected


async def test_nothing_before_the_beginning_is_read(files: NativeFiles, here: Path) -> None:
    (here / "digits").write_bytes(b"0123456789")
    with pytest.raises(Invalid, match="not negative"):
        await files.read(f"{here}/digits", offset=-1)


async def test_links_are_followed_to_read_and_to_write(files: NativeFiles, here: Path) -> None:
    (here / "real").mkdir()
    os.chown(here / "real", *(NOBODY, NOBODY) if os.geteuid() == 0 else (-1, -1))
    (here / "real/file").write_bytes(b"old")
    (here / "link").symlink_to("real/file")
    (here / "folder").symlink_to(here / "real")
    (here / "new").symlink_to("real/made")
    assert await read(files, here / "link") == b"old"
    await files.write(f"{here}/link", pieces(b"new"))
    await files.write(f"{here}/new", pieces(b"made"))
    assert (here / "link").is_symlink()
    assert (here / "real/file").read_bytes() == b"new"
    assert (here / "real/made").read_bytes() == b"made"
    assert [info.name for info in await files.list(f"{here}/folder")] == ["file", "made"]


async def test_links_in_a_circle_are_refused(files: NativeFiles, here: Path) -> None:
    (here / "a").symlink_to("b")
    (here / "b").symlink_to("a")
    for attempt in (files.read(f"{here}/a"), files.write(f"{here}/a", pieces(b"x")), files.list(f"{here}/a/c")):
        with pytest.raises(Invalid, match="links"):
            await attempt


async def test_names_need_not_be_utf8(files: NativeFiles, here: Path) -> None:
    name = b"\xff\xfe \n\\ \xc3\xa4"
    text = name.decode("utf-8", "surrogateescape")
    await files.write(f"{here}/{text}", pieces(b"content"))
    assert os.listdir(os.fsencode(here)) == [name]
    assert [info.name for info in await files.list(str(here))] == [text]
    assert await read(files, f"{here}/{text}") == b"content"
    await files.rename(f"{here}/{text}", f"{here}/plain")
    with pytest.raises(NotFound) as caught:
        await files.stat(f"{here}/{text}")
    str(caught.value).encode()


@pytest.mark.parametrize("path", ["", "relative", "a\0b", "/a\0b", "/\ud800", "/" + "x" * 5000, "/" + "y" * 300_000])
async def test_what_is_no_absolute_path_is_invalid(files: NativeFiles, here: Path, path: str) -> None:
    for attempt in (files.stat(path), files.read(path), files.delete(path), files.write(path, pieces(b"x"))):
        with pytest.raises(Invalid):
            await attempt
    await answers(files, here)


# ── what there is ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_listing_says_what_there_is_and_where_links_lead(files: NativeFiles, here: Path) -> None:
    (here / "b.bin").write_bytes(b"123")
    (here / "b.bin").chmod(0o640)
    (here / "a").mkdir()
    (here / "to-file").symlink_to("b.bin")
    (here / "to-folder").symlink_to(here / "a")
    (here / "dangling").symlink_to("nowhere")
    os.mkfifo(here / "fifo")
    found = {info.name: info for info in await files.list(str(here))}
    assert list(found) == sorted(found)
    assert (found["b.bin"].kind, found["b.bin"].size, found["b.bin"].mode) == (FileKind.FILE, 3, 0o640)
    assert found["b.bin"].path == f"{here}/b.bin"
    assert found["b.bin"].modified_at == (here / "b.bin").stat().st_mtime
    assert (found["a"].kind, found["a"].size) == (FileKind.DIRECTORY, 0)
    assert (found["to-file"].kind, found["to-file"].target) == (FileKind.LINK, "b.bin")
    assert (found["to-file"].target_kind, found["to-file"].target_size) == (FileKind.FILE, 3)
    assert found["to-file"].target_mode == 0o640
    assert found["to-folder"].target_kind is FileKind.DIRECTORY
    assert found["dangling"].target_kind is None
    assert found["fifo"].kind is FileKind.OTHER
    assert await files.stat(f"{here}/to-file") == found["to-file"]
    assert (await files.stat("/")).kind is FileKind.DIRECTORY
    assert (await files.stat(f"{here}/a/..")).kind is FileKind.DIRECTORY


async def test_long_listings_arrive_whole(files: NativeFiles, here: Path) -> None:
    for number in range(3000):
        (here / f"{number:05}").touch()
    found = await files.list(str(here))
    assert [info.name for info in found] == [f"{number:05}" for number in range(3000)]


async def test_endless_listings_are_refused(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setattr(agent, "MOST_ENTRIES", 10)
    for number in range(11):
        (here / str(number)).touch()
    with agent_process() as (connection, _), contextlib.closing(NativeFiles(connection)) as files:
        await answers(files, here)
        with pytest.raises(LimitExceeded, match="more than 10 entries"):
            await files.list(str(here))


async def test_errors_say_what_is_wrong_with_which_path(files: NativeFiles, here: Path) -> None:
    (here / "folder").mkdir()
    (here / "folder/x").touch()
    (here / "file").write_bytes(b"x")
    (here / "fifo-in-folder").mkdir()
    os.mkfifo(here / "fifo-in-folder/fifo")
    shut = here / "shut"
    shut.mkdir()
    shut.chmod(0o700)
    if os.geteuid() != 0:
        shut.chmod(0o500)
    expected: list[tuple[Awaitable[object], type[StockadeError], str]] = [
        (files.read(f"{here}/missing"), NotFound, "missing"),
        (files.stat(f"{here}/missing"), NotFound, "missing"),
        (files.list(f"{here}/missing"), NotFound, "missing"),
        (files.delete(f"{here}/missing"), NotFound, "missing"),
        (files.delete(f"{here}/missing/deeper"), NotFound, "missing"),
        (files.rename(f"{here}/missing", f"{here}/there"), NotFound, "missing"),
        (files.rename(f"{here}/file", f"{here}/missing/there"), NotFound, "missing/there"),
        (files.read(f"{here}/folder"), Invalid, "directory"),
        (files.read(f"{here}/fifo-in-folder/fifo"), Invalid, "no regular file"),
        (files.read("/dev/zero"), Invalid, "no regular file"),
        (files.list(f"{here}/file"), Invalid, "no directory"),
        (files.read(f"{here}/file/below"), NotFound, "below"),
        (files.write(f"{here}/folder", pieces(b"x")), Invalid, "directory"),
        (files.write(f"{here}/folder/", pieces(b"x")), Invalid, "directory"),
        (files.write(f"{here}/fifo-in-folder/fifo", pieces(b"x")), Invalid, "no regular file"),
        (files.write(f"{here}/file/below", pieces(b"x")), Invalid, "no directory"),
        (files.write(f"{here}/file/far/below", pieces(b"x")), Invalid, "no directory"),
        (files.write("/", pieces(b"x")), Invalid, "name something"),
        (files.write(f"{here}/..", pieces(b"x")), Invalid, "name something"),
        (files.write(f"{here}/shut/file", pieces(b"x")), Denied, "shut/file"),
        (files.delete(f"{here}/folder"), Conflict, "not empty"),
        (files.delete("/", recursive=True), Invalid, "name something"),
        (files.mkdir(f"{here}/folder", parents=False), Conflict, "exists"),
        (files.mkdir(f"{here}/file"), Conflict, "no directory"),
        (files.mkdir(f"{here}/file/below"), Conflict, "no directory"),
        (files.mkdir(f"{here}/new/below", parents=False), NotFound, "below"),
        (files.rename(f"{here}/folder", f"{here}/fifo-in-folder"), Conflict, "not empty"),
        (files.rename(f"{here}/folder", f"{here}/folder/in/itself"), NotFound, "itself"),
        (files.rename(f"{here}/folder", f"{here}/folder/itself"), Invalid, "itself"),
        (files.rename(f"{here}/file", "/dev/shm/file"), Unsupported, "moved"),
        (files.read_tar(f"{here}/missing"), NotFound, "missing"),
        (files.write_tar(f"{here}/file", pieces(b"x")), Invalid, "no directory"),
        (files.watch(f"{here}/file"), Invalid, "no directory"),
        (files.save_layer(1, most_bytes=1), Unsupported, "image"),
    ]
    if os.geteuid() == 0:
        os.chown(here / "folder", NOBODY, NOBODY)
    for attempt, kind, words in expected:
        with pytest.raises(kind) as caught:
            await attempt
        assert words in str(caught.value)
    await answers(files, here)


# ── making, moving, deleting ─────────────────────────────────────────────────────────────────────────────────────


async def test_directories_are_made_with_what_is_above_them(files: NativeFiles, here: Path) -> None:
    await files.mkdir(f"{here}/x/y/z", mode=0o700)
    await files.mkdir(f"{here}/x/y/z", mode=0o700)
    await files.mkdir(f"{here}/x/y/single", parents=False)
    assert stat.S_IMODE((here / "x").stat().st_mode) == 0o755
    assert stat.S_IMODE((here / "x/y/z").stat().st_mode) == 0o700


async def test_a_rename_takes_the_place_of_a_file(files: NativeFiles, here: Path) -> None:
    await files.write(f"{here}/a", pieces(b"a"))
    await files.write(f"{here}/b", pieces(b"b"))
    await files.rename(f"{here}/a", f"{here}/b")
    assert os.listdir(here) == ["b"]
    assert (here / "b").read_bytes() == b"a"


async def test_deleting_does_not_follow_links(files: NativeFiles, here: Path) -> None:
    await files.write(f"{here}/keep/file", pieces(b"x"))
    await files.mkdir(f"{here}/tree/inner")
    (here / "tree/inner/link").symlink_to(here / "keep")
    (here / "tree/file-link").symlink_to(here / "keep/file")
    await files.delete(f"{here}/tree/file-link")
    await files.delete(f"{here}/tree", recursive=True)
    assert os.listdir(here) == ["keep"]
    assert (here / "keep/file").read_bytes() == b"x"


async def test_trees_deeper_than_any_path_are_deleted(files: NativeFiles, here: Path) -> None:
    """Neither recursion nor a descriptor for each level: 128 descriptors are all that the agent may open."""
    await files.mkdir(f"{here}/deep")
    script = "import os, sys\nos.chdir(sys.argv[1])\nfor _ in range(6000):\n os.mkdir('d'); os.chdir('d')"
    await asyncio.to_thread(_run_as_nobody, "python3", "-c", script, str(here / "deep"))
    with pytest.raises(Invalid, match="deeper than a path"):
        await whole(await files.read_tar(f"{here}/deep"))
    await files.delete(f"{here}/deep", recursive=True)
    assert os.listdir(here) == []


def _run_as_nobody(*argv: str) -> None:
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.geteuid() == 0 else {}
    subprocess.run(argv, check=True, timeout=60, **user)  # type: ignore[call-overload]


# ── hostile files ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_fifo_with_a_waiting_writer_is_left_alone(files: NativeFiles, here: Path) -> None:
    """Reading it would wake the writer; opening it would block us where nobody writes."""
    os.mkfifo(here / "fifo")
    (here / "link").symlink_to("fifo")
    for name in ("fifo", "link"):
        with pytest.raises(Invalid, match="no regular file"):
            await files.read(f"{here}/{name}")
    with tarfile.open(fileobj=io.BytesIO(await whole(await files.read_tar(str(here))))) as archive:
        assert archive.getnames() == ["link"]


@pytest.mark.parametrize("name", ["fd/0", "cwd/x", "root/etc/passwd", "exe", "fd/3/../upper"])
async def test_links_of_the_kernels_own_lead_nowhere(files: NativeFiles, here: Path, name: str) -> None:
    path = f"/proc/self/{name}"
    for attempt in (files.read(path), files.write(path, pieces(b"x")), files.list(path), files.delete(path)):
        with pytest.raises((Invalid, Denied, NotFound)):
            await attempt
    for attempt in (files.mkdir(path), files.read_tar(path), files.watch(path), files.rename(path, f"{here}/x")):
        with pytest.raises((Invalid, Denied, NotFound, Conflict, Unsupported)):
            await attempt
    await answers(files, here)


@pytest.mark.parametrize("name", ["maps", "mem", "environ", "status", "task", "fd"])
async def test_the_agents_own_memory_is_not_shown(files: NativeFiles, here: Path, name: str) -> None:
    (here / "link").symlink_to("/proc/thread-self")
    for path in (f"/proc/self/{name}", f"{here}/link/{name}"):
        attempt = files.list(path) if name in ("task", "fd") else files.read(path)
        with pytest.raises((Denied, NotFound)):
            await attempt


async def test_files_that_do_not_say_their_size_are_read_whole(files: NativeFiles) -> None:
    info, content = await files.read("/proc/cpuinfo")
    data = await whole(content)
    assert info.size == len(data) > 100
    assert await read(files, "/proc/version", offset=6, length=7) == Path("/proc/version").read_bytes()[6:13]


async def test_files_that_do_not_end_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "MOST_WITHOUT_SIZE", 64)
    with agent_process() as (connection, _), contextlib.closing(NativeFiles(connection)) as files:
        with pytest.raises(Invalid, match="does not say its size"):
            await files.read("/proc/cpuinfo")
        await answers(files, here)


async def test_a_file_that_is_cut_off_while_it_is_read_is_no_whole_one(files: NativeFiles, here: Path) -> None:
    path = here / "shrinks"
    path.write_bytes(os.urandom(16 * MIB))
    info, content = await files.read(str(path))
    received = len(await anext(content))
    os.truncate(path, 100)
    while received < info.size:
        received += len(await anext(content))
    with pytest.raises(Conflict, match="shorter"):
        await anext(content)
    await answers(files, here)


async def test_a_tree_that_changes_while_it_is_packed_is_packed_as_it_is_found(files: NativeFiles, here: Path) -> None:
    for folder in range(40):
        for number in range(10):
            await files.write(f"{here}/{folder:03}/{number}", pieces(bytes(40_000)))
    archive = await files.read_tar(str(here))
    data = await anext(archive)
    await asyncio.to_thread(subprocess.run, ["rm", "-rf", *map(str, here.iterdir())], check=True, timeout=30)
    data += await whole(archive)
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        assert 0 < len(found.getmembers()) <= 440


# ── disk full, interrupted uploads ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(here: Path) -> Iterator[NativeFiles]:
    """An agent that sees a disk of 2 MiB at *here*."""

    def mount() -> None:
        private_mounts()
        kernel.mount("disk", str(here), "tmpfs", 0, "size=2m,nr_inodes=50,mode=1777")

    with agent_process(mount) as (connection, _):
        files = NativeFiles(connection)
        yield files
        files.close()


@needs_root
async def test_a_full_disk_leaves_what_was_there(small_disk: NativeFiles, here: Path) -> None:
    """Told clearly and early; the old content is kept, and no half file is left under any name."""
    path = f"{here}/file"
    await small_disk.write(path, pieces(b"old"))
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += MIB
            yield bytes(MIB)

    with pytest.raises(LimitExceeded, match="no space left"):
        await small_disk.write(path, endless())
    assert sent < 64 * MIB
    assert await read(small_disk, path) == b"old"
    assert [info.name for info in await small_disk.list(str(here))] == ["file"]
    assert await small_disk.write(path, pieces(bytes(MIB))) == MIB


@needs_root
async def test_a_disk_without_inodes_says_so(small_disk: NativeFiles, here: Path) -> None:
    names = [f"{here}/{number}" for number in range(100)]
    # All of them have ended before the channel is closed: its number is the next channel's, of which the event loop
    # would hear nothing as long as somebody still waits for this one.
    results = await asyncio.gather(*(small_disk.write(name, pieces(b"")) for name in names), return_exceptions=True)
    refused = [result for result in results if result != 0]
    assert 0 < len(refused) < 100
    for error in refused:
        assert isinstance(error, LimitExceeded), error
        assert "no space left" in str(error)


async def test_what_breaks_off_leaves_nothing(files: NativeFiles, here: Path) -> None:
    await files.write(f"{here}/file", pieces(b"old"))

    async def breaks() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        raise ConnectionError("the client went away")

    with pytest.raises(ConnectionError):
        await files.write(f"{here}/file", breaks())
    await answers(files, here)
    assert os.listdir(here) == ["file"]
    assert (here / "file").read_bytes() == b"old"


async def test_a_cancelled_upload_leaves_nothing(here: Path) -> None:
    started = asyncio.Event()

    async def stalls() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        started.set()
        await asyncio.Event().wait()

    with agent_process() as (connection, _):
        files = NativeFiles(connection)
        task = asyncio.ensure_future(files.write(f"{here}/file", stalls()))
        await asyncio.wait_for(started.wait(), 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Unavailable, match="closed"):
            await files.stat(str(here))
    assert os.listdir(here) == []  # the agent has ended by now


# ── the channel ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_read_that_is_given_up_closes_the_channel(here: Path) -> None:
    (here / "large").write_bytes(bytes(32 * MIB))
    with agent_process() as (connection, _):
        files = NativeFiles(connection)
        _, content = await files.read(f"{here}/large")
        await anext(content)
        await content.aclose()  # type: ignore[attr-defined]
        with pytest.raises(Unavailable, match="closed"):
            await files.stat(str(here))
    with agent_process() as (connection, _):
        files = NativeFiles(connection)
        _, content = await files.read(f"{here}/large")
        del content
        with pytest.raises(Unavailable, match="closed"):
            await files.stat(str(here))


async def test_requests_wait_for_their_turn(files: NativeFiles, here: Path) -> None:
    (here / "large").write_bytes(bytes(8 * MIB))
    found = await asyncio.gather(*(read(files, here / "large") for _ in range(4)), files.stat(str(here)))
    assert [len(data) for data in found[:4]] == [8 * MIB] * 4  # type: ignore[arg-type]


async def test_an_agent_that_is_silent_is_given_up(here: Path) -> None:
    """As when the tenant stops it."""
    with agent_process() as (connection, pid):
        os.kill(pid, signal.SIGSTOP)
        try:
            files = NativeFiles(connection, silence_s=0.2)
            with pytest.raises(Unavailable, match="silent"):
                await files.stat(str(here))
            with pytest.raises(Unavailable, match="closed"):
                await files.stat(str(here))
        finally:
            os.kill(pid, signal.SIGCONT)
    with agent_process() as (connection, pid):
        os.kill(pid, signal.SIGSTOP)
        try:
            files = NativeFiles(connection, silence_s=0.2)
            with pytest.raises(Unavailable, match="taken nothing"):
                await files.write(f"{here}/file", pieces(*[bytes(MIB)] * 64))
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_an_agent_that_is_killed_is_an_error_at_once(here: Path) -> None:
    with agent_process() as (connection, pid):
        files = NativeFiles(connection)
        await files.stat(str(here))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="went away"):
            await files.stat(str(here))


async def test_closing_wakes_whoever_waits() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        files = NativeFiles(ours)
        task = asyncio.ensure_future(files.stat("/"))
        assert await asyncio.to_thread(theirs.recv, 100)  # it has asked
        await asyncio.sleep(0)
        files.close()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(task, 30)
        assert ours.fileno() == -1


def frames(*parts: bytes) -> bytes:
    return b"".join(parts)


INFO = {
    "name": "x", "path": "/x", "kind": "file", "size": 3, "mode": 420, "modified_at": 1.0, "uid": 0, "gid": 0,
}  # fmt: skip
HEAD = agent_channel.frame(agent_channel.HEAD, INFO)
END = agent_channel.frame(agent_channel.END, {"size": 3})
LIES = {
    "noise": os.urandom(64),
    "too long": agent_channel.FRAME.pack(agent_channel.HEAD, 1 << 31),
    "too much data": HEAD + agent_channel.FRAME.pack(agent_channel.DATA, 1 << 31),
    "no JSON": agent_channel.FRAME.pack(agent_channel.HEAD, 3) + b"{{{",
    "deep JSON": agent_channel.FRAME.pack(agent_channel.HEAD, 200_000) + b"[" * 200_000,
    "a list": agent_channel.frame(agent_channel.HEAD, []),
    "end before its head": END,
    "more than it said": HEAD + agent_channel.FRAME.pack(agent_channel.DATA, 4) + b"xxxx",
    "less than it said": HEAD + agent_channel.FRAME.pack(agent_channel.DATA, 2) + b"xx" + END,
    "another size": HEAD + agent_channel.FRAME.pack(agent_channel.DATA, 3) + b"xxx"
    + agent_channel.frame(agent_channel.END, {"size": True}),
    "a name with a slash": agent_channel.frame(agent_channel.HEAD, {**INFO, "name": "../x"}),
    "a negative size": agent_channel.frame(agent_channel.HEAD, {**INFO, "size": -1}),
    "a size that is a text": agent_channel.frame(agent_channel.HEAD, {**INFO, "size": "3"}),
    "a time that is none": agent_channel.frame(agent_channel.HEAD, {**INFO, "modified_at": float("inf")}),
    "a kind that is none": agent_channel.frame(agent_channel.HEAD, {**INFO, "kind": "secret"}),
    "no kind": agent_channel.frame(agent_channel.HEAD, {"name": "x"}),
    "an alive with a body": agent_channel.FRAME.pack(agent_channel.ALIVE, 5) + b"alive",
    "an error of no kind": agent_channel.frame(agent_channel.ERROR, {"kind": [], "message": {"a": "\ud800\n"}}),
    "cut off": HEAD + agent_channel.FRAME.pack(agent_channel.DATA, 3) + b"x",
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_an_agent_that_lies_is_given_up(lie: bytes) -> None:
    """As one that the tenant has taken over: an error of one kind, and no waiting."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
        files = NativeFiles(ours, silence_s=5)
        theirs.sendall(lie)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(Unavailable) as caught:
            await read(files, "/x")
        str(caught.value).encode()
        files.close()


@pytest.mark.parametrize("events", [["x"], [["happened", "/x"]], [["created", 3]], {"a": 1}, [[]]])
async def test_events_that_are_none_are_given_up(events: object) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        files = NativeFiles(ours, silence_s=5)
        theirs.sendall(HEAD + agent_channel.frame(agent_channel.ITEMS, events))
        stream = await files.watch("/")
        with pytest.raises(Unavailable, match="relied on"):
            await anext(stream)
        files.close()


# ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def until(stream: AsyncIterator[tuple[str, str]], *wanted: tuple[str, str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    async with asyncio.timeout(20):
        while not set(wanted) <= set(found):
            found.append(await anext(stream))
    return found


async def test_what_happens_below_a_directory_is_told(files: NativeFiles, here: Path) -> None:
    (here / "old").mkdir()
    events = await files.watch(str(here))
    (here / "old/file").write_bytes(b"x")
    await until(events, ("created", f"{here}/old/file"), ("modified", f"{here}/old/file"))
    (here / "new/inner").mkdir(parents=True)
    await until(events, ("created", f"{here}/new"), ("created", f"{here}/new/inner"))
    (here / "new/inner/file").touch()
    await until(events, ("created", f"{here}/new/inner/file"))
    (here / "new").rename(here / "moved")
    await until(events, ("renamed", f"{here}/new"), ("created", f"{here}/moved"))
    (here / "moved/inner/later").touch()
    found = await until(events, ("created", f"{here}/moved/inner/later"))
    assert not any("/new/" in path for _, path in found)
    (here / "moved/inner/file").unlink()
    await until(events, ("deleted", f"{here}/moved/inner/file"))
    await events.aclose()  # type: ignore[attr-defined]


async def test_a_watch_ends_with_its_directory(files: NativeFiles, here: Path) -> None:
    (here / "short").mkdir()
    events = await files.watch(f"{here}/short")
    (here / "short").rmdir()
    async with asyncio.timeout(20):
        assert [event async for event in events] == [("deleted", f"{here}/short")]
    await answers(files, here)


async def test_more_than_can_be_watched_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.warden.agent_watch.MOST_WATCHED", 3)
    for number in range(5):
        (here / str(number)).mkdir()
    with agent_process() as (connection, _), contextlib.closing(NativeFiles(connection)) as files:
        events = await files.watch(str(here))
        async with asyncio.timeout(20):
            assert (await anext(events))[0] == "overflow"


async def test_a_watcher_that_does_not_read_is_told_what_it_missed(files: NativeFiles, here: Path) -> None:
    """The kernel's queue is bounded (fs.inotify.max_queued_events), and what does not fit is said."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    events = await files.watch(str(here))
    await asyncio.to_thread(_make_many, here, most * 3)
    kinds = set()
    async with asyncio.timeout(60):
        async for kind, _ in events:
            kinds.add(kind)
            if kind == "overflow":
                break
    assert kinds >= {"created", "overflow"}
    await events.aclose()  # type: ignore[attr-defined]


def _make_many(here: Path, count: int) -> None:
    name = str(here / ("x" * 200))
    for number in range(count):
        os.close(os.open(f"{name}{number % 100}", os.O_CREAT | os.O_WRONLY))
        os.unlink(f"{name}{number % 100}")


# ── archives ─────────────────────────────────────────────────────────────────────────────────────────────────────


def parts(data: bytes, size: int) -> Iterable[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("size", [1000, 1 << 20])
async def test_what_is_packed_is_unpacked(files: NativeFiles, here: Path, size: int) -> None:
    await files.write(f"{here}/in/a/file", pieces(os.urandom(300_000)), mode=0o750)
    await files.write(f"{here}/in/empty", pieces())
    await files.write(f"{here}/in/{'n' * 150}/{'m' * 150}", pieces(b"long"))
    (here / "in/link").symlink_to("a/file")
    data = await whole(await files.read_tar(f"{here}/in"))
    assert await files.write_tar(f"{here}/out", pieces(*parts(data, size))) == 6
    await asyncio.to_thread(subprocess.run, ["diff", "-r", here / "in", here / "out"], timeout=30, check=True)
    assert stat.S_IMODE((here / "out/a/file").stat().st_mode) == 0o750
    assert os.readlink(here / "out/link") == "a/file"
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert {member.name for member in archive} == {
            "a",
            "a/file",
            "empty",
            "n" * 150,
            f"{'n' * 150}/{'m' * 150}",
            "link",
        }


async def test_an_archive_of_one_file_holds_it_by_its_name(files: NativeFiles, here: Path) -> None:
    await files.write(f"{here}/file", pieces(b"content"))
    data = await whole(await files.read_tar(f"{here}/file"))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = archive.extractfile("file")
        assert found is not None
        assert found.read() == b"content"


async def test_an_archive_that_breaks_off_is_an_error(files: NativeFiles, here: Path) -> None:
    await files.write(f"{here}/in/file", pieces(bytes(100_000)))
    data = await whole(await files.read_tar(f"{here}/in"))
    with pytest.raises(Invalid, match="cut off"):
        await files.write_tar(f"{here}/out", pieces(data[:60_000]))
    await answers(files, here)
