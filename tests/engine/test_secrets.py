"""Secrets that open one sandbox each."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stockade.engine.sandboxes import Sandboxes
from stockade.engine.secrets import Grant, Secrets, checked_secret, digest, new_secret
from stockade.errors import Conflict, Invalid, Unavailable
from stockade.model import SandboxState
from tests.engine.live_fakes import ONE, OTHER, Server, request, until

pytestmark = pytest.mark.anyio
SECRET = "correct-horse-battery"


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "images")


@pytest.fixture
async def sandboxes(server: Server, anyio_backend: str) -> AsyncIterator[Sandboxes]:
    async with server.running() as sandboxes:
        yield sandboxes


@pytest.fixture
def secrets(sandboxes: Sandboxes) -> Secrets:
    return Secrets(sandboxes)


async def opened(secrets: Secrets, secret: str = SECRET) -> Grant:
    grant = await secrets.find(secret)
    assert grant is not None
    return grant


async def test_a_secret_opens_its_sandbox_on_behalf_of_the_key_that_made_it(
    sandboxes: Sandboxes, secrets: Secrets
) -> None:
    made = await sandboxes.create(ONE, request("box-1", secret_digest=digest(SECRET)))
    await sandboxes.create(OTHER, request("box-2", secret_digest=digest("another secret altogether")))
    grant = await opened(secrets)
    assert grant.sandbox == made
    assert (grant.actor.id, grant.actor.account_id) == (ONE.id, ONE.account_id)
    assert await sandboxes.get(grant.actor, "box-1") == made


@pytest.mark.parametrize(
    "wrong", ["", "correct-horse-batterz", SECRET.upper(), SECRET + " ", digest(SECRET), "\udcff é"]
)
async def test_nothing_else_opens_it(sandboxes: Sandboxes, secrets: Secrets, wrong: str) -> None:
    """Not what looks like the secret, and not what is kept of it."""
    await sandboxes.create(ONE, request(secret_digest=digest(SECRET)))
    await sandboxes.create(ONE, request("without"))
    assert await secrets.find(wrong) is None


async def test_one_that_runs_here_is_found_without_the_database(
    server: Server, sandboxes: Sandboxes, secrets: Secrets
) -> None:
    await sandboxes.create(ONE, request(secret_digest=digest(SECRET)))
    server.table.is_away = True
    assert (await opened(secrets)).sandbox.state is SandboxState.RUNNING
    with pytest.raises(Unavailable):
        await secrets.find("some other secret")
    server.table.is_away = False


async def test_one_that_was_found_again_after_a_restart_is_opened_from_memory(server: Server) -> None:
    async with server.running() as sandboxes:
        made = await sandboxes.create(ONE, request(secret_digest=digest(SECRET)))
    async with server.running() as sandboxes:
        server.table.is_away = True
        assert (await opened(Secrets(sandboxes))).sandbox == made
        server.table.is_away = False


async def test_a_secret_is_told_how_its_sandbox_ended_and_may_be_given_again(
    server: Server, sandboxes: Sandboxes, secrets: Secrets
) -> None:
    await sandboxes.create(ONE, request("first", secret_digest=digest(SECRET)))
    with pytest.raises(Conflict, match="choose another"):
        await sandboxes.create(OTHER, request("second", secret_digest=digest(SECRET)))
    assert "second" not in server.table.rows
    server.backend.exit("first", 7)
    await until(lambda: server.table.rows["first"].state is SandboxState.ENDED)
    grant = await opened(secrets)
    assert (grant.sandbox.id, grant.sandbox.exit_code) == ("first", 7)
    await sandboxes.create(OTHER, request("third", secret_digest=digest(SECRET)))
    grant = await opened(secrets)
    assert (grant.sandbox.id, grant.actor.id) == ("third", OTHER.id)
    await sandboxes.kill(OTHER, "third")
    assert (await opened(secrets)).sandbox.id == "third"
    assert not sandboxes.lives._by_secret


async def test_secrets_are_long_different_and_fit_a_header() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(checked_secret(one) == one and len(one) >= 43 for one in made)


@pytest.mark.parametrize(
    "secret", ["", "x" * 15, "x" * 257, "with a space in it", "täuschend-lang-genug", "x" * 16 + "\n"]
)
def test_a_secret_that_is_too_easy_or_cannot_be_sent_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(Invalid, match="16 to 256") as refusal:
        checked_secret(secret)
    assert not secret or secret not in str(refusal.value)
