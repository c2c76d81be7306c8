"""What accounts log in to registries with."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.engine.image_references import Reference
from stockade.engine.registry_credentials import RegistryCredentials
from stockade.errors import Denied, Invalid, LimitExceeded, NotFound
from stockade.model import Actor
from stockade.model.registries import Login, SealedCredential
from stockade.store.seals import Seal
from stockade.wire.registries.challenges import challenges, token

pytestmark = pytest.mark.anyio
ALICE = Actor(id="key-1", account_id="alice")
BOB = Actor(id="key-2", account_id="bob")
PASSWORD = "correct horse battery"


class Rows:
    """A table in memory."""

    def __init__(self) -> None:
        self.rows: list[SealedCredential] = []

    async def insert(self, row: SealedCredential, *, by: str) -> None:
        self.rows.append(row)

    async def of_account(self, account_id: str) -> Sequence[SealedCredential]:
        return [one for one in self.rows if one.account_id == account_id]

    async def delete(self, account_id: str, id: str, *, by: str) -> bool:
        before = len(self.rows)
        self.rows = [one for one in self.rows if (one.account_id, one.id) != (account_id, id)]
        return len(self.rows) < before


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def credentials(rows: Rows) -> RegistryCredentials:
    return RegistryCredentials(rows, seal=Seal("a" * 64))


async def test_the_longest_prefix_of_the_account_is_found(credentials: RegistryCredentials) -> None:
    for prefix in ("", "team", "team/app", "team/application"):
        await credentials.create(ALICE, host="ghcr.io", username="robot", password=f"of {prefix}", prefix=prefix)
    for text, expected in (
        ("ghcr.io/other", "of "),
        ("ghcr.io/teamster/app", "of "),
        ("ghcr.io/team", "of team"),
        ("ghcr.io/team/tool:1", "of team"),
        ("ghcr.io/team/app", "of team/app"),
        ("ghcr.io/team/app/part", "of team/app"),
    ):
        assert await credentials.find("alice", Reference.parse(text)) == Login(username="robot", password=expected)
    for account_id, text in (("bob", "ghcr.io/team/app"), ("", "ghcr.io/team/app"), ("alice", "quay.io/team/app")):
        assert await credentials.find(account_id, Reference.parse(text)) is None


@pytest.mark.parametrize(
    ("host", "prefix", "expected"),
    [
        ("docker.io", "", ("docker.io", "")),
        ("index.docker.io", "library", ("docker.io", "library")),
        ("https://index.docker.io/v1/", "me", ("docker.io", "me")),
        ("registry-1.docker.io", "", ("docker.io", "")),
        ("GHCR.io", "/team/", ("ghcr.io", "team")),
        ("localhost:5000", "a/b", ("localhost:5000", "a/b")),
        ("[::1]:5000", "", ("[::1]:5000", "")),
    ],
)
async def test_host_and_prefix_are_as_in_references(
    credentials: RegistryCredentials, host: str, prefix: str, expected: tuple[str, str]
) -> None:
    made = await credentials.create(ALICE, host=host, username="u", password=PASSWORD, prefix=prefix)
    assert (made.registry_host, made.repository_prefix) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": ""},
        {"host": "nohost"},
        {"host": "ghcr.io/team"},
        {"host": "ghcr.io@evil"},
        {"host": "user:pass@ghcr.io"},
        {"prefix": "Team"},
        {"prefix": "a//b"},
        {"prefix": "../b"},
        {"prefix": "a:1"},
        {"username": ""},
        {"username": "a:b"},
        {"username": "a\nb"},
        {"password": ""},
        {"password": "x" * 20_000},
        {"password": "a\0b"},
        {"password": "\ud800"},
    ],
)
async def test_what_cannot_be_right_is_refused(
    credentials: RegistryCredentials, rows: Rows, wrong: dict[str, str]
) -> None:
    good = {"host": "ghcr.io", "username": "u", "password": PASSWORD, "prefix": ""}
    with pytest.raises(Invalid) as caught:
        await credentials.create(ALICE, **(good | wrong))
    assert not rows.rows
    if password := wrong.get("password"):
        assert password not in str(caught.value)


async def test_a_password_is_shown_nowhere(credentials: RegistryCredentials, rows: Rows) -> None:
    made = await credentials.create(ALICE, host="ghcr.io", username="u", password=PASSWORD)
    shown = repr(made) + repr(rows.rows) + repr(await credentials.list(ALICE)) + repr(vars(credentials))
    found = await credentials.find("alice", Reference.parse("ghcr.io/app"))
    assert found is not None
    assert found.password == PASSWORD
    assert PASSWORD not in shown + repr(found)
    assert PASSWORD.encode() not in rows.rows[0].secret


async def test_a_row_that_somebody_changed_gives_nothing(credentials: RegistryCredentials, rows: Rows) -> None:
    await credentials.create(ALICE, host="ghcr.io", username="u", password=PASSWORD)
    (good,) = rows.rows
    for changed in (
        replace(good, account_id="bob"),
        replace(good, registry_host="evil.example.org"),
        replace(good, username="v"),
        replace(good, id="another"),
        replace(good, secret=good.secret[:-1] + bytes([good.secret[-1] ^ 1])),
        replace(good, secret=b""),
        replace(good, secret=b"\x01"),
    ):
        rows.rows = [changed]
        found = Reference.parse(f"{changed.registry_host}/app")
        assert await credentials.find(changed.account_id, found) is None
    rows.rows = [good]
    elsewhere = RegistryCredentials(rows, seal=Seal("b" * 64))
    assert await elsewhere.find("alice", Reference.parse("ghcr.io/app")) is None


async def test_only_the_owner_lists_and_removes_them(credentials: RegistryCredentials) -> None:
    made = await credentials.create(ALICE, host="ghcr.io", username="u", password=PASSWORD)
    assert await credentials.list(BOB) == []
    with pytest.raises(NotFound):
        await credentials.remove(BOB, made.id)
    assert await credentials.list(ALICE) == [made]
    await credentials.remove(ALICE, made.id)
    with pytest.raises(NotFound):
        await credentials.remove(ALICE, made.id)
    with pytest.raises(Denied):
        await credentials.create(Actor(id="anonymous"), host="ghcr.io", username="u", password=PASSWORD)


async def test_an_account_has_so_many_at_most(credentials: RegistryCredentials) -> None:
    for number in range(100):
        await credentials.create(ALICE, host="ghcr.io", username="u", password=PASSWORD, prefix=f"team-{number}")
    with pytest.raises(LimitExceeded):
        await credentials.create(ALICE, host="quay.io", username="u", password=PASSWORD)


@given(st.lists(st.text(max_size=200), max_size=3), st.binary(max_size=300))
def test_no_challenge_and_no_token_raises_anything(headers: list[str], body: bytes) -> None:
    for one in challenges(headers):
        assert one.scheme == one.scheme.lower()
    token(body)


def test_challenges_are_told_apart() -> None:
    found = challenges(['Basic realm="a, b", Bearer realm="https://x/y?z=1", Service="q\\"r",scope=pull', "Negotiate"])
    assert [(one.scheme, dict(one.parameters)) for one in found] == [
        ("basic", {"realm": "a, b"}),
        ("bearer", {"realm": "https://x/y?z=1", "service": 'q"r', "scope": "pull"}),
        ("negotiate", {}),
    ]
