"""What an account tries on others without their keys: bodies that say more than they may, names and ids of others,
pages of their lists, guesses; and what a key that was lent with limits tries on its own account.
"""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from stockade.accounts import Accounts
from stockade.accounts.passwords import Passwords
from stockade.config_accounts import AccountsConfig
from stockade.errors import Denied, Invalid
from stockade.model import Actor
from stockade.model.users import Role, User
from stockade.store import Database
from tests.security.merged import PASSWORD, Asker, Merged, Things, merged, things_of

pytestmark = pytest.mark.anyio
_RANDOM = {"language": "python", "code": "import secrets; print(secrets.token_hex(16))"}
_FREE = 5
"""Wrong passwords after which one address has to wait for one e-mail address."""


@dataclass(frozen=True, kw_only=True)
class World:
    server: Merged
    ada: Asker
    ada_user: User
    hers: Things
    eve: Asker
    eve_user: User

    async def as_eve(self, method: str, path: str, *, door: str = "key", **options: Any) -> httpx.Response:
        return await self.server.ask(self.eve, method, path, door=door, **options)

    async def as_ada(self, method: str, path: str, *, door: str = "key", **options: Any) -> httpx.Response:
        return await self.server.ask(self.ada, method, path, door=door, **options)

    def tells(self, answer: httpx.Response, *but: str) -> list[str]:
        return [word for word in self.hers.words if word in answer.text and word not in but]


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("guessing")
    data = folder / "data"
    data.mkdir(mode=0o700)
    async with merged(data, {"dialects.isobox.dedup_enabled": True}) as server:
        users = [await server.user(name) for name in ("ada", "eve")]
        ada, eve = [await server.asker(user.name, user) for user in users]
        hers = await things_of(server, ada, users[0], folder)
        yield World(server=server, ada=ada, ada_user=users[0], hers=hers, eve=eve, eve_user=users[1])


# Bodies that say more than they may


_MORE = {
    "is_admin": True,
    "isAdmin": True,
    "role": "admin",
    "tier": "enterprise",
    "plan": "enterprise",
    "is_locked": False,
    "email_verified_at": "2026-01-01T00:00:00Z",
    "hash": "0" * 64,
    "key_hash": "0" * 64,
    "parent_key_id": None,
    "is_active": True,
    "templates": True,
    "rate_limit_rps": 1_000_000,
    "backend": "native",
}


async def test_no_body_makes_anybody_more_than_they_are(world: World) -> None:
    """Each answers 4xx, or takes no notice of what is not the asker's to say."""
    hers = world.ada_user
    more = _MORE | dict.fromkeys(("account_id", "accountId", "owner", "account"), hers.account_id)
    more |= dict.fromkeys(("user_id", "userId"), hers.id) | dict.fromkeys(("key_id", "keyId"), hers.account_id)
    fresh = {"name": "Mal", "email": "mal@example.org", "password": PASSWORD}
    session = {"image": "host", "command": ["true"], "network": "none"}
    bodies: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("POST", "/v1/auth/register", "key", fresh),
        ("POST", "/api/register", "open", fresh | {"email": "mal2@example.org"}),
        ("PATCH", "/api/account", "session", {"name": "Eve"}),
        ("POST", "/api/keys", "session", {"name": "more"}),
        ("POST", "/api/jobs", "session", _RANDOM),
        ("POST", "/api/sandboxes", "session", {"command": ["true"], "timeout_s": 10}),
        ("POST", "/v1/account/keys", "key", {"name": "more"}),
        ("PUT", "/v1/account/limits", "key", {"alert_threshold": 60}),
        ("POST", "/v1/jobs", "key", _RANDOM),
        ("POST", "/v1/sessions", "key", session | {"resources": {"timeoutMs": 10_000, "memoryMB": 128}}),
        ("POST", "/v1/boxes", "key", {"image": "host", "cpus": 1, "memory_mib": 128}),
        ("POST", "/v1/volumes", "key", {}),
    )
    before = world.server.facts(world.hers.words)
    for method, path, door, body in bodies:
        answer = await world.as_eve(method, path, door=door, json=body | more)
        assert answer.is_success or 400 <= answer.status_code < 500, (path, answer.text)
        assert world.tells(answer) == [], path
    assert world.server.facts(world.hers.words) == before
    users = (await world.server.accounts.users.list(limit=200)).users
    assert {one.user.role for one in users} == {Role.USER}
    assert {one.account.tier for one in users} == {"pro"}
    assert not any(one.account.is_admin for one in users)
    assert all(one.user.email_verified_at is None for one in users)
    actor = await world.server.accounts.users.actor(world.eve_user)
    for key in await world.server.accounts.keys.list(actor):
        assert (key.account_id, key.rate_limit_rps) == (world.eve_user.account_id, None)


# Names, ids, pages


async def test_no_page_of_anothers_list_can_be_asked_for(world: World) -> None:
    """A cursor is a place, not a right."""
    for path, door, size, cursor in (
        ("/v1/boxes", "key", "pageSize", "pageToken"),
        ("/v1/sessions", "key", "limit", "cursor"),
        ("/v1/jobs", "key", "limit", "cursor"),
        ("/api/sandboxes", "session", "limit", "cursor"),
        ("/api/jobs", "session", "limit", "cursor"),
    ):
        if path == "/v1/boxes":
            assert (await world.as_ada("POST", path, json={"image": "host", "cpus": 1, "memory_mib": 128})).is_success
        first = await world.as_ada("GET", path, door=door, params={size: "1"})
        place = first.json().get("cursor") or first.json().get("next_page_token")
        assert place, (path, first.text)
        for page in ({cursor: place}, {cursor: place, size: "1"}, {"account": world.ada_user.account_id}):
            answer = await world.as_eve("GET", path, door=door, params=page)
            assert answer.status_code in (200, 400), (path, answer.text)
            assert world.tells(answer) == [], path
    for query in ({"key": world.ada_user.account_id}, {"key": world.hers.ids["key_id"]}):
        for path in ("/api/usage", "/api/usage.csv", "/api/jobs"):
            answer = await world.as_eve("GET", path, door="session", params=query)
            assert answer.status_code in (200, 404), (path, answer.text)
            assert world.tells(answer, *query.values()) == [], path


async def test_names_are_of_an_account_and_lead_to_nobody_elses_things(world: World) -> None:
    ids = world.hers.ids
    name, volume, image = ids["name"].removesuffix("-snapshot"), ids["volume_id"], ids["image"]
    for path in (
        f"/v1/boxes/{name}",
        f"/v1/volumes/{name}-volume",
        f"/v1/images/{ids['alias']}",
        f"/v1/boxes/{ids['box_id'].lower()}",
    ):
        answer = await world.as_eve("GET", path)
        assert answer.status_code == 404, (path, answer.text)
    # The same name is another's to give: that somebody has it already, nobody is told.
    made = await world.as_eve("POST", "/v1/boxes", json={"name": name, "image": "host", "cpus": 1, "memory_mib": 128})
    assert made.status_code == 201, made.text
    assert (await world.as_eve("POST", "/v1/volumes", json={"name": f"{name}-volume"})).status_code == 201
    assert (await world.as_eve("GET", f"/v1/boxes/{name}")).json()["box_id"] == made.json()["box_id"]
    # What a box is made of is looked for in its own account.
    body = {"image": "host", "cpus": 1, "memory_mib": 128}
    for given in (volume, ids["box_id"]):
        mounts = [{"managed_volume": given, "guest_path": "/data"}]
        answer = await world.as_eve("POST", "/v1/boxes", json=body | {"volumes": mounts})
        assert 400 <= answer.status_code < 500, answer.text
    found = (await world.as_ada("GET", f"/v1/images/{image.replace('/', '%2F')}")).json()
    digest = found["versions"][0].get("digest") or next(iter(found["versions"][0].values()))
    assert str(digest).startswith("sha256:"), found
    assert (await world.as_ada("GET", f"/v1/images/{digest}")).status_code == 200
    for asked in (digest, f"{image}@{digest}", f"{image.partition(':')[0]}@{digest}"):
        path = asked.replace("/", "%2F")
        assert (await world.as_eve("GET", f"/v1/images/{path}")).status_code == 404, asked
        for target in (path, "host"):
            aliased = {"alias": "mine", "digest": digest}
            answer = await world.as_eve("POST", f"/v1/images/{target}/aliases", json=aliased)
            assert answer.status_code == 404, (asked, target, answer.text)
        answer = await world.as_eve("POST", "/v1/boxes", json=body | {"image": asked})
        assert answer.status_code in (201, 400, 404, 422, 502, 503), answer.text
        if answer.status_code == 201:  # what it stands on is brought here only when it is started
            box = answer.json()["box_id"]
            started = await world.as_eve("POST", f"/v1/boxes/{box}/start")
            assert not started.is_success, started.text


async def test_what_one_account_does_is_in_no_other_ones_figures(world: World) -> None:
    made = await world.as_eve("POST", "/v1/boxes", json={"image": "host", "cpus": 1, "memory_mib": 128})
    before = [(await world.as_ada("GET", path)).json() for path in ("/v1/metrics", "/v1/account/usage/enhanced")]
    answer = await world.as_eve("POST", f"/v1/boxes/{made.json()['box_id']}/exec", json={"command": "true"})
    assert answer.status_code == 201, answer.text
    assert (await world.as_eve("GET", "/v1/metrics")).json()["total_commands_executed"] == 1
    after = [(await world.as_ada("GET", path)).json() for path in ("/v1/metrics", "/v1/account/usage/enhanced")]
    assert after == before


async def test_an_answer_that_is_kept_is_kept_for_one_key(world: World) -> None:
    """Deduplication answers from memory: what somebody else's program printed is in nobody's answer."""
    first, again = [(await world.as_ada("POST", "/execute", json=_RANDOM)).json()["stdout"] for _ in range(2)]
    assert first == again
    assert (await world.as_eve("POST", "/execute", json=_RANDOM)).json()["stdout"] != first


# Guesses


async def test_guesses_at_a_password_count_together_at_every_door(world: World) -> None:
    """Over the portal and over `/v1/auth`; with the right password, too, as long as the wait lasts."""
    user = await world.server.accounts.users.create(name="Sam", email="sam@example.org", password=PASSWORD)
    http = world.server.http
    csrf = (await http.get("/api/meta")).json()["csrf"]
    pages = {"X-CSRF-Token": csrf, "Origin": world.server.url}

    async def guess(number: int, password: str) -> int:
        body = {"email": user.email.upper() if number % 3 else user.email, "password": password}
        if number % 2:
            return (await http.post("/v1/auth/login", json=body)).status_code
        return (await http.post("/api/session", json=body, headers=pages)).status_code

    assert [await guess(number, f"wrong {number}") for number in range(_FREE)] == [401] * _FREE
    assert [await guess(number, PASSWORD) for number in range(2)] == [429, 429]
    # It was one address that guessed: from another, the owner comes in.
    assert (await world.server.accounts.users.log_in(user.email, PASSWORD, address="198.51.100.7")).id == user.id


async def test_an_unknown_user_a_locked_one_and_one_without_a_password_cost_a_hash_each(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is called, not by the clock: the hash is all that takes long."""
    users = world.server.accounts.users
    checked: list[bool] = []
    real = Passwords._check

    def counting(self: Passwords, password: bytes, kept: str | None) -> bool:
        checked.append(kept is not None)
        return real(self, password, kept)

    monkeypatch.setattr(Passwords, "_check", counting)
    locked = await users.create(name="Kim", email="kim@example.org", password=PASSWORD)
    await users.lock(locked.id, True, by="operator")
    sso = await users.admit(issuer="https://i", subject="s", name="Jo", email="jo@example.org", is_verified=True)
    for email, password in ((locked.email, "wrong"), (locked.email, PASSWORD), (sso.email, "x"), ("no@e.org", "x")):
        with pytest.raises(Denied):
            await users.log_in(email, password, address=secrets.token_hex(4))
    assert checked == [True, True, False, False]


async def test_a_key_that_can_be_guessed_is_refused_where_others_could_guess(tmp_path: Any) -> None:
    async with await Database.open(tmp_path / "accounts.db") as database:
        with pytest.raises(Invalid, match="STOCKADE_API_KEY"):
            Accounts.on(database, AccountsConfig(), preset="hunter2", secret="s" * 64)
        accounts = Accounts.on(database, AccountsConfig(), preset="hunter2", secret="s" * 64, open_access=True)
        await accounts.close()


# A key that was lent


@pytest.mark.parametrize(
    "bounds",
    [{"expires_at": datetime.now(UTC) + timedelta(hours=1)}, {"custom_daily_limit": 3}, {"custom_concurrent_limit": 1}],
    ids=lambda bounds: next(iter(bounds)),
)
async def test_a_bounded_key_cannot_take_its_bounds_away(world: World, bounds: dict[str, Any]) -> None:
    """Neither by changing itself, nor by a new key, nor by another one's new secret, nor by the account's limits."""
    accounts = world.server.accounts
    owner = await accounts.users.actor(world.ada_user)
    lent = await accounts.keys.create(owner, name="lent", **bounds)
    holder = replace(world.ada, key=lent.secret)
    paths = [f"/v1/account/keys/{id}" for id in (lent.key.id, world.hers.ids["key_id"], owner.id)]
    asked: list[tuple[str, str, dict[str, Any] | None]] = [("POST", "/v1/account/keys", {"name": "free of it"})]
    asked += [("PUT", path, {"name": "x", "expires_at": None, "custom_daily_limit": None}) for path in paths]
    asked += [("PUT", path, {"expires_at": "2099-01-01T00:00:00Z"}) for path in paths]
    asked += [("POST", f"{path}/rotate", None) for path in paths[1:]]
    asked += [("DELETE", path, None) for path in paths]
    asked += [("PUT", "/v1/account/limits", {"alert_threshold": 10})]
    before = await accounts.keys.list(owner)
    for method, path, body in asked:
        answer = await world.server.ask(holder, method, path, json=body)
        assert answer.status_code == 403, (method, path, answer.text)
    assert [replace(one, last_used_at=None) for one in await accounts.keys.list(owner)] == [
        replace(one, last_used_at=None) for one in before
    ]
    # A new secret of its own it may have: the bounds stay.
    rotated = await accounts.keys.rotate(Actor(id=lent.key.id, account_id=owner.account_id), lent.key.id)
    assert {name: getattr(rotated.key, name) for name in bounds} == bounds
