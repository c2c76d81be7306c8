"""Copies, sizes and ends of plain directories: what a tenant may have made of them, and what must not come of it."""

import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockade.warden import trees
from stockade.warden.fields import Refused

DEEP = 3000
MB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "target").mkdir()
    yield tmp_path / "target"
    place = os.open(tmp_path, os.O_RDONLY)
    try:
        for name in ("source", "target"):
            trees.remove_tree(place, name)
    finally:
        os.close(place)


def copy(source: Path, target: Path) -> None:
    links = target.parent / "links"
    links.mkdir()
    fds = [os.open(path, os.O_RDONLY) for path in (source, target, links)]
    before = len(os.listdir("/proc/self/fd"))
    try:
        trees.copy_tree(*fds)
    finally:
        assert len(os.listdir("/proc/self/fd")) == before, "descriptors are left open"
        for fd in fds:
            os.close(fd)


def described(top: Path) -> dict[str, tuple[object, ...]]:
    """All that a copy is to keep."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for folder, folders, files in os.walk(top):
        for name in (".", *folders, *files) if folder == str(top) else (*folders, *files):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            first = (
                inodes.setdefault(status.st_ino, os.path.relpath(path, top)) if not stat.S_ISDIR(status.st_mode) else ""
            )
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            marks = {} if stat.S_ISLNK(status.st_mode) else {n: os.getxattr(path, n) for n in os.listxattr(path)}
            found[os.path.relpath(path, top)] = (
                status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_mtime_ns, marks, content, first,
            )  # fmt: skip
    return found


def test_a_copy_is_like_what_it_is_a_copy_of(source: Path, target: Path) -> None:
    """Everything that an overlay's upper directory holds: whiteouts and marks included."""
    (source / "dir" / "below").mkdir(parents=True)
    (source / "dir" / "file").write_bytes(b"content")
    (source / "dir" / "empty").write_bytes(b"")
    (source / "dir" / "below" / "program").write_bytes(b"#!/bin/sh\n")
    os.link(source / "dir" / "file", source / "again")
    os.link(source / "dir" / "file", source / "dir" / "below" / "thrice")
    os.symlink("/etc/passwd", source / "link")
    os.symlink("nowhere", source / "dir" / "dangling")
    os.mkfifo(source / "fifo", 0o640)
    os.mknod(source / "gone", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(f"/proc/self/fd/{(folder := os.open(source, os.O_RDONLY))}/socket")
    os.close(folder)
    os.setxattr(source / "dir", "user.overlay.opaque", b"y")
    os.setxattr(source / "dir" / "file", "user.own", b"\0mark")
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, 6, number)
        for tag, number in ((1, 0xFFFFFFFF), (2, 33), (4, 0xFFFFFFFF), (16, 0xFFFFFFFF), (32, 0xFFFFFFFF))
    )
    os.setxattr(source / "dir" / "empty", "system.posix_acl_access", acl)
    if os.geteuid() == 0:
        os.chown(source / "dir" / "below" / "program", 1000, 33)
        os.chown(source / "link", 7, 8, follow_symlinks=False)
        os.chown(source, 5, 6)
    os.chmod(source / "dir" / "below" / "program", 0o6755)
    os.chmod(source / "dir" / "below", 0o3500)
    for path in (source / "dir" / "file", source / "link", source / "fifo", source / "dir", source):
        os.utime(path, ns=(1_000_000_001, 2_000_000_002), follow_symlinks=False)
    expected = described(source)
    copy(source, target)
    assert described(target) == expected
    assert described(source) == expected


def test_holes_stay_holes(source: Path, target: Path) -> None:
    with (source / "sparse").open("wb") as file:
        file.seek(100 * MB)
        file.write(b"end of the first part")
        file.truncate(400 * MB)
    (source / "hole").touch()
    os.truncate(source / "hole", 100 * MB)
    copy(source, target)
    assert (target / "sparse").stat().st_size == 400 * MB
    assert (target / "sparse").stat().st_blocks <= 16 + (source / "sparse").stat().st_blocks
    assert (target / "hole").stat().st_size == 100 * MB
    assert (target / "hole").stat().st_blocks == 0
    with (target / "sparse").open("rb") as file:
        file.seek(100 * MB)
        assert file.read(30) == b"end of the first part" + bytes(9)


def test_links_are_copied_and_never_followed(source: Path, target: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    os.symlink(outside, source / "dir")
    os.symlink(outside / "secret", source / "file")
    copy(source, target)
    assert os.readlink(target / "dir") == str(outside)
    place = os.open(tmp_path, os.O_RDONLY)
    os.symlink(outside, tmp_path / "top")
    for name in ("target", "top", "nothing"):
        trees.remove_tree(place, name)
    os.close(place)
    assert (outside / "secret").read_text() == "secret"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device node")
def test_a_device_is_not_copied(source: Path, target: Path) -> None:
    os.mknod(source / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    with pytest.raises(Refused, match="device"):
        copy(source, target)


def test_what_is_nested_without_end_is_not_copied_and_yet_deleted(source: Path, target: Path, tmp_path: Path) -> None:
    nest(source, DEEP)
    (source / "d" / ".1").mkdir()
    (source / "d" / ".2").write_text("in the way")
    with pytest.raises(Refused, match="deep"):
        copy(source, target)
    top = os.open(source, os.O_RDONLY)
    with pytest.raises(Refused, match="deep"):
        trees.used_bytes(top)
    os.close(top)
    place = os.open(tmp_path, os.O_RDONLY)
    trees.remove_tree(place, "source")
    os.close(place)
    assert not source.exists()


def nest(top: Path, depth: int) -> None:
    """Directories in directories, with a file in each, and names that are in the way of whoever moves them."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_names_are_bytes(source: Path, target: Path) -> None:
    name = os.fsdecode(b"\xff\xfe\n name")
    (source / name).write_text("content")
    (source / ("x" * 255)).mkdir()
    copy(source, target)
    assert described(target) == described(source)


def test_what_has_several_names_is_counted_once(source: Path, target: Path) -> None:
    (source / "dir").mkdir()
    (source / "dir" / "file").write_bytes(os.urandom(MB))
    top = os.open(source, os.O_RDONLY)
    used = trees.used_bytes(top)
    assert MB <= used < 2 * MB
    for number in range(5):
        os.link(source / "dir" / "file", source / f"link{number}")
    assert trees.used_bytes(top) == used
    os.close(top)
