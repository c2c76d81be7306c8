"""A box's files as tars, over a real sandbox: cases 43 to 50 of the protocol's list."""

import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dialects.boxlite.executing import Client, backend, client

__all__ = ["backend", "client"]

pytestmark = pytest.mark.anyio
MB = 1 << 20


def tar_of(*members: tuple[str, bytes | None], mode: int = 0o644) -> bytes:
    """A tar as clients send it; without content, a member is a directory."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = mode if content is not None else 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return packed.getvalue()


async def put(client: Client, path: str, content: Any, **query: str) -> httpx.Response:
    return await client.http.put(
        f"{client.path}/files",
        params={"path": path, **query},
        content=content,
        headers={"Content-Type": "application/x-tar"},
    )


async def get(client: Client, path: str) -> httpx.Response:
    return await client.http.get(f"{client.path}/files", params={"path": path}, headers={"Accept": "application/x-tar"})


async def shown(client: Client, script: str) -> str:
    return (await client.told(await client.sh(script))).stdout


async def test_a_file_is_written_at_a_path_that_is_not_there(client: Client) -> None:
    """Case 43; its mode is kept, and it belongs to the box's user."""
    assert (await put(client, "/tmp/f43/new.txt", tar_of(("f.txt", b"content"), mode=0o640))).status_code == 204
    assert await shown(client, "cat /tmp/f43/new.txt; stat -c ' %a %U' /tmp/f43/new.txt") == "content 640 user\n"


async def test_a_file_goes_below_a_directory(client: Client) -> None:
    """Case 44."""
    await shown(client, "mkdir -p /tmp/f44/there")
    assert (await put(client, "/tmp/f44/there", tar_of(("f.txt", b"a")))).status_code == 204
    assert (await put(client, "/tmp/f44/x/", tar_of(("f.txt", b"b")), source_is_dir="false")).status_code == 204
    assert await shown(client, "cat /tmp/f44/there/f.txt /tmp/f44/x/f.txt") == "ab"


async def test_a_directory_of_older_clients_goes_to_the_path(client: Client) -> None:
    """Case 45."""
    packed = tar_of(("./", None), ("./a", b"1"), ("./s/", None), ("./s/b", b"2"), mode=0o750)
    for _ in range(2):  # what is there is written over
        assert (await put(client, "/tmp/f45", packed)).status_code == 204
    assert await shown(client, "cd /tmp/f45 && cat a s/b && stat -c ' %a' s/b") == "12 750\n"


async def test_a_directory_of_newer_clients_is_copied_as_cp_does(client: Client) -> None:
    """Case 46."""
    packed = tar_of(("d/", None), ("d/a", b"1"))
    for _ in range(2):
        assert (await put(client, "/tmp/f46", packed, source_is_dir="true")).status_code == 204
    assert await shown(client, "cd /tmp/f46 && find . -type f | sort") == "./a\n./d/a\n"


async def test_a_relative_path_is_one_from_the_boxs_directory_on(client: Client) -> None:
    assert (await put(client, "f-relative", tar_of(("f.txt", b"content")))).status_code == 204
    assert await shown(client, "cat /tmp/f-relative") == "content"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
async def test_what_would_lie_outside_is_refused(client: Client, name: str) -> None:
    """Case 47."""
    response = await put(client, "/tmp/f47/in", tar_of((name, b"evil")), source_is_dir="true")
    assert response.status_code == 400, response.text
    assert response.json()["code"] == "invalid_argument"
    assert await shown(client, "find /tmp/f47 /evil -type f 2>/dev/null") == ""


@pytest.mark.parametrize("content", [b"no tar at all" * 100, tar_of(("f", b"x" * 5000))[:2000]])
async def test_what_is_no_tar_is_refused(client: Client, content: bytes) -> None:
    assert (await put(client, "/tmp/f-damaged", content)).status_code == 400


async def test_a_large_upload_passes_through_without_being_kept(client: Client) -> None:
    """Case 48; in chunks, and back. With STOCKADE_LONG_TESTS=1, all 200 MB."""
    size = (200 if os.environ.get("STOCKADE_LONG_TESTS") else 48) * MB
    piece, most = bytes(range(256)) * (MB // 256), 0
    info = tarfile.TarInfo("large")
    info.size = size

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal most
        yield info.tobuf(tarfile.PAX_FORMAT)
        for _ in range(size // MB):
            yield piece
            most = max(most, resident_bytes())
        yield b"\0" * 1024

    before = resident_bytes()
    response = await put(client, "/tmp/large", chunks())
    assert response.status_code == 204, response.text
    assert most - before < 24 * MB, "it is passed on as it comes"
    received = 0
    async with client.http.stream("GET", f"{client.path}/files", params={"path": "/tmp/large"}) as download:
        async for part in download.aiter_bytes():
            received += len(part)
            most = max(most, resident_bytes())
    assert received > size
    assert most - before < 24 * MB
    told = await shown(client, "sha256sum < /tmp/large; rm /tmp/large")
    assert told.split()[0] == hashlib.sha256(piece * (size // MB)).hexdigest()


def resident_bytes() -> int:
    """Memory of this process, which is the server's, too."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_a_file_comes_as_one_entry(client: Client) -> None:
    """Case 49."""
    await shown(client, "mkdir -p /tmp/f49/d/s && printf one > /tmp/f49/d/f.txt && printf two > /tmp/f49/d/s/g")
    response = await get(client, "/tmp/f49/d/f.txt")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-tar"
    assert response.headers["x-boxlite-source-is-dir"] == "false"
    assert contents(response.content) == {"f.txt": b"one"}


async def test_a_directory_comes_with_what_is_below_it(client: Client) -> None:
    """Case 49."""
    await shown(client, "mkdir -p /tmp/f49/d/s && printf one > /tmp/f49/d/f.txt && printf two > /tmp/f49/d/s/g")
    response = await get(client, "/tmp/f49/d/")
    assert response.headers["x-boxlite-source-is-dir"] == "true"
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        names = archive.getnames()
    assert names[0] in (".", "./")
    assert all(name == "." or name.startswith("./") for name in names)
    assert contents(response.content) == {"./f.txt": b"one", "./s/g": b"two"}


async def test_what_is_not_there_is_not_found(client: Client) -> None:
    """Case 50."""
    response = await get(client, "/tmp/f50/none")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "NotFoundError"
    elsewhere = await client.http.get("/v1/boxes/none/files", params={"path": "/tmp"})
    assert elsewhere.status_code == 404
    assert (await client.http.get(f"{client.path}/files")).status_code == 400
    assert (await put(client, "", tar_of(("f", b"")))).status_code == 400
    assert (await put(client, "/root/f", tar_of(("f", b"")))).status_code == 403


async def test_what_goes_in_comes_out(client: Client) -> None:
    packed = tar_of(("tree/", None), ("tree/" + "n" * 120, b"long"), ("tree/ü", b"text"))
    assert (await put(client, "/tmp/f-round", packed, source_is_dir="true")).status_code == 204
    assert contents((await get(client, "/tmp/f-round")).content) == {"./" + "n" * 120: b"long", "./ü": b"text"}


def contents(packed: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            if member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                found[member.name] = file.read()
    return found
