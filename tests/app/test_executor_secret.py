"""Who may use an executor's sandbox: the secret of its start, or the first that somebody presents."""

import asyncio
import os
import pwd
import stat
from collections import Counter
from pathlib import Path

import pytest

from stockade.app.pool_secret import PoolSecret, StaticSecret
from stockade.errors import Fault, StockadeError

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a directory over")


@pytest.mark.anyio
async def test_only_the_secret_of_the_start_fits() -> None:
    secret = StaticSecret("s3cret-é")
    header = "s3cret-é".encode().decode("latin-1")
    assert [await secret.verify(one) for one in (header, "s3cret", "", "\ud800", "s3cret-é ")] == [
        True, False, False, False, False
    ]  # fmt: skip


@pytest.mark.anyio
async def test_the_first_secret_that_is_presented_is_adopted_and_written_down(tmp_path: Path) -> None:
    path = tmp_path / "made" / "for it" / "secret"
    with PoolSecret(path) as secret:
        assert not secret.is_known
        assert await secret.verify("first")
        assert not await secret.verify("second")
        assert await secret.verify("first")
    assert path.read_text() == "first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["secret"]
    with PoolSecret(path) as again:
        assert again.is_known
        assert await again.verify("first")
        assert not await again.verify("second")


@pytest.mark.anyio
async def test_of_many_at_once_one_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with PoolSecret(path) as secret:
        told = await asyncio.gather(*(secret.verify(f"token-{number % 20}") for number in range(60)))
    assert Counter(told) == {True: 3, False: 57}
    assert path.read_text() == f"token-{told.index(True)}"


@pytest.mark.anyio
async def test_of_two_executors_with_one_file_the_first_wins(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with PoolSecret(path) as one, PoolSecret(path) as other:
        assert await one.verify("first")
        assert not await other.verify("second")
        assert await other.verify("first")


@pytest.mark.anyio
async def test_who_goes_away_meanwhile_changes_nothing(tmp_path: Path) -> None:
    with PoolSecret(tmp_path / "secret") as secret:
        leaving = asyncio.create_task(secret.verify("leaving"))
        await asyncio.sleep(0)
        leaving.cancel()
        later = [await secret.verify(one) for one in ("later", "leaving")]
    assert sorted(later) == [False, True]
    assert (tmp_path / "secret").read_text() == ("later" if later[0] else "leaving")


@pytest.mark.anyio
@pytest.mark.parametrize("presented", ["", " ", "a\n", "\ta"])
async def test_what_a_file_could_not_hold_is_not_adopted(tmp_path: Path, presented: str) -> None:
    with PoolSecret(tmp_path / "secret") as secret:
        assert not await secret.verify(presented)
        assert not secret.is_known
    assert not os.listdir(tmp_path)


@pytest.mark.anyio
async def test_space_around_the_secret_in_the_file_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\n the one \r\n")
    with PoolSecret(tmp_path / "secret") as secret:
        assert await secret.verify("the one")


@pytest.mark.parametrize("kind", ["empty", "blank", "link", "dangling", "directory", "pipe"])
def test_a_file_that_holds_no_secret_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "secret"
    match kind:
        case "empty":
            path.touch()
        case "blank":
            path.write_text(" \n")
        case "link":
            (tmp_path / "other").write_text("secret")
            path.symlink_to("other")
        case "dangling":
            path.symlink_to("nowhere")
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
    with pytest.raises(StockadeError, match=str(path)), PoolSecret(path):
        pass


@pytest.mark.anyio
async def test_a_secret_that_cannot_be_written_is_not_adopted(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    with PoolSecret(tmp_path / "a file" / "secret") as secret:
        with pytest.raises(Fault):
            await secret.verify("first")
        (tmp_path / "a file").unlink()
        assert await secret.verify("second")  # what was in the way is gone
        assert not await secret.verify("first")


@root_only
def test_a_directory_that_is_made_is_whom_the_server_becomes(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    with PoolSecret(tmp_path / "made" / "secret", owner=nobody):
        assert (tmp_path / "made").stat().st_uid == nobody.pw_uid
    with PoolSecret(tmp_path / "secret", owner=nobody):
        assert tmp_path.stat().st_uid == 0
