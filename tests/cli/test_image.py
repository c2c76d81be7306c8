"""`stockade image` against a server of the protocol: what it asks for, what it prints, its exit status."""

import contextlib
import io
import json
import logging
import sys
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from click.testing import Result
from typer.testing import CliRunner

from stockade.app.lock import exclusive
from stockade.cli.image import image
from stockade.config import Config, LogConfig
from stockade.engine.image_store import ImageStore
from stockade.engine.tasks import Tasks
from stockade.engine.workshops import Workshops
from stockade.errors import Invalid, NotFound
from stockade.model import Actor
from stockade.store import Database
from stockade.store.images import ImageTable
from tests.engine.image_fakes import FakeDisks, FakeSandboxes, docker_archive, layer, made, oci_layout, sha256
from tests.engine.live_fakes import limits

KEY = "sk_" + "a" * 40
IMAGE = {
    "reference": "docker.io/library/app:1",
    "digest": "sha256:" + "1" * 64,
    "size_bytes": 5_000_000,
    "source": "registry",
    "used_at": "2026-05-01T10:00:00Z",
    "aliases": ["docker.io/library/mine:latest"],
}
LAYER = {"digest": "sha256:" + "2" * 64, "size_bytes": 10, "fetched_bytes": 0, "state": "waiting"}
REGISTRY = {"id": "an-id", "registry_host": "ghcr.io", "repository_prefix": "team", "username": "robot"}


@dataclass
class Stub:
    """Answers each request as the table says, and remembers them."""

    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    """By method and path: an object, a status with an object, or events."""
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    url: str = ""


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            stub.asked.append((self.command, self.path, body))
            stub.keys.add(self.headers.get("authorization"))
            answer = stub.answers.get((self.command, self.path.partition("?")[0]), (404, refusal(404, "none")))
            status, told = answer if isinstance(answer, tuple) else (200, answer)
            media_type = "application/json"
            if isinstance(told, list):
                media_type, content = "text/event-stream; charset=utf-8", b": alive\n\n" + b"".join(map(event, told))
            else:
                content = b"" if told is None else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("content-type", media_type)
            self.send_header("content-length", str(len(content)))
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

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, format: str, *arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name, value in (("URL", stub.url), ("API_KEY", KEY)):
        monkeypatch.setenv(f"STOCKADE_{name}", value)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def event(one: tuple[str, Mapping[str, Any]]) -> bytes:
    return f"event: {one[0]}\ndata: {json.dumps(one[1])}\n\n".encode()


def refusal(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "AnError", "code": status}, "message": message, "code": "a_code"}


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(image, list(arguments), input=stdin)


def test_pull_prints_the_digest_once_the_image_is_there(stub: Stub) -> None:
    steps = [("layer", LAYER), ("layer", LAYER | {"fetched_bytes": 10, "state": "done"}), ("image", IMAGE)]
    stub.answers["POST", "/v1/images/pull"] = steps
    done = run("pull", "app:1", "--force")
    assert (done.stdout, done.exit_code) == (f"{IMAGE['digest']}\n", 0)
    ((_, _, body),) = stub.asked
    assert json.loads(body) == {"reference": "app:1", "force": True}
    assert stub.keys == {f"Bearer {KEY}"}
    assert json.loads(run("pull", "app:1", "--json").stdout) == IMAGE


def test_pull_says_why_it_failed_also_in_the_middle(stub: Stub) -> None:
    stub.answers["POST", "/v1/images/pull"] = [("layer", LAYER), ("error", refusal(422, "the layer broke off"))]
    done = run("pull", "app:1")
    assert (done.stdout, done.stderr, done.exit_code) == ("", "stockade: the layer broke off\n", 1)
    stub.answers["POST", "/v1/images/pull"] = (422, refusal(422, "there is no such image"))
    assert run("pull", "app:1").stderr == "stockade: there is no such image\n"
    stub.answers["POST", "/v1/images/pull"] = [("layer", LAYER)]
    done = run("pull", "app:1")
    assert "ended its answer before the image was there" in done.stderr
    assert done.exit_code == 1


def test_images_are_listed_and_shown(stub: Stub) -> None:
    stub.answers["GET", "/v1/images"] = {"images": [IMAGE]}
    listed = run("list").stdout
    assert all(one in listed for one in ("app:1 ", "1" * 12, "5.0 MB", "registry", "mine:latest"))
    assert json.loads(run("list", "--json").stdout) == [IMAGE]
    stub.answers["GET", "/v1/images/ghcr.io%2Fteam%2Fapp%3A1"] = {"name": "app"}
    assert json.loads(run("show", "ghcr.io/team/app:1").stdout) == {"name": "app"}
    stub.answers["GET", "/v1/images/usage"] = {"count": 2, "limit": None, "known_bytes": 5_000_000}
    assert run("usage").stdout == "2 images, 5.0 MB\n"


def test_names_are_given_and_taken_and_images_removed(stub: Stub) -> None:
    stub.answers |= {
        ("POST", "/v1/images/app%3A1/aliases"): IMAGE,
        ("DELETE", "/v1/images/app%3A1/aliases/mine"): (204, None),
        ("DELETE", "/v1/images/app%3A1"): (204, None),
        ("DELETE", "/v1/images/b"): (409, refusal(409, "a box stands on it")),
        ("POST", "/v1/images/prune"): {"removed": ["old:1"], "freed_bytes": 1000},
    }
    assert run("alias", "app:1", "mine").exit_code == 0
    assert run("alias", "app:1", "mine", "--remove").exit_code == 0
    done = run("remove", "app:1", "b", "c")
    assert (done.stdout, done.stderr, done.exit_code) == ("app:1\n", "stockade: a box stands on it\n", 1)
    assert run("prune", "--unused", "1d").stdout == "old:1\n"
    assert [json.loads(body) for method, _, body in stub.asked if method == "POST"] == [
        {"alias": "mine"},
        {"unused_s": 86400},
    ]


def test_an_archive_and_a_layout_are_sent_as_they_are(stub: Stub, tmp_path: Path) -> None:
    stub.answers["POST", "/v1/images/import"] = IMAGE
    (tmp_path / "saved.tar").write_bytes(layer({"manifest.json": b"[]"}))
    assert run("import", str(tmp_path / "saved.tar"), "app:1").stdout == f"{IMAGE['digest']}\n"
    layout = oci_layout(tmp_path / "layout", made(layer({"a": b"1"})))
    files = {str(one.relative_to(layout)): one.read_bytes() for one in layout.rglob("*") if one.is_file()}
    (layout / "notes").write_text("not of the layout")
    (layout / "blobs" / "sha256" / "link").symlink_to("/etc/passwd")
    assert run("import", str(layout), "team/app:1").exit_code == 0
    (_, _, archive), (_, query, packed) = stub.asked
    assert archive == (tmp_path / "saved.tar").read_bytes()
    assert query == "/v1/images/import?reference=team%2Fapp%3A1"
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        found = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    assert found == files


def test_one_of_several_images_is_sent_alone(stub: Stub, tmp_path: Path) -> None:
    stub.answers["POST", "/v1/images/import"] = IMAGE
    images = [made(layer({name: b"1"})) for name in ("a", "b")]
    docker_archive(tmp_path / "saved.tar", *images, tags=("app:0", "app:1"))
    assert run("import", str(tmp_path / "saved.tar"), "mine:1", "--name", "app:1").exit_code == 0
    with tarfile.open(fileobj=io.BytesIO(stub.asked[0][2])) as tar:
        names = {one.name for one in tar}
    wanted = {f"blobs/{sha256(one).replace(':', '/')}" for one in (images[1].config, images[1].archives[0])}
    assert wanted < names
    assert len(names) == 5  # the manifest, the index, and what says that it is a layout


def test_a_system_that_was_made_here_is_sent(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.answers["POST", "/v1/images/import"] = IMAGE
    program = tmp_path / "mmdebstrap"
    program.write_text(
        '#!/bin/sh\necho "$*" > "${0%/*}/asked"\nwhile [ "$1" != -- ]; do shift; done\n'
        'tar -cf "$3" -C "${0%/*}" mmdebstrap\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    done = run("build-debian", "debian:1", "--packages", "curl,python3", "--suite", "bookworm", "--quiet")
    assert (done.stdout, done.exit_code) == (f"{IMAGE['digest']}\n", 0), done.stderr
    asked = (tmp_path / "asked").read_text()
    assert "--include=curl,python3 -- bookworm /" in asked
    ((_, query, packed),) = stub.asked
    assert query == "/v1/images/import?reference=debian%3A1"
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        archive = max(tar, key=lambda one: one.size)
        with tarfile.open(fileobj=tar.extractfile(archive)) as system:
            assert system.getnames() == ["mmdebstrap"]
    assert not Path(asked.split()[-1]).exists()
    assert isinstance(run("build-debian", "debian:1", "--packages", "--help").exception, Invalid)


def test_credentials_are_kept_by_the_server(stub: Stub) -> None:
    stub.answers |= {
        ("POST", "/v1/images/registries"): (201, REGISTRY),
        ("GET", "/v1/images/registries"): {"registries": [REGISTRY]},
        ("DELETE", "/v1/images/registries/an-id"): (204, None),
    }
    done = run("login", "ghcr.io", "--username", "robot", "--prefix", "team", stdin="its password\n")
    assert (done.stdout, done.exit_code) == ("an-id\n", 0)
    assert json.loads(stub.asked[0][2]) == {
        "registry_host": "ghcr.io",
        "username": "robot",
        "password": "its password",
        "repository_prefix": "team",
    }
    assert run("logins").stdout == "an-id  ghcr.io/team  robot\n"
    assert run("logout", "ghcr.io", "--prefix", "team").exit_code == 0
    assert run("logout", "an-id").exit_code == 0
    assert "ghcr.io/other" in str(run("logout", "ghcr.io", "--prefix", "other").exception)


def test_a_server_that_uses_the_data_directory_is_asked(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.answers["GET", "/v1/images"] = {"images": []}
    monkeypatch.delenv("STOCKADE_URL")
    monkeypatch.setenv("STOCKADE_SERVER_PORT", stub.url.rpartition(":")[2])
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with exclusive(data_dir):
        assert run("list", "--json", "--data-dir", str(data_dir)).stdout == "[]\n"
    assert len(stub.asked) == 1


def test_who_is_not_there_is_told(stub: Stub) -> None:
    done = run("list", "--url", "http://127.0.0.1:1")
    assert "no server answers at http://127.0.0.1:1" in done.stderr
    assert done.exit_code == 1
    stub.answers["GET", "/v1/images"] = (401, refusal(401, "no key"))
    assert "does not accept the API key" in run("list").stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data directory that no server uses; disks are in memory, for as long as a command."""
    disks = FakeDisks()

    @contextlib.asynccontextmanager
    async def image_store(config: Config) -> AsyncIterator[tuple[ImageStore, Actor]]:
        tasks = Tasks()
        async with await Database.open(config.data_dir / "test.db") as database, tasks.running():
            store = ImageStore(
                table=ImageTable(database=database, server_id="server-1"),
                disks=disks,
                workshops=Workshops(backend=FakeSandboxes(disks), limits=limits(), tasks=tasks),  # type: ignore[arg-type]
                tasks=tasks,
            )
            async with store.running():
                yield store, Actor(id="operator", account_id="of-operator", is_admin=True)

    def quiet(config: LogConfig) -> None:  # the real one would send what later tests log to a stream of this one
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

    monkeypatch.setattr("stockade.app.logs.configure", quiet)
    monkeypatch.setitem(sys.modules, "stockade.app.images", SimpleNamespace(image_store=image_store))  # type: ignore[arg-type]
    monkeypatch.delenv("STOCKADE_URL", raising=False)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    monkeypatch.setenv("STOCKADE_DATA_DIR", str(data_dir))
    was_set, before = structlog.is_configured(), structlog.get_config()
    yield tmp_path
    structlog.configure(**before) if was_set else structlog.reset_defaults()


def test_without_a_server_the_data_directory_is_worked_on(here: Path) -> None:
    app = made(layer({"etc/passwd": b"root:x:0:0::/root:/bin/sh\n"}), config={"Cmd": ["/bin/app"]})
    path = docker_archive(here / "saved.tar", app, is_old=False)
    done = run("import", str(path), "team/app:1")
    assert (done.stdout, done.exit_code) == (f"{app.digest}\n", 0)
    assert run("alias", "team/app:1", "mine").exit_code == 0
    (listed,) = json.loads(run("list", "--json").stdout)
    assert (listed["reference"], listed["digest"], listed["source"]) == (
        "docker.io/team/app:1",
        app.digest,
        "archive",
    )
    assert "docker.io/library/mine:latest" in listed["aliases"]
    shown = json.loads(run("show", "mine").stdout)
    assert shown["config"]["cmd"] == ["/bin/app"]
    assert shown["curated"]
    assert json.loads(run("usage", "--json").stdout)["count"] == 1
    assert run("alias", "mine", "mine", "--remove").exit_code == 0
    assert isinstance(run("show", "mine").exception, NotFound)
    assert isinstance(run("import", str(here / "data"), "a:1").exception, Invalid)
    assert json.loads(run("prune", "--json").stdout) == {"removed": [], "freed_bytes": 0}
    assert run("remove", "team/app:1").stdout == "team/app:1\n"
    assert json.loads(run("list", "--json").stdout) == []
