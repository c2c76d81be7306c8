"""Archives: what others write is read and what is written others read; a hostile one writes nothing outside."""

import asyncio
import gzip
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockade.backends.native.files import NativeFiles
from stockade.errors import Conflict, Denied, Invalid, LimitExceeded
from stockade.warden.agent_channel import AgentError
from stockade.warden.agent_paths import opened
from stockade.warden.agent_tar import Unpacker
from tests.warden.agents import agent_process, tenants_directory
from tests.warden.archives import DIRECTORY, HARD_LINK, LINK, archive, pieces, whole

pytestmark = pytest.mark.anyio


@pytest.fixture
def here() -> Iterator[Path]:
    with tenants_directory() as directory:
        yield directory


@pytest.fixture
async def files() -> AsyncIterator[NativeFiles]:
    with agent_process() as (connection, _):
        access = NativeFiles(connection)
        yield access
        access.close()


PLAIN = archive(
    ("./", {**DIRECTORY, "mode": 0o755}, b""),
    ("./folder/", {**DIRECTORY, "mode": 0o750}, b""),
    ("./folder/file", {"mode": 0o6751, "uid": 0, "mtime": 1_000_000_000}, b"content"),
    ("./link", {**LINK, "linkname": "folder/file"}, b""),
    ("hard", {**HARD_LINK, "linkname": "./folder/file"}, b""),
    ("no/parents/ä" + "x" * 200, {}, b"long name"),
    ("empty", {}, b""),
)  # fmt: skip


@pytest.mark.parametrize("size", [1, 511, 100_000])
@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:])]
)
async def test_an_archive_is_unpacked(files: NativeFiles, here: Path, size: int, pack: object) -> None:
    data = pack(PLAIN)  # type: ignore[operator]
    assert await files.write_tar(f"{here}/new/out", pieces(data, size)) == 7
    out = here / "new/out"
    file = (out / "folder/file").stat()
    assert (out / "folder/file").read_bytes() == b"content"
    assert (stat.S_IMODE(file.st_mode), file.st_mtime) == (0o751, 1_000_000_000)
    assert stat.S_IMODE((out / "folder").stat().st_mode) == 0o750
    assert os.readlink(out / "link") == "folder/file"
    assert (out / "hard").samefile(out / "folder/file")
    assert (out / ("no/parents/ä" + "x" * 200)).read_bytes() == b"long name"
    assert (out / "empty").stat().st_size == 0


@pytest.mark.parametrize("format", ["gnu", "oldgnu", "pax", "ustar", "v7"])
async def test_what_tar_writes_is_read_and_the_reverse(files: NativeFiles, here: Path, format: str) -> None:
    source = here / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "a/b/file").write_bytes(os.urandom(70_000))
    (source / "a/link").symlink_to("b/file")
    if format != "v7":
        (source / ("d" * 90)).mkdir()
        (source / ("d" * 90) / ("f" * 90)).write_bytes(b"long")
    if format in ("gnu", "pax"):
        (source / ("x" * 250)).write_bytes(b"longer")
        (source / "to").symlink_to("y" * 300)
    data = await asyncio.to_thread(_tar, "-c", f"--format={format}", "-C", str(source), ".")
    await files.write_tar(f"{here}/out", pieces(data))
    _assert_same(source, here / "out")
    back = here / "back"
    back.mkdir()
    again = await whole(await files.read_tar(f"{here}/out"))
    await asyncio.to_thread(_tar, "-x", "-C", str(back), archive=again)
    _assert_same(source, back)


def _tar(*argv: str, archive: bytes = b"") -> bytes:
    return subprocess.run(["tar", *argv], input=archive, capture_output=True, check=True, timeout=30).stdout


def _assert_same(one: Path, other: Path) -> None:
    done = subprocess.run(["diff", "-r", "--no-dereference", one, other], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout


async def test_names_that_are_no_utf8_travel_in_archives(files: NativeFiles, here: Path) -> None:
    (here / "in").mkdir()
    (here / "in" / os.fsdecode(b"\xff" + b"n" * 120)).write_bytes(b"x")
    os.symlink(b"\xfe" * 3, os.fsencode(here / "in") + b"/link")
    data = await whole(await files.read_tar(f"{here}/in"))
    assert len((await asyncio.to_thread(_tar, "-t", archive=data)).splitlines()) == 2
    await files.write_tar(f"{here}/out", pieces(data))
    _assert_same(here / "in", here / "out")


async def test_large_sizes_are_told(files: NativeFiles, here: Path) -> None:
    """Beyond what the old header can say (8 GiB): in a pax record. Read as far as that."""
    (here / "sparse").touch()
    os.truncate(here / "sparse", 9 << 30)
    stream = await files.read_tar(f"{here}/sparse")
    start = await anext(stream)
    while len(start) < 2048:
        start += await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    with tarfile.open(fileobj=io.BytesIO(start), mode="r|") as archive:
        assert next(iter(archive)).size == 9 << 30


ESCAPES = {
    "parent": archive(("../out.txt", {}, b"x")),
    "parent below": archive(("a/../../out.txt", {}, b"x")),
    "absolute": archive(("/tmp/stockade-test-tar.txt", {}, b"x")),
    "by a link to the parent": archive(("up", {**LINK, "linkname": ".."}, b""), ("up/out.txt", {}, b"x")),
    "by a link to the root": archive(("root", {**LINK, "linkname": "/"}, b""), ("root/tmp/out.txt", {}, b"x")),
    "by a chain of links": archive(
        ("a", {**DIRECTORY, "mode": 0o755}, b""),
        ("a/b", {**LINK, "linkname": ".."}, b""),
        ("c", {**LINK, "linkname": "a/b/.."}, b""),
        ("c/out.txt", {}, b"x"),
    ),
    "a directory by a link": archive(
        ("up", {**LINK, "linkname": ".."}, b""), ("up/out", {**DIRECTORY, "mode": 0o755}, b"")
    ),
    "hard link outside": archive(("hard", {**HARD_LINK, "linkname": "../victim"}, b"")),
    "hard link to an absolute path": archive(("hard", {**HARD_LINK, "linkname": "/etc/passwd"}, b"")),
    "hard link by a link": archive(
        ("up", {**LINK, "linkname": ".."}, b""), ("hard", {**HARD_LINK, "linkname": "up/victim"}, b"")
    ),
    "link of /proc": archive(
        ("fd", {**LINK, "linkname": "/proc/self/cwd"}, b""), ("fd/out.txt", {}, b"x"),
    ),
    "character device": archive(("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b"")),
    "block device": archive(("disk", {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0}, b"")),
    "FIFO": archive(("fifo", {"type": tarfile.FIFOTYPE}, b"")),
    "sparse": archive(("sparse", {"pax_headers": {"GNU.sparse.map": "0,1"}}, b"x")),
    "no name": archive(("./", {}, b"x")),
    "NUL in a name": archive(("a", {"pax_headers": {"path": "a\0b"}}, b"x")),
    "size that is none": archive(("a", {"pax_headers": {"size": "-5"}}, b"x")),
    "endless header": archive(("a", {"pax_headers": {"comment": "x" * (2 << 20)}}, b"x")),
}  # fmt: skip


@pytest.mark.parametrize("data", ESCAPES.values(), ids=ESCAPES.keys())
async def test_nothing_is_written_outside(files: NativeFiles, here: Path, data: bytes) -> None:
    (here / "victim").write_bytes(b"unharmed")
    with pytest.raises(Invalid):
        await files.write_tar(f"{here}/out", pieces(data))
    assert sorted(os.listdir(here)) == ["out", "victim"]
    assert (here / "victim").stat().st_nlink == 1
    assert not os.path.exists("/tmp/stockade-test-tar.txt")
    assert not os.path.exists("/tmp/out.txt")


DAMAGED = {
    "nothing": b"",
    "text": b"this is no archive" * 100,
    "one byte wrong": bytes([PLAIN[0] ^ 1]) + PLAIN[1:],
    "no end": PLAIN[:1536],
    "gzip cut off": gzip.compress(PLAIN)[:-20],
    "gzip damaged": gzip.compress(PLAIN, mtime=0)[:60] + bytes(40) + gzip.compress(PLAIN)[100:],
    "gzip of nothing": gzip.compress(b""),
    "only a gzip mark": b"\x1f\x8b",
    "goes on and on": PLAIN + gzip.decompress(gzip.compress(bytes(20 << 20))),
    "gzip bomb behind the end": gzip.compress(PLAIN + bytes(64 << 20)),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
async def test_damaged_archives_are_refused(files: NativeFiles, here: Path, data: bytes) -> None:
    with pytest.raises(Invalid):
        await files.write_tar(f"{here}/out", pieces(data))
    await files.stat(f"{here}/out")  # the channel is in order


async def test_too_many_members_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.warden.agent_tar.MOST_MEMBERS", 3)
    with agent_process() as (connection, _):
        files = NativeFiles(connection)
        with pytest.raises(LimitExceeded, match="more than 3 members"):
            await files.write_tar(f"{here}/out", pieces(PLAIN))
        files.close()


async def test_what_is_there_is_replaced_but_no_directory(files: NativeFiles, here: Path) -> None:
    (here / "victim").write_bytes(b"unharmed")
    await files.mkdir(f"{here}/out/folder")
    (here / "out/file").symlink_to(here / "victim")
    await files.write_tar(f"{here}/out", pieces(archive(("file", {}, b"mine"))))
    assert (here / "victim").read_bytes() == b"unharmed"
    assert (here / "out/file").read_bytes() == b"mine"
    with pytest.raises(Conflict, match="directory of this name"):
        await files.write_tar(f"{here}/out", pieces(archive(("folder", {}, b"x"))))


async def test_read_only_directories_get_their_mode_when_they_have_their_files(files: NativeFiles, here: Path) -> None:
    data = archive(("shut", {**DIRECTORY, "mode": 0o555}, b""), ("shut/file", {"mode": 0o444}, b"x"))
    assert await files.write_tar(f"{here}/out", pieces(data)) == 2
    assert stat.S_IMODE((here / "out/shut").stat().st_mode) == 0o555
    assert (here / "out/shut/file").read_bytes() == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="root may write everywhere but as another user")
async def test_what_may_not_be_written_is_denied(files: NativeFiles, here: Path) -> None:
    (here / "roots").mkdir()
    with pytest.raises(Denied, match="file"):
        await files.write_tar(f"{here}/roots", pieces(archive(("file", {}, b"x"))))
    secret = here / "roots/secret"
    secret.write_bytes(b"x")
    secret.chmod(0o600)
    with pytest.raises(Denied, match="secret"):
        await whole(await files.read_tar(f"{here}/roots"))


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_archive_does_no_harm(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Some bytes of a good archive are changed: it is unpacked or refused, and nothing happens outside."""
    noisy = bytearray(PLAIN)
    for _ in range(data.draw(st.integers(1, 5))):
        block = data.draw(st.integers(0, len(PLAIN) // 512 - 1)) * 512
        noisy[block + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # with a checksum that is right
            noisy[block + 148 : block + 156] = b" " * 8
            noisy[block + 148 : block + 156] = b"%06o\0 " % sum(noisy[block : block + 512])
    base = tmp_path_factory.mktemp("noise")
    (base / "out").mkdir()
    with opened(os.open(base / "out", os.O_PATH | os.O_DIRECTORY)) as top:
        unpacker = Unpacker(top=top, is_root=False, alive=lambda: None)
        kind = "invalid"
        try:
            unpacker.unpack(memoryview(noisy[start : start + 1000]) for start in range(0, len(noisy), 1000))
        except AgentError as error:
            kind = error.kind
        assert kind in ("invalid", "conflict", "not_found")
    assert os.listdir(base) == ["out"]
