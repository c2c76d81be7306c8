"""Layers of images and saved disks: what an archive says becomes an overlay's upper directory, and the reverse."""

import asyncio
import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockade.backends.native.files import NativeFiles
from stockade.errors import Invalid, LimitExceeded, StockadeError
from stockade.warden.agent_channel import AgentError
from stockade.warden.agent_layers import LayerUnpacker
from stockade.warden.agent_paths import opened
from tests.warden.agents import agent_process, needs_root, tenants_directory
from tests.warden.archives import DIRECTORY, HARD_LINK, LINK, archive, pieces, whole

pytestmark = [pytest.mark.anyio, needs_root]
FIFO, DEVICE = {"type": tarfile.FIFOTYPE}, {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}


@pytest.fixture
def here() -> Iterator[Path]:
    with tenants_directory() as directory:
        for name in ("top", "other"):
            (directory / name).mkdir()
            os.chown(directory / name, directory.stat().st_uid, directory.stat().st_gid)
        yield directory


@pytest.fixture
async def files() -> AsyncIterator[NativeFiles]:
    """As root, as in a workshop: under the filter of system calls."""
    with agent_process(user=None) as (connection, _):
        access = NativeFiles(connection)
        yield access
        access.close()


def looked_at(top: Path) -> dict[str, tuple[Any, ...]]:
    """All that is to be kept of each file below, by name."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        info = path.lstat()
        kind = stat.S_IFMT(info.st_mode)
        content: object = b""
        if stat.S_ISREG(info.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        elif stat.S_ISCHR(info.st_mode):
            found[str(path.relative_to(top))] = (kind, info.st_rdev)
            continue
        names = [] if stat.S_ISLNK(info.st_mode) else os.listxattr(path)
        marks = {name: os.getxattr(path, name) for name in names}
        # A directory's number of links is the file system's affair.
        links = 0 if stat.S_ISDIR(info.st_mode) else info.st_nlink
        rest = (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns, links)
        found[str(path.relative_to(top))] = (kind, content, *rest, marks)
    return found


def is_gone(path: Path) -> bool:
    info = path.lstat()
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def hides(path: Path) -> bool:
    return "user.overlay.opaque" in os.listxattr(path) and os.getxattr(path, "user.overlay.opaque") == b"y"


async def test_a_layer_keeps_what_files_are(files: NativeFiles, here: Path) -> None:
    long = "no/parents/ä" + "x" * 200
    layer = archive(
        ("./", {**DIRECTORY, "mode": 0o755, "mtime": 5}, b""),
        ("bin/", {**DIRECTORY, "mode": 0o2775, "uid": 7, "gid": 8, "mtime": 1_000_000_000}, b""),
        ("bin/su", {"mode": 0o4755, "uid": 1, "gid": 65534, "pax_headers": {"mtime": "1700000000.123456789"}}, b"su"),
        ("bin/twin", {**HARD_LINK, "linkname": "./bin/su"}, b""),
        ("bin/to", {**LINK, "linkname": "/absolute/elsewhere", "uid": 3, "gid": 4}, b""),
        ("bin/tolink", {**HARD_LINK, "linkname": "bin/to"}, b""),
        ("fifo", {**FIFO, "mode": 0o622, "uid": 5}, b""),
        ("/rooted", {}, b"as if it were not"),
        ("huge", {"uid": 3_000_000, "gid": 70_000}, b""),
        (long, {}, b"long name"),
        ("shut/", {**DIRECTORY, "mode": 0o0}, b""),
        ("shut/file", {}, b"inside"),
        ("dev/null", DEVICE, b""),
    )
    assert await files.write_layer(f"{here}/top", pieces(layer)) == 2 + 17 + 9 + 6
    top = here / "top"
    found = looked_at(top)
    reg, lnk = stat.S_IFREG, stat.S_IFLNK
    assert found["bin"][2:6] == (0o2775, 7, 8, 1_000_000_000 * 10**9)
    assert found["bin/su"][:7] == (reg, b"su", 0o4755, 1, 65534, 1_700_000_000_123_456_789, 2)
    assert found["bin/twin"] == found["bin/su"]
    assert (found["bin/to"][:2], found["bin/to"][3:5]) == ((lnk, "/absolute/elsewhere"), (3, 4))
    assert (top / "bin/tolink").lstat().st_ino == (top / "bin/to").lstat().st_ino
    assert (found["fifo"][0], found["fifo"][2:4]) == (stat.S_IFIFO, (0o622, 5))
    assert found["rooted"][1] == b"as if it were not"
    assert found["huge"][3:5] == (65534, 65534)
    assert found[long][1] == b"long name"
    assert (found["shut"][2], found["shut/file"][1]) == (0, b"inside")
    assert (found["."][2], found["."][5]) == (0o755, 5 * 10**9)
    assert "dev/null" not in found


async def test_set_id_bits_are_dropped_on_request(files: NativeFiles, here: Path) -> None:
    layer = archive(("su", {"mode": 0o6755}, b"x"), ("tmp/", {**DIRECTORY, "mode": 0o3777}, b""))
    await files.write_layer(f"{here}/top", pieces(layer), keep_set_id=False)
    found = looked_at(here / "top")
    assert (found["su"][2], found["tmp"][2]) == (0o755, 0o1777)


async def test_what_a_layer_deletes_is_gone(files: NativeFiles, here: Path) -> None:
    layer = archive(
        ("etc/.wh.passwd", {}, b""),
        ("etc/.wh.passwd2", HARD_LINK | {"linkname": "etc/.wh.passwd"}, b""),
        ("usr/lib/.wh..wh..opq", {}, b""),
        ("usr/lib/new", {}, b"new"),
        ("late/new", {}, b"new"),
        ("late/.wh..wh..opq", {}, b"ignored content"),
        (".wh..wh.plnk/1.2", {}, b"a note of AUFS"),
        (".wh..wh.aufs", {}, b""),
        # This layer's own are not deleted by what it says of those below it, in whichever order.
        ("both/one", {}, b"mine"),
        ("both/.wh.one", {}, b""),
        ("both/.wh.two", {}, b""),
        ("both/two", {}, b"mine"),
        (".wh.folder", {}, b""),
        ("folder/in/mine", {}, b"mine"),
        ("deep/.wh.folder", {}, b""),
        ("deep/folder/mine", {}, b"mine"),
        ("folder2/mine", {}, b"mine"),
        (".wh.folder2", {}, b""),
    )
    await files.write_layer(f"{here}/top", pieces(layer))
    top = here / "top"
    assert is_gone(top / "etc/passwd")
    assert is_gone(top / "etc/passwd2")
    assert hides(top / "usr/lib")
    assert hides(top / "late")
    assert sorted(os.listdir(top)) == ["both", "deep", "etc", "folder", "folder2", "late", "usr"]
    assert sorted(os.listdir(top / "late")) == ["new"]
    assert [path.read_text() for path in sorted(top.glob("both/*"))] == ["mine", "mine"]
    assert hides(top / "folder2")
    assert hides(top / "folder")
    assert hides(top / "deep/folder")


async def test_later_members_take_the_place_of_earlier_ones(files: NativeFiles, here: Path) -> None:
    layer = archive(
        ("a/b/c", {}, b"old"),
        ("a/", {**DIRECTORY, "mode": 0o700}, b""),
        ("a/b/", {**DIRECTORY, "mode": 0o711}, b""),
        ("a", {}, b"a file now"),
        ("f", {}, b"old"),
        ("f/", {**DIRECTORY, "mode": 0o711}, b""),
        ("f/x", {}, b"new"),
        ("l", {**LINK, "linkname": "f"}, b""),
        ("l", {}, b"no link"),
    )
    await files.write_layer(f"{here}/top", pieces(layer))
    found = looked_at(here / "top")
    assert set(found) == {".", "a", "f", "f/x", "l"}
    assert (found["a"][1], found["f"][2], found["l"][1]) == (b"a file now", 0o711, b"no link")


async def test_links_on_the_way_lead_nowhere_outside(files: NativeFiles, here: Path) -> None:
    """As in a container that would unpack it: the layer's root is the root."""
    layer = archive(
        ("real/", {**DIRECTORY, "mode": 0o755}, b""),
        ("link", {**LINK, "linkname": "/real"}, b""),
        ("link/file", {}, b"x"),
        ("up", {**LINK, "linkname": "../../../.."}, b""),
        ("up/climbed", {}, b"x"),
    )
    await files.write_layer(f"{here}/top", pieces(layer))
    assert sorted(os.listdir(here)) == ["other", "top"]
    assert (here / "top/real/file").read_text() == "x"
    assert (here / "top/climbed").exists()


@pytest.mark.parametrize("format", ["0.1", "1.0", "old"])
async def test_holes_stay_holes(files: NativeFiles, here: Path, format: str) -> None:
    source = here / "source"
    source.mkdir()
    with opened(os.open(source / "sparse", os.O_CREAT | os.O_WRONLY)) as file:
        for offset in range(30):
            os.pwrite(file, b"data%d" % offset, offset * 1_000_000)
        os.ftruncate(file, 50_000_000)
    (source / "empty").touch()
    os.truncate(source / "empty", 5_000_000)
    how = ["--format=gnu"] if format == "old" else ["--format=pax", f"--sparse-version={format}"]
    argv = ["tar", "-c", "-S", *how, "-C", str(source), "."]
    layer = await asyncio.to_thread(subprocess.check_output, argv, timeout=60)
    assert len(layer) < 1_000_000
    await files.write_layer(f"{here}/top", pieces(layer, 1000))
    await files.load_tree(f"{here}/other", await files_of(files, here / "top"))
    for name in ("top", "other"):
        for file_name in ("sparse", "empty"):
            path = here / name / file_name
            assert path.read_bytes() == (source / file_name).read_bytes()
            assert path.stat().st_blocks * 512 < 1_000_000


async def files_of(files: NativeFiles, top: Path) -> AsyncIterator[bytes]:
    return pieces(await whole(await files.save_tree(str(top))), 70_000)


async def test_attributes_that_mean_something_to_the_system_are_dropped(files: NativeFiles, here: Path) -> None:
    headers = {
        "SCHILY.xattr.user.mine": "kept\n=",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.user.overlay.redirect": "/etc",
        "SCHILY.xattr.user.overlay.overlay.opaque": "y",
        "SCHILY.xattr.security.capability": "x" * 20,
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "STOCKADE.opaque": "1",
        "STOCKADE.whiteout": "1",
    }
    layer = archive(("file", {"pax_headers": headers}, b"x"), ("d/", {**DIRECTORY, "pax_headers": headers}, b""))
    await files.write_layer(f"{here}/top", pieces(layer))
    expected = {"user.mine": b"kept\n=", "user.overlay.overlay.opaque": b"y"}
    found = looked_at(here / "top")
    assert found["file"][-1] == found["d"][-1] == expected


async def test_a_saved_tree_is_the_same_again(files: NativeFiles, here: Path) -> None:
    top = here / "top"
    layer = archive(
        ("bin/", {**DIRECTORY, "mode": 0o2775, "uid": 7, "gid": 8}, b""),
        ("bin/su", {"mode": 0o6755, "uid": 1, "pax_headers": {"SCHILY.xattr.user.mine": "x"}}, os.urandom(300_000)),
        ("bin/twin", {**HARD_LINK, "linkname": "bin/su"}, b""),
        ("bin/to", {**LINK, "linkname": "y" * 300, "uid": 3}, b""),
        ("fifo", {**FIFO, "mode": 0o622}, b""),
        ("etc/.wh.gone", {}, b""),
        ("etc/.wh.gone2", {}, b""),
        ("etc/.wh..wh..opq", {}, b""),
        ("n" * 200, {}, b"long"),
    )
    await files.write_layer(str(top), pieces(layer))
    (top / ".wh.taken-as-it-is").write_text("x")
    (top / os.fsdecode(b"\xff\xfe")).write_text("no UTF-8")
    os.setxattr(top, "user.top", b"\0\n")
    os.setxattr(top / "bin", "user.overlay.impure", b"y")
    os.link(top / "etc/gone", top / "etc/gone3")  # overlays make several of one
    size = await files.load_tree(f"{here}/other", await files_of(files, top))
    os.removexattr(top / "bin", "user.overlay.impure")
    expected = looked_at(top)
    found = looked_at(here / "other")
    assert expected == found
    assert size == 300_000 + len("long") + 1 + len("no UTF-8")


async def test_a_layer_is_written_as_it_was_read(files: NativeFiles, here: Path) -> None:
    """In the format of images, and others read it."""
    top = here / "top"
    layer = archive(
        ("etc/", {**DIRECTORY, "mode": 0o755, "uid": 7}, b""),
        ("etc/.wh.gone", {}, b""),
        ("etc/x", {"pax_headers": {"SCHILY.xattr.user.mine": "x"}}, b"x"),
        ("lib/.wh..wh..opq", {}, b""),
        (".wh..wh..opq", {}, b""),
    )
    await files.write_layer(str(top), pieces(layer))
    again = await whole(await files.save_tree(str(top), as_image_layer=True))
    await files.write_layer(f"{here}/other", pieces(again))
    assert looked_at(top) == looked_at(here / "other")
    names = (await asyncio.to_thread(subprocess.check_output, ["tar", "-t"], input=again, timeout=60)).split()
    assert {b"./", b".wh..wh..opq", b"etc/.wh.gone", b"lib/.wh..wh..opq"} <= set(names)
    (top / "etc/.wh.file").touch()
    with pytest.raises(Invalid, match="no file of such a name"):
        await whole(await files.save_tree(str(top), as_image_layer=True))


HOSTILE = {
    "parent": archive(("../out.txt", {}, b"x")),
    "parent below": archive(("a/../../out.txt", {}, b"x")),
    "deletes the parent's": archive(("../.wh.other", {}, b"")),
    "deletes the parent": archive((".wh...", {}, b"")),
    "deletes itself": archive(("a/.wh..", {}, b"")),
    "deletes nothing": archive((".wh.", {}, b"")),
    "hard link outside": archive(("hard", {**HARD_LINK, "linkname": "../other"}, b"")),
    "hard link to an absolute path": archive(("hard", {**HARD_LINK, "linkname": "/etc/passwd"}, b"")),
    "hard link by a link": archive(
        ("up", {**LINK, "linkname": "/"}, b""), ("hard", {**HARD_LINK, "linkname": "up/etc/passwd"}, b"")
    ),
    "hard link to nothing": archive(("hard", {**HARD_LINK, "linkname": "none"}, b"")),
    "hard link to what is gone": archive((".wh.a", {}, b""), ("hard", {**HARD_LINK, "linkname": "a"}, b"")),
    "character device": archive(("null", DEVICE, b"")),
    "whiteout as a device": archive(("null", {**DEVICE, "devmajor": 0, "devminor": 0}, b"")),
    "block device": archive(("disk", {"type": tarfile.BLKTYPE, "devmajor": 8}, b"")),
    "a file where a directory is": archive(("a", {}, b"x"), ("a/b", {}, b"x")),
    "link without an end": archive(("l", {**LINK, "linkname": "l"}, b""), ("l/x", {}, b"x")),
    "a name that is too long": archive(("x" * 256, {}, b"x")),
    "a path that is too long": archive(("x/" * 2100 + "x", {}, b"x")),
    "empty link": archive(("l", {**LINK, "linkname": ""}, b"")),
    "pieces that overlap": archive(
        ("s", {"pax_headers": {"GNU.sparse.map": "0,1,0,1", "GNU.sparse.size": "9"}}, b"xx")
    ),
    "pieces beyond the end": archive(("s", {"pax_headers": {"GNU.sparse.map": "9,1", "GNU.sparse.size": "9"}}, b"x")),
    "pieces that are not there": archive(
        ("s", {"pax_headers": {"GNU.sparse.map": "0,9", "GNU.sparse.size": "9"}}, b"x")
    ),
    "a map without end": archive(
        ("s", {"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.realsize": "9"}}, b"9999999999\n" + b"1\n" * 5000)
    ),
    "cut off": archive(("a", {}, bytes(5000)))[:3000],
    "nothing": b"",
    "noise": os.urandom(2000),
}  # fmt: skip


@pytest.mark.parametrize("load", [False, True])
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_layer_is_refused(here: Path, data: bytes, load: bool) -> None:
    with agent_process() as (connection, _):
        files = NativeFiles(connection)
        if load and data in (HOSTILE[name] for name in HOSTILE if name.startswith("deletes ") and "'" not in name):
            return  # a saved tree says it otherwise: these are names
        with pytest.raises(Invalid):
            await (files.load_tree if load else files.write_layer)(f"{here}/top", pieces(data))
        await files.stat(f"{here}/top")  # the channel is in order
        files.close()
    assert sorted(os.listdir(here)) == ["other", "top"]
    assert not os.listdir(here / "other")


async def test_bombs_are_refused(files: NativeFiles, here: Path) -> None:
    many = archive(*((str(number), {}, b"x") for number in range(20)))
    for load in (files.write_layer, files.load_tree):
        with pytest.raises(LimitExceeded, match="more than 10 members"):
            await load(f"{here}/top", pieces(many), most_members=10)
        with pytest.raises(LimitExceeded, match="more than 10 bytes"):
            await load(f"{here}/top", pieces(many), most_bytes=10)


async def test_a_deep_tree_is_unpacked_and_replaced(files: NativeFiles, here: Path) -> None:
    deep = "d/" * 1000 + "file"
    await files.write_layer(f"{here}/top", pieces(archive((deep, {}, b"x"), ("d", {}, b"a file"))))
    assert (here / "top/d").read_text() == "a file"


GOOD = archive(
    ("./", {**DIRECTORY, "mode": 0o755}, b""),
    ("d/", {**DIRECTORY, "mode": 0o755}, b""),
    ("d/file", {"pax_headers": {"SCHILY.xattr.user.x": "y"}}, b"content"),
    ("hard", {**HARD_LINK, "linkname": "d/file"}, b""),
    ("link", {**LINK, "linkname": "/d"}, b""),
    ("d/.wh.gone", {}, b""),
    ("d/.wh..wh..opq", {}, b""),
    ("sparse", {"pax_headers": {"GNU.sparse.map": "3,1", "GNU.sparse.size": "9"}}, b"x"),
)


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_layer_does_no_harm(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Some bytes are changed: it is unpacked or refused, and nothing happens outside."""
    noisy = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 5))):
        block = data.draw(st.integers(0, len(GOOD) // 512 - 1)) * 512
        noisy[block + data.draw(st.integers(0, 511))] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):  # with a checksum that is right
            noisy[block + 148 : block + 156] = b" " * 8
            noisy[block + 148 : block + 156] = b"%06o\0 " % sum(noisy[block : block + 512])
    base = tmp_path_factory.mktemp("noise")
    (base / "out").mkdir()
    with opened(os.open(base / "out", os.O_PATH | os.O_DIRECTORY)) as top:
        unpacker = LayerUnpacker(top=top, alive=lambda: None, is_ours=data.draw(st.booleans()))
        kind = "invalid"
        try:
            unpacker.unpack(memoryview(noisy[start : start + 1000]) for start in range(0, len(noisy), 1000))
        except AgentError as error:
            kind = error.kind
        assert kind in ("invalid", "limit_exceeded")
    assert os.listdir(base) == ["out"]


@pytest.mark.parametrize("path", ["none", "file"])
async def test_a_layer_needs_a_directory(files: NativeFiles, here: Path, path: str) -> None:
    (here / "file").touch()
    with pytest.raises(StockadeError):
        await files.write_layer(f"{here}/{path}", pieces(GOOD))
