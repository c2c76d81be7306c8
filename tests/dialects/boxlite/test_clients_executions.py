"""The published clients of BoxLite, oldest and newest, run commands and copy files in boxes of a whole server."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.serving import Server
from tests.dialects.boxlite.clients import VERSIONS, drive
from tests.dialects.boxlite.platform import KEY
from tests.engine.image_fakes import docker_archive, layer, made

pytestmark = pytest.mark.anyio
IMAGE = "tests/python:1"


def python_image() -> dict[str, bytes | str | None]:
    """As much of this host's Python as starts, where the official images have it."""
    program = Path("/usr/bin/python3").resolve()
    loaded = subprocess.run(["ldd", program], capture_output=True, text=True, check=True, timeout=30).stdout
    files: dict[str, bytes | str | None] = {str(program)[1:]: program.read_bytes()}
    files["usr/local/bin/python"] = str(program)
    files["tmp"] = None
    for found in re.findall(r"/\S+", loaded):
        files[found[1:]] = Path(found).read_bytes()
    library = Path("/usr/lib", program.name)
    for one in (library / "os.py", *(library / "encodings").glob("*.py")):
        files[str(one)[1:]] = one.read_bytes()
    return files


@pytest.fixture(scope="module")
def image(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference of an image that has Python."""
    if shutil.which("ldd") is None or not Path("/usr/bin/python3").exists():
        pytest.skip("this host has no /usr/bin/python3 to make an image of")
    archive = docker_archive(tmp_path_factory.mktemp("image") / "python.tar", made(layer(python_image())))
    response = httpx.post(
        f"{server.url}/v1/images/import",
        params={"reference": IMAGE},
        content=archive.read_bytes(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/x-tar"},
        timeout=60,
        trust_env=False,
    )
    assert response.is_success, response.text
    return IMAGE


@pytest.fixture(scope="module", params=VERSIONS)
async def seen(
    request: pytest.FixtureRequest,
    server: Server,
    image: str,
    tmp_path_factory: pytest.TempPathFactory,
    anyio_backend: str,
) -> Any:
    """What a client of that version saw."""
    folder = tmp_path_factory.mktemp("client")
    found = await drive(request.param, "client_executions.py", server.url, KEY, str(folder), image)
    assert found["version"] == request.param
    return found


async def test_commands_print_and_end_as_they_would_anywhere(seen: dict[str, Any]) -> None:
    assert seen["echo"] == ["a b $x\n", "", 0]
    assert seen["streams"] == ["o\n", "e\n", 3]
    assert (seen["characters"], seen["no_text"]) == ("é", "a\ufffdb")
    assert seen["variables"] == "1 /usr\n"
    assert seen["much"] == len("".join(f"{n}\n" for n in range(1, 200_001)))
    assert seen["late"] == ["early\n", "", 0]
    assert seen["many"] == [f"{n}\n" for n in range(6)]
    assert (seen["missing"], seen["waited"]) == (127, 4)


async def test_a_box_that_does_not_run_is_started(seen: dict[str, Any]) -> None:
    assert seen["state"] is True
    assert seen["after_stop"] == "again\n"


async def test_input_arrives_and_ends(seen: dict[str, Any]) -> None:
    assert seen["input"] == ["abc\n", "", 0]
    assert seen["much_input"] == "300000"


async def test_processes_are_killed_by_signals_and_by_time(seen: dict[str, Any]) -> None:
    assert seen["killed"] == 137
    assert seen["timed_out"] == [137, True]
    if seen["version"] == VERSIONS[0]:  # of the newer ones, none reads more than the code
        assert seen["timed_out_error"] == "timed out after 0.5 s"
    else:
        assert seen["signalled"] == ["on\ncaught\n", 7]


async def test_a_terminal_has_its_size(seen: dict[str, Any]) -> None:
    assert seen["terminal"] == ["\r\n43 117\r\n", 0]


async def test_files_are_copied_both_ways(seen: dict[str, Any]) -> None:
    twice = [] if seen["version"] == VERSIONS[0] else ["t/d/a", "t/d/s/b"]
    assert seen["copied_in"] == [*sorted(["f/a", "f/new.txt", "t/a", "t/s/b", *twice]), "750", "1"]
    file = "file/f" if seen["version"] == VERSIONS[0] else "file"  # the older ones take any target for a directory
    assert seen["copied_out"] == ["dir/f", "dir/s/g", file]
    assert seen["copied_none"] == ["RuntimeError" if seen["version"] == VERSIONS[0] else "NotFoundError", True]


async def test_the_simple_box_runs_its_example(seen: dict[str, Any]) -> None:
    assert seen["simple_box"] == [0, "Hello\n", ""]
    assert (seen["simple_box_code"], seen["simple_box_timeout"]) == (5, 137)


async def test_the_code_box_runs_its_example(seen: dict[str, Any]) -> None:
    assert seen["code_box"] == "Hello, World!\n"
    assert seen["code_box_file"] == "y\n"


async def test_the_main_command_can_be_attached_to(seen: dict[str, Any]) -> None:
    if seen["version"] == VERSIONS[0]:
        pytest.skip("0.9 knows nothing of it")
    assert seen["attached"] == ["main\ngot it\n", 6]
