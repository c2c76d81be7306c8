"""Layers: what was changed of an image is the same again when it is put over that image."""

import os
import stat
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.backends.native.files import NativeFiles
from stockade.errors import Denied, LimitExceeded
from stockade.warden import kernel, layers
from stockade.warden.bundle import BundleError
from tests.warden.agents import NOBODY, agent_process, as_tenant, private_mounts, tenants_directory
from tests.warden.raw import memory_file, read_file

pytestmark = pytest.mark.anyio

HEADER = struct.Struct("<cHHQqII")
END = HEADER.pack(b".", 0, 0, 0, 0, 0, 0)


def record(kind: bytes, path: bytes, content: bytes = b"", mode: int = 0o644, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return HEADER.pack(kind, mode, len(path), size, 10**18, NOBODY, NOBODY) + path + content


@pytest.fixture
def here() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounts an overlay")
    with tenants_directory() as directory:
        yield directory


IMAGE = """
mkdir -p usr/lib usr/replaced/inner usr/emptied/old usr/gone/deep etc tmp
echo image > usr/lib/kept; echo image > usr/lib/changed; echo image > usr/lib/deleted
echo image > usr/replaced/inner/file; echo image > usr/emptied/old/file; echo image > usr/gone/deep/file
echo image > etc/to-directory; echo image > etc/to-link; chmod 1777 tmp
"""
CHANGES = """
umask 022
echo changed > usr/lib/changed; rm usr/lib/deleted; rm -r usr/gone
rm -r usr/replaced; echo file > usr/replaced
rm -r usr/emptied; mkdir usr/emptied; echo new > usr/emptied/new
rm etc/to-directory; mkdir -p etc/to-directory/inner; echo x > etc/to-directory/inner/file
ln -sf ../usr/lib/kept etc/to-link
mkdir -m 555 etc/read-only; mkfifo etc/fifo
printf x > etc/tool; chmod 6755 etc/tool; touch -d 2001-02-03T04:05:06Z etc/tool
printf secret > etc/unreadable; chmod 0 etc/unreadable
yes | head -c 3000000 > tmp/large
printf x > "$(printf 'tmp/\\377')"
"""


def overlaid(here: Path) -> Path:
    """The image, with a disk laid over it, in a mount namespace of our own; its upper directory."""
    private_mounts()
    kernel.mount("disk", str(here), "tmpfs", 0, "size=32m,mode=755")
    for name in ("lower", "upper", "work", "root"):
        (here / name).mkdir()
        os.chown(here / name, NOBODY, NOBODY)
    subprocess.run(["sh", "-e", "-c", IMAGE], cwd=here / "lower", check=True, timeout=30)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(here / "lower")], check=True, timeout=30)
    options = f"lowerdir={here}/lower,upperdir={here}/upper,workdir={here}/work,userxattr,xino=off"
    kernel.mount("root", str(here / "root"), "overlay", 0, options)
    return here / "upper"


def change(here: Path, script: str) -> int:
    upper = overlaid(here)
    subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=here / "root",
        check=True,
        timeout=30,
        user=NOBODY,
        group=NOBODY,
        extra_groups=(),
    )
    return os.open(upper, os.O_RDONLY | os.O_DIRECTORY)


def looked_at(here: Path, layer: int | None, script: str = "") -> list[str]:
    """What the whole tree looks like with *layer* put over the image by the tenant, or after *script*."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            overlaid(here)
            os.chdir(here / "root")
            as_tenant()
            if layer is None:
                subprocess.run(["sh", "-e", "-c", script], check=True, timeout=30)
            else:
                layers.unpack(layer, str(here / "root"))
            # Directories' own times are those of the deed.
            look = (
                r"find . -type d -printf '%P %y %#m %U\n' -o -type l -printf '%P %l\n' -o -type f "
                r"-name tool -printf '%P %y %#m %U %l %T@\n' -o -type f -printf '%P %#m\n'; "
                "chmod u+rwX etc/read-only; chmod u+r etc/unreadable; find . -type f -exec sha256sum {} +"
            )
            env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
            found = subprocess.run(["sh", "-c", look], stdout=write, check=True, timeout=30, env=env)
            os._exit(found.returncode)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(9)
    os.close(write)
    with open(read, "rb") as output:
        text = output.read()
    assert os.waitpid(pid, 0)[1] == 0
    return sorted(text.decode("utf-8", "surrogateescape").splitlines())


@pytest.fixture
async def layer(here: Path) -> AsyncIterator[int]:
    """What CHANGES makes of the image."""
    target = memory_file()
    with agent_process(lambda: change(here, CHANGES)) as (connection, _):
        files = NativeFiles(connection)
        assert await files.save_layer(target, most_bytes=1 << 30) == os.fstat(target).st_size
        files.close()
    yield target
    os.close(target)


async def test_a_layer_makes_the_same_of_the_image_again(here: Path, layer: int) -> None:
    """Files, links, modes, times; what is gone; directories that hide what the image has there."""
    again = looked_at(here, layer)
    expected = looked_at(here, None, CHANGES.replace("6755", "755").replace("mkfifo etc/fifo", "true"))
    assert again == expected
    assert any(line.startswith("etc/tool f 0755") and "981173106" in line for line in again)
    assert not any(name in line for line in again for name in ("usr/gone", "usr/emptied/old", "deleted", "fifo"))


async def test_a_layer_holds_only_what_was_changed(here: Path, layer: int) -> None:
    content = read_file(layer)
    assert content.startswith(layers.MARK)
    assert content.endswith(END)
    assert b"kept" not in content.replace(b"../usr/lib/kept", b"")


async def test_a_layer_that_is_too_large_is_refused(here: Path) -> None:
    target = memory_file()
    with agent_process(lambda: change(here, CHANGES)) as (connection, _):
        files = NativeFiles(connection)
        with pytest.raises(LimitExceeded, match="more than 1000000 bytes"):
            await files.save_layer(target, most_bytes=1_000_000)
    assert os.fstat(target).st_size <= 1_000_000
    os.close(target)


async def test_what_cannot_be_read_is_not_left_out_in_silence(here: Path) -> None:
    def change_as_another() -> int:
        upper = change(here, "true")
        (here / "root/etc/secret").write_bytes(b"x")
        (here / "root/etc/secret").chmod(0o600)
        return upper

    target = memory_file()
    with agent_process(change_as_another) as (connection, _):
        files = NativeFiles(connection)
        with pytest.raises(Denied, match="etc/secret"):
            await files.save_layer(target, most_bytes=1 << 30)
        files.close()
    os.close(target)


def unpack(content: bytes, directory: Path) -> None:
    fd = memory_file(content)
    try:
        layers.unpack(fd, str(directory))
    finally:
        os.close(fd)


GOOD = layers.MARK + record(b"f", b"name", b"content") + END
DAMAGED = {
    "empty": b"",
    "no mark": GOOD[1:],
    "no end": GOOD[: -len(END)],
    "half an end": GOOD[:-1],
    "content cut off": GOOD[: -len(END) - 3],
    "unknown kind": layers.MARK + record(b"?", b"name") + END,
    "leads out": layers.MARK + record(b"f", b"../name", b"x") + END,
    "deletes outside": layers.MARK + record(b"w", b"../victim") + END,
    "absolute": layers.MARK + record(b"d", b"/tmp/stockade-test-layer") + END,
    "too long": layers.MARK + record(b"f", b"name", length=(1 << 64) - 1) + END,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_layers_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").touch()
    with pytest.raises(BundleError):
        unpack(content, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "victim"]


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_noise_is_no_layer(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    base = tmp_path_factory.mktemp("noise")
    (base / "out").mkdir()
    try:
        unpack(layers.MARK + noise, base / "out")
    except (BundleError, OSError):
        pass
    assert [path.name for path in base.iterdir()] == ["out"]


def test_a_file_does_not_follow_a_link_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").write_bytes(b"unharmed")
    link = record(b"l", b"a", str(tmp_path / "victim").encode())
    unpack(layers.MARK + link + record(b"f", b"a", b"mine") + END, tmp_path / "out")
    assert (tmp_path / "victim").read_bytes() == b"unharmed"
    assert (tmp_path / "out/a").read_bytes() == b"mine"
    assert stat.S_IMODE((tmp_path / "out/a").stat().st_mode) == 0o644
