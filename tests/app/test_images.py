"""Images from a real registry, in real disks: `stockade image` on a data directory, and on the server that uses it."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from stockade.cli.image import image as commands
from tests.app.serving import command, environment, serving
from tests.engine.image_fakes import MadeImage, docker_archive, layer, made
from tests.registries import PASSWORD, USERNAME, DockerRegistry, needs_docker_registry

pytestmark = [needs_docker_registry, pytest.mark.skipif(os.geteuid() != 0, reason="disks of a limited size need root")]
WITHIN_S = 100


@pytest.fixture(scope="module")
def image() -> MadeImage:
    base = layer({"etc/passwd": b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n", "bin": None})
    upper = layer({"srv/data": bytes(range(256)) * 4096})
    return made(base, upper, config={"User": "app", "Cmd": ["/bin/app"], "ExposedPorts": {"80/tcp": {}}})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, image: MadeImage) -> Iterator[DockerRegistry]:
    registry = DockerRegistry(folder=tmp_path_factory.mktemp("registry"), is_private=True)
    registry.start()
    try:
        registry.push("team/app", "1", image)
        yield registry
    finally:
        registry.end()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def variables(registry: DockerRegistry, data_dir: Path) -> dict[str, str]:
    return {
        "STOCKADE_DATA_DIR": str(data_dir),
        "STOCKADE_REGISTRIES_INSECURE": registry.host,
        "STOCKADE_REGISTRIES_PERMIT_PRIVATE": "127.0.0.0/8",
        "XDG_CONFIG_HOME": str(data_dir / "no-config"),
    }


def test_an_image_is_imported_where_no_server_runs(variables: dict[str, str], image: MadeImage, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "saved.tar", image, is_old=False)
    done = subprocess.run(
        command("image", "import", str(path), "saved:1"),
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    assert (done.stdout, done.returncode) == (f"{image.digest}\n", 0), done.stderr


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def run(variables: dict[str, str], data_dir: Path) -> Iterator[Run]:
    """Runs commands on a server that uses the directory from now on."""
    with serving(data_dir, **variables) as server:
        key = re.search(r"sk_\w+", server.banner)
        assert key, server.banner
        client = {"STOCKADE_API_KEY": key[0], "STOCKADE_URL": server.url, "XDG_CONFIG_HOME": str(data_dir / "none")}

        def run(*arguments: str, stdin: str = "") -> Result:
            return CliRunner().invoke(commands, list(arguments), input=stdin, env=client)

        yield run
        server.end()


def test_a_server_pulls_with_the_credentials_that_it_was_given(
    run: Run, registry: DockerRegistry, image: MadeImage, data_dir: Path
) -> None:
    reference = f"{registry.host}/team/app:1"
    assert "none without credentials: UNAUTHORIZED" in run("pull", reference).stderr
    made = run("login", registry.host, "--username", USERNAME, "--prefix", "team", stdin=PASSWORD)
    assert made.exit_code == 0, made.stderr
    assert run("logins").stdout.split()[1:] == [f"{registry.host}/team", USERNAME]
    done = run("pull", reference)
    assert (done.stdout, done.exit_code) == (f"{image.digest}\n", 0), done.stderr
    shown = json.loads(run("show", reference).stdout)
    assert not shown["curated"]  # it is the account's alone
    assert shown["config"]["user"] == "1000:1000"
    assert shown["config"]["exposed_ports"] == ["80/tcp"]
    kept = b"".join(one.read_bytes() for one in (data_dir / "state").iterdir() if one.is_file())
    assert USERNAME.encode() in kept
    assert PASSWORD.encode() not in kept
    assert run("logout", registry.host, "--prefix", "team").exit_code == 0
    assert run("logins").stdout == ""
    # What was brought here before the server came is everybody's, and shares all layers.
    listed = {one["source"]: one for one in json.loads(run("list", "--json").stdout)}
    assert listed["archive"]["reference"] == "docker.io/library/saved:1"
    assert listed["archive"]["size_bytes"] == listed["registry"]["size_bytes"] > 256 * 4096
    assert json.loads(run("usage", "--json").stdout)["known_bytes"] == listed["registry"]["size_bytes"]


def test_an_image_is_imported_through_the_server(run: Run, image: MadeImage, tmp_path: Path) -> None:
    other = made(layer({"other": b"1"}), config={"Cmd": ["/other"]})
    path = docker_archive(tmp_path / "saved.tar", other, image, tags=("other:1", "app:1"))
    done = run("import", str(path), "other:1", "--name", "other:1")
    assert done.exit_code == 0, done.stderr
    assert json.loads(run("show", "other:1").stdout)["config"]["cmd"] == ["/other"]
    assert run("alias", "other:1", "another").exit_code == 0
    assert run("remove", "another").stdout == "another\n"
    assert run("show", "other:1").exit_code == 1
    (tmp_path / "none.tar").write_bytes(b"no tar at all" * 100)
    refused = run("import", str(tmp_path / "none.tar"), "none:1")
    assert (refused.exit_code, refused.stderr[:10]) == (1, "stockade: ")
