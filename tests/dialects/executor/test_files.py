"""The protocol's file operations over a real file agent, without a server and without a sandbox."""

import asyncio
import base64
import contextlib
import json
import os
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from stockade.backends.native.files import NativeFiles
from stockade.backends.sandboxing import FileAccess
from stockade.dialects.executor import files as executor_files
from stockade.dialects.executor.encoding import decode
from stockade.dialects.executor.files import file_operations
from stockade.dialects.executor.operation import Caller, Fields
from stockade.errors import Conflict, Unavailable
from stockade.model import Actor, FileInfo, FileKind
from tests.warden.agents import NOBODY, agent_process, tenants_directory

pytestmark = pytest.mark.anyio

DONE = {"success": True}
MIB = 1 << 20


class Row:
    def __init__(self, cwd: str) -> None:
        self.cwd = cwd


class OneSandbox:
    """Satisfies `FileSandboxes`: a sandbox whose files are the test's own, by way of an agent for each request."""

    def __init__(self, cwd: Path, files: FileAccess | Exception | None = None) -> None:
        """*files*: what there is instead of an agent."""
        self.cwd = cwd
        self.access = files

    async def require_running(self, actor: Actor, sandbox_id: str, /) -> Any:
        return Row(str(self.cwd))

    @contextlib.asynccontextmanager
    async def files(self, actor: Actor, sandbox_id: str, /, *, user: str | None = None) -> AsyncIterator[FileAccess]:
        if isinstance(self.access, Exception):
            raise self.access
        if self.access is not None:
            yield self.access
            return
        with agent_process() as (connection, _):
            access = NativeFiles(connection)
            try:
                yield access
            finally:
                access.close()


class Client:
    """Asks for operations as the dialect's edge does."""

    def __init__(self, sandboxes: OneSandbox, max_read_bytes: int = 64 * MIB) -> None:
        self.operations = file_operations(sandboxes, max_read_bytes=max_read_bytes)
        self.sizes: list[int] = []
        """Of the pieces in which the last answer came."""

    async def raw(self, operation: str, body: dict[str, Any]) -> bytes:
        caller = Caller(actor=Actor(id="key"), sandbox_id="sb")
        scope = {"type": "http", "method": "POST", "path": operation, "headers": [], "query_string": b"", "asgi": {"spec_version": "2.4"}}  # fmt: skip # noqa: E501
        response = await self.operations[operation].work(caller, Fields(body), Request(scope, _stays))
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        parts: list[bytes] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                parts.append(message.get("body", b""))

        await response(scope, _stays, send)
        self.sizes = [len(part) for part in parts if part]
        return b"".join(parts)

    async def __call__(self, operation: str, /, **body: Any) -> Any:
        raw = await self.raw(operation, body)
        assert raw.endswith(b"\n")
        assert raw.isascii()
        return json.loads(raw)


async def _stays() -> Any:
    """A client that waits for its answer."""
    await asyncio.Event().wait()


@pytest.fixture(scope="module")
def here() -> Iterator[Path]:
    with tenants_directory() as directory:
        yield directory


@pytest.fixture
def client(here: Path) -> Client:
    return Client(OneSandbox(here))


@pytest.fixture
def folder(here: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of the agent's user."""
    found = here / str(abs(hash(request.node.nodeid)))
    found.mkdir()
    if os.geteuid() == 0:
        os.chown(found, NOBODY, NOBODY)
    return found


# ── writing and reading ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("text", ["", "plain\n", "\0\x85\u2028ä中😀", "é" * (3 * MIB)])
async def test_what_is_written_is_read(client: Client, folder: Path, text: str) -> None:
    path = str(folder / "file")
    assert await client("/write_file", path=path, content=text) == DONE
    assert (folder / "file").read_bytes() == text.encode()
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o644
    assert await client("/read_file", path=path) == {"content": text}


async def test_half_a_character_is_replaced(client: Client, folder: Path) -> None:
    assert await client("/write_file", path=f"{folder}/x\ud800", content="a\udfffb") == DONE
    assert await client("/read_file", path=f"{folder}/x\ufffd") == {"content": "a\ufffdb"}


async def test_a_missing_content_is_an_empty_one(client: Client, folder: Path) -> None:
    (folder / "file").write_bytes(b"long")
    (folder / "file").chmod(0o666)
    assert await client("/write_file", path=f"{folder}/file") == DONE
    assert await client("/read_file", path=f"{folder}/file") == {"content": ""}


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, MIB + 1])
async def test_bytes_go_both_ways_as_base64(client: Client, folder: Path, size: int) -> None:
    data = os.urandom(size)
    text = base64.b64encode(data).decode()
    assert await client("/write_file", path=f"{folder}/file", content=text, is_base64=True) == DONE
    assert (folder / "file").read_bytes() == data
    answer = await client("/read_file", path=f"{folder}/file", is_base64=True)
    assert answer == {"content": text, "is_base64": True}


@pytest.mark.parametrize(
    "content", ["A", "AAE", "=AAE", "A A=", "AA==AAEC", "ä" * 4, "AAEC" * 49152 + "A", "AA==" * 49153]
)
async def test_what_is_no_base64_leaves_the_file_as_it_was(client: Client, folder: Path, content: str) -> None:
    (folder / "file").write_bytes(b"old")
    answer = await client("/write_file", path=f"{folder}/file", content=content, is_base64=True)
    assert answer["success"] is False
    assert answer["error"].startswith(f"open {folder}/file: content is not base64")
    assert (folder / "file").read_bytes() == b"old"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b"\xc3", b"\xa4", b"\xe2", b"\x82", b"\xf0\x9f\x98\x80", b"\xf0\x9f", b"\xff"])),
    st.integers(1, 5),
)
async def test_how_a_file_is_cut_changes_nothing_in_its_text(parts: list[bytes], size: int) -> None:
    data = b"".join(parts)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), size):
            yield data[start : start + size]

    for is_base64, expected in ((False, decode(data)), (True, base64.b64encode(data).decode())):
        sent = [part async for part in executor_files._Content(pieces(), str, is_base64=is_base64).parts()]
        assert json.loads(b"".join(sent))["content"] == expected


async def test_a_large_file_is_sent_as_it_comes(client: Client, folder: Path) -> None:
    data = os.urandom(8 * MIB)
    (folder / "large").write_bytes(data)
    assert (await client("/read_file", path=f"{folder}/large"))["content"] == decode(data)
    assert len(client.sizes) > 8
    assert max(client.sizes) < 2 * MIB


async def test_a_file_that_is_too_large_is_not_read(here: Path, folder: Path) -> None:
    (folder / "large").write_bytes(bytes(1001))
    answer = await Client(OneSandbox(here), max_read_bytes=1000)("/read_file", path=f"{folder}/large")
    assert answer == {"error": f"read {folder}/large: file too large: it has 1001 bytes of 1000"}


async def test_a_server_that_stops_ends_an_answer_as_json() -> None:
    """At whichever piece that happens; and it adds nothing to what is complete."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"c"

    for count in range(5):
        answer = executor_files._Content(pieces(), str)
        parts = answer.parts()
        sent = [await anext(parts) for _ in range(count)]
        whole = json.loads(b"".join(sent) + answer.cut_off("stopping"))
        assert whole == (
            {"content": "abc"}
            if count == 4
            else {**({"content": "abc"[: (count - 1) * 2]} if count else {}), "error": "stopping"}
        )
        await parts.aclose()


async def test_a_file_that_shrinks_while_it_is_sent_ends_with_the_error(folder: Path) -> None:
    """What was sent is sent: clients look for `error` before `content`."""

    class Shrinks:
        async def read(self, path: str) -> tuple[FileInfo, AsyncIterator[bytes]]:
            async def content() -> AsyncIterator[bytes]:
                yield bytes(MIB)
                raise Conflict(f"{path}: it became shorter while it was read")

            info = FileInfo(
                name="x", path=path, kind=FileKind.FILE, size=2 * MIB, mode=0o644, modified_at=0.0, uid=0, gid=0
            )
            return info, content()

        def close(self) -> None:
            pass

    client = Client(OneSandbox(folder, Shrinks()))  # type: ignore[arg-type]
    answer = await client("/read_file", path="/x")
    assert answer["error"] == "read /x: it became shorter while it was read"
    assert len(answer["content"]) == MIB


# ── paths ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_relative_paths_start_at_the_working_directory(client: Client, here: Path, folder: Path) -> None:
    name = folder.name
    assert await client("/make_dir", path=f"{name}/a") == DONE
    assert await client("/write_file", path=f"./{name}//a/../file", content="x") == DONE
    assert (folder / "file").read_text() == "x"
    assert name in (await client("/list_dir", path="."))["entries"]
    assert (await client("/stat_file", path=f"{name}/file"))["name"] == "file"
    assert await client("/delete_dir", path=name) == DONE
    assert not folder.exists()


NOTHING = [
    ("/write_file", "open : no such file or directory"),
    ("/read_file", "open : no such file or directory"),
    ("/delete_file", "remove : no such file or directory"),
    ("/make_dir", "mkdir : no such file or directory"),
    ("/list_dir", "open : no such file or directory"),
    ("/stat_file", "stat : no such file or directory"),
]


@pytest.mark.parametrize(("operation", "error"), NOTHING)
async def test_no_path_is_no_file(client: Client, operation: str, error: str) -> None:
    for body in ({}, {"path": ""}, {"path": None}):
        answer = await client(operation, **body)
        assert answer["error"] == error
    assert (await client(operation, path="a\0b"))["error"] == error.replace(" :", " a\0b:").replace(
        "no such file or directory", "invalid argument"
    )


async def test_what_a_path_leads_to_is_told_in_the_systems_words(client: Client, folder: Path) -> None:
    (folder / "file").write_bytes(b"x")
    (folder / "full").mkdir()
    (folder / "full/x").touch()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nothing")
    (folder / "link").symlink_to("full")
    os.mkfifo(folder / "fifo")
    (folder / "shut").mkdir()
    (folder / "shut").chmod(0o000)
    long = "x" * 300
    expected = [
        ("/write_file", "missing/x", "open {}: no such file or directory"),
        ("/write_file", "full", "open {}: is a directory"),
        ("/write_file", "new/", "open {}: is a directory"),
        ("/write_file", "file/x", "open {}: not a directory"),
        ("/write_file", "shut/x", "open {}: permission denied"),
        ("/write_file", "loop", "open {}: too many levels of symbolic links"),
        ("/write_file", long, "open {}: file name too long"),
        ("/write_file", "fifo", "open {}: it is no regular file"),
        ("/read_file", "missing", "open {}: no such file or directory"),
        ("/read_file", "dangling", "open {}: no such file or directory"),
        ("/read_file", "full", "read {}: is a directory"),
        ("/read_file", "file/", "open {}: not a directory"),
        ("/read_file", "file/x", "open {}: not a directory"),
        ("/read_file", "fifo", "open {}: it is no regular file"),
        ("/read_file", "shut/x", "open {}: permission denied"),
        ("/list_dir", "missing", "open {}: no such file or directory"),
        ("/list_dir", "file", "open {}: not a directory"),
        ("/list_dir", "shut", "open {}: permission denied"),
        ("/delete_file", "missing", "remove {}: no such file or directory"),
        ("/delete_file", "full", "remove {}: directory not empty"),
        ("/delete_file", "file/", "remove {}: not a directory"),
        ("/delete_file", "link/", "remove {}: not a directory"),
        ("/delete_file", "full/.", "remove {}: invalid argument"),
        ("/delete_file", "shut/x", "remove {}: permission denied"),
        ("/delete_dir", "full/.", "RemoveAll {}: invalid argument"),
        ("/delete_dir", "full/..", "RemoveAll {}: invalid argument"),
        ("/delete_dir", "file/x", "RemoveAll {}: not a directory"),
        ("/delete_dir", "shut/x", "RemoveAll {}: permission denied"),
        ("/make_dir", "file", "mkdir {}: file exists, and is not a directory"),
        ("/make_dir", "dangling", "mkdir {}: file exists, and is not a directory"),
        ("/make_dir", "file/x", "mkdir {}: not a directory"),
        ("/make_dir", "shut/x", "mkdir {}: permission denied"),
        ("/make_dir", long, "mkdir {}: file name too long"),
        ("/stat_file", "missing", "stat {}: no such file or directory"),
        ("/stat_file", "loop", "stat {}: too many levels of symbolic links"),
        ("/stat_file", "file/", "stat {}: not a directory"),
    ]
    for operation, name, error in expected:
        path = f"{folder}/{name}"
        answer = await client(operation, path=path, content="x")
        assert answer["error"] == error.format(path), (operation, name)
    assert sorted(os.listdir(folder)) == ["dangling", "fifo", "file", "full", "link", "loop", "shut"]
    assert (folder / "file").read_bytes() == b"x"
    (folder / "shut").chmod(0o700)


@pytest.mark.parametrize("path", ["/", "//", "/./", "."])
async def test_the_root_and_the_working_directory_are_not_deleted(client: Client, here: Path, path: str) -> None:
    for operation in ("/delete_file", "/delete_dir"):
        answer = await client(operation, path=path)
        assert answer["success"] is False
        assert any(words in answer["error"] for words in ("device or resource busy", "invalid argument"))
    assert here.exists()


async def test_deleting_a_tree_is_done_once_and_said_always(client: Client, folder: Path) -> None:
    (folder / "keep").mkdir()
    (folder / "link").symlink_to("keep")
    (folder / "file").touch()
    for name in ("link/", "file", "missing", "missing/deeper", ""):
        path = f"{folder}/{name}" if name else ""
        assert await client("/delete_dir", path=path) == DONE
    assert await client("/delete_dir", path=f"{folder}/keep/") == DONE
    assert os.listdir(folder) == []


# ── listing and describing ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_listing_is_sorted_by_bytes_and_never_breaks(client: Client, folder: Path) -> None:
    names = [b"z", b"a", b".h", b"\xff", b"\xed\xb3\xbf", "ä".encode(), "\ue000".encode(), "😀".encode(), b"\n"]
    for name in names:
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).touch()
    assert await client("/list_dir", path=str(folder)) == {"entries": [decode(name) for name in sorted(names)]}


async def test_a_file_is_described_as_what_its_links_lead_to(client: Client, folder: Path) -> None:
    (folder / "inner").mkdir(mode=0o751)
    (folder / "inner/file").write_bytes(b"12345")
    (folder / "inner/file").chmod(0o640)
    os.utime(folder / "inner/file", (1.5, 1.5))
    (folder / "link").symlink_to("inner/to-file")
    (folder / "inner/to-file").symlink_to("../to-inner/file")
    (folder / "to-inner").symlink_to(folder / "inner")
    assert await client("/stat_file", path=f"{folder}/link") == {
        "name": "link",
        "is_dir": False,
        "size": 5,
        "mod_time": "1970-01-01T00:00:01.500000Z",
        "mode": "0640",
    }
    found = await client("/stat_file", path=f"{folder}/to-inner/")
    assert (found["is_dir"], found["mode"], found["name"]) == (True, "0751", "to-inner")
    assert (await client("/stat_file", path="/"))["is_dir"] is True


@pytest.mark.parametrize("seconds", [-(10**15), -1, 10**15])
def test_no_time_is_too_far_to_be_written(seconds: int) -> None:
    assert executor_files._moment(float(seconds)).endswith("Z")


# ── a sandbox that cannot be reached ─────────────────────────────────────────────────────────────────────────────


OPERATIONS = ("/write_file", "/read_file", "/delete_file", "/make_dir", "/delete_dir", "/list_dir", "/stat_file")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("error", [Unavailable("no answer"), Conflict("it has ended")])
async def test_where_nothing_was_done_the_edge_is_told(operation: str, error: Exception) -> None:
    client = Client(OneSandbox(Path("/"), error))
    with pytest.raises(type(error)):
        await client(operation, path="/x", content="x")


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_agent_that_dies_is_an_answer_where_something_may_have_been_done(operation: str) -> None:
    """With any other status the client would do it again; whoever only looks may look again."""
    with agent_process() as (connection, _):
        files = NativeFiles(connection)
        files.close()
        client = Client(OneSandbox(Path("/"), files))
        if operation in ("/read_file", "/list_dir", "/stat_file"):
            with pytest.raises(Unavailable):
                await client(operation, path="/x")
        else:
            answer = await client(operation, path="/x", content="x")
            assert answer["success"] is False
            assert "closed" in answer["error"]
