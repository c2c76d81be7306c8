"""The execbox wire and the engine's records, as tables of pairs."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from stockade.config import SandboxConfig
from stockade.dialects.execbox.queries import Query, to_exec, to_path
from stockade.dialects.execbox.settings import ExecboxSettings
from stockade.dialects.execbox.translate import (
    Measures,
    created,
    entry,
    exposed,
    is_session,
    new_id,
    session,
    states_of,
    status_of,
    to_request,
)
from stockade.dialects.execbox.wire import CreateBody, checked
from stockade.engine import LimitPolicy
from stockade.errors import Conflict, Invalid, NotFound
from stockade.model import (
    Actor,
    BuildFile,
    EndedBy,
    FileInfo,
    FileKind,
    Network,
    NetworkMode,
    Outcome,
    Port,
    Protocol,
    Sandbox,
    SandboxRequest,
    SandboxState,
    TerminalSize,
)

MIB = 1024 * 1024
NOON = datetime(2026, 2, 3, 12, 5, 6, 987654, tzinfo=timezone(timedelta(hours=8)))
SANDBOX = SandboxConfig()
POLICY = LimitPolicy(
    defaults=SANDBOX.defaults, maximum=replace(SANDBOX.maximum, cpus=4.0, memory_bytes=4096 * MIB, wall_s=300.0)
)
FREE = Actor(id="k", tier="free", max_duration_s=60.0, max_memory_bytes=512 * MIB)
ADMIN = Actor(id="a", tier="enterprise")


def request(body: dict[str, Any], actor: Actor = ADMIN, **settings: Any) -> SandboxRequest:
    measures = Measures(settings=ExecboxSettings(**settings), limits=POLICY, actor=actor, cwd="/home/user")
    return to_request(checked(CreateBody, body), measures, id="sess_0a1b2c3d4e5f")


def sandbox(**members: Any) -> Sandbox:
    base = Sandbox(
        id="sess_0a1b2c3d4e5f",
        account_id="a",
        key_id="a",
        dialect="execbox",
        state=SandboxState.RUNNING,
        image="host",
        command=("true",),
        env={},
        cwd="/",
        user="user",
        limits=SANDBOX.defaults,
        network=Network(),
        labels={},
        created_at=NOON,
    )
    return replace(base, **members)


def test_a_whole_request_arrives() -> None:
    found = request(
        {
            "image": "alpine:3.20",
            "command": ["sh", "-c", "echo $GREETING; exit 3"],
            "env": {"GREETING": "hallo"},
            "workDir": "/srv",
            "resources": {"cpuMillis": 500, "memoryMB": 256, "timeoutMs": 20000},
            "network": "exposed",
            "ports": [{"container": 9000, "protocol": "tcp"}, {"container": 53, "protocol": "udp"}],
            "setup": ["echo built > /opt/mark"],
            "files": [{"path": "a.txt", "content": "aGFsbG8=", "encoding": "base64"}],
        }
    )
    assert found.image == "alpine:3.20"
    assert found.command == ("sh", "-c", "echo $GREETING; exit 3")
    assert found.env == {"GREETING": "hallo"}
    assert found.cwd == "/srv"
    assert (found.limits.cpus, found.limits.memory_bytes, found.limits.wall_s) == (0.5, 256 * MIB, 20.0)
    assert found.network == Network(
        mode=NetworkMode.EXPOSED, ports=(Port(container=9000), Port(container=53, protocol=Protocol.UDP))
    )
    assert found.build.setup == ("echo built > /opt/mark",)
    assert found.build.files == (BuildFile(path="/srv/a.txt", content=b"hallo"),)
    assert found.dialect == "execbox"


def test_what_is_not_said_is_the_images_or_the_servers() -> None:
    found = request({"image": "host"})
    assert (found.command, found.cwd, dict(found.env)) == (None, None, {})
    assert (found.limits.cpus, found.limits.memory_bytes, found.limits.wall_s) == (1.0, 512 * MIB, 300.0)
    assert found.network == Network(mode=NetworkMode.OUTGOING)
    assert found.build.is_empty


@pytest.mark.parametrize("name", ["setup", "files", "command", "ports", "env", "workDir", "resources", "network"])
def test_null_is_the_same_as_nothing(name: str) -> None:
    assert request({"image": "host", name: None}) == request({"image": "host"})


@pytest.mark.parametrize(
    "more",
    [{"extra": 1}, {"resources": {"computePower": 5}}, {"resources": {"computePower": "a lot"}}],
)
def test_legacy_and_unknown_members_have_no_effect(more: dict[str, Any]) -> None:
    assert request({"image": "host", **more}) == request({"image": "host"})


def test_an_empty_command_is_no_main_process() -> None:
    assert request({"image": "host", "command": []}).command == ()


def test_a_legacy_timeout_counts_where_timeout_ms_is_not_set() -> None:
    assert request({"image": "host", "resources": {"timeout": "30s"}}).limits.wall_s == 30.0
    assert request({"image": "host", "resources": {"timeout": "30s", "timeoutMs": 5000}}).limits.wall_s == 5.0


def test_what_is_not_said_is_cut_to_the_tier() -> None:
    limits = request({"image": "host"}, FREE, default_memory_mb=1024).limits
    assert (limits.wall_s, limits.memory_bytes) == (60.0, 512 * MIB)


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        ({"timeoutMs": 60001}, "resources.timeoutMs: must be at most 60000"),
        ({"memoryMB": 513}, "resources.memoryMB: must be at most 512"),
        ({"cpuMillis": 4001}, "resources.cpuMillis: must be at most 4000"),
    ],
)
def test_what_the_tier_or_the_host_does_not_allow_is_refused(resources: dict[str, int], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        request({"image": "host", "resources": resources}, FREE)


@pytest.mark.parametrize("millis", [100, 101, 333, 999, 1001, 3999, 4000])
def test_every_allowed_cpu_rate_is_taken(millis: int) -> None:
    assert request({"image": "host", "resources": {"cpuMillis": millis}}).limits.cpus == pytest.approx(millis / 1000)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "image is required"),
        ({"image": ""}, "image: "),
        ({"image": 5}, "image: "),
        ({"image": "host", "network": "bridge"}, "network: "),
        ({"image": "host", "resources": {"memoryMB": 1}}, "resources.memoryMB: "),
        ({"image": "host", "resources": {"memoryMB": 0}}, "resources.memoryMB: "),
        ({"image": "host", "resources": {"memoryMB": "512"}}, "resources.memoryMB: "),
        ({"image": "host", "resources": {"cpuMillis": 99}}, "resources.cpuMillis: "),
        ({"image": "host", "resources": {"cpuMillis": True}}, "resources.cpuMillis: "),
        ({"image": "host", "resources": {"timeoutMs": 999}}, "resources.timeoutMs: "),
        ({"image": "host", "resources": {"timeoutMs": 300001}}, "resources.timeoutMs: must be at most 300000"),
        ({"image": "host", "resources": {"memoryMB": 8193}}, "resources.memoryMB: must be at most"),
        ({"image": "host", "resources": {"timeout": "soon"}}, "resources.timeout: "),
        ({"image": "host", "resources": {"timeout": "10ms"}}, "resources.timeout: "),
        ({"image": "host", "ports": [{"container": 70000}]}, r"ports\[0\].container: "),
        ({"image": "host", "ports": [{"container": 80}, {"container": 1, "protocol": "icmp"}]}, r"ports\[1\].protocol"),
        ({"image": "host", "ports": [{}]}, r"ports\[0\].container is required"),
        ({"image": "host", "command": "ls"}, "command: "),
        ({"image": "host", "command": ["a\0b"]}, r"command\[0\]: "),
        ({"image": "host", "env": {"A": 1}}, "env.A: "),
        ({"image": "host", "env": {"A=B": "c"}}, "env: "),
        ({"image": "host", "env": {"": "c"}}, "env: "),
        ({"image": "host", "workDir": "srv"}, "workDir: must be an absolute path"),
        ({"image": "host", "setup": ["FROM scratch"]}, r"setup\[0\]: "),
        ({"image": "host", "setup": ["true", "  from x"]}, r"setup\[1\]: "),
        ({"image": "host", "setup": ["echo a\nFROM b"]}, r"setup\[0\]: a command is one line"),
        ({"image": "host", "files": [{"path": "/a"}]}, r"files\[0\].content is required"),
        ({"image": "host", "files": [{"path": "", "content": ""}]}, r"files\[0\].path: "),
        ({"image": "host", "files": [{"path": "/a/", "content": ""}]}, r"files\[0\].path: names a directory"),
        ({"image": "host", "files": [{"path": "/a", "content": "a*", "encoding": "base64"}]}, "is not base64"),
        ({"image": "host", "files": [{"path": "/a", "content": "YQ", "encoding": "base64"}]}, "is not base64"),
        ({"image": "host", "files": [{"path": "/a", "content": "", "encoding": "hex"}]}, r"files\[0\].encoding: "),
    ],
)
def test_what_is_wrong_is_refused_and_named(body: dict[str, Any], text: str) -> None:
    with pytest.raises(Invalid, match=text):
        request(body)


def test_a_command_that_only_begins_like_from_is_a_command() -> None:
    assert request({"image": "host", "setup": ["fromage --melt"]}).build.setup == ("fromage --melt",)


def test_where_it_may_connect_is_passed_on() -> None:
    body = {"image": "host", "allowCidrs": ["192.0.2.0/24"], "allowDomains": ["*.example.org", "localhost"]}
    network = request(body).network
    assert network.allow_cidrs == ("192.0.2.0/24",)
    assert network.allow_domains == ("*.example.org", "localhost")
    assert request({"image": "host", "allowCidrs": []}).network.allow_cidrs == ()
    assert request({"image": "host"}).network.allow_cidrs is None


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("allowCidrs", "192.0.2.1/24"),
        ("allowCidrs", "::/0"),
        ("allowCidrs", "x"),
        ("allowDomains", "a b"),
        ("allowDomains", ""),
    ],
)
def test_what_is_no_network_and_no_name_is_refused(member: str, value: str) -> None:
    with pytest.raises(Invalid, match=member):
        request({"image": "host", member: [value]})


def test_ports_of_other_modes_are_not_published() -> None:
    found = request({"image": "host", "network": "outgoing", "ports": [{"container": 80}]})
    assert found.network == Network(mode=NetworkMode.OUTGOING)


def test_a_port_that_is_named_twice_is_one() -> None:
    found = request({"image": "host", "network": "exposed", "ports": [{"container": 80}, {"container": 80}]})
    assert found.network.ports == (Port(container=80),)


ENDED: dict[str, Any] = {"state": SandboxState.ENDED, "ended_at": NOON}


@pytest.mark.parametrize(
    ("members", "status"),
    [
        ({"state": SandboxState.CREATING}, "pending"),
        ({"state": SandboxState.RUNNING}, "running"),
        ({"state": SandboxState.STOPPING}, "stopping"),
        ({**ENDED, "ended_by": EndedBy.ITSELF, "exit_code": 0}, "stopped"),
        ({**ENDED, "ended_by": EndedBy.ITSELF, "exit_code": 42}, "failed"),
        ({**ENDED, "ended_by": EndedBy.STOP, "exit_code": 143}, "stopped"),
        ({**ENDED, "ended_by": EndedBy.KILL, "exit_code": 137}, "killed"),
        ({**ENDED, "ended_by": EndedBy.DEADLINE}, "killed"),
        ({**ENDED, "ended_by": EndedBy.LIMIT}, "killed"),
        ({**ENDED, "ended_by": EndedBy.FAILURE}, "failed"),
        ({**ENDED, "ended_by": EndedBy.LOST}, "failed"),
        ({**ENDED, "ended_by": EndedBy.ITSELF, "exit_code": 0, "is_deleted": True}, "killed"),
    ],
)
def test_states_look_like_the_protocols(members: dict[str, Any], status: str) -> None:
    found = sandbox(**members)
    assert status_of(found) == status
    states = states_of(status)
    assert states is not None
    assert found.state in states


def test_no_filter_means_all_states_and_an_unknown_one_is_refused() -> None:
    assert states_of(None) is None
    with pytest.raises(Invalid):
        states_of("nonsense")


def test_a_session_that_runs_shows_no_end() -> None:
    found = session(sandbox(started_at=NOON, deadline_at=NOON + timedelta(seconds=10)), "localhost")
    assert found == {
        "id": "sess_0a1b2c3d4e5f",
        "status": "running",
        "image": "host",
        "createdAt": "2026-02-03T04:05:06Z",
        "startedAt": "2026-02-03T04:05:06Z",
        "expiresAt": "2026-02-03T04:05:16Z",
    }


def test_an_exit_code_of_zero_is_shown() -> None:
    found = session(sandbox(**ENDED, ended_by=EndedBy.ITSELF, outcome=Outcome.EXITED, exit_code=0), "localhost")
    assert found["exitCode"] == 0
    assert found["endedAt"] == "2026-02-03T04:05:06Z"
    assert "expiresAt" not in found


def test_a_session_that_ran_out_of_time_shows_137() -> None:
    found = session(sandbox(**ENDED, ended_by=EndedBy.DEADLINE, outcome=Outcome.WALL_TIME), "localhost")
    assert (found["status"], found["exitCode"], found["outcome"]) == ("killed", 137, "wall_time")


PUBLISHED = Network(
    mode=NetworkMode.EXPOSED,
    ports=(
        Port(container=9000, host=40123),
        Port(container=53, host=40124, protocol=Protocol.UDP),
        Port(container=9000, host=40125, protocol=Protocol.UDP),
    ),
)


def test_exposed_ports_are_shown_alike_everywhere() -> None:
    found = created(sandbox(network=PUBLISHED), "sand.example.org")
    assert found["network"] == {
        "mode": "exposed",
        "host": "sand.example.org",
        "ports": {
            "9000": {"hostPort": 40123, "url": "http://sand.example.org:40123"},
            "53": {"hostPort": 40124, "url": "udp://sand.example.org:40124"},
            "9000/udp": {"hostPort": 40125, "url": "udp://sand.example.org:40125"},
        },
    }
    assert session(sandbox(network=PUBLISHED), "sand.example.org")["network"] == found["network"]
    assert "network" not in created(sandbox(network=Network(mode=NetworkMode.EXPOSED)), "localhost")


def test_the_url_of_a_port() -> None:
    assert exposed(sandbox(network=PUBLISHED), 9000, "localhost") == {
        "containerPort": 9000,
        "hostPort": 40123,
        "url": "http://localhost:40123",
        "protocol": "tcp",
    }
    with pytest.raises(NotFound):
        exposed(sandbox(network=PUBLISHED), 9999, "localhost")
    with pytest.raises(Conflict):
        exposed(sandbox(network=PUBLISHED, **ENDED), 9000, "localhost")


def file(**members: Any) -> FileInfo:
    base = FileInfo(
        name="a", path="/tmp/a", kind=FileKind.FILE, size=3, mode=0o644, modified_at=0.0, uid=1000, gid=1000
    )
    return replace(base, **members)


@pytest.mark.parametrize(
    ("info", "size", "is_directory", "mode"),
    [
        (file(), 3, False, 420),
        (file(kind=FileKind.DIRECTORY, size=0, mode=0o755), 0, True, 493),
        (file(kind=FileKind.OTHER, size=9), 0, False, 420),
        (file(kind=FileKind.LINK, size=7, mode=0o777, target="b", target_kind=FileKind.FILE, target_size=5,
              target_mode=0o600), 5, False, 0o600),
        (file(kind=FileKind.LINK, size=7, mode=0o777, target="b", target_kind=FileKind.DIRECTORY, target_mode=0o755),
         0, True, 493),
        (file(kind=FileKind.LINK, size=7, mode=0o777, target="gone"), 0, False, 0o777),
    ],
)  # fmt: skip
def test_entries_of_a_directory(info: FileInfo, size: int, is_directory: bool, mode: int) -> None:
    assert entry(info) == {"name": "a", "size": size, "isDir": is_directory, "mode": mode}


@pytest.mark.parametrize(
    ("items", "argv"),
    [
        ([("cmd", "id")], ("id",)),
        ([("cmd", "ls -l /app")], ("/bin/sh", "-c", "ls -l /app")),
        ([("cmd", "sh"), ("cmd", "-c"), ("cmd", "exit 7")], ("sh", "-c", "exit 7")),
        ([("cmd", "printf"), ("cmd", "")], ("printf", "")),
    ],
)
def test_arguments_of_an_exec(items: list[tuple[str, str]], argv: tuple[str, ...]) -> None:
    assert to_exec(Query(items)).argv == argv


def test_all_of_an_exec() -> None:
    spec = to_exec(
        Query([
            ("cmd", "bash"), ("workdir", "/app"), ("protocol", "binary"), ("env", "A=b=c"), ("env", "D="),
            ("tty", "true"), ("rows", "50"), ("cols", "132"), ("user", "root"), ("other", "x"),
        ])
    )  # fmt: skip
    assert (spec.cwd, spec.env, spec.user) == ("/app", {"A": "b=c", "D": ""}, "root")
    assert spec.terminal == TerminalSize(rows=50, columns=132)


@pytest.mark.parametrize(
    "items",
    [
        [],
        [("cmd", "")],
        [("cmd", "id"), ("protocol", "json")],
        [("cmd", "id"), ("env", "novalue")],
        [("cmd", "id"), ("env", "=v")],
        [("cmd", "id"), ("user", "nobody")],
        [("cmd", "id\0")],
        [("cmd", "id"), ("tty", "1"), ("rows", "0")],
        [("cmd", "id"), ("tty", "1"), ("cols", "many")],
    ],
)
def test_an_exec_that_is_wrong_is_refused(items: list[tuple[str, str]]) -> None:
    with pytest.raises(Invalid):
        to_exec(Query(items))


def test_paths() -> None:
    assert to_path("/a/b") == "/a/b"
    assert to_path("b", "/srv") == "/srv/b"
    for wrong in (None, "", "a\0b", "x" * 5000):
        with pytest.raises(Invalid):
            to_path(wrong)


def test_ids_are_the_protocols_and_differ() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(map(is_session, ids))
    assert not is_session("box_0a1b2c3d4e5f")


def test_times_are_written_in_utc() -> None:
    assert created(sandbox(created_at=datetime(2026, 1, 1, tzinfo=UTC)), "h")["createdAt"] == "2026-01-01T00:00:00Z"
