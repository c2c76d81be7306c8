"""`stockade box` against a server of the protocol: what it asks for, what it prints, its exit status."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from stockade.cli.box import box
from stockade.cli.volume import volume
from tests.warden.archives import DIRECTORY, archive

KEY = "sk_" + "a" * 40
BOX = {"box_id": "01K9ZB3M4T7QWERTYASDFGHJKZ", "name": "dev", "status": "running", "image": "app:1"}
ID = BOX["box_id"]


@dataclass
class Stub:
    """Answers each request as the table says, and remembers them."""

    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    """By method and path: an object, bytes, or a status with an object."""
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    headers: dict[str, str] = field(default_factory=dict)
    """That answers have."""

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.asked if body]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            stub.asked.append((self.command, self.path, self._body()))
            stub.keys.add(self.headers.get("authorization"))
            answer = stub.answers.get((self.command, self.path.partition("?")[0]), (404, refusal("none")))
            status, told = answer if isinstance(answer, tuple) else (200, answer)
            content = told if isinstance(told, bytes) else b"" if told is None else json.dumps(told).encode()
            self.send_response(status)
            for name, value in {**stub.headers, "content-length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_POST = do_PUT = do_DELETE = _answer

        def log_message(self, format: str, *arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    settings(monkeypatch, tmp_path, server.server_port)
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: int) -> None:
    monkeypatch.setenv("STOCKADE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("STOCKADE_API_KEY", KEY)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def refusal(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "AnError", "code": 409}, "message": message, "code": "a_code"}


def run(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(box, list(arguments), input=stdin)


def test_create_asks_for_what_was_wanted_and_prints_the_id(stub: Stub) -> None:
    stub.answers["POST", "/v1/boxes"] = (201, BOX)
    stub.answers["POST", f"/v1/boxes/{ID}/start"] = BOX
    done = run(
        *("create", "--image", "app:1", "--name", "dev", "-e", "A=b", "-w", "/srv", "-u", "5:6", "--cpus", "2"),
        *("--memory", "1G", "--disk", "8G", "--allow", "a.com", "-v", "data:/data", "-v", "more:/more:ro"),
        *("--auto-stop", "15m", "--auto-delete", "1s", "-l", "a=b", "--start", "--", "sleep", "--cpus", "9"),
    )
    assert (done.stdout, done.exit_code) == (f"{ID}\n", 0)
    (body,) = stub.bodies()
    assert body == {
        "image": "app:1", "name": "dev", "env": {"A": "b"}, "working_dir": "/srv", "user": "5:6", "cpus": 2,
        "memory_mib": 1024, "disk_size_gb": 8, "entrypoint": [], "cmd": ["sleep", "--cpus", "9"],
        "volumes": [{"managed_volume": "data", "guest_path": "/data", "read_only": False},
                    {"managed_volume": "more", "guest_path": "/more", "read_only": True}],
        "labels": {"a": "b"}, "auto_stop": 900, "auto_delete": 2, "auto_remove": False,
        "network": {"mode": "enabled", "allow_net": ["a.com"]},
    }  # fmt: skip
    assert stub.keys == {f"Bearer {KEY}"}
    assert json.loads(run("create", "--no-network", "--rm", "--json").stdout) == BOX
    assert stub.bodies()[-1] == {
        "image": "host", "env": {}, "volumes": [], "labels": {}, "auto_delete": 1, "auto_remove": False,
        "network": {"mode": "disabled"},
    }  # fmt: skip


def test_values_of_secrets_come_from_the_environment(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "the value")
    stub.answers["POST", "/v1/boxes"] = (201, BOX)
    assert run("create", "--secret", "TOKEN@api.a.com,*.b.com").exit_code == 0
    (body,) = stub.bodies()
    assert body["secrets"] == [{"name": "TOKEN", "value": "the value", "hosts": ["api.a.com", "*.b.com"]}]


def test_volumes_are_made_listed_and_removed(stub: Stub) -> None:
    made = {"id": "vol_1", "name": "data", "size_bytes": 3 << 30, "created_at": "2026-01-01T00:00:00Z"}
    stub.answers |= {
        ("POST", "/v1/volumes"): (201, made),
        ("GET", "/v1/volumes"): {"volumes": [made]},
        ("DELETE", "/v1/volumes/a%20b"): (204, None),
    }

    def volumes(*arguments: str) -> Result:
        return CliRunner().invoke(volume, list(arguments))

    assert volumes("create", "--name", "data", "--size", "2.5G").stdout == "vol_1\n"
    assert volumes("create").stdout == "vol_1\n"
    assert stub.bodies() == [{"name": "data", "size_gb": 3}, {}]
    assert all(one in volumes("list").stdout for one in ("vol_1", "data", "3 GiB"))
    assert json.loads(volumes("list", "--json").stdout) == [made]
    assert volumes("remove", "-f", "a b").stdout == "a b\n"
    assert stub.asked[-1][:2] == ("DELETE", "/v1/volumes/a%20b?force=true")


@pytest.mark.parametrize(
    "option",
    [
        *(("-v", "data"), ("-v", ":/x"), ("-l", "a"), ("--memory", "lots"), ("--auto-stop", "soon")),
        *(("--secret", "TOKEN"), ("--secret", "NOT_SET@a.com")),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_asked(stub: Stub, option: tuple[str, str]) -> None:
    assert run("create", *option).exit_code == 2
    assert not stub.asked


def test_boxes_are_listed_and_shown(stub: Stub) -> None:
    stub.answers["GET", "/v1/boxes"] = {"boxes": [BOX], "next_page_token": None}
    stub.answers["GET", "/v1/boxes/a%20b"] = BOX
    assert all(one in run("list", "--status", "running").stdout for one in (ID, "dev", "running", "app:1"))
    assert stub.asked[0][1] == "/v1/boxes?status=running"
    assert json.loads(run("list", "--json").stdout) == [BOX]
    assert json.loads(run("show", "a b").stdout) == BOX


def test_what_is_done_with_several_is_told_of_each(stub: Stub) -> None:
    for action in ("start", "stop", "pause", "resume"):
        stub.answers["POST", f"/v1/boxes/a/{action}"] = BOX
        stub.answers["POST", f"/v1/boxes/b/{action}"] = (409, refusal("it cannot"))
        done = run(action, "a", "b", "a")
        assert (done.stdout, done.stderr, done.exit_code) == ("a\na\n", "stockade: b: it cannot\n", 1)
    stub.answers["DELETE", "/v1/boxes/a"] = (204, None)
    assert run("remove", "-f", "a").stdout == "a\n"
    assert stub.asked[-1][:2] == ("DELETE", "/v1/boxes/a?force=true")
    stub.answers["POST", "/v1/boxes/a/start"] = (401, refusal("who is it?"))
    assert "does not accept the API key" in run("start", "a", "a").stderr


def test_snapshots_and_copies(stub: Stub) -> None:
    kept = {"id": "s", "name": "s 1/é", "size_bytes": 4096, "created_at": 1}
    stub.answers |= {
        ("POST", "/v1/boxes/a/snapshots"): (201, kept),
        ("GET", "/v1/boxes/a/snapshots"): {"snapshots": [kept]},
        ("DELETE", "/v1/boxes/a/snapshots/s%201%2F%C3%A9"): (204, None),
        ("POST", "/v1/boxes/a/snapshots/s%201%2F%C3%A9/restore"): (204, None),
        ("POST", "/v1/boxes/a/clone"): (201, BOX),
        ("POST", "/v1/boxes/a/fork"): (201, {"boxes": [BOX, BOX]}),
    }
    assert run("snapshot", "a", "s 1/é").stdout == "s 1/é\n"
    listed = run("snapshots", "a").stdout
    assert "4096" in listed
    assert "1970-01-01T00:00:01Z" in listed
    assert run("snapshots", "a", "--remove", "s 1/é").stdout == "s 1/é\n"
    assert run("restore", "a", "s 1/é").exit_code == 0
    assert run("clone", "a", "--name", "c", "--snapshot", "s").stdout == f"{ID}\n"
    assert run("fork", "a", "2", "--no-start").stdout == f"{ID}\n{ID}\n"
    assert stub.bodies() == [{"name": "s 1/é"}, {"name": "c", "snapshot": "s"}, {"count": 2, "start": False}]


def test_a_box_goes_to_a_file_and_comes_from_one(stub: Stub, tmp_path: Path) -> None:
    stub.answers["POST", "/v1/boxes/a/export"] = b"the bytes" * 1000
    stub.answers["POST", "/v1/boxes/import"] = (201, BOX)
    assert run("export", "a", "file").exit_code == 0
    assert (tmp_path / "file").read_bytes() == b"the bytes" * 1000
    assert run("export", "a", "-").stdout_bytes == b"the bytes" * 1000
    assert run("import", "file", "--name", "n").stdout == f"{ID}\n"
    assert stub.asked[-1] == ("POST", "/v1/boxes/import?name=n", b"the bytes" * 1000)
    stub.answers["POST", "/v1/boxes/import"] = (400, refusal("it is damaged"))
    done = run("import", "-", stdin=b"x")
    assert (done.stderr, done.exit_code) == ("stockade: it is damaged\n", 1)
    assert stub.asked[-1][2] == b"x"
    (tmp_path / "file").write_bytes(b"old")
    stub.answers["POST", "/v1/boxes/a/export"] = (409, refusal("not now"))
    assert run("export", "a", "file").exit_code == 1
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file"]


def test_files_are_copied_as_cp_does(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a").write_bytes(b"1")
    stub.answers["PUT", "/v1/boxes/b/files"] = (204, None)
    stub.answers["GET", "/v1/boxes/b"] = BOX
    assert run("cp", "d/a", "b:/tmp/new").exit_code == 0
    assert run("cp", "d", "b:/tmp/new").exit_code == 0
    stub.headers["x-boxlite-source-is-dir"] = "true"
    stub.answers["GET", "/v1/boxes/b/files"] = archive(("./", {**DIRECTORY, "mode": 0o755}, b""), ("./x", {}, b"2"))
    assert run("cp", "d", "b:/tmp/there").exit_code == 0
    puts = [path for method, path, _ in stub.asked if method == "PUT"]
    assert puts == [
        "/v1/boxes/b/files?path=%2Ftmp%2Fnew&source_is_dir=false",
        "/v1/boxes/b/files?path=%2Ftmp%2Fnew%2F",
        "/v1/boxes/b/files?path=%2Ftmp%2Fthere%2Fd%2F",
    ]
    assert run("cp", "b:/srv", "new").exit_code == 0
    assert run("cp", "b:/srv", "d").exit_code == 0
    assert (tmp_path / "new/x").read_bytes() == (tmp_path / "d/srv/x").read_bytes() == b"2"
    stub.headers["x-boxlite-source-is-dir"] = "false"
    stub.answers["GET", "/v1/boxes/b/files"] = archive(("file", {"mode": 0o755}, b"3"))
    assert run("cp", "b:/file", "got").exit_code == 0
    assert run("cp", "b:/file", "d").exit_code == 0
    assert (tmp_path / "got").read_bytes() == (tmp_path / "d/file").read_bytes() == b"3"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["d", "got", "new"]
    assert run("cp", "b:/x", "c:/y").exit_code == 2
    assert run("cp", "none", "b:/y").exit_code == 1


@dataclass
class Attached:
    """A server whose only process says what it is told to say."""

    script: list[bytes | str]
    breaks: bool = False
    """Hang up then."""
    heard: list[bytes | str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Attached]:
    """Plain requests go to this one, too: those for WebSockets are all that the library below can answer alone."""
    told = Attached(script=[])

    def handle(connection: ServerConnection) -> None:
        for message in told.script:
            connection.send(message)
        if told.breaks:
            connection.close()
        try:
            for heard in connection:
                told.heard.append(heard)
        except ConnectionClosed:
            pass

    server = serve(handle, "127.0.0.1", 0, ping_interval=None)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    settings(monkeypatch, tmp_path, server.socket.getsockname()[1])

    def exec_(self: object, box: str, body: dict[str, Any]) -> str:
        told.requests.append(f"exec {box} {json.dumps(body, sort_keys=True)}")
        return "exec-1"

    def forget(self: object, box: str, execution: str) -> None:
        told.requests.append(f"forget {box} {execution}")

    monkeypatch.setattr("stockade.cli.box_client.BoxClient.exec", exec_)
    monkeypatch.setattr("stockade.cli.box_client.BoxClient.forget", forget)
    try:
        yield told
    finally:
        server.shutdown()
        thread.join()


def test_exec_shows_what_the_process_writes_and_ends_as_it_does(
    attached: Attached, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    attached.script = [b"\x01out", b"\x02err", b"", b"\x09?", json.dumps({"type": "exit", "exit_code": 3})]
    done = run("exec", "-e", "A=b", "-w", "/srv", "-u", "root", "--timeout", "5s", "dev", "--", "sh", "-c", "exit 3")
    assert done.exit_code == 3, done.output
    assert capfdbinary.readouterr() == (b"out", b"err")
    body = {
        "args": ["-c", "exit 3"], "command": "sh", "env": {"A": "b"}, "timeout_seconds": 5.0, "tty": False,
        "user": "root", "working_dir": "/srv",
    }  # fmt: skip
    assert attached.requests == [f"exec dev {json.dumps(body)}"]
    deadline = time.monotonic() + 60
    while not attached.heard and time.monotonic() < deadline:
        time.sleep(0.01)
    assert attached.heard == [json.dumps({"type": "stdin_eof"})]


def test_a_connection_that_breaks_kills_the_process(
    attached: Attached, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    attached.script = [b"\x01out", json.dumps({"type": "error", "message": "the box is gone"})]
    attached.breaks = True
    done = run("exec", "dev", "cat")
    out, err = capfdbinary.readouterr()
    assert (done.exit_code, out) == (1, b"out")
    assert b"the box is gone" in err
    assert attached.requests[-1] == "forget dev exec-1"
    attached.script = []
    assert "broke" in run("exec", "dev", "cat").stderr
