"""Copying in and out: an archive ends up where `cp -r` would have put what it holds."""

import io
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stockade.backends.native.files import NativeFiles
from stockade.errors import Invalid, LimitExceeded, NotFound
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


FILE = archive(("f.txt", {"mode": 0o640, "mtime": 1_000_000_000}, b"content"))
CONTENTS = archive(
    ("./", {**DIRECTORY, "mode": 0o750}, b""), ("a", {"mode": 0o600}, b"a"), ("s/b", {"mode": 0o755}, b"b")
)
NAMED = archive(
    ("d/", {**DIRECTORY, "mode": 0o750}, b""),
    ("d/a", {}, b"a"),
    ("d/twin", {**HARD_LINK, "linkname": "d/a"}, b""),
    ("d/link", {**LINK, "linkname": "a"}, b""),
)
EXISTING = ("there/old", "file")


def tree(top: Path) -> set[str]:
    """Files and links below, with what is in them."""
    return {
        f"{path.relative_to(top)}={os.readlink(path) if path.is_symlink() else path.read_text()}"
        for path in top.rglob("*")
        if path.is_symlink() or path.is_file()
    } - {"there/old=old", "file=old"}


CASES = [
    # what was sent, is_directory, path, what is there afterwards
    (FILE, None, "new.txt", {"new.txt=content"}),
    (FILE, False, "new.txt", {"new.txt=content"}),
    (FILE, None, "no/parents/new.txt", {"no/parents/new.txt=content"}),
    (FILE, None, "there", {"there/f.txt=content"}),
    (FILE, False, "there", {"there/f.txt=content"}),
    (FILE, None, "x/", {"x/f.txt=content"}),
    (FILE, False, "x/", {"x/f.txt=content"}),
    (FILE, None, "file", {"file=content"}),
    (FILE, True, "x", Invalid),
    (CONTENTS, None, "t", {"t/a=a", "t/s/b=b"}),
    (CONTENTS, None, "t/", {"t/a=a", "t/s/b=b"}),
    (CONTENTS, None, "there", {"there/a=a", "there/s/b=b"}),
    (CONTENTS, None, "file", Invalid),
    (CONTENTS, None, "file/x", Invalid),
    (CONTENTS, False, "t", Invalid),
    (CONTENTS, False, "there", Invalid),
    (NAMED, True, "u", {"u/a=a", "u/twin=a", "u/link=a"}),
    (NAMED, True, "there", {"there/d/a=a", "there/d/twin=a", "there/d/link=a"}),
    (NAMED, True, "u/", {"u/d/a=a", "u/d/twin=a", "u/d/link=a"}),
    (NAMED, True, "file", Invalid),
    (NAMED, None, "u", {"u/d/a=a", "u/d/twin=a", "u/d/link=a"}),
    (archive(("a", {}, b"1"), ("b/c", {}, b"2")), None, "t", {"t/a=1", "t/b/c=2"}),
    (archive(("a", {}, b"1"), ("b/c", {}, b"2")), None, "file", Invalid),
    (archive(("d/a", {}, b"1"), ("e/a", {}, b"2")), True, "u", Invalid),
    (archive(("l", {**LINK, "linkname": "to"}, b"")), False, "new", {"new=to"}),
    (archive(("l", {**LINK, "linkname": "to"}, b"")), False, "there", {"there/l=to"}),
    (archive(), None, "t", set()),
    (archive(), False, "there", Invalid),
]


@pytest.mark.parametrize(("data", "is_directory", "path", "expected"), CASES)
async def test_what_is_sent_lands_where_cp_would_put_it(
    files: NativeFiles, here: Path, data: bytes, is_directory: bool | None, path: str, expected: object
) -> None:
    await files.mkdir(f"{here}/there")
    await files.write(f"{here}/there/old", pieces(b"old"))
    await files.write(f"{here}/file", pieces(b"old"))
    if expected is Invalid:
        with pytest.raises(Invalid):
            await files.copy_in(f"{here}/{path}", pieces(data), is_directory=is_directory)
        assert (here / "file").read_text() == "old"
    else:
        await files.copy_in(f"{here}/{path}", pieces(data), is_directory=is_directory)
        assert tree(here) == expected
    assert not [name for _, _, names in os.walk(here) for name in names if name.startswith(".upload-")]


async def test_modes_and_times_are_those_of_the_archive(files: NativeFiles, here: Path) -> None:
    await files.copy_in(f"{here}/f", pieces(FILE))
    await files.copy_in(f"{here}/t", pieces(CONTENTS))
    await files.copy_in(f"{here}/u", pieces(NAMED), is_directory=True)
    modes = {path.relative_to(here).as_posix(): stat.S_IMODE(path.lstat().st_mode) for path in here.rglob("*")}
    assert modes["f"] == 0o640
    assert (here / "f").stat().st_mtime == 1_000_000_000
    assert (modes["t"], modes["t/a"], modes["t/s/b"]) == (0o750, 0o600, 0o755)
    assert modes["u"] == 0o750
    assert (here / "u/twin").samefile(here / "u/a")


async def test_a_link_at_the_path_is_followed_and_one_below_is_replaced(files: NativeFiles, here: Path) -> None:
    await files.write(f"{here}/victim", pieces(b"old"))
    (here / "to").symlink_to("victim")
    await files.copy_in(f"{here}/to", pieces(FILE))
    assert (os.readlink(here / "to"), (here / "victim").read_text()) == ("victim", "content")
    await files.mkdir(f"{here}/out")
    (here / "out/f.txt").symlink_to("../victim")
    (here / "victim").write_text("unharmed")
    await files.copy_in(f"{here}/out", pieces(FILE))
    assert (here / "victim").read_text() == "unharmed"
    assert not (here / "out/f.txt").is_symlink()


ESCAPES = {
    "parent": archive(("../evil", {}, b"x")),
    "parent below": archive(("a", {}, b"x"), ("b/../../evil", {}, b"x")),
    "absolute": archive(("a", {}, b"x"), ("/tmp/stockade-test-copy.txt", {}, b"x")),
    "by a link": archive(("up", {**LINK, "linkname": ".."}, b""), ("up/evil", {}, b"x")),
    "device": archive(("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b"")),
    "FIFO": archive(("fifo", {"type": tarfile.FIFOTYPE}, b"")),
}


@pytest.mark.parametrize("is_directory", [None, True, False])
@pytest.mark.parametrize("path", ["new", "there", "x/"])
@pytest.mark.parametrize("data", ESCAPES.values(), ids=ESCAPES.keys())
async def test_nothing_is_written_outside(
    files: NativeFiles, here: Path, data: bytes, path: str, is_directory: bool | None
) -> None:
    await files.mkdir(f"{here}/top/there")
    with pytest.raises(Invalid):
        await files.copy_in(f"{here}/top/{path}", pieces(data), is_directory=is_directory)
    assert os.listdir(here) == ["top"]
    assert not [path for path in here.rglob("*") if path.name == "evil"]
    assert not os.path.exists("/tmp/stockade-test-copy.txt")


async def test_an_archive_that_breaks_off_leaves_what_was_there(files: NativeFiles, here: Path) -> None:
    await files.write(f"{here}/f", pieces(b"old"))
    with pytest.raises(Invalid, match="cut off"):
        await files.copy_in(f"{here}/f", pieces(archive(("f", {}, bytes(100_000)))[:50_000]))
    assert (here / "f").read_bytes() == b"old"
    assert os.listdir(here) == ["f"]


async def test_too_many_members_are_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.warden.agent_tar.MOST_MEMBERS", 3)
    with agent_process() as (connection, _):
        files = NativeFiles(connection)
        with pytest.raises(LimitExceeded, match="more than 3 members"):
            await files.copy_in(f"{here}/out", pieces(archive(*((str(n), {}, b"") for n in range(5)))))
        files.close()


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
async def test_what_comes_out_says_what_it_is(files: NativeFiles, here: Path, format: int) -> None:
    sent = archive(("d/x", {}, b"x" * 50_000), ("d/s/" + "y" * 90, {}, b"y"), format=format)
    await files.copy_in(f"{here}/d", pieces(sent), is_directory=True)
    is_directory, stream = await files.copy_out(f"{here}/d")
    with tarfile.open(fileobj=io.BytesIO(await whole(stream))) as found:
        assert is_directory
        assert found.getnames() == [".", "./s", "./x", "./s/" + "y" * 90]
    is_directory, stream = await files.copy_out(f"{here}/d/x")
    with tarfile.open(fileobj=io.BytesIO(await whole(stream))) as found:
        assert not is_directory
        assert found.getnames() == ["x"]
        assert found.extractfile("x").read() == b"x" * 50_000  # type: ignore[union-attr]
    with pytest.raises(NotFound):
        await files.copy_out(f"{here}/none")
