"""The protocol's own Python client, unchanged: its sandboxes, sync and async, at our address."""

import inspect
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.app.traces import until
from tests.dialects.executor.serving import PREFIX, Executor
from tests.dialects.executor.test_conformance_ports import echoes, is_closed, service

koyeb = pytest.importorskip("koyeb.sandbox", reason="koyeb-sdk is not installed")
clients = pytest.importorskip("koyeb.sandbox.executor_client")
filesystem = pytest.importorskip("koyeb.sandbox.filesystem")

pytestmark = pytest.mark.anyio


async def done(answer: Any) -> Any:
    """What a method of either client answers."""
    return await answer if inspect.isawaitable(answer) else answer


async def collected(events: Any) -> list[dict[str, Any]]:
    """All that either kind of iterator yields."""
    if hasattr(events, "__aiter__"):
        return [event async for event in events]
    return list(events)


@dataclass(kw_only=True)
class Koyeb:
    """A sandbox as the client's user has it, and how many requests its client has sent."""

    sandbox: Any
    client: Any
    executor: Executor
    requests: list[str] = field(default_factory=list)

    async def run(self, command: str, **options: Any) -> Any:
        return await done(self.sandbox.exec(command, **options))

    @property
    def files(self) -> Any:
        return self.sandbox.filesystem


@pytest.fixture(params=["Sandbox", "AsyncSandbox"])
async def ours(request: pytest.FixtureRequest, executor: Executor, anyio_backend: str) -> AsyncIterator[Koyeb]:
    """Made as the client makes it, but for Koyeb's control plane, which would tell it the address."""
    made = getattr(koyeb, request.param)("sandbox-1", "app-1", "service-1", sandbox_secret=executor.secret)
    made._sandbox_url = (executor.url + PREFIX, "routing-key")
    made._url = executor.url
    made._is_deployment_healthy = lambda: True
    if request.param == "Sandbox":
        client = made._get_client()
    else:
        client = made._get_async_client()

        async def is_healthy() -> bool:
            return True

        made._async_is_deployment_healthy = is_healthy
    ours = Koyeb(sandbox=made, client=client, executor=executor)

    def note(sent: Any) -> None:
        ours.requests.append(sent.url.path)

    async def note_async(sent: Any) -> None:
        note(sent)

    client._client.event_hooks = {"request": [note if request.param == "Sandbox" else note_async]}
    yield ours
    await done(client.close())


@pytest.mark.parametrize("stream", [True, False])
async def test_exec_tells_how_a_command_went(ours: Koyeb, stream: bool) -> None:
    good = await ours.run("echo out; echo err >&2", stream=stream)
    assert (good.stdout.strip(), good.stderr.strip(), good.exit_code, good.success) == ("out", "err", 0, True)
    bad = await ours.run("echo out; exit 3", stream=stream)
    assert (bad.stdout.strip(), bad.exit_code, bad.status) == ("out", 3, koyeb.CommandStatus.FAILED)
    assert len(ours.requests) == 2


async def test_exec_joins_lines_without_their_ends_where_it_streams(ours: Koyeb) -> None:
    """That is how this client is; with `stream=False` they are kept."""
    assert (await ours.run("echo a; echo b")).stdout == "ab"
    assert (await ours.run("echo a; echo b", stream=False)).stdout == "a\nb\n"


@pytest.mark.parametrize("stream", [True, False])
async def test_exec_takes_directory_and_environment(ours: Koyeb, stream: bool) -> None:
    done = await ours.run('printf "$PWD $K"', cwd="/tmp", env={"K": "\u00e4\x85\u2028'\""}, stream=stream)
    assert done.stdout == "/tmp \u00e4\x85\u2028'\""


async def test_exec_calls_back_for_each_line(ours: Koyeb) -> None:
    out: list[str] = []
    err: list[str] = []
    done = await ours.run(
        "echo 1; echo 2; echo e >&2; printf '\\n3\\302\\205'; exit 2", on_stdout=out.append, on_stderr=err.append
    )
    assert (out, err, done.exit_code) == (["1", "2", "", "3\x85"], ["e"], 2)


async def test_exec_raises_where_it_is_asked_to(ours: Koyeb) -> None:
    with pytest.raises(koyeb.SandboxCommandError) as raised:
        await ours.run("echo why >&2; exit 9", raise_on_error=True)
    assert (raised.value.result.exit_code, raised.value.result.stderr) == (9, "why")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_command_that_takes_too_long_is_given_up_and_ended(ours: Koyeb, stream: bool) -> None:
    number = f"63.{time.monotonic_ns()}"
    with pytest.raises(koyeb.SandboxTimeoutError):
        await ours.run(f"echo x >> /tmp/{number}; sleep {number}", stream=stream, timeout=1.5)
    until(lambda: not ours.executor.runs(f"sleep {number}"))
    assert ours.executor.stdout(f"cat /tmp/{number}") == "x\n"
    assert len(ours.requests) == 1


async def test_a_streamed_command_may_be_slower_than_the_limit_while_it_speaks(ours: Koyeb) -> None:
    """The client's limit is one on silence."""
    done = await ours.run("for i in 1 2 3; do echo $i; sleep 0.7; done", timeout=2.0)
    assert (done.stdout, done.exit_code) == ("123", 0)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("exit 5", {}),
        ("kill -9 $$", {}),
        ("head -c 3000000 /dev/zero | tr '\\0' x", {}),
        ("exec >&- 2>&-", {}),
        ("#\0", {}),
        ("#" + "x" * 200_000, {}),
        ("true", {"env": {"A": "x" * 200_000}}),
        ("true", {"cwd": "/no/such"}),
        ("ulimit -v 1000; /bin/true", {}),
    ],
    ids=[
        "exit",
        "signal",
        "much",
        "closed",
        "NUL",
        "long",
        "long environment",
        "no directory",
        "no memory",
    ],
)
async def test_nothing_is_executed_twice(ours: Koyeb, command: str, options: dict[str, Any]) -> None:
    """The client repeats what is answered with 5xx, or not at all; so that never happens."""
    count, refused = f"/tmp/count-{time.monotonic_ns()}", 0
    try:
        await ours.run(f"echo x >> {count}\n{command}", stream=False, timeout=10, **options)
    except koyeb.SandboxRequestError as error:
        refused = error.status_code
    assert refused in (0, 400)
    assert ours.executor.run(f"cat {count}")["stdout"] == ("" if refused else "x\n")
    assert len(ours.requests) == 1


async def test_requests_that_are_wrong_are_told_at_once(ours: Koyeb) -> None:
    with pytest.raises(koyeb.SandboxRequestError) as raised:
        await ours.run("pwd", cwd="/no/such", stream=False)
    assert (raised.value.status_code, raised.value.body) == (400, "Invalid working directory: /no/such\n")
    info = clients.ConnectionInfo(ours.executor.url, None, "not the secret, but as long as one")
    client = type(ours.client)(info)
    with pytest.raises(koyeb.SandboxRequestError) as raised:
        await done(client.run("true"))
    assert raised.value.status_code == 401
    await done(client.close())


async def test_files_make_the_round_trip(ours: Koyeb, folder: str, tmp_path: Path) -> None:
    path, files = f"{folder}/x", ours.files
    for content, encoding in (("text \u00e4\x85\u2028", "utf-8"), (b"plain", "utf-8"), (bytes(range(256)), "base64")):
        await done(files.write_file(path, content, encoding))
        read = await done(files.read_file(path, encoding))
        assert read.content == (content.decode() if encoding == "utf-8" and isinstance(content, bytes) else content)
    await done(files.write_files([{"path": f"{folder}/{name}", "content": name} for name in "ba"]))
    assert await done(files.list_dir(folder)) == await done(files.ls(folder)) == ["a", "b", "x"]
    (tmp_path / "local").write_bytes(bytes(range(256)) * 1000)
    await done(files.upload_file(str(tmp_path / "local"), path, "base64"))
    await done(files.download_file(path, str(tmp_path / "back"), "base64"))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "local").read_bytes()
    async with Handle(files.open(path, "w")) as handle:
        await done(handle.write("first"))
    async with Handle(files.open(path, "a")) as handle:
        await done(handle.write(" second"))
    async with Handle(files.open(path)) as handle:
        assert await done(handle.read()) == "first second"


class Handle:
    """An open file of either client as an asynchronous context manager."""

    def __init__(self, file: Any) -> None:
        self._file = file

    async def __aenter__(self) -> Any:
        return self._file

    async def __aexit__(self, *_: object) -> None:
        self._file.close()


async def test_an_empty_file_and_an_empty_directory(ours: Koyeb, folder: str) -> None:
    await done(ours.files.write_file(f"{folder}/x", ""))
    assert (await done(ours.files.read_file(f"{folder}/x"))).content == ""
    await done(ours.files.mkdir(f"{folder}/e"))
    assert await done(ours.files.list_dir(f"{folder}/e")) == []


async def test_files_are_moved_and_looked_for_by_commands(ours: Koyeb, folder: str) -> None:
    files, odd = ours.files, f"{folder}/a 'b\" $c;\u00e4"
    await done(files.write_file(odd, "x"))
    await done(files.rename_file(odd, f"{folder}/n"))
    await done(files.mkdir(f"{folder}/d/e"))
    await done(files.move_file(f"{folder}/n", f"{folder}/d"))
    facts = [
        await done(look(f"{folder}/{name}"))
        for name in ("d", "d/n", "no")
        for look in (files.exists, files.is_file, files.is_dir)
    ]
    assert facts == [True, False, True, True, True, False, False, False, False]
    await done(files.rm(f"{folder}/d/n"))
    await done(files.rm(f"{folder}/d", recursive=True))
    assert await done(files.list_dir(folder)) == []


async def test_errors_of_files_are_of_their_classes(ours: Koyeb, folder: str) -> None:
    files, missing = ours.files, f"{folder}/no"
    ours.executor.run(f"touch {folder}/f; mkdir -p {folder}/d/x")
    lost = filesystem.SandboxFileNotFoundError
    for call in (
        lambda: files.read_file(missing),
        lambda: files.list_dir(missing),
        lambda: files.delete_file(missing),
        lambda: files.rename_file(missing, f"{folder}/x"),
        lambda: files.move_file(missing, f"{folder}/x"),
        lambda: files.rm(missing),
    ):
        with pytest.raises(lost):
            await done(call())
    for call in (
        lambda: files.write_file(f"{missing}/x", "x"),
        lambda: files.read_file(folder),
        lambda: files.list_dir(f"{folder}/f"),
        lambda: files.mkdir(f"{folder}/f/x"),
        lambda: files.delete_file(f"{folder}/d"),
        lambda: files.rm(f"{folder}/d"),
    ):
        with pytest.raises(filesystem.SandboxFilesystemError):
            await done(call())
    await done(files.mkdir(f"{folder}/d"))
    await done(files.delete_dir(f"{folder}/d"))
    await done(files.delete_dir(missing))


async def test_processes_are_launched_listed_and_killed(ours: Koyeb) -> None:
    await done(ours.sandbox.kill_all_processes())
    first = await done(ours.sandbox.launch_process("sleep 30", cwd="/tmp", env={"A": "b"}))
    second = await done(ours.sandbox.launch_process("exit 3"))
    until(lambda: ours.executor.status(second) == "failed")
    listed = {process.id: process for process in await done(ours.sandbox.list_processes())}
    assert (listed[first].status, listed[first].command) == ("running", "sleep 30")
    assert (listed[second].status, listed[second].exit_code) == ("failed", 3)
    await done(ours.sandbox.kill_process(first))
    with pytest.raises(koyeb.SandboxError, match="not running"):
        await done(ours.sandbox.kill_process(first))
    with pytest.raises(koyeb.SandboxError, match="process not found: nope"):
        await done(ours.sandbox.kill_process("nope"))
    for _ in range(3):
        await done(ours.sandbox.launch_process("sleep 30"))
    assert await done(ours.sandbox.kill_all_processes()) == 3
    assert await done(ours.sandbox.kill_all_processes()) == 0


async def test_a_process_that_cannot_be_launched_says_why(ours: Koyeb) -> None:
    for command, cwd in (("", None), ("echo \0", None), ("true", "/no/such")):
        with pytest.raises(koyeb.SandboxError):
            await done(ours.sandbox.launch_process(command, cwd=cwd))
    assert len(ours.requests) == 3


async def test_a_port_is_exposed(ours: Koyeb) -> None:
    with service(ours.executor, 8121):
        for port in (8120, 8121):  # the second time, the first is unbound before
            exposed = await done(ours.sandbox.expose_port(port))
            assert (exposed.port, exposed.exposed_at) == (port, ours.executor.url)
        with ours.executor.proxied() as connection:
            assert echoes(connection)
        for _ in range(2):
            await done(ours.sandbox.unexpose_port())
        with ours.executor.proxied() as connection:
            assert is_closed(connection)
    with pytest.raises(koyeb.InvalidPortError):
        await done(ours.sandbox.expose_port(0))


async def test_a_sandbox_is_healthy_and_ready(ours: Koyeb) -> None:
    assert await done(ours.sandbox.is_healthy())
    assert await done(ours.sandbox.wait_ready(timeout=30))
    assert await done(ours.client.health())


async def test_the_client_below_streams_events(ours: Koyeb) -> None:
    events = await collected(ours.client.run_streaming("echo a; printf 'b\\302\\205c\\n' >&2; exit 4", cwd="/tmp"))
    assert events == [
        {"stream": "stdout", "data": "a"},
        {"stream": "stderr", "data": "b\x85c"},
        {"code": 4, "error": True},
    ]


async def test_the_client_below_has_all_of_a_large_output(ours: Koyeb) -> None:
    answer = await done(ours.client.run("seq 1 300000"))
    assert answer["stdout"].split() == [str(n) for n in range(1, 300_001)]
    events = await collected(ours.client.run_streaming("seq 1 30000"))
    assert [event.get("data") for event in events[:-1]] == [str(n) for n in range(1, 30_001)]


async def test_the_client_works_without_the_prefix_too(ours: Koyeb) -> None:
    client = type(ours.client)(clients.ConnectionInfo(ours.executor.url, None, ours.executor.secret))
    assert (await done(client.run("echo hi")))["stdout"] == "hi\n"
    await done(client.close())
