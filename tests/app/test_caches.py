"""Directories of caches: made wholly or not at all, readable by everybody, without anything that leads out."""

import dataclasses
import os
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from stockade.app.caches import DirectoryStore, cache_directory, prepare_cache_directory
from stockade.app.engine import backend_options, load_languages
from stockade.backends.native.backend import FileBundle
from stockade.config import CacheConfig, Config
from stockade.errors import Invalid
from stockade.warden import bundle, protocol


def packed(files: Mapping[str, bytes]) -> FileBundle:
    fd = protocol.memory_file("test")
    for piece in bundle.pack(files):
        os.write(fd, piece)
    return FileBundle(fd)


def collected(directory: Path) -> FileBundle:
    fd = protocol.memory_file("test")
    bundle.collect(str(directory), fd, 1 << 20)
    return FileBundle(fd)


def test_a_cache_holds_the_files_readable_for_all_and_writable_for_nobody(tmp_path: Path) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er" / "data").write_bytes(b"x")
    (source / "tool").write_bytes(b"y")
    (source / "tool").chmod(0o700)
    store.mkdir()
    DirectoryStore(store).put("toy-1", collected(source))
    found = {str(p.relative_to(store)): stat.S_IMODE(p.stat().st_mode) for p in store.rglob("*")}
    assert found == {
        "toy-1": 0o755, "toy-1/deep": 0o755, "toy-1/deep/er": 0o755, "toy-1/deep/er/data": 0o444, "toy-1/tool": 0o555,
    }  # fmt: skip
    assert (store / "toy-1" / "deep" / "er" / "data").read_bytes() == b"x"


def link(path: Path) -> None:
    (path / "link").symlink_to("/etc")


def link_to_file(path: Path) -> None:
    (path / "link").symlink_to("/etc/passwd")


@pytest.mark.parametrize("make", [link, link_to_file])
def test_a_cache_with_a_link_is_refused_and_leaves_nothing(tmp_path: Path, make: Callable[[Path], None]) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    store.mkdir()
    make(source)
    with pytest.raises(Invalid, match="toy-1"):
        DirectoryStore(store).put("toy-1", collected(source))
    assert list(store.iterdir()) == []


def test_a_damaged_bundle_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    damaged = packed({"a": b"x" * 100})
    os.ftruncate(damaged.fd, damaged.size - 1)
    with pytest.raises(Invalid, match="cut off"):
        DirectoryStore(tmp_path).put("toy-1", damaged)
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_make_the_same_cache_the_first_wins(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("toy-1", packed({"a": b"first"}))
    store.put("toy-1", packed({"a": b"second"}))
    assert (tmp_path / "toy-1" / "a").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["toy-1"]


def test_caches_that_nobody_used_for_long_are_removed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    long_ago = time.time() - 31 * 86_400
    for name in ("old", "used", "new"):
        store.put(name, packed({"a": b""}))
    for name in ("old", "used"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    store.use("used")
    store.clear_unused()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "used"]


def test_sandboxes_are_shown_the_directory_where_that_is_possible(tmp_path: Path) -> None:
    """The warden refuses what lies below /tmp or behind a link: the server must start all the same."""
    config = Config(data_dir=tmp_path)
    prepare_cache_directory(config)
    assert (tmp_path / "caches").is_dir()
    below_tmp = tmp_path.parts[1] == "tmp"
    assert cache_directory(config) == (None if below_tmp else tmp_path / "caches")
    off = dataclasses.replace(config, cache=CacheConfig(toolchains=False))
    assert cache_directory(off) is None
    assert str(tmp_path) not in "".join(backend_options(off, load_languages(off)).host_paths)
