"""What is the docker backend's own: its gate, what the gate sends to the engine, and what outlives whom."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stockade import registry
from stockade.backends.base import Backend, BackendOptions
from stockade.backends.docker import launch, recipe
from stockade.backends.docker.api import Api
from stockade.backends.docker.features import Probe, features
from stockade.backends.docker.guest import ENDED, HEAD, OUTPUT
from stockade.backends.docker.runner import _PROBE, DockerBackend
from stockade.backends.docker.streams import Conversation
from stockade.errors import BackendLost, Fault, InvalidLimit, Unavailable
from stockade.model import Outcome
from stockade.warden.fields import Refused
from tests.backends.sandboxes import MB, commands, run, running, until
from tests.deploy.engine import Engine
from tests.docker_engine import docker_backend, docker_engine, docker_options, socket_of

pytestmark = pytest.mark.anyio

LIMITS: dict[str, Any] = {
    "wall_s": 5.0, "cpus": 1.0, "memory_bytes": 64 * MB, "processes": 10, "disk_bytes": MB, "disk_inodes": 100,
    "stack_bytes": MB, "open_files": 64,
}  # fmt: skip
PLACE = recipe.Place(
    image="sha256:1", runtime="", instance="i", binds=[("/usr", "/usr")], empty="", processors=2, has_own_kernel=False
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with docker_engine(tmp_path_factory.mktemp("docker"), runsc=True) as one:
        yield one


@pytest.fixture(scope="module")
async def backend(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Backend]:
    async with docker_backend(engine, tmp_path_factory.mktemp("data")) as backend:
        yield backend


# ── what the engine is sent ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_container_is_given_nothing_that_it_does_not_need() -> None:
    body = recipe.container(PLACE, recipe.Demand.parse(LIMITS), uid=1000)
    host = body["HostConfig"]
    assert (host["NetworkMode"], host["Privileged"], host["ReadonlyRootfs"]) == ("none", False, True)
    assert (host["CapDrop"], sorted(host["CapAdd"])) == (["ALL"], ["KILL", "SETGID", "SETPCAP", "SETUID"])
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["MemorySwap"] == host["Memory"] == 64 * MB
    assert all(mount["ReadOnly"] for mount in host["Mounts"])
    assert "Binds" not in host
    assert "Devices" not in host
    assert host["LogConfig"] == {"Type": "none"}
    assert all(f"size={MB}" in options for options in host["Tmpfs"].values())


def test_what_is_shown_of_the_host_cannot_be_written_to() -> None:
    """Neither as an overlay, which has no upper directory, nor where there can be none."""
    demand = recipe.Demand.parse(LIMITS)
    for source in ("/usr", "/opt/a:b", "/opt/a,upperdir=/x"):
        place = replace(PLACE, binds=[(source, "/usr")], empty="/var/lib/docker/empty")
        (mount,) = recipe.container(place, demand, uid=1000)["HostConfig"]["Mounts"]
        if mount["Type"] == "bind":
            assert mount["ReadOnly"]
            continue
        options = mount["VolumeOptions"]["DriverConfig"]["Options"]["o"].split(",")
        assert options == ["ro", "nosuid", "nodev", "lowerdir=/usr:/var/lib/docker/empty"]


@pytest.mark.parametrize(
    "changes",
    [
        {"memory_bytes": 0}, {"memory_bytes": -1}, {"memory_bytes": 1 << 60}, {"memory_bytes": True},
        {"memory_bytes": "64m"}, {"cpus": 0}, {"cpus": float("nan")}, {"wall_s": None}, {"processes": 1.5},
        {"disk_bytes": "1,mode=777"}, {"disk_inodes": [1]}, {"open_files": {}},
    ],
    ids=repr,
)  # fmt: skip
def test_a_demand_is_numbers_and_nothing_else(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        recipe.Demand.parse(LIMITS | changes)


# ── the gate ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def ask(client: socket.socket, line: bytes) -> dict[str, Any]:
    client.settimeout(60)
    client.sendall(line)
    with client.makefile("rb") as file:
        answer: dict[str, Any] = json.loads(file.readline() or b"{}")
    return answer


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"null\n", b"[]\n", b"{\n", b'{"op": "exec"}\n', b'{"op": "run"}\n', b'{"op": "run", "limits": 1}\n',
        b"[" * 9000 + b"\n", b"x" * 20_000, b"\xff\n",
        b'{"op": "run", "limits": {}, "HostConfig": {"Privileged": true}}\n',
    ],
    ids=lambda line: repr(line[:30]),
)  # fmt: skip
async def test_the_gate_refuses_what_is_no_request(backend: DockerBackend, line: bytes) -> None:
    gate = backend._gate
    assert gate is not None
    with gate.connect() as client:
        answer = await asyncio.to_thread(ask, client, line)
    assert answer["error"]["kind"] == "invalid"


async def test_what_a_request_says_beside_its_limits_does_not_reach_the_engine(
    backend: DockerBackend, engine: Engine
) -> None:
    """A server that was taken over asks for more than it may."""
    gate = backend._gate
    assert gate is not None
    more = {"Privileged": True, "Binds": ["/:/host"], "HostConfig": {"Binds": ["/:/host"]}, "image": "other", "uid": 0}
    request = json.dumps({"op": "run", "limits": LIMITS | more, **more}).encode() + b"\n"
    with gate.connect() as client:
        answer = await asyncio.to_thread(ask, client, request)
        name = newest(engine, answer["ok"]["uid"])
        facts = Api(str(socket_of(engine))).get("containers", name, "json")
    host = facts["HostConfig"]
    assert (host["Privileged"], host["Binds"], host["CapDrop"]) == (False, None, ["ALL"])
    assert [(mount["Type"], mount["Destination"]) for mount in facts["Mounts"]] == [("volume", "/usr")]


def newest(engine: Engine, uid: int) -> str:
    """The container whose tenant has that id."""
    api = Api(str(socket_of(engine)))
    for one in api.get("containers", "json", all=1):
        if f"uid={uid}," in json.dumps(api.get("containers", one["Id"], "json")["HostConfig"]["Tmpfs"]):
            return str(one["Id"])
    raise AssertionError(f"no container for {uid}")


def started(argv: list[str], **more: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(argv, **more)


async def test_a_gate_that_listens_lets_in_whom_it_was_told_of(engine: Engine, tmp_path: Path) -> None:
    """And serves a server that may not talk to the engine."""
    path = tmp_path / "gate.sock"
    configuration = tmp_path / "stockade.toml"
    configuration.write_text(f'data_dir = "{tmp_path}"\n[docker]\nsocket = "{socket_of(engine)}"\n')
    program = str(Path(sys.executable).with_name("stockade"))
    argv = [program, "docker-gate", "--listen", str(path), "--allow-uid", "0", "--config", str(configuration)]
    with started(argv) as process:
        try:
            await asyncio.to_thread(until, path.exists)
            assert path.stat().st_mode & 0o777 == 0o600
            script = (
                "import os, socket, sys\n"
                "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
                "s = socket.socket(socket.AF_UNIX); s.settimeout(30); s.connect(sys.argv[1])\n"
                'try: s.sendall(b\'{"op": "hello"}\\n\'); print(s.recv(10))\n'
                "except OSError: print(b'')\n"
            )
            for parent in (tmp_path, *tmp_path.parents):
                if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
                    parent.chmod(parent.stat().st_mode | 0o001)
            path.chmod(0o666)  # so that it is the gate that refuses, and not the file
            done = await asyncio.to_thread(
                subprocess.run, ["/usr/bin/python3", "-I", "-c", script, str(path)], capture_output=True, timeout=60
            )
            assert done.stdout.strip() == b"b''", done.stderr
            made = BackendOptions(data_dir=tmp_path, docker_socket=tmp_path / "no-such-socket", docker_gate=path)
            other = registry.find("backends", "docker").make(made)
            try:
                await other.start()
                assert (await run(other, "/bin/echo", "through")).stdout == b"through\n"
                features = {one.name: one for one in (await other.report()).features}
                assert not features["gate"].enforced  # we are root
            finally:
                await other.close()
            process.terminate()
            await asyncio.to_thread(until, lambda: process.poll() is not None)
            assert not of_instance(engine, tmp_path)  # it has cleared up before it ended
        finally:
            process.kill()


async def test_an_engine_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    made = registry.find("backends", "docker").make(BackendOptions(data_dir=tmp_path, docker_socket=tmp_path / "none"))
    try:
        with pytest.raises(Unavailable, match="none"):
            await made.start()
        report = await made.report()
        assert report.missing == ("sandboxes",)
    finally:
        await made.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"docker_image": "no-such-image"}, "docker pull"), ({"docker_runtime": "no-such-runtime"}, "no runtime")],
    ids=["image", "runtime"],
)
async def test_what_the_engine_does_not_have_is_refused_at_the_start(
    engine: Engine, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(Exception, match=said):
        async with docker_backend(engine, tmp_path, **options):
            pass


async def test_an_image_with_volumes_or_without_python_is_refused(engine: Engine, tmp_path: Path) -> None:
    """Nothing limits what is written to a volume; and the guest needs an interpreter."""
    api = Api(str(socket_of(engine)))
    empty = b"\0" * 10240
    api.send("images", "create", body=[empty], fromSrc="-", repo="with-volume", changes="VOLUME /data")
    api.send("images", "create", body=[empty], fromSrc="-", repo="bare")
    with pytest.raises(Exception, match="VOLUME"):
        async with docker_backend(engine, tmp_path, docker_image="with-volume"):
            pass
    with pytest.raises(Exception, match="python3"):
        async with docker_backend(engine, tmp_path, docker_image="bare"):
            pass


# ── who outlives whom ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_outlives_a_killed_gate(engine: Engine, tmp_path: Path) -> None:
    """The guest's input ends with it; what is left of the container the next gate of this server removes."""
    async with docker_backend(engine, tmp_path) as backend:
        task = asyncio.create_task(run(backend, "/bin/sleep", "65432.5"))
        await asyncio.to_thread(until, lambda: running("65432.5"))
        os.kill(gate_of(os.getpid(), tmp_path), signal.SIGKILL)
        with pytest.raises(BackendLost):
            await task
        await asyncio.to_thread(until, lambda: not running("65432.5"))
        assert (await run(backend, "/bin/echo", "again")).stdout == b"again\n"
        await asyncio.to_thread(until, lambda: all(one["State"] == "running" for one in of_instance(engine, tmp_path)))


async def test_nothing_outlives_a_killed_server(engine: Engine, tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from stockade import registry\n"
        "from stockade.backends.base import BackendOptions\n"
        "from tests.backends.sandboxes import run\n"
        "async def main():\n"
        "    options = BackendOptions(data_dir=Path(sys.argv[1]), docker_socket=Path(sys.argv[2]))\n"
        "    await run(registry.find('backends', 'docker').make(options), '/bin/sleep', '54321.25')\n"
        "asyncio.run(main())\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path), str(socket_of(engine))]
    with started(argv, cwd=Path(__file__).parents[2]) as server:
        try:
            await asyncio.to_thread(until, lambda: running("/bin/sleep 54321.25"))
        finally:
            server.kill()
    await asyncio.to_thread(until, lambda: not running("/bin/sleep 54321.25"))
    await asyncio.to_thread(until, lambda: not of_instance(engine, tmp_path))


def of_instance(engine: Engine, data_dir: Path) -> list[Any]:
    """Containers of the servers that use that data directory."""
    wanted = {"label": [f"{recipe.INSTANCE_LABEL}={instance_of(data_dir)}"]}
    found: list[Any] = Api(str(socket_of(engine))).get("containers", "json", all=1, filters=wanted)
    return found


def instance_of(data_dir: Path) -> str:
    words = launch.command(BackendOptions(data_dir=data_dir))
    return words[words.index("--instance") + 1]


def gate_of(parent: int, data_dir: Path) -> int:
    """Pid of the gate that this process has for that data directory."""
    instance = instance_of(data_dir)  # not by `running`: the engine's socket may lie in one of pytest's directories
    (pid,) = [pid for pid, command in commands().items() if instance in command and pid != parent]
    return pid


# ── limits that are the docker backend's own ─────────────────────────────────────────────────────────────────────────


async def test_all_file_systems_together_hold_no_more_than_the_limit(backend: Backend) -> None:
    """Each has the limit's size, so that the guest counts them together."""
    script = "for d in /tmp /var/tmp /dev/shm /code $HOME; do head -c 6000000 /dev/zero > $d/a; done; sleep 60"
    result = await run(backend, "/bin/sh", "-c", script, disk_bytes=8 * MB, env={"HOME": "/home/user"})
    assert result.outcome is Outcome.DISK


async def test_a_processes_limit_below_what_runc_itself_needs_holds(backend: Backend) -> None:
    script = (
        "import os, time\nfor made in range(9):\n    if not os.fork(): time.sleep(60)\n    print(made, flush=True)\n"
    )
    result = await run(backend, "/usr/bin/python3", "-c", script, processes=3)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == b"1"


async def test_what_is_shown_of_the_host_is_read_only_and_leaves_nothing_behind(
    backend: Backend, engine: Engine
) -> None:
    result = await run(backend, "/bin/sh", "-c", "grep ' /usr ' /proc/mounts; touch /usr/new; mount | grep -c /usr")
    assert b"overlay /usr overlay ro," in result.stdout, result
    assert b"nosuid" in result.stdout.splitlines()[0]
    assert b"Read-only" in result.stderr
    features = {one.name: one.enforced for one in (await backend.report()).features}
    assert features["own_inodes"]
    api = Api(str(socket_of(engine)))
    running = {one["Id"] for one in api.get("containers", "json", all=1)}
    await asyncio.to_thread(until, lambda: len(api.get("volumes")["Volumes"] or ()) <= len(running))


async def test_input_may_be_larger_than_any_file_of_the_tenants(backend: Backend) -> None:
    result = await run(backend, "/usr/bin/wc", "-c", stdin=b"x" * (3 * MB), disk_bytes=MB)
    assert result.stdout == b"%d\n" % (3 * MB), result


async def test_memory_that_the_guest_does_not_fit_into_is_refused(backend: Backend) -> None:
    with pytest.raises(InvalidLimit, match="memory_bytes"):
        await run(backend, "/bin/true", memory_bytes=8 * MB)


async def test_tenants_have_different_ids_with_one_name(backend: Backend) -> None:
    found = [await run(backend, "/bin/sh", "-c", "id -u; id -un; id -gn") for _ in range(2)]
    ids = [result.stdout.decode().split() for result in found]
    assert ids[0][0] != ids[1][0]
    assert [names[1:] for names in ids] == [["user", "user"]] * 2


async def test_the_next_container_waits_for_its_program(backend: DockerBackend) -> None:
    """And is used once."""
    spares = backend._containers._spares
    for _ in range(2):  # limits that nobody has asked for twice are not expected again
        await run(backend, "/bin/true", disk_inodes=777)

    def spare() -> list[int]:
        return [container.uid for shape, container in spares.items() if 777 in shape]

    await asyncio.to_thread(until, spare)
    (uid,) = spare()
    assert (await run(backend, "/usr/bin/id", "-u", disk_inodes=777)).stdout == b"%d\n" % uid
    await asyncio.to_thread(until, lambda: spare() and spare() != [uid])


async def test_a_container_that_died_waiting_is_not_used(backend: DockerBackend, engine: Engine) -> None:
    for _ in range(2):
        await run(backend, "/bin/true", disk_inodes=778)
    spares = backend._containers._spares
    await asyncio.to_thread(until, lambda: any(778 in shape for shape in spares))
    container = next(one for shape, one in spares.items() if 778 in shape)
    await asyncio.to_thread(Api(str(socket_of(engine))).post, "containers", newest(engine, container.uid), "kill")
    await asyncio.to_thread(until, lambda: container not in spares.values())
    assert (await run(backend, "/bin/echo", "fine", disk_inodes=778)).stdout == b"fine\n"


async def test_runsc_as_the_runtime_says_what_it_does_not_enforce(engine: Engine, tmp_path: Path) -> None:
    """gVisor shows a container no control groups to read its CPU time from; its tmpfs has no limit on inodes."""
    made = registry.find("backends", "docker").make(docker_options(engine, tmp_path, docker_runtime="runsc"))
    try:
        report = await made.report()
    finally:
        await made.close()
    if "sandboxes" in report.missing:
        pytest.skip(f"this runsc does not run under this engine: {report.features[0].mechanism}")
    assert set(report.missing) == {"cpu_time", "disk"}


# ── what a guest says is not believed ────────────────────────────────────────────────────────────────────────────────


async def heard(*frames: bytes, most_output: int = 10) -> Conversation:
    """A conversation of which Docker has framed *frames* as standard output."""
    reader = asyncio.StreamReader()
    for frame in frames:
        reader.feed_data(b"\1\0\0\0" + len(frame).to_bytes(4, "big") + frame)
    reader.feed_eof()
    conversation = Conversation(most_output=most_output, most_collected=10)
    await conversation.listen(reader)
    return conversation


def said(kind: bytes, data: bytes) -> bytes:
    return HEAD.pack(kind, len(data)) + data


async def test_output_beyond_the_limit_is_not_kept() -> None:
    conversation = await heard(said(OUTPUT[0], b"x" * 8), said(OUTPUT[0], b"y" * 8), said(OUTPUT[1], b"z" * 100))
    assert [bytes(one) for one in conversation.output] == [b"xxxxxxxxyy", b"z" * 10]


@pytest.mark.parametrize(
    "frame",
    [
        said(b"?", b""),
        HEAD.pack(b"O", 1 << 30),
        said(b"C", b"x" * 11),
        said(ENDED, b"null"),
        said(ENDED, b"{}"),
        said(ENDED, b'{"reason": "nonsense", "status": 0}'),
        said(ENDED, b"[" * 60_000),
    ],
    ids=["kind", "length", "bundle", "null", "empty", "reason", "deep"],
)
async def test_what_no_guest_says_is_a_fault(frame: bytes) -> None:
    with pytest.raises(Fault):
        await heard(frame)


async def test_frames_come_in_any_pieces() -> None:
    whole = said(OUTPUT[0], b"ab") + said(OUTPUT[1], b"cd")
    conversation = await heard(*(whole[at : at + 1] for at in range(len(whole))))
    assert [bytes(one) for one in conversation.output] == [b"ab", b"cd"]


# ── what is said of the gate ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("uid", "may_write", "expected"),
    [(1000, False, True), (1000, True, False), (0, False, False), (77, False, False)],
    ids=["apart", "in the group docker", "root", "the gate's own user"],
)
def test_a_gate_counts_only_where_the_server_cannot_go_past_it(
    monkeypatch: pytest.MonkeyPatch, uid: int, *, may_write: bool, expected: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(os, "access", lambda *_: may_write)
    found = features(
        {"gate_uid": 77}, Probe(asked=_PROBE, in_force={}, has_filter=True), socket=Path("/var/run/docker.sock")
    )
    assert {one.name: one.enforced for one in found}["gate"] is expected


@pytest.mark.parametrize(
    ("in_force", "missing"),
    [
        ({}, {"disk", "cpu_time"}),
        ({"memory": 256 * MB, "swap": 0, "processes": 41, "cpu_rate": 1.0, "cpu_time": 1.0}, {"disk"}),
        ({"memory": 1 << 62, "swap": 5 * MB, "cpu_rate": 2.0}, {"memory", "swap", "cpu_rate", "disk", "cpu_time"}),
        ({"disk": MB, "inodes": 101, "cpu_time": 1.0, "processes": 1000}, {"processes"}),
    ],
    ids=["nothing seen", "seen", "others seen", "too many processes"],
)
def test_what_is_seen_in_a_container_outweighs_what_the_engine_says(
    in_force: dict[str, float], missing: set[str]
) -> None:
    facts = {"memory": True, "swap": True, "processes": True, "cpu_rate": True}
    found = features(facts, Probe(asked=_PROBE, in_force=in_force, has_filter=True), socket=Path("/none"))
    assert {one.name for one in found if one.required and not one.enforced} == missing


async def test_the_gate_has_given_up_all_capabilities(backend: DockerBackend) -> None:
    gate = backend._gate
    assert gate is not None
    assert gate._process is not None
    facts = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{gate._process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert [facts[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")] == ["0" * 16] * 4
    assert facts["NoNewPrivs"] == "1"
    assert Path(f"/proc/{gate._process.pid}/environ").read_bytes() == b""
