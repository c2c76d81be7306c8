"""Secrets that a server makes for itself."""

import re
import stat
from pathlib import Path

import pytest

from stockade.errors import Fault
from stockade.store import kept_secret


def test_a_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    state = tmp_path / "state"
    secret = kept_secret(state, "token-secret")
    assert kept_secret(state, "token-secret") == secret
    assert re.fullmatch("[0-9a-f]{64}", secret)
    assert stat.S_IMODE((state / "token-secret").stat().st_mode) == 0o600
    assert kept_secret(state, "another") != secret
    assert {one.name for one in state.iterdir()} == {"token-secret", "another"}


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 64], ids=["empty", "short", "no text"])
def test_a_damaged_secret_is_told_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token-secret").write_bytes(content)
    with pytest.raises(Fault, match="token-secret"):
        kept_secret(tmp_path, "token-secret")
    assert (tmp_path / "token-secret").read_bytes() == content
