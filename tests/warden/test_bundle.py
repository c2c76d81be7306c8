"""Bundles: what goes in comes out, and what is damaged or hostile does no harm."""

import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stockade.warden import bundle
from tests.warden.raw import memory_file, read_file

HEADER = struct.Struct("<cHIQ")
MANY = 1 << 40

component = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="/\0"), min_size=1, max_size=20
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 200)
relative = st.lists(component, min_size=1, max_size=4).map("/".join)


def record(kind: bytes, path: bytes, content: bytes = b"", mode: int = 0o644, length: int | None = None) -> bytes:
    return HEADER.pack(kind, mode, len(path), len(content) if length is None else length) + path + content


def unpack(content: bytes, directory: Path) -> None:
    fd = memory_file(content)
    try:
        bundle.unpack(fd, str(directory))
    finally:
        os.close(fd)


def collect(directory: Path, most_bytes: int = 64 << 20) -> bytes:
    fd = memory_file()
    try:
        bundle.collect(str(directory), fd, most_bytes)
        return read_file(fd)
    finally:
        os.close(fd)


def tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below *directory*: path → mode and content."""
    found: dict[str, tuple[int, bytes]] = {}
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            content = b""
            if stat.S_ISLNK(mode):
                content = os.readlink(path).encode()
            elif stat.S_ISREG(mode):
                content = path.read_bytes()
            found[str(path.relative_to(directory))] = mode, content
    return found


def no_prefixes(files: dict[str, bytes]) -> bool:
    """No file lies below another file."""
    return not any(other.startswith(f"{name}/") for name in files for other in files)


@given(st.dictionaries(relative, st.binary(max_size=200), max_size=8).filter(no_prefixes))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_packed_is_unpacked(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    directory = tmp_path_factory.mktemp("out")
    unpack(b"".join(bundle.pack(files)), directory)
    assert {n: c for n, (m, c) in tree(directory).items() if stat.S_ISREG(m)} == files


entries = st.dictionaries(
    component,
    st.one_of(
        st.tuples(st.just("file"), st.binary(max_size=100), st.integers(0, 0o777)),
        st.tuples(st.just("link"), component, st.just(0)),
        st.tuples(st.just("directory"), st.just(b""), st.integers(0, 0o777)),
    ),
    max_size=6,
)


@given(entries, entries)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_collected_is_unpacked(
    tmp_path_factory: pytest.TempPathFactory, top: dict[str, object], inner: dict[str, object]
) -> None:
    """Files, directories and links, with their modes. (As root here, so that no mode is in the way.)"""
    if os.geteuid() != 0:
        pytest.skip("what has no permissions can be read by root only")
    source, target = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("out")
    (source / "inner").mkdir()
    for base, members in ((source, top), (source / "inner", inner)):
        for name, (kind, content, mode) in members.items():  # type: ignore[misc]
            path = base / name
            if os.path.lexists(path):
                continue
            if kind == "link":
                path.symlink_to(content)
            elif kind == "directory":
                path.mkdir()
                path.chmod(mode)
            else:
                path.write_bytes(content)
                path.chmod(mode)
    unpack(collect(source), target)
    assert tree(target) == tree(source)


def test_modes_lose_what_would_gain_privileges(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tool = tmp_path / "in/tool"
    tool.write_bytes(b"x")
    tool.chmod(0o6755)
    (tmp_path / "out").mkdir()
    unpack(collect(tmp_path / "in"), tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/tool").stat().st_mode) == 0o755


def test_read_only_directories_come_out_with_what_is_in_them(tmp_path: Path) -> None:
    """As an unprivileged user, which is who unpacks: a directory gets its mode when it has its files."""
    content = (
        record(b"d", b"mod", mode=0o555)
        + record(b"d", b"mod/sub", mode=0o500)
        + record(b"f", b"mod/sub/file", b"text", 0o444)
        + record(b"l", b"mod/link", b"sub/file")
    )
    (tmp_path / "bundle").write_bytes(content)
    target = tmp_path / "out"
    target.mkdir()
    script = (
        "import os, sys\n"
        "sys.path.append(sys.argv[1])\n"
        "from stockade.warden import bundle\n"
        "source = os.open(sys.argv[2], os.O_RDONLY)\n"
        "os.chdir(sys.argv[3])\n"
        "if os.geteuid() == 0:\n"
        "    os.chown('.', 65534, 65534)\n"
        "    os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "bundle.unpack(source, '.')\n"
    )
    source = str(Path(bundle.__file__).parents[2])
    argv = [sys.executable, "-c", script, source, str(tmp_path / "bundle"), str(target)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    found = tree(target)
    assert found["mod/sub/file"][1] == b"text"
    assert stat.S_IMODE(found["mod"][0]) == 0o555
    assert stat.S_IMODE(found["mod/sub"][0]) == 0o500
    for name in ("mod/sub", "mod"):
        (target / name).chmod(0o755)


def test_several_readers_of_one_descriptor_do_not_disturb_each_other(tmp_path: Path) -> None:
    fd = memory_file(b"".join(bundle.pack({"a": b"1", "b": b"2"})))
    os.lseek(fd, 17, os.SEEK_SET)
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        bundle.unpack(fd, str(tmp_path / name))
        assert (tmp_path / name / "b").read_bytes() == b"2"
    assert os.lseek(fd, 0, os.SEEK_CUR) == 17
    os.close(fd)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a\0b", "\ud800"])
def test_names_that_lead_out_are_not_packed(name: str) -> None:
    with pytest.raises(bundle.BundleError):
        bundle.pack({name: b""})


DAMAGED = {
    "parent": record(b"f", b"../out.txt", b"x"),
    "parent below": record(b"f", b"a/../../out.txt", b"x"),
    "absolute": record(b"f", b"/tmp/stockade-test-out.txt", b"x"),
    "absolute directory": record(b"d", b"/tmp/stockade-test-out"),
    "link outside by name": record(b"l", b"../out.txt", b"target"),
    "NUL in the name": record(b"f", b"a\0b", b"x"),
    "no name": record(b"f", b"", b"x"),
    "header cut off": record(b"f", b"name", b"content")[:9],
    "name cut off": record(b"f", b"name", b"content")[: HEADER.size + 2],
    "content cut off": record(b"f", b"name", b"content")[:-3],
    "content of a terabyte": record(b"f", b"name", b"content", length=MANY),
    "content of all that can be said": record(b"f", b"name", length=(1 << 64) - 1),
    "link of all that can be said": record(b"l", b"name", length=(1 << 64) - 1),
    "name of 4 GB": HEADER.pack(b"f", 0o644, (1 << 32) - 1, 0) + b"name",
    "trailing bytes": record(b"f", b"name", b"content") + b"x",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_bundles_are_refused(tmp_path: Path, content: bytes) -> None:
    """At once, without a thing outside the directory."""
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(bundle.BundleError):
        unpack(content, target)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert not Path("/tmp/stockade-test-out.txt").exists()
    assert not Path("/tmp/stockade-test-out").exists()


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_or_unpacked_and_nothing_else(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    base = tmp_path_factory.mktemp("noise")
    (base / "out").mkdir()
    try:
        unpack(noise, base / "out")
    except (bundle.BundleError, OSError):
        pass
    assert [p.name for p in base.iterdir()] == ["out"]


def test_a_file_does_not_follow_a_link_of_its_name(tmp_path: Path) -> None:
    """A link in a bundle and then a file of the same name: the link's target is not written to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"unharmed")
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(OSError, match="symbolic links"):
        unpack(record(b"l", b"a", str(victim).encode()) + record(b"f", b"a", b"harm"), target)
    assert victim.read_bytes() == b"unharmed"


def test_special_files_are_left_out(tmp_path: Path) -> None:
    """A FIFO does not block, and what is no file, directory or link does not travel."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"x")
    content = collect(tmp_path)
    assert b"file" in content
    assert b"fifo" not in content


def test_links_are_collected_as_links(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"do not take this along")
    (tmp_path / "in/link").symlink_to(tmp_path / "secret")
    (tmp_path / "in/folder").symlink_to(tmp_path)
    assert b"do not take" not in collect(tmp_path / "in")


def _sparse(directory: Path) -> None:
    with open(directory / "sparse", "wb") as file:
        file.truncate(MANY)


def _many(directory: Path) -> None:
    for number in range(bundle.MOST_MEMBERS + 1):
        os.close(os.open(directory / str(number), os.O_CREAT | os.O_WRONLY))


def _large(directory: Path) -> None:
    for number in range(4):
        (directory / str(number)).write_bytes(b"x" * (1 << 18))


@pytest.mark.parametrize("make", [_sparse, _many, _large])
def test_too_much_is_refused_before_it_is_copied(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    fd = memory_file()
    with pytest.raises(bundle.BundleError, match="more than"):
        bundle.collect(str(tmp_path), fd, 1 << 19)
    assert os.fstat(fd).st_size <= 1 << 20
    os.close(fd)


def test_a_refusal_leaves_no_descriptor_open(tmp_path: Path) -> None:
    _large(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(bundle.BundleError):
            collect(tmp_path, 1 << 19)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_deep_tree_is_no_recursion(tmp_path: Path) -> None:
    """Deeper than Python's stack; beyond what a path can name the kernel refuses, and so do we."""
    deep = "/".join("d" * 1500)
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()
    unpack(b"".join(bundle.pack({f"{deep}/file": b"x"})), source)
    unpack(collect(source), target)
    assert (target / deep / "file").read_bytes() == b"x"
    # Deeper still, as only a process that walks down step by step can make it.
    script = "import os, sys\nos.chdir(sys.argv[1])\nfor _ in range(1200):\n os.mkdir('d'); os.chdir('d')"
    subprocess.run([sys.executable, "-c", script, str(source / deep)], check=True, timeout=30)
    with pytest.raises(OSError, match="too long"):
        collect(source)
    # pytest would clear up by path.
    subprocess.run(["rm", "-rf", str(source), str(target)], check=True, timeout=30)
