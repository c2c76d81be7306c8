"""Templates on a running server: what a program finds imported, and what is told of what is kept warm."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.serving import Server, command, environment, serving

READY_S = 60.0
KEY = "0123456789abcdef"
# What is looked at is what the interpreter had before the program's first line.
IMPORTED = "import sys; print([name in sys.modules for name in ('numpy', 'json')])"

pytestmark = pytest.mark.skipif(
    not Path("/usr/lib/python3/dist-packages/numpy").is_dir(), reason="python3-numpy is not installed"
)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("templates") / "stockade.toml"
    path.write_text(
        "[templates.science]\npreload = ['numpy']\n"
        "[templates.python]\npreload = ['json']\n"
        "[templates.broken]\npreload = ['json', 'no_such_module']\n"
    )
    return path


@pytest.fixture(scope="module")
def server(configuration: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("data"), "--config", str(configuration), STOCKADE_API_KEY=KEY) as running:
        yield running


def execute(server: Server, code: str, template: str | None = None, **members: Any) -> dict[str, Any]:
    answer = httpx.post(
        f"{server.url}/execute",
        json={"language": "python", "code": code, "template": template, **members},
        headers={"X-API-Key": KEY},
        timeout=60,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def until_printed(server: Server, code: str, wanted: str, template: str | None = None) -> None:
    """Run the program until it prints *wanted*: from then on the template is ready."""
    deadline = time.monotonic() + READY_S
    while (answer := execute(server, code, template))["stdout"] != wanted:
        assert answer["exit_code"] == 0, answer
        assert time.monotonic() < deadline, (answer, server.log)
        time.sleep(0.1)


def test_a_configured_template_has_its_modules_imported_before_the_program_starts(server: Server) -> None:
    until_printed(server, IMPORTED, "[True, True]\n", "science")  # numpy itself imports json
    answer = execute(server, "import numpy; print(numpy.arange(4).sum(), __name__)", "science", args=["a"])
    assert (answer["stdout"], answer["stderr"], answer["exit_code"]) == ("6 __main__\n", "", 0)


def test_the_default_template_is_the_one_with_the_language_s_name(server: Server) -> None:
    until_printed(server, IMPORTED, "[False, True]\n")
    until_printed(server, IMPORTED, "[False, True]\n", "python")


def test_a_start_from_nothing_can_be_asked_for(server: Server) -> None:
    until_printed(server, IMPORTED, "[True, True]\n", "science")
    assert execute(server, IMPORTED, "none")["stdout"] == "[False, False]\n"


def test_limits_that_differ_from_the_template_s_hold(server: Server) -> None:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    until_printed(server, IMPORTED, "[True, True]\n", "science")
    assert execute(server, code, "science", resource_limits={"max_files": 33})["stdout"] == "33\n"


def test_a_template_that_cannot_be_costs_time_alone_and_is_told(server: Server) -> None:
    assert execute(server, IMPORTED, "broken")["stdout"] == "[False, False]\n"
    told = server.data_dir / "warden.log"
    deadline = time.monotonic() + READY_S
    while "No module named 'no_such_module'" not in told.read_text():
        assert time.monotonic() < deadline, told.read_text()
        time.sleep(0.1)


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's warden belongs to its server alone")
def test_doctor_tells_what_a_running_server_keeps_warm(server: Server, configuration: Path) -> None:
    until_printed(server, IMPORTED, "[True, True]\n", "science")
    data_dir = server.process.args[server.process.args.index("--data-dir") + 1]  # type: ignore[index, union-attr]
    arguments = ("doctor", "--data-dir", str(data_dir), "--config", str(configuration))

    def doctor(*more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command(*arguments, *more), env=environment(), capture_output=True, text=True, timeout=60)

    deadline = time.monotonic() + READY_S
    while True:
        warm = json.loads(doctor("--json").stdout)["warm"]
        # Runs with other limits than the default are of other kinds, with nothing ready.
        science = next((one for one in warm if one["preload"] == ["numpy"] and one["ready"]), None)
        broken = next((one for one in warm if one["preload"] == ["json", "no_such_module"]), None)
        if science and broken and broken["complaint"]:
            break
        assert time.monotonic() < deadline, warm
    assert science["command"] == ["python3", "main.py"]
    assert science["kind"] == "fork"
    assert science["forks"] > 0
    assert science["complaint"] == ""
    assert broken["ready"] == 0
    assert "No module named 'no_such_module'" in broken["complaint"]
    shown = doctor().stdout
    assert "with numpy" in shown
    assert "not to be had: ModuleNotFoundError" in shown


def test_switched_off_every_run_starts_from_nothing(configuration: Path, tmp_path: Path) -> None:
    with serving(
        tmp_path, "--config", str(configuration), STOCKADE_API_KEY=KEY, STOCKADE_SANDBOX_TEMPLATES="false"
    ) as cold:
        for template in (None, "python", "science", "broken"):
            for _ in range(5):
                assert execute(cold, IMPORTED, template)["stdout"] == "[False, False]\n"


def test_a_key_can_be_kept_from_templates(configuration: Path, tmp_path: Path) -> None:
    made = subprocess.run(
        command("keys", "add", "careful", "--no-templates", "--data-dir", str(tmp_path)),
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    with serving(tmp_path, "--config", str(configuration), AUTH_ENABLED="true", STOCKADE_API_KEY=KEY) as both:
        until_printed(both, IMPORTED, "[False, True]\n")
        answer = httpx.post(
            f"{both.url}/execute",
            json={"language": "python", "code": IMPORTED},
            headers={"X-API-Key": made.stdout.strip()},
            timeout=60,
            trust_env=False,
        )
    assert answer.json()["stdout"] == "[False, False]\n"
