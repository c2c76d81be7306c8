"""`stockade executor`, as far as it gets without a sandbox: what its environment and its options may say."""

import subprocess
from pathlib import Path

import pytest

from tests.app.executing import arguments, variables_of

POOL = {"SANDBOX_AUTH_MODE": "POOL"}


@pytest.mark.parametrize(
    ("options", "variables", "status", "told"),
    [
        ([], {}, 1, "SANDBOX_SECRET is not set"),
        ([], {"SANDBOX_SECRET": " "}, 1, "SANDBOX_SECRET is not set"),
        ([], {"SANDBOX_SECRET": "s", "SANDBOX_AUTH_MODE": "other"}, 1, "SANDBOX_AUTH_MODE: must be static or pool"),
        ([], {"SANDBOX_SECRET": "s", **POOL}, 1, "SANDBOX_SECRET is set, but in pool mode"),
        ([], {"SANDBOX_SECRET_PATH": "EMPTY", **POOL}, 1, "is empty"),
        ([], {"SANDBOX_SECRET": "s", "PORT": "http"}, 1, "PORT: must be a port"),
        ([], {"SANDBOX_SECRET": "s", "PROXY_PORT": "65536"}, 1, "PROXY_PORT: must be a port"),
        (["--host", "localhost"], {"SANDBOX_SECRET": "s"}, 2, "no IP address"),
        (["--memory", "much"], {"SANDBOX_SECRET": "s"}, 2, "--memory"),
        (["--network", "all"], {"SANDBOX_SECRET": "s"}, 2, "must be outgoing or none"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    tmp_path: Path, options: list[str], variables: dict[str, str], status: int, told: str
) -> None:
    (tmp_path / "secret").touch()
    given = {name: str(tmp_path / "secret") if value == "EMPTY" else value for name, value in variables.items()}
    ended = subprocess.run(
        arguments(tmp_path / "data", *options), env=variables_of(**given), capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (status, "")
    assert told in ended.stderr
    if status == 1:
        assert len(ended.stderr.splitlines()) == 1
        assert "[error" in ended.stderr
