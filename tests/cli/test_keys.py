"""`stockade keys` and `stockade usage`, beside a server that runs and without one."""

import csv
import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import typer

from stockade.cli.keys import parse_expiry
from tests.app.serving import START_S, command, environment, serving
from tests.app.traces import until

Stockade = Callable[..., "subprocess.CompletedProcess[str]"]
NOW = datetime(2026, 2, 3, tzinfo=UTC)


@pytest.fixture
def stockade(tmp_path: Path) -> Stockade:
    """Runs a command on a data directory of its own."""

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command(*arguments),
            env=environment(STOCKADE_DATA_DIR=str(tmp_path / "data")),
            capture_output=True,
            text=True,
            timeout=START_S,
        )

    return run


def test_keys_are_made_shown_once_and_changed(stockade: Stockade) -> None:
    secret = stockade("keys", "create", "ci", "--no-templates").stdout.strip()
    assert re.fullmatch("sk_[0-9a-f]{64}", secret)
    (listed,) = json.loads(stockade("keys", "list", "--json").stdout)
    assert (listed["name"], listed["templates"], listed["tier"], listed["admin"]) == ("ci", False, "enterprise", True)
    assert "hash" not in listed
    assert stockade("keys", "set", "ci", "--templates", "--rate-limit", "5", "--expires", "30d").returncode == 0
    (listed,) = json.loads(stockade("keys", "list", "--json").stdout)
    assert (listed["templates"], listed["rate_limit"]) == (True, 5)
    shown = stockade("keys", "list").stdout
    assert secret not in shown
    assert listed["preview"] in shown
    assert stockade("keys", "set", "nobody", "--templates").returncode == 1
    assert stockade("keys", "create", "ci").returncode == 1
    assert stockade("keys", "set", "ci").returncode == 2


def test_a_customer_gets_an_account_of_a_tier(stockade: Stockade) -> None:
    made = json.loads(
        stockade("keys", "create", "acme", "--tier", "pro", "--email", "dev@acme.example", "--json").stdout
    )
    (listed,) = json.loads(stockade("keys", "list", "--json").stdout)
    assert (listed["id"], listed["account"], listed["tier"], listed["email"]) == (
        made["id"],
        made["id"],
        "pro",
        "dev@acme.example",
    )
    wrong = stockade("keys", "set", "acme", "--tier", "platinum")
    assert wrong.returncode == 2
    assert "anonymous, free, starter, pro, enterprise" in wrong.stderr


def test_a_running_server_takes_note(tmp_path: Path, stockade: Stockade) -> None:
    def status(secret: str) -> int:
        return httpx.get(f"{server.url}/metrics", headers={"X-API-Key": secret}).status_code

    with serving(tmp_path / "data", "--host", "0.0.0.0") as server:
        secret = stockade("keys", "create", "ci").stdout.strip()
        assert status(secret) == 200
        rotated = stockade("keys", "rotate", "ci").stdout.strip()
        assert status(rotated) == 200
        until(lambda: status(secret) == 401)
        assert stockade("keys", "revoke", "ci").returncode == 0
        until(lambda: status(rotated) == 401)
        assert stockade("keys", "set", "ci", "--active").returncode == 0
        until(lambda: status(rotated) == 200)


def test_keys_of_an_earlier_version_are_still_good(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    secret = "sk_" + "5" * 64
    digest = hashlib.sha256(secret.encode()).hexdigest()
    entry = {"id": "key_1", "name": "old", "hash": digest, "preview": "sk_5555…5555", "created": "2025-12-24T18:00:00Z"}
    (data / "keys.json").write_text(json.dumps({"format": 1, "keys": [entry]}))
    for _ in range(2):
        with serving(data, "--host", "0.0.0.0") as server:
            assert "sk_" not in server.banner
            key = {"X-API-Key": secret}
            assert httpx.get(f"{server.url}/metrics", headers=key).status_code == 200
        assert {path.name for path in data.glob("keys*")} == {"keys.json.imported"}


def test_usage_of_nobody_is_nothing(stockade: Stockade) -> None:
    assert stockade("usage").stdout == "nothing yet\n"
    assert json.loads(stockade("usage", "--by", "key", "--json").stdout) == []
    assert list(csv.reader(stockade("usage", "--csv").stdout.splitlines())) == []
    assert json.loads(stockade("usage", "--requests", "--json").stdout) == []


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("never", None),
        ("30d", NOW + timedelta(days=30)),
        ("2030-12-31", datetime(2030, 12, 31, tzinfo=UTC)),
        ("2030-12-31T12:00:00+01:00", datetime(2030, 12, 31, 11, tzinfo=UTC)),
    ],
)
def test_an_expiry_is_said_in_several_ways(text: str, moment: datetime | None) -> None:
    assert parse_expiry(text, now=NOW) == moment


def test_an_expiry_that_is_none_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="never"):
        parse_expiry("tomorrow", now=NOW)
