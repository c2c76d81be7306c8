"""File agents that are kept for the next request: whose they are, for how long, and what a tenant can do to them."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stockade.backends.base import Backend
from stockade.backends.native import agents as kept
from stockade.backends.native import files as native_files
from stockade.backends.native.agents import EACH, LEAST_MEMORY, LEAST_PROCESSES, IdleAgents
from stockade.backends.native.sandboxes import NativeSandboxes
from stockade.backends.sandboxing import FileAccess
from stockade.errors import Conflict, NotFound, Unavailable
from stockade.model import FileKind
from tests.backends.living import eventually, live_spec, living, ran
from tests.backends.sandboxes import MB, limits

pytestmark = pytest.mark.anyio

LONG_S = 60.0
"""So that in a test none ends by its time."""
THERE = """
import os
found = []
for pid in range(2, 4096):  # they are not to be seen in /proc
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        continue
    except PermissionError:
        pass
    if pid != os.getpid():
        found.append(pid)
print(*found)
"""


@pytest.fixture
def sandboxing(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> NativeSandboxes:
    found: NativeSandboxes | None = getattr(backend, "sandboxing", None)
    if found is None:
        pytest.skip("this backend's sandboxes do not live")
    monkeypatch.setattr(found, "_agents", IdleAgents(keep_s=LONG_S))
    return found


async def pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


async def whole(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


@contextlib.asynccontextmanager
async def access(sandboxing: NativeSandboxes, name: str, user: str = "user") -> AsyncIterator[FileAccess]:
    files = await sandboxing.files(name, user=user)
    try:
        yield files
    finally:
        files.close()


async def use(sandboxing: NativeSandboxes, name: str, user: str = "user", path: str = "/tmp/file") -> None:
    async with access(sandboxing, name, user) as files:
        assert await files.write(path, pieces(b"content")) == 7


async def there(sandboxing: NativeSandboxes, name: str) -> list[int]:
    """The process ids inside that are not PID 1: the agents', where nothing else runs."""
    out, err, code = await ran(sandboxing, name, "python3", "-S", "-c", THERE)
    assert (err, code) == (b"", 0)
    return [int(word) for word in out.split()]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ── of real sandboxes ────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_next_request_is_the_same_agents(sandboxing: NativeSandboxes) -> None:
    """Also after one that failed, that broke off as its source did, and that was read to its end."""

    async def breaks() -> AsyncIterator[bytes]:
        yield bytes(MB)
        raise ConnectionError("the client went away")

    async with living(sandboxing) as name:
        await use(sandboxing, name)
        first = await there(sandboxing, name)
        assert len(first) == 1
        async with access(sandboxing, name) as files:
            assert await whole((await files.read("/tmp/file"))[1]) == b"content"
        with pytest.raises(NotFound):
            async with access(sandboxing, name) as files:
                await files.read("/tmp/nothing")
        with pytest.raises(ConnectionError):
            async with access(sandboxing, name) as files:
                await files.write("/tmp/other", breaks())
        async with access(sandboxing, name) as files:
            assert [info.name for info in await files.list("/tmp")] == ["file"]
        assert await there(sandboxing, name) == first


async def test_who_closed_theirs_has_none(sandboxing: NativeSandboxes) -> None:
    async with living(sandboxing) as name:
        files = await sandboxing.files(name)
        await files.stat("/")
        files.close()
        files.close()
        async with access(sandboxing, name) as other:
            with pytest.raises(Unavailable, match="closed"):
                await files.stat("/")
            files.close()
            assert (await other.stat("/")).kind is FileKind.DIRECTORY


async def test_what_is_not_over_is_hung_up_on(sandboxing: NativeSandboxes) -> None:
    """Else what it still sends would be the next one's answer."""
    async with living(sandboxing) as name:
        async with access(sandboxing, name) as files:
            await files.write("/tmp/large", pieces(*[bytes(MB)] * 8))
            _, content = await files.read("/tmp/large")
            await anext(content)
        assert len(sandboxing._agents) == 0
        async with access(sandboxing, name) as files:
            await files.watch("/tmp")
        assert len(sandboxing._agents) == 0
        await use(sandboxing, name)
        assert len(sandboxing._agents) == 1


async def test_those_at_once_have_each_their_own_and_few_are_kept(sandboxing: NativeSandboxes) -> None:
    async with living(sandboxing) as name:
        async with contextlib.AsyncExitStack() as stack:
            found = [await stack.enter_async_context(access(sandboxing, name)) for _ in range(4)]
            await asyncio.gather(*(one.write(f"/tmp/{n}", pieces(b"x" * n)) for n, one in enumerate(found)))
            assert len(await there(sandboxing, name)) == 4
        assert len(sandboxing._agents) == EACH

        async def few_are_left() -> bool:
            return len(await there(sandboxing, name)) == EACH

        await eventually(few_are_left)


async def test_each_user_has_their_own(sandboxing: NativeSandboxes) -> None:
    async with living(sandboxing) as name:
        if (await ran(sandboxing, name, "true", user="root"))[2]:
            pytest.skip("an ordinary user's warden has one id only")
        for _ in range(2):
            await use(sandboxing, name, "user", "/tmp/users")
            await use(sandboxing, name, "root", "/tmp/roots")
        out, _, _ = await ran(sandboxing, name, "stat", "-c", "%U", "/tmp/users", "/tmp/roots")
        assert out == b"user\nroot\n"
        assert len(await there(sandboxing, name)) == 2


async def test_those_that_nobody_needs_end(sandboxing: NativeSandboxes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxing, "_agents", IdleAgents(keep_s=0.1))
    async with living(sandboxing, processes=LEAST_PROCESSES) as name:
        await use(sandboxing, name)

        async def has_its_places() -> bool:
            return not await there(sandboxing, name)

        await eventually(has_its_places)
        assert len(sandboxing._agents) == 0


@pytest.mark.parametrize("limit", [{"processes": LEAST_PROCESSES}, {"memory_bytes": LEAST_MEMORY}], ids=list)
async def test_a_small_sandbox_has_its_room_for_itself(sandboxing: NativeSandboxes, limit: dict[str, int]) -> None:
    async with living(sandboxing, **{name: least - 1 for name, least in limit.items()}) as name:
        for _ in range(20):
            await use(sandboxing, name)
            assert len(sandboxing._agents) == 0
    async with living(sandboxing, **limit) as name:
        await use(sandboxing, name)
        assert len(sandboxing._agents) == 1


async def test_one_that_the_tenant_killed_is_replaced(sandboxing: NativeSandboxes) -> None:
    """Before anything is asked of it: a write, which nobody does twice, succeeds."""
    async with living(sandboxing) as name:
        for _ in range(10):
            await use(sandboxing, name)
            await ran(sandboxing, name, "sh", "-c", "kill -9 -1")
        await use(sandboxing, name)


async def test_one_that_the_tenant_stopped_is_replaced(
    sandboxing: NativeSandboxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_files, "_AWAKE_S", 0.1)
    async with living(sandboxing) as name:
        await use(sandboxing, name)
        (stopped,) = await there(sandboxing, name)
        await ran(sandboxing, name, "kill", "-STOP", str(stopped))
        await use(sandboxing, name)
        await ran(sandboxing, name, "kill", "-CONT", str(stopped))  # it finds that its channel is closed

        async def is_gone() -> bool:
            return len(found := await there(sandboxing, name)) == 1 and stopped not in found

        await eventually(is_gone)


async def test_another_sandbox_of_the_same_name_has_its_own(sandboxing: NativeSandboxes) -> None:
    """Whether the old one's agent was idle or in use when it was removed."""
    name = "test-agents-again"
    await sandboxing.create(name, live_spec())
    try:
        for round_ in range(3):
            await use(sandboxing, name, path=f"/tmp/old{round_}")
            held = [await sandboxing.files(name) for _ in range(2)]
            held[0].close()
            await sandboxing.remove(name)
            assert len(sandboxing._agents) == 0

            async def is_made() -> bool:
                try:
                    await sandboxing.create(name, live_spec())
                except Conflict:  # it is ending
                    return False
                return True

            await eventually(is_made)
            held[1].close()
            assert len(sandboxing._agents) == 0
            async with access(sandboxing, name) as files:
                assert await files.list("/tmp") == []
                await files.write("/tmp/new", pieces(b"new"))
            async with access(sandboxing, name) as files:
                assert [info.name for info in await files.list("/tmp")] == ["new"]
                await files.delete("/tmp/new")
    finally:
        await sandboxing.remove(name)


async def test_none_is_left_of_what_is_stopped_killed_or_has_ended(sandboxing: NativeSandboxes) -> None:
    async with living(sandboxing) as name:
        in_use = await sandboxing.files(name)
        await use(sandboxing, name)
        await sandboxing.stop(name, grace_s=0.1)
        assert len(sandboxing._agents) == 0
        in_use.close()
        assert len(sandboxing._agents) == 0
    async with living(sandboxing) as name:
        await use(sandboxing, name)
        await sandboxing.kill(name)
        assert len(sandboxing._agents) == 0
    async with living(sandboxing, lifetime_s=0.5) as name:
        await use(sandboxing, name)
        await asyncio.wait_for(sandboxing.ended(name), 20)
        assert len(sandboxing._agents) == 0


async def test_a_layer_is_taken_by_one_that_is_alone_and_not_kept(sandboxing: NativeSandboxes, tmp_path: Path) -> None:
    async with living(sandboxing) as name:
        first, second = [await sandboxing.files(name, user="root") for _ in range(2)]  # root's: it reads all there is
        first.close()
        assert len(sandboxing._agents) == 1
        with open(tmp_path / "layer", "wb") as target:  # noqa: ASYNC230 -- a file of the test
            assert await second.save_layer(target.fileno(), most_bytes=64 * MB) > 0
        assert len(sandboxing._agents) == 0
        second.close()
        assert len(sandboxing._agents) == 0
        await use(sandboxing, name)


async def test_nothing_leaks(sandboxing: NativeSandboxes) -> None:
    async with living(sandboxing, open_files=64) as name:
        await use(sandboxing, name)
        (agent,) = await there(sandboxing, name)
        before = descriptors()
        for number in range(200):
            path = f"/tmp/{number % 10}"
            async with access(sandboxing, name) as files:
                if number % 4 == 3:
                    with contextlib.suppress(NotFound):
                        await files.read(f"{path}/nothing")
                elif number % 4 == 2:
                    await files.list("/usr")
                else:
                    await files.write(path, pieces(b"x"), in_place=number % 4 == 1)
        assert await there(sandboxing, name) == [agent]
        assert descriptors() == before
        for _ in range(5):
            await asyncio.gather(*(use(sandboxing, name, path=f"/tmp/{n}") for n in range(6)))
        assert descriptors() <= before + EACH - 1
        await sandboxing.kill(name)
        assert descriptors() <= before - 1


# ── of sockets ───────────────────────────────────────────────────────────────────────────────────────────────────


class Pairs:
    """Channels, and who is at their other end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def __call__(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self._stack.enter_context(theirs)
        self._stack.callback(ours.close)
        return ours, theirs


@pytest.fixture
def pair() -> Iterator[Pairs]:
    with contextlib.ExitStack() as stack:
        yield Pairs(stack)


async def test_who_hung_up_or_speaks_unasked_is_not_handed_out(pair: Pairs) -> None:
    idle = IdleAgents(keep_s=LONG_S)
    place = idle.place("one", "user")
    (first, hangs_up), (second, speaks) = pair(), pair()
    place.keep(first)
    place.keep(second)
    hangs_up.close()
    speaks.send(b"x")
    assert place.take() is None
    assert first.fileno() == second.fileno() == -1
    third, talks = pair()
    talks.send(b"x")
    place.keep(third)
    assert len(idle) == 0
    assert third.fileno() == -1
    idle.close()


async def test_the_last_used_is_the_next_and_the_oldest_go_first(pair: Pairs) -> None:
    idle = IdleAgents(keep_s=LONG_S, most=3)
    places = [idle.place(name, "user") for name in ("one", "two")]
    found = [pair()[0] for _ in range(4)]
    for number, one in enumerate(found):
        places[number // 2].keep(one)
    assert [one.fileno() == -1 for one in found] == [True, False, False, False]
    assert places[1].take() is found[3]
    assert places[0].take() is found[1]
    assert places[0].take() is None
    more = [pair()[0] for _ in range(2)]
    for one in more:
        places[1].keep(one)
    assert [one.fileno() == -1 for one in more] == [False, True]  # no more than two of one sandbox and user
    idle.close()
    assert more[0].fileno() == -1
    assert idle.place("one", "user").take() is None


async def test_the_time_of_each_is_its_own(pair: Pairs) -> None:
    idle = IdleAgents(keep_s=0.05)
    old, new = pair()[0], pair()[0]
    place = idle.place("one", "user")
    place.keep(old)
    timer = idle._timer
    assert timer is not None
    idle._idle[old] = (*idle._idle[old][:2], timer.when() - 0.02)  # it was kept a while before
    place.keep(new)

    async def is_over() -> bool:
        assert old.fileno() == -1 or new.fileno() != -1
        return new.fileno() == -1

    await eventually(is_over)
    assert (len(idle), idle._timer) == (0, None)
    idle.close()


async def test_what_was_in_use_when_all_was_left_is_not_kept(pair: Pairs) -> None:
    idle = IdleAgents(keep_s=LONG_S)
    before = idle.place("one", "user")
    idle.leave("one")
    connection, other = pair()[0], pair()[0]
    before.keep(connection)
    assert connection.fileno() == -1
    after = idle.place("one", "user")
    after.keep(other)
    assert (before.take(), after.take()) == (None, other)
    other.close()
    idle.close()
    with contextlib.closing(pair()[0]) as late:
        after.keep(late)
        assert late.fileno() == -1


async def test_nothing_is_remembered_of_sandboxes_that_are_gone(pair: Pairs) -> None:
    idle = IdleAgents(keep_s=LONG_S)
    for number in range(10):
        idle.begin(f"s{number}", limits(processes=4 if number % 2 else 64))
        place = idle.place(f"s{number}", "user")
        place.keep(pair()[0])
        idle.forget(f"s{number}")
    del place
    assert (len(idle), len(idle._homes), len(idle._small)) == (0, 0, 0)
    assert kept.MOST == 256
    idle.close()
