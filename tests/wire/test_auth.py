"""API keys and who is let in without one."""

import hashlib

import pytest

from stockade.errors import Invalid, Unavailable
from stockade.model import Actor
from stockade.wire.auth import (
    ApiKeyAuth,
    ApiKeys,
    BearerAuth,
    Credentials,
    KeyInvalid,
    KeyMissing,
    OpenAccess,
    TokenMalformed,
    TokenMissing,
)

pytestmark = pytest.mark.anyio
HASH = hashlib.sha256(b"hidden").hexdigest()
SERVER_KEY = "sk_" + "0" * 64


class ServerKeys:
    """The server's own keys; "away" while they cannot be asked for."""

    async def verify(self, presented: str, /) -> Actor | None:
        if presented == "away":
            raise Unavailable("the database is away")
        return Actor(id="the server's") if presented == SERVER_KEY else None


AUTH = ApiKeyAuth(own=ApiKeys([" k1 ", "k2", "", f"sha256:{HASH}"]), server=ServerKeys())


def sent(key: str | None) -> Credentials:
    return Credentials(address="192.0.2.1", api_key=key)


@pytest.mark.parametrize("key", ["k1", "k2", "hidden", SERVER_KEY])
async def test_known_keys_are_let_in(key: str) -> None:
    actor = await AUTH.actor(sent(key))
    assert key not in actor.id


async def test_keys_have_actors_of_their_own() -> None:
    assert await AUTH.actor(sent("k1")) != await AUTH.actor(sent("k2"))


@pytest.mark.parametrize("key", ["nope", "k", " k1 ", "K1", f"sha256:{HASH}", HASH, "é", "\udcff"])
async def test_unknown_keys_are_refused(key: str) -> None:
    with pytest.raises(KeyInvalid):
        await AUTH.actor(sent(key))


@pytest.mark.parametrize("key", [None, ""])
async def test_no_key_is_told_apart_from_a_wrong_one(key: str | None) -> None:
    with pytest.raises(KeyMissing, match="X-API-Key"):
        await AUTH.actor(sent(key))


@pytest.mark.parametrize("entry", ["sha256:", "sha256:xyz", "sha256:" + "0" * 62])
async def test_a_damaged_hash_is_refused_at_start(entry: str) -> None:
    with pytest.raises(Invalid, match="64 hexadecimal digits"):
        ApiKeys([entry])


async def test_open_access_still_knows_keys() -> None:
    open_access = OpenAccess(known=AUTH)
    assert (await open_access.actor(sent(None))).id == "anonymous:192.0.2.1"
    assert (await open_access.actor(sent("stale"))).id == "anonymous:192.0.2.1"
    assert await open_access.actor(sent("k1")) == await AUTH.actor(sent("k1"))


async def test_while_keys_cannot_be_asked_for_nobody_is_refused_for_good() -> None:
    with pytest.raises(Unavailable):
        await AUTH.actor(sent("away"))
    assert await AUTH.actor(sent("k1"))
    assert (await OpenAccess(known=AUTH).actor(sent("away"))).id == "anonymous:192.0.2.1"


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (None, TokenMissing),
        ("", TokenMissing),
        ("Basic abc", TokenMalformed),
        ("bearer abc", TokenMalformed),
        ("Bearer ", TokenMalformed),
    ],
)
async def test_only_a_bearer_token_is_looked_at(header: str | None, error: type[Exception]) -> None:
    auth = BearerAuth(verifier=AUTH)  # type: ignore[arg-type]  # never reached
    with pytest.raises(error):
        await auth.actor(Credentials(address="192.0.2.1", authorization=header))
