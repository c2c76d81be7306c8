"""The client against a server of the protocol: what is asked, what comes back, what each refusal becomes."""

import inspect
import io
import socket
import threading
from pathlib import Path

import pytest

from stockade.sdk import (
    ApiError,
    AsyncClient,
    AsyncProcess,
    BadRequest,
    Client,
    Conflict,
    ConnectionFailed,
    Executor,
    LimitExceeded,
    NotFound,
    Port,
    Process,
    ProtocolError,
    SandboxFile,
    ServerError,
    Source,
    TimedOut,
    Unauthorized,
    _calls,
)
from stockade.sdk.archives import pack, unpack
from tests.sdk.stub import KEY, SECRET, Stub, eventually

MIB = 1 << 20


def test_a_sandbox_is_created_as_it_was_asked_for(client: Client, stub: Stub) -> None:
    made = client.create(
        "host",
        ["sleep", "60"],
        env={"A": "b"},
        workdir="/srv",
        cpu_millis=500,
        memory_mb=256,
        timeout_s=1.5,
        network="exposed",
        ports=[Port(container=9000), Port(container=53, protocol="udp")],
        setup=["true"],
        files=[SandboxFile(path="/opt/x", content=b"\xff\0", mode=0o755)],
    )
    assert stub.created == [
        {
            "image": "host",
            "command": ["sleep", "60"],
            "env": {"A": "b"},
            "workDir": "/srv",
            "resources": {"cpuMillis": 500, "memoryMB": 256, "timeoutMs": 1500},
            "network": "exposed",
            "ports": [{"container": 9000, "protocol": "tcp"}, {"container": 53, "protocol": "udp"}],
            "setup": ["true"],
            "files": [{"path": "/opt/x", "content": "/wA=", "encoding": "base64", "mode": 0o755}],
        }
    ]
    assert (made.status, made.has_ended) == ("running", False)
    assert made.network is not None
    assert made.network.ports[9000].url == "http://localhost:49000"
    assert client.port_url(made.id, 9000) == made.network.ports[9000]


def test_what_is_not_given_is_not_sent(client: Client, stub: Stub) -> None:
    client.create("host")
    assert stub.created == [{"image": "host"}]


def test_an_executor_s_secret_is_told_once(client: Client, stub: Stub) -> None:
    made = client.create("host", network="exposed", executor=True)
    chosen = client.create("host", executor="chosen-0123456789")
    assert [one["executor"] for one in stub.created] == [True, {"secret": "chosen-0123456789"}]
    assert made.executor == Executor(url=f"{stub.url}/koyeb-sandbox", secret=SECRET, proxy_port=43031)
    assert chosen.executor == Executor(url=f"{stub.url}/koyeb-sandbox", secret="chosen-0123456789")
    assert SECRET not in repr(made)
    found = client.get(made.id)
    assert found.executor == Executor(url=f"{stub.url}/koyeb-sandbox", proxy_port=43031)
    assert client.create("host").executor is None


def test_a_sandbox_s_life_is_followed(client: Client) -> None:
    first = client.create("host", ["sleep", "60"])
    second = client.create("host", ["sh", "-c", "exit 3"])
    ended = eventually(lambda: (now := client.get(second.id)).has_ended and now)
    assert (ended.status, ended.exit_code) == ("failed", 3)
    assert [one.id for one in client.sandboxes()] == [second.id, first.id]
    assert [one.id for one in client.sandboxes(status="running")] == [first.id]
    extended = client.extend(first.id, 90)
    assert extended.expires_at is not None
    assert (extended.expires_at.minute, extended.expires_at.second) == (1, 30)
    client.stop(first.id)
    with pytest.raises(Conflict):
        client.stop(first.id)
    client.kill(first.id)
    assert client.get(first.id).status == "killed"


def test_a_command_has_its_output_apart_and_its_exit_code(client: Client) -> None:
    sandbox = client.create("host", ["sleep", "60"])
    with client.exec(sandbox.id, "echo out; echo err >&2; exit 7") as process:
        finished = process.collect()
    assert (finished.exit_code, finished.stdout, finished.stderr) == (7, b"out\n", b"err\n")
    with client.exec(sandbox.id, ["nothing-of-this-name"]) as process:
        finished = process.collect()
    assert finished.exit_code == 127
    assert "no such program" in finished.notices[0]


def test_environment_and_directory_reach_the_command(client: Client, tmp_path: Path) -> None:
    sandbox = client.create("host", ["sleep", "60"])
    with client.exec(
        sandbox.id, ["sh", "-c", 'echo "$V"; pwd'], env={"V": "a b=c&d"}, workdir=str(tmp_path)
    ) as process:
        assert process.collect().stdout == f"a b=c&d\n{tmp_path}\n".encode()


def test_a_program_s_name_with_a_space_is_no_shell_s(client: Client, tmp_path: Path) -> None:
    sandbox = client.create("host", ["sleep", "60"])
    program = tmp_path / "my program"
    program.write_text("#!/bin/sh\necho mine")
    program.chmod(0o755)
    with client.exec(sandbox.id, [str(program)]) as process:
        assert process.collect().stdout == b"mine\n"


def test_every_byte_goes_in_and_out_while_both_are_full(client: Client) -> None:
    """`cat` stands still unless it is read from while it is written to."""
    sandbox = client.create("host", ["sleep", "60"])
    data = bytes(range(256)) * (32 * 1024)  # 8 MiB: more than all buffers on the way
    with client.exec(sandbox.id, ["cat"]) as process:

        def write() -> None:
            assert process.write(data)
            process.close_stdin()

        writer = threading.Thread(target=write)
        writer.start()
        finished = process.collect(timeout_s=60)
        writer.join(60)
    assert finished.stdout == data
    assert finished.exit_code == 0


def test_leaving_kills_a_command(client: Client, stub: Stub) -> None:
    sandbox = client.create("host", ["sleep", "60"])
    with client.exec(sandbox.id, ["sh", "-c", "echo on; exec sleep 60"]) as process:
        first = process.read(timeout_s=10)
        assert first is not None
        assert first.text == "on\n"
    eventually(lambda: stub.killed)


def test_reading_waits_no_longer_than_it_is_told(client: Client) -> None:
    sandbox = client.create("host", ["cat"])
    with client.attach(sandbox.id) as process:
        with pytest.raises(TimedOut):
            process.read(timeout_s=0.05)
        process.write(b"still there\n")
        chunk = process.read(timeout_s=10)
        assert chunk is not None
        assert (chunk.source, chunk.data) == (Source.STDOUT, b"still there\n")
        process.close_stdin()
        assert process.read(timeout_s=10) is None
        assert process.exit_code == 0
        assert process.write(b"too late") is False


def test_a_late_attachment_sees_everything_or_what_follows_its_offset(client: Client) -> None:
    sandbox = client.create("host", ["sh", "-c", "printf 0123456789"])
    eventually(lambda: client.get(sandbox.id).has_ended)
    with client.attach(sandbox.id) as process:
        assert process.collect().stdout == b"0123456789"
        assert process.stdout_offset == 10
    with client.attach(sandbox.id, stdout_offset=7) as process:
        assert process.collect().stdout == b"789"
    with client.logs(sandbox.id, tail=2) as parts:
        assert b"".join(parts) == b"89"


def test_a_terminal_has_the_size_that_it_is_given(client: Client, stub: Stub) -> None:
    sandbox = client.create("host", ["sleep", "60"])
    with client.exec(sandbox.id, ["sh", "-c", "stty size; read line; stty size"], terminal=(30, 90)) as process:
        first = process.read(timeout_s=10)
        assert first is not None
        assert first.data == b"30 90\r\n"
        process.resize(31, 91)
        process.write(b"\n")
        assert process.collect(timeout_s=10).stdout.endswith(b"31 91\r\n")
    assert stub.sizes == [(30, 90), (31, 91)]


def test_files_go_in_and_out(client: Client, stub: Stub) -> None:
    sandbox = client.create("host", ["sleep", "60"])
    data = bytes(range(256)) * 8192  # 2 MiB
    assert client.upload(sandbox.id, "/a/b.bin", data).size == len(data)
    assert client.read_file(sandbox.id, "/a/b.bin") == data
    client.upload(sandbox.id, "/a/c.bin", io.BytesIO(data), mode=0o755)
    client.upload(sandbox.id, "/a/d.bin", (data[at : at + MIB] for at in range(0, len(data), MIB)))
    assert (stub.root / "a/d.bin").read_bytes() == data
    with client.download(sandbox.id, "/a/c.bin", offset=255, length=2) as parts:
        assert b"".join(parts) == b"\xff\x00"
    with client.download(sandbox.id, "/a/c.bin") as parts:
        assert parts.size == len(data)
    listed = client.entries(sandbox.id, "/a")
    assert [(one.name, one.size, one.is_directory, one.mode) for one in listed] == [
        ("b.bin", len(data), False, 0o644),
        ("c.bin", len(data), False, 0o755),
        ("d.bin", len(data), False, 0o644),
    ]
    client.make_directory(sandbox.id, "/a/e")
    assert client.entries(sandbox.id, "/a/e") == []
    client.delete_file(sandbox.id, "/a/d.bin")
    with pytest.raises(NotFound):
        client.read_file(sandbox.id, "/a/d.bin")
    with pytest.raises(BadRequest):
        client.read_file(sandbox.id, "/a")


def test_a_directory_comes_back_as_it_went(client: Client, tmp_path: Path) -> None:
    sandbox = client.create("host", ["sleep", "60"])
    origin = tmp_path / "origin"
    (origin / "sub").mkdir(parents=True)
    (origin / "sub/data").write_bytes(b"x" * 1000)
    (origin / "run").write_text("#!/bin/sh")
    (origin / "run").chmod(0o755)
    (origin / "sub/link").symlink_to("../run")
    client.upload_archive(sandbox.id, "/there", pack(origin))
    with client.download_archive(sandbox.id, "/there") as parts:
        assert unpack(parts, tmp_path / "back") == []
    back = tmp_path / "back"
    assert (back / "sub/data").read_bytes() == b"x" * 1000
    assert (back / "run").stat().st_mode & 0o777 == 0o755
    assert (back / "sub/link").readlink() == Path("../run")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequest),
        (401, Unauthorized),
        (404, NotFound),
        (409, Conflict),
        (413, BadRequest),
        (418, ApiError),
        (429, LimitExceeded),
        (500, ServerError),
        (503, ServerError),
    ],
)
def test_a_refusal_becomes_its_error_on_every_path(
    client: Client, stub: Stub, status: int, kind: type[ApiError]
) -> None:
    sandbox = client.create("host", ["sleep", "60"])
    stub.refusal = (status, {"error": "because", "code": "REASON"}, {"Retry-After": "7"})
    for attempt in (lambda: client.get(sandbox.id), client.attach(sandbox.id).__enter__):
        with pytest.raises(ApiError) as raised:
            attempt()
        assert type(raised.value) is kind
        assert (raised.value.status, raised.value.code, raised.value.message) == (status, "REASON", "because")
        assert raised.value.retry_after_s == 7


def test_a_wrong_key_is_told_as_such(stub: Stub) -> None:
    with Client(stub.url, "sk_wrong") as client, pytest.raises(Unauthorized):
        client.sandboxes()


def test_nobody_at_the_address_is_no_api_error() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        with Client(f"http://127.0.0.1:{bound.getsockname()[1]}", KEY) as client:
            with pytest.raises(ConnectionFailed, match="connection refused"):
                client.sandboxes()
            with pytest.raises(ConnectionFailed, match="connection refused"):
                client.attach("sess_1").__enter__()


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, KEY, timeout_s=0.2) as client, pytest.raises(TimedOut):
            client.sandboxes()


def test_an_answer_of_something_else_is_told(client: Client, stub: Stub) -> None:
    stub.refusal = (200, {"hello": "world"}, {})
    with pytest.raises(ProtocolError, match="no member 'sessions'"):
        client.sandboxes()


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://", "http://x?y=1", "http://x:y"])
def test_what_is_no_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="is not the URL of a server"):
        Client(url, KEY)


@pytest.mark.parametrize("key", ["", "sk_a b", "sk_ä", "sk_\n"])
def test_what_is_no_key_is_refused_at_once(key: str) -> None:
    with pytest.raises(ValueError, match="API key"):
        Client("http://127.0.0.1:1", key)


@pytest.mark.parametrize("sandbox_id", ["../account", "..", "a/b?c", "a#b", "%2e%2e"])
def test_an_id_cannot_become_another_request(client: Client, sandbox_id: str) -> None:
    client.create("host", ["sleep", "60"])
    with pytest.raises(NotFound):
        client.get(sandbox_id)


def test_both_clients_have_the_same_methods() -> None:
    """Also their parameters, so that one's documentation serves the other."""

    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in vars(kind).items()
            if not name.startswith("_") and callable(value)
        }

    assert public(Client) == public(AsyncClient)
    assert public(Process) | {"open": ["self"]} == public(AsyncProcess)


@pytest.mark.anyio
async def test_the_asynchronous_client_does_the_same(async_client: AsyncClient) -> None:
    sandbox = await async_client.create("host", ["sleep", "60"])
    async with async_client.exec(sandbox.id, ["cat"]) as process:
        await process.write(b"abc")
        await process.close_stdin()
        assert [chunk.data async for chunk in process] == [b"abc"]
        assert process.exit_code == 0
    await async_client.kill(sandbox.id)


def test_usage_and_keys_are_read_as_the_protocol_writes_them() -> None:
    usage = _calls.usage().read(
        b'{"sessions_today": 4, "active_sessions": 1, "quota_used": 4, "quota_remaining": 6, "tier": "free",'
        b' "concurrent_limit": 5, "daily_limit": 10, "max_duration_seconds": 60, "max_memory_mb": 512}'
    )
    assert (usage.sandboxes_today, usage.remaining_today, usage.daily_limit) == (4, 6, 10)
    key = (
        b'{"id": "6f1c2b1e", "key_preview": "sk_1a2b...9f0e", "is_active": true, "name": "ci",'
        b' "created_at": "2026-02-01T00:00:00Z", "custom_daily_limit": 3, "key": "sk_secret"}'
    )
    made = _calls.rotate_api_key("6f1c2b1e").read(key)
    assert (made.secret, made.record.name, made.record.daily_limit) == ("sk_secret", "ci", 3)
    assert "sk_secret" not in repr(made)
    assert _calls.api_keys().read(b'{"keys": [' + key + b"]}") == [made.record]
