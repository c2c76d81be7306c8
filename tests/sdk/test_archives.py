"""Archives: what goes in comes out, and a hostile one writes nothing where it must not."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stockade.sdk import UnsafeArchive
from stockade.sdk.archives import pack, unpack

Make = Callable[[tarfile.TarFile], None]


def member(name: str, kind: bytes = tarfile.REGTYPE, *, content: bytes = b"", link: str = "") -> Make:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, len(content)
        archive.addfile(info, io.BytesIO(content))

    return add


def archive(*members: Make) -> list[bytes]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as opened:
        for add in members:
            add(opened)
    text = packed.getvalue()
    return [text[at : at + 1000] for at in range(0, len(text), 1000)]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Beside it lies what an archive must not touch."""
    (tmp_path / "outside").write_text("untouched")
    return tmp_path / "target"


@pytest.fixture(autouse=True)
def outside_is_untouched(tmp_path: Path) -> Iterator[None]:
    yield
    if (tmp_path / "outside").exists():
        assert (tmp_path / "outside").read_text() == "untouched"
    assert {one.name for one in tmp_path.iterdir()} <= {"outside", "target", "origin"}


def test_a_tree_comes_back_as_it_was(tmp_path: Path, target: Path) -> None:
    origin = tmp_path / "origin"
    (origin / "empty").mkdir(parents=True)
    (origin / ("d" * 120) / ("e" * 120)).mkdir(parents=True)
    (origin / ("d" * 120) / ("e" * 120) / "ä\n'").write_bytes(os.urandom(3_000_000))
    (origin / "none").touch()
    (origin / "secret").write_text("x")
    (origin / "secret").chmod(0o4711)
    (origin / "link").symlink_to("secret")
    os.mkfifo(origin / "pipe")
    assert unpack(pack(origin), target) == []
    assert sorted(one.name for one in target.iterdir()) == sorted(["d" * 120, "empty", "link", "none", "secret"])
    deep = Path("d" * 120, "e" * 120, "ä\n'")
    assert (target / deep).read_bytes() == (origin / deep).read_bytes()
    assert (target / "secret").stat().st_mode & 0o7777 == 0o711
    assert (target / "link").readlink() == Path("secret")


def test_other_programs_read_what_is_packed(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    (origin / "sub").mkdir(parents=True)
    (origin / "sub/file").write_bytes(b"x" * 513)
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(origin)))) as opened:
        assert opened.getnames() == ["sub", "sub/file"]
        content = opened.extractfile("sub/file")
        assert content is not None
        assert content.read() == b"x" * 513


def test_one_file_is_packed_under_the_name_that_is_wanted(tmp_path: Path, target: Path) -> None:
    (tmp_path / "origin").write_text("text")
    unpack(pack(tmp_path / "origin", name="other"), target)
    assert (target / "other").read_text() == "text"


@pytest.mark.parametrize("name", ["/outside", "../outside", "a/../../outside", "a/..", "..", ".", "/"])
def test_a_name_that_leads_out_is_refused(target: Path, name: str) -> None:
    with pytest.raises(UnsafeArchive):
        unpack(archive(member(name, content=b"overwritten")), target)


@pytest.mark.parametrize(
    "link",
    ["/etc", "..", "../outside", "a/../../outside", "a/..", "./../outside", "", "../../target/x"],
)
def test_a_link_that_leads_out_is_left_out(target: Path, link: str) -> None:
    (left_out,) = unpack(archive(member("link", tarfile.SYMTYPE, link=link)), target)
    assert "a link that leads out" in left_out
    assert list(target.iterdir()) == []


@pytest.mark.parametrize(("name", "link"), [("a/link", "../b/c"), ("link", "a/b"), ("a/b/link", "../.."), ("l", ".")])
def test_a_link_that_stays_inside_is_made(target: Path, name: str, link: str) -> None:
    assert unpack(archive(member(name, tarfile.SYMTYPE, link=link)), target) == []
    assert os.readlink(target / name) == link


def test_nothing_is_written_through_a_link(target: Path) -> None:
    """Neither through one of the archive's own, nor through one that was there."""
    with pytest.raises(UnsafeArchive, match="leads through something that is no directory"):
        unpack(archive(member("a", tarfile.SYMTYPE, link="b"), member("a/x", content=b"x")), target)
    (target / "mine").symlink_to("..")
    with pytest.raises(UnsafeArchive):
        unpack(archive(member("mine/outside", content=b"overwritten")), target)
    unpack(archive(member("a", content=b"now a file")), target)
    assert (target / "a").read_text() == "now a file"


def test_a_directory_is_not_made_of_a_link(target: Path) -> None:
    target.mkdir()
    (target / "d").symlink_to("..")
    with pytest.raises(UnsafeArchive):
        unpack(archive(member("d", tarfile.DIRTYPE)), target)


def test_a_directory_is_not_replaced_by_a_file(target: Path) -> None:
    with pytest.raises(UnsafeArchive, match="would replace a directory"):
        unpack(archive(member("a/b", content=b"x"), member("a", content=b"x")), target)


def test_hard_links_lead_to_files_of_the_archive_only(target: Path) -> None:
    left_out = unpack(
        archive(
            member("file", content=b"x"),
            member("good", tarfile.LNKTYPE, link="file"),
            member("link", tarfile.SYMTYPE, link="file"),
            member("bad", tarfile.LNKTYPE, link="link"),
            member("none", tarfile.LNKTYPE, link="nothing"),
        ),
        target,
    )
    assert (target / "good").stat().st_ino == (target / "file").stat().st_ino
    assert [one.partition(":")[0] for one in left_out] == ["bad", "none"]
    with pytest.raises(UnsafeArchive):
        unpack(archive(member("out", tarfile.LNKTYPE, link="../outside")), target)


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_and_pipes_are_left_out(target: Path, kind: bytes) -> None:
    assert len(unpack(archive(member("x", kind), member("y", content=b"1")), target)) == 1
    assert [one.name for one in target.iterdir()] == ["y"]


def test_a_header_cannot_fill_the_memory(target: Path) -> None:
    """A member's extended header says how long it is; it is not believed."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40

    def endless() -> Iterator[bytes]:
        yield header.tobuf(tarfile.GNU_FORMAT)
        while True:
            yield bytes(1 << 16)

    with pytest.raises(UnsafeArchive, match="longer than"):
        unpack(endless(), target)


@pytest.mark.parametrize("text", [b"", b"not an archive" * 100, b"\x1f\x8b" + bytes(600)])
def test_what_is_no_archive_is_told(target: Path, text: bytes) -> None:
    with pytest.raises(UnsafeArchive, match="cannot be read"):
        unpack([text], target)


def test_a_file_that_ends_early_is_told(target: Path) -> None:
    text = b"".join(archive(member("x", content=bytes(5000))))
    with pytest.raises(UnsafeArchive, match="cannot be read"):
        unpack([text[:2000]], target)


def test_a_directory_that_may_not_be_written_to_is_filled_first(tmp_path: Path, target: Path) -> None:
    def closed(opened: tarfile.TarFile) -> None:
        info = tarfile.TarInfo("d")
        info.type, info.mode = tarfile.DIRTYPE, 0o555
        opened.addfile(info)

    unpack(archive(closed, member("d/x", content=b"1")), target)
    assert (target / "d/x").read_text() == "1"
    assert (target / "d").stat().st_mode & 0o777 == 0o755
