"""Files of real sandboxes, by the agent inside: what reaches the tenant's files reaches nothing else."""

import asyncio
import contextlib
import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stockade.backends.base import Backend
from stockade.backends.sandboxing import FileAccess, Sandboxing
from stockade.errors import Conflict, Denied, Invalid, LimitExceeded, NotFound, StockadeError, Unavailable
from stockade.model import FileKind
from tests.backends.living import eventually, living, ran, start
from tests.backends.sandboxes import MB

pytestmark = pytest.mark.anyio


@pytest.fixture
def sandboxing(backend: Backend) -> Sandboxing:
    found: Sandboxing | None = getattr(backend, "sandboxing", None)
    if found is None:
        pytest.skip("this backend's sandboxes do not live")
    return found


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


async def whole(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


async def read(files: FileAccess, path: str) -> bytes:
    return await whole((await files.read(path))[1])


async def test_a_process_reads_what_was_written_and_the_reverse(sandboxing: Sandboxing) -> None:
    content = os.urandom(3 * MB)
    async with living(sandboxing) as name:
        files = await sandboxing.files(name)
        assert await files.write("/tmp/a/b.bin", pieces(content[:100], content[100:])) == len(content)
        assert (await ran(sandboxing, name, "cat", "/tmp/a/b.bin"))[0] == content
        out, _, _ = await ran(sandboxing, name, "sh", "-c", "stat -c '%a %U' /tmp/a /tmp/a/b.bin; echo back > /srv/x")
        assert out == b"755 user\n644 user\n"
        assert await read(files, "/srv/x") == b"back\n"
        assert {info.name for info in await files.list("/")} >= {"usr", "etc", "tmp", "proc", "home"}
        files.close()


async def test_the_hosts_files_are_out_of_reach(sandboxing: Sandboxing, tmp_path: Path) -> None:
    """By `..`, by links, by the kernel's own links, by a link that is swapped again and again."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"the host's")
    script = (
        f"ln -s {secret} /tmp/link; ln -s /../../.. /tmp/up; ln -s /proc/1/root /tmp/one; ln -s /proc/self/root /tmp/me"
    )
    async with living(sandboxing) as name:
        await ran(sandboxing, name, "sh", "-c", script)
        for user in ("user", "root"):
            files = await sandboxing.files(name, user=user)
            for path in (
                str(secret), f"/../../../..{secret}", "/tmp/link", f"/tmp/up{secret}", f"/tmp/one{secret}",
                f"/tmp/me{secret}", f"/proc/self/root{secret}", f"/proc/self/cwd{secret}", "/proc/self/fd/3/../work",
                "/proc/1/environ", "/proc/1/maps", "/proc/self/maps", "/etc/shadow",
            ):  # fmt: skip
                with pytest.raises((NotFound, Denied, Invalid)):
                    await files.read(path)
            with pytest.raises((NotFound, Denied, Invalid)):
                await files.list("/proc/self/fd")
            for path in ("/usr/bin/harm", "/proc/1/mem", "/proc/self/fd/1", "/proc/self/mem"):
                for in_place in (False, True):
                    with pytest.raises(StockadeError):
                        await files.write(path, pieces(b"x"), in_place=in_place)
            files.close()
        files = await sandboxing.files(name)
        for path in ("/tmp/link", f"/tmp/up{secret}", f"/tmp/one{secret}", f"/tmp/me{secret}"):
            for in_place in (False, True):
                with contextlib.suppress(StockadeError):  # where it leads to in here, that may be done
                    await files.write(path, pieces(b"x"), in_place=in_place)
        files.close()
    assert secret.read_bytes() == b"the host's"


async def test_a_race_with_links_writes_nothing_outside(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        swap = "mkdir -p /tmp/a; while :; do ln -sfn /usr /tmp/race; ln -sfn /tmp/a /tmp/race; done"
        racer = await start(sandboxing, name, "sh", "-c", swap)
        files = await sandboxing.files(name)
        results = set()
        for number in range(200):
            try:
                await files.write(f"/tmp/race/file{number}", pieces(b"x"), in_place=number % 2 == 0)
                results.add("written")
            except (Denied, NotFound, Conflict, Invalid):
                results.add("refused")
        assert "written" in results
        racer.close()
        found = {info.name for info in await files.list("/usr")}
        assert not any(name.startswith("file") for name in found)
        files.close()


async def test_fifos_devices_and_endless_files_hang_nobody(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        await ran(
            sandboxing, name, "sh", "-c", "mkfifo /tmp/fifo; ln -s /dev/zero /tmp/zero; ln -s /tmp/fifo /tmp/link"
        )
        files = await sandboxing.files(name)
        for path in ("/tmp/fifo", "/tmp/zero", "/tmp/link", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/stdin"):
            with pytest.raises((Invalid, Denied, NotFound)):
                await files.read(path)
            for in_place in (False, True):
                if in_place and path == "/tmp/zero":
                    continue  # it takes what it is given
                with pytest.raises((Invalid, Denied, NotFound)):
                    await files.write(path, pieces(b"x"), in_place=in_place)
        assert (await files.stat("/tmp/fifo")).kind is FileKind.OTHER
        assert b"processor" in await read(files, "/proc/cpuinfo")
        files.close()


async def test_a_full_disk_is_said_and_leaves_no_half_file(sandboxing: Sandboxing) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(MB)

    async with living(sandboxing, disk_bytes=16 * MB, memory_bytes=256 * MB) as name:
        files = await sandboxing.files(name)
        await files.write("/home/user/file", pieces(b"old"))
        with pytest.raises(LimitExceeded, match="no space left"):
            await files.write("/home/user/file", endless())
        assert (await ran(sandboxing, name, "sh", "-c", "cat file; ls -A /home/user"))[0] == b"oldfile\n"
        files.close()


async def test_a_write_in_place_is_that_of_a_shell(sandboxing: Sandboxing) -> None:
    """The same file afterwards, whoever has it open; no parents; of a full disk what fitted."""
    async with living(sandboxing, disk_bytes=16 * MB, memory_bytes=256 * MB) as name:
        await ran(
            sandboxing, name, "sh", "-c", "echo 'long text' > file; chmod 700 file; ln file twin; ln -s file link"
        )
        files = await sandboxing.files(name)
        assert await files.write("/home/user/link", pieces(b"new"), in_place=True) == 3
        out, _, _ = await ran(sandboxing, name, "sh", "-c", "cat file twin; stat -c ' %a %U' file; readlink link")
        assert out == b"newnew 700 user\nfile\n"
        with pytest.raises(NotFound):
            await files.write("/home/user/no/file", pieces(b"x"), in_place=True)
        assert await files.write("/dev/null", pieces(bytes(MB)), in_place=True) == MB
        with pytest.raises(LimitExceeded, match="no space left"):
            await files.write("/home/user/large", pieces(*[bytes(MB)] * 32), in_place=True)
        assert await files.write("/home/user/large", pieces(b"small"), in_place=True) == 5
        files.close()


async def test_a_tenant_that_stops_or_kills_the_agent_harms_only_itself(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        files = await sandboxing.files(name)
        await files.stat("/")
        await ran(sandboxing, name, "sh", "-c", "kill -9 -1")
        with pytest.raises(Unavailable):
            await files.stat("/")
        files.close()
        again = await sandboxing.files(name)
        assert (await again.stat("/")).kind is FileKind.DIRECTORY
        again.close()


async def test_the_agents_end_with_their_channels(sandboxing: Sandboxing) -> None:
    async with living(sandboxing, processes=16) as name:
        for _ in range(40):
            files = await sandboxing.files(name)
            await files.stat("/")
            files.close()
        script = "for one in /proc/[0-9]*; do echo; done | wc -l"

        async def are_gone() -> bool:
            return int((await ran(sandboxing, name, "sh", "-c", script))[0]) <= 3

        await eventually(are_gone)


async def test_what_happens_is_watched(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        files = await sandboxing.files(name)
        events = await files.watch("/srv")
        await ran(sandboxing, name, "sh", "-c", "mkdir /srv/new; sleep 0.1; echo x > /srv/new/file; rm /srv/new/file")
        found: set[tuple[str, str]] = set()
        async with asyncio.timeout(20):
            while ("deleted", "/srv/new/file") not in found:
                found.add(await anext(events))
        assert found >= {("created", "/srv/new"), ("created", "/srv/new/file")}
        files.close()


async def test_archives_travel(sandboxing: Sandboxing) -> None:
    async with living(sandboxing) as name:
        await ran(sandboxing, name, "sh", "-c", "mkdir -p in/a; echo x > in/a/file; ln -s a/file in/link")
        files = await sandboxing.files(name)
        data = await whole(await files.read_tar("/home/user/in"))
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert archive.getnames() == ["a", "link", "a/file"]
        assert await files.write_tar("/opt/out", pieces(data)) == 3
        assert (await ran(sandboxing, name, "sh", "-c", "diff -r in /opt/out && cat /opt/out/link"))[0] == b"x\n"
        files.close()


async def test_a_layer_is_the_next_sandboxs_image(sandboxing: Sandboxing, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    script = (
        "echo built > /opt/mark; mkdir -p /srv/app/lib; echo x > /srv/app/lib/x; rm /etc/passwd; "
        "chmod 700 /srv/app; ln -s /opt/mark /srv/link; touch -d 2001-02-03T04:05:06Z /opt/mark"
    )
    as_root = "echo x > /srv/made; chmod 600 /srv/made"
    maker = 0
    async with living(sandboxing) as name:
        await ran(sandboxing, name, "sh", "-c", script)
        if (await ran(sandboxing, name, "sh", "-c", as_root, user="root"))[2]:
            maker = 1000  # an ordinary user's warden has one id only
            await ran(sandboxing, name, "sh", "-c", as_root)
        files = await sandboxing.files(name, user="root")
        with open(layer, "wb") as target:  # noqa: ASYNC230 -- a file of the test
            size = await files.save_layer(target.fileno(), most_bytes=64 * MB)
        assert layer.stat().st_size == size
        files.close()
    for _ in range(2):
        async with living(sandboxing, layer=layer) as name:
            look = (
                "cat /opt/mark /srv/link; stat -c '%a %u' /srv/app /srv/made; stat -c %a /tmp; stat -c %Y /opt/mark; "
                "test -e /etc/passwd"
            )
            out, _, code = await ran(sandboxing, name, "sh", "-c", look)
            assert out.decode().split() == f"built built 700 1000 600 {maker} 1777 981173106".split()
            assert code == 1
