"""Image builds, over a backend in memory: one build for all who ask, whole layers or none, and what is cleared away."""

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.engine import builds as builds_module
from stockade.engine.build_steps import LOG_BYTES, TAIL_BYTES, BuildLog, checked_build, layer_digest
from stockade.engine.builds import BuildFailed, BuildOptions
from stockade.engine.images import Image, Images
from stockade.engine.sandboxes import Sandboxes
from stockade.errors import BackendLost, Conflict, Invalid, LimitExceeded, Unavailable, UnknownImage
from stockade.model import BuildFile, BuildSpec, EndedBy, NetworkMode, SandboxState
from tests.engine.live_fakes import ONE, OTHER, Box, Server, limits, request, until

pytestmark = pytest.mark.anyio
BUILD = BuildSpec(setup=("echo built > /opt/mark",), files=(BuildFile(path="/opt/a", content=b"text"),))


def carry_out(box: Box, command: str) -> tuple[int, bytes]:
    """`echo TEXT > PATH` writes; `exit CODE` fails."""
    words = command.split()
    if words[0] == "echo" and ">" in words:
        box.files[words[-1]] = words[1].encode()
        return 0, b""
    if words[0] == "exit":
        return int(words[1]), b"it went wrong\n"
    return 0, b""


@pytest.fixture
def server(tmp_path: Path) -> Server:
    server = Server(tmp_path / "images")
    server.backend.commands = carry_out
    return server


@pytest.fixture
async def sandboxes(server: Server) -> AsyncIterator[Sandboxes]:
    async with server.running() as sandboxes:
        yield sandboxes


def layers(server: Server) -> list[str]:
    return sorted(path.name for path in server.directory.iterdir() if not path.name.endswith(".log"))


async def test_a_build_is_a_layer_of_the_sandbox(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request(build=BUILD))
    assert server.backend.boxes["box-1"].files == {"/opt/mark": b"built", "/opt/a": b"text"}
    assert list(server.backend.boxes) == ["box-1"]
    (name,) = layers(server)
    digest = name.removesuffix(".layer")
    await until(lambda: digest in server.build_records.builds)
    build = server.build_records.builds[digest]
    assert (build.base_image, build.size_bytes) == ("host", (server.directory / name).stat().st_size)
    assert b"setup 1 of 1: echo built" in (server.directory / f"{digest}.log").read_bytes()


async def test_the_same_is_not_built_again(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request("box-1", build=BUILD))
    await sandboxes.create(ONE, request("box-2", build=BUILD))
    assert (server.builds.made, server.builds.hits) == (1, 1)
    await sandboxes.create(ONE, request("box-3", build=replace(BUILD, setup=("echo other > /opt/mark",))))
    assert server.builds.made == 2
    await sandboxes.create(OTHER, request("box-4", build=BUILD))
    assert server.builds.made == 3  # accounts do not share


async def test_accounts_share_layers_where_the_operator_says_so(server: Server) -> None:
    server.build_options = BuildOptions(limits=limits(), is_shared=True)
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, request("box-1", build=BUILD))
        await sandboxes.create(OTHER, request("box-2", build=BUILD))
    assert (server.builds.made, server.builds.hits) == (1, 1)


async def test_a_build_outlives_the_server(server: Server) -> None:
    for number in range(2):
        async with server.running() as sandboxes:
            await sandboxes.create(ONE, request(f"box-{number}", build=BUILD))
    assert (server.builds.made, server.builds.hits) == (0, 1)


async def test_a_hundred_who_ask_together_share_one_build(server: Server, sandboxes: Sandboxes) -> None:
    asked = [sandboxes.create(ONE, request(f"box-{number}", build=BUILD)) for number in range(100)]
    made = await asyncio.gather(*asked)
    assert all(one.state is SandboxState.RUNNING for one in made)
    assert server.builds.made == 1
    assert all(box.files["/opt/mark"] == b"built" for box in server.backend.boxes.values())


async def test_a_build_that_fails_fails_for_all_who_wait_and_is_tried_again(
    server: Server, sandboxes: Sandboxes
) -> None:
    spec = BuildSpec(setup=("echo fine > /a", "exit 3", "echo never > /b"))
    asked = [sandboxes.create(ONE, request(f"box-{number}", build=spec)) for number in range(20)]
    failed = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, BuildFailed) for one in failed)
    assert all("setup[1] of the build failed: it ended with 3" in str(one) for one in failed)
    assert all("it went wrong" in one.log for one in failed if isinstance(one, BuildFailed))
    assert server.builds.failed == 1
    assert not server.backend.boxes
    assert layers(server) == []
    assert [path.suffix for path in server.directory.iterdir()] == [".log"]
    assert {row.ended_by for row in server.table.rows.values()} == {EndedBy.FAILURE}
    server.backend.commands = lambda box, command: (0, b"")
    await sandboxes.create(ONE, request("box-99", build=spec))


async def test_a_build_goes_on_as_long_as_somebody_waits(server: Server, sandboxes: Sandboxes) -> None:
    server.backend.holds["files"] = asyncio.Event()
    first, second = (asyncio.create_task(sandboxes.create(ONE, request(f"box-{n}", build=BUILD))) for n in (1, 2))
    await until(lambda: any(method == "files" for method, _ in server.backend.calls))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await until(lambda: server.table.rows["box-1"].state is SandboxState.ENDED)
    server.backend.holds.pop("files").set()
    assert (await second).state is SandboxState.RUNNING
    assert server.builds.made == 1


async def test_a_build_that_nobody_waits_for_is_given_up(server: Server, sandboxes: Sandboxes) -> None:
    server.backend.holds["files"] = asyncio.Event()
    asking = asyncio.create_task(sandboxes.create(ONE, request(build=BUILD)))
    await until(lambda: any(method == "files" for method, _ in server.backend.calls))
    assert (await sandboxes.kill(ONE, "box-1")).ended_by is EndedBy.KILL
    with pytest.raises(Conflict):
        await asking
    await until(lambda: not server.backend.boxes and layers(server) == [])
    server.backend.holds.pop("files").set()
    await sandboxes.create(ONE, request("box-2", build=BUILD))


async def test_a_build_under_way_is_not_reaped(server: Server, sandboxes: Sandboxes) -> None:
    server.backend.holds["files"] = asyncio.Event()
    asking = asyncio.create_task(sandboxes.create(ONE, request(build=BUILD)))
    await until(lambda: any(method == "files" for method, _ in server.backend.calls))
    for _ in range(3):
        await sandboxes.reconciler.reconcile()
    server.backend.holds.pop("files").set()
    assert (await asking).state is SandboxState.RUNNING


async def test_a_warden_that_dies_is_no_fault_of_the_build(server: Server, sandboxes: Sandboxes) -> None:
    server.backend.failures["save_layer"] = BackendLost("the warden died")
    with pytest.raises(BackendLost):
        await sandboxes.create(ONE, request(build=BUILD))
    assert layers(server) == []


async def test_a_file_that_cannot_be_written_fails_the_build(server: Server, sandboxes: Sandboxes) -> None:
    server.backend.failures["write"] = LimitExceeded("no space left")
    with pytest.raises(BuildFailed, match="/opt/a cannot be written: no space left"):
        await sandboxes.create(ONE, request(build=BUILD))


async def test_a_full_disk_is_said_and_leaves_nothing_half_made(
    server: Server, sandboxes: Sandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(builds_module.os, "fsync", full)
    with pytest.raises(Unavailable, match="disk is too full"):
        await sandboxes.create(ONE, request(build=BUILD))
    assert layers(server) == []
    monkeypatch.undo()
    await sandboxes.create(ONE, request("box-2", build=BUILD))


async def test_a_layer_has_a_size_limit(server: Server) -> None:
    server.build_options = BuildOptions(limits=limits(), layer_bytes=10)
    async with server.running() as sandboxes:
        with pytest.raises(BuildFailed, match="more than 10 bytes"):
            await sandboxes.create(ONE, request(build=BUILD))
    assert layers(server) == []


async def test_what_a_dead_server_left_half_made_is_cleared_away(server: Server) -> None:
    server.directory.mkdir()
    (server.directory / ".0123.ff.draft").write_bytes(b"half")
    async with server.running():
        assert not list(server.directory.iterdir())


async def test_unused_layers_are_collected_but_none_in_use(server: Server, sandboxes: Sandboxes) -> None:
    await sandboxes.create(ONE, request("box-1", build=BUILD))
    await until(lambda: server.build_records.builds)
    (name,) = layers(server)
    assert await server.builds.collect() == 0
    old = server.builds.clock() - server.build_options.unused_s - 1
    image = Images(host_content=lambda: "content").find("host")
    async with server.builds.layer(image, BUILD, account_id=ONE.account_id, base="/") as path:
        assert path == server.directory / name
        os.utime(server.directory / name, (old, old))
        assert await server.builds.collect() == 0
        assert path.exists()
    assert await server.builds.collect() == 1
    assert not list(server.directory.iterdir())
    assert not server.build_records.builds


async def test_layers_used_least_recently_make_room(server: Server) -> None:
    server.build_options = BuildOptions(limits=limits(), most_bytes=100)
    async with server.running() as sandboxes:
        for number in range(5):
            spec = BuildSpec(files=(BuildFile(path="/a", content=b"%d" % number * 30),))
            await sandboxes.create(ONE, request(f"box-{number}", build=spec))
        await server.builds.collect()
        left = [json.loads((server.directory / name).read_text())["/a"][0] for name in layers(server)]
        assert sorted(left) == ["3", "4"]


async def test_build_sandboxes_have_their_own_limits_and_network(server: Server) -> None:
    seen = []
    create = server.backend.create

    async def note(name: str, spec: object) -> object:
        seen.append((name, spec))
        return await create(name, spec)  # type: ignore[arg-type]

    server.backend.create = note  # type: ignore[method-assign, assignment]
    server.build_options = BuildOptions(limits=limits(wall_s=600.0), network=NetworkMode.OUTGOING)
    async with server.running() as sandboxes:
        await sandboxes.create(ONE, request(build=BUILD))
    name, spec = seen[0]
    assert name.startswith("build-")
    assert (spec.lifetime_s, spec.network.mode) == (600.0, NetworkMode.OUTGOING)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "spec",
    [
        BuildSpec(setup=("",)),
        BuildSpec(setup=("a\0",)),
        BuildSpec(setup=("true",) * 101),
        BuildSpec(files=(BuildFile(path="", content=b""),)),
        BuildSpec(files=(BuildFile(path="/", content=b""),)),
        BuildSpec(files=(BuildFile(path="a\0", content=b""),)),
        BuildSpec(files=(BuildFile(path="/a", content=b""), BuildFile(path="/b/../a", content=b""))),
    ],
)
def test_what_cannot_be_built_is_refused(spec: BuildSpec) -> None:
    with pytest.raises(Invalid):
        checked_build(spec, base="/home/user")


def test_paths_are_made_absolute_and_modes_lose_set_id_bits() -> None:
    spec = BuildSpec(files=(BuildFile(path="b", content=b"", mode=0o6755), BuildFile(path="../a", content=b"")))
    files = checked_build(spec, base="/home/user").files
    assert [(file.path, file.mode) for file in files] == [("/home/a", 0o644), ("/home/user/b", 0o755)]


TEXTS = st.lists(st.text(min_size=1).filter(lambda text: "\0" not in text and text.strip()), max_size=3)


@given(one=st.tuples(TEXTS, TEXTS), other=st.tuples(TEXTS, TEXTS))
def test_different_builds_have_different_names(
    one: tuple[list[str], list[str]], other: tuple[list[str], list[str]]
) -> None:
    def name(parts: tuple[list[str], list[str]]) -> str:
        files = tuple(BuildFile(path=f"/{n}", content=text.encode()) for n, text in enumerate(parts[1]))
        return layer_digest("base", BuildSpec(setup=tuple(parts[0]), files=files), scope="")

    assert (name(one) == name(other)) == (one == other)


def test_a_command_never_passes_for_a_file_nor_one_account_for_another() -> None:
    names = {
        layer_digest("base", BuildSpec(setup=("a", "b")), scope=""),
        layer_digest("base", BuildSpec(setup=("ab",)), scope=""),
        layer_digest("base", BuildSpec(setup=("b", "a")), scope=""),
        layer_digest("base", BuildSpec(files=(BuildFile(path="a", content=b"b"),)), scope=""),
        layer_digest("base", BuildSpec(files=(BuildFile(path="a", content=b"b", mode=0o755),)), scope=""),
        layer_digest("other", BuildSpec(setup=("a", "b")), scope=""),
        layer_digest("base", BuildSpec(setup=("a", "b")), scope="account one"),
    }
    assert len(names) == 7


@given(st.lists(st.binary(max_size=5000), max_size=20))
def test_the_end_of_a_log_is_short_and_whole_text(parts: list[bytes]) -> None:
    log = BuildLog()
    for part in parts:
        log.add(part)
    assert len(log.tail.encode()) <= TAIL_BYTES
    assert b"".join(parts).decode(errors="replace").endswith(log.tail[-10:]) or len(b"".join(parts)) > TAIL_BYTES


def test_a_log_is_bounded() -> None:
    log = BuildLog()
    for number in range(40):
        log.add(b"%d" % (number % 10) * (LOG_BYTES // 16))
    assert len(log.content) < LOG_BYTES + 100
    assert log.content.startswith(b"[")
    assert log.tail.endswith("9" * 100)


def test_an_unknown_image_is_refused_with_all_that_exist() -> None:
    images = Images(images=(Image(name="host", command=(), cwd="/"),), aliases={"python:3.12": "host"})
    assert images.find("python:3.12") is images.find("host")
    with pytest.raises(UnknownImage, match=r"host, python:3\.12"):
        images.find("alpine:3.20")


@pytest.mark.parametrize("aliases", [{"a": "b"}, {"host": "host"}])
def test_an_alias_leads_to_an_image(aliases: dict[str, str]) -> None:
    with pytest.raises(Invalid, match=r"images\.aliases"):
        Images(aliases=aliases)


def test_the_host_image_is_another_after_a_change_of_the_host() -> None:
    content, now = ["one"], [0.0]
    images = Images(host_content=lambda: content[0], clock=lambda: now[0])
    host = images.find("host")
    assert images.digest(host) == "one"
    content[0] = "two"
    now[0] += 60.0
    assert images.digest(host) == "two"
    assert Images().digest(host) == Images().digest(host)
