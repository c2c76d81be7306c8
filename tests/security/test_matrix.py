"""Every endpoint of the merged server × everybody who may ask: what each is answered follows from whose it is.

A refused request changes nothing, and what is somebody else's is answered exactly like what never was.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import httpx
import jwt
import pytest
import websockets

from stockade.accounts.secrets import digest
from stockade.model.users import Role, User
from tests.security.matrix import ROWS, Kind, Row
from tests.security.merged import WITHIN_S, Asker, Merged, Things, merged, things_of

pytestmark = pytest.mark.anyio
REFUSED = frozenset({401, 403, 404})
_NOBODY = Asker(name="nobody")
_VARYING = frozenset({"date", "x-request-id", "content-length", "set-cookie"})
"""Headers that differ from answer to answer, or count the asker's own requests."""
_ENDED_JOBS = 2
"""Of each who has something of everything."""
_ROW_OF = {(row.method, row.path): row for row in ROWS}


@dataclass(frozen=True, kw_only=True)
class World:
    """The server, people, and what they have."""

    server: Merged
    ada: Asker
    ada_user: User
    hers: Things
    eve: Asker
    eves: Things
    stale: dict[str, Asker]
    """Who is let in no more, or never was, by name."""
    confused: dict[str, Asker]
    """Who shows what is good, at another door."""
    root: Asker
    """An administrator of the portal."""
    operator: Asker
    token: Asker
    """Ada, by a token of `/v1/auth`."""


@pytest.fixture(scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("matrix")
    data = folder / "data"
    data.mkdir(mode=0o700)
    async with merged(data) as server:
        users = {name: await server.user(name) for name in ("ada", "eve", "lou", "gone")}
        askers = {name: await server.asker(name, user) for name, user in users.items()}
        hers = await things_of(server, askers["ada"], users["ada"], folder)
        eves = await things_of(server, askers["eve"], users["eve"], folder)
        ada = replace(askers["ada"], secret=hers.sandbox_secret)
        root_user = await server.user("root", role=Role.ADMIN)
        await _settled(server, hers.words)
        yield World(
            server=server,
            ada=ada,
            ada_user=users["ada"],
            hers=hers,
            eve=replace(askers["eve"], secret=eves.sandbox_secret),
            eves=eves,
            stale=await _stale(server, askers, users, hers),
            confused=await _confused(server, ada, users["ada"], hers),
            root=replace(await server.asker("root", root_user), secret="of-no-sandbox-at-all"),
            operator=Asker(name="operator", key=server.operator_key),
            token=Asker(name="token", key=server.accounts.tokens.issue(users["ada"])),
        )


async def _settled(server: Merged, words: tuple[str, ...]) -> None:
    """Wait until what is still to be written of the jobs that have ended is: their usage."""
    async with asyncio.timeout(WITHIN_S):
        while sum(one.startswith("recorded_jobs") for one in server.facts(words)) < _ENDED_JOBS:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _stale(server: Merged, askers: dict[str, Asker], users: dict[str, User], hers: Things) -> dict[str, Asker]:
    accounts, ada = server.accounts, users["ada"]
    actor = await accounts.users.actor(ada)
    revoked = await accounts.keys.create(actor, name="revoked")
    await accounts.keys.deactivate(actor, revoked.key.id)
    past = datetime.now(UTC) - timedelta(seconds=1)
    expired = await accounts.keys.create(actor, name="expired", expires_at=past)
    rotated = await accounts.keys.create(actor, name="rotated")
    await accounts.keys.rotate(actor, rotated.key.id)
    ended, log_in = await accounts.sessions.begin(ada, address="192.0.2.1", agent="ended")
    await accounts.sessions.end(ada, log_in.id)
    elapsed, log_in = await accounts.sessions.begin(ada, address="192.0.2.1", agent="elapsed")
    await accounts.operation.database.write(
        lambda connection: connection.exec_driver_sql(
            "update user_sessions set expires_at = ? where id = ?", (str(past.replace(tzinfo=None)), log_in.id)
        )
    )
    claims = {"user_id": ada.id, "email": ada.email}
    secret = accounts.tokens._secret
    late = jwt.encode(claims | {"exp": past.timestamp()}, secret, "HS256")
    lou_token = accounts.tokens.issue(users["lou"])
    await accounts.users.lock(users["lou"].id, True, by="operator")
    await accounts.users.remove(users["gone"].id, by="operator", forget=_nothing)
    unsigned = jwt.encode(claims | {"exp": 4_000_000_000}, "", "none")
    forged = jwt.encode(claims | {"exp": 4_000_000_000}, "k" * 64, "HS256", headers={"kid": "../../dev/null"})
    return {
        "nobody": _NOBODY,
        "revoked": Asker(name="revoked", key=revoked.secret, session=ended, secret=hers.dead_secret),
        "expired": Asker(name="expired", key=expired.secret, session=elapsed),
        "rotated": Asker(name="rotated", key=rotated.secret, session="x" * 43, secret="x" * 43),
        "expired token": Asker(name="expired token", key=late),
        "unsigned token": Asker(name="unsigned token", key=unsigned, session=unsigned, secret=unsigned),
        "forged token": Asker(name="forged token", key=forged, session=forged, secret=forged),
        "locked": askers["lou"],
        "locked token": Asker(name="locked token", key=lou_token),
        "removed": askers["gone"],
    }


async def _nothing(_account_id: str) -> None:
    return None


async def _confused(server: Merged, ada: Asker, user: User, hers: Things) -> dict[str, Asker]:
    actor = await server.accounts.users.actor(user)
    (first, *_) = await server.accounts.keys.list(actor)
    return {
        "key elsewhere": Asker(name="key elsewhere", session=ada.key, secret=ada.key),
        "session elsewhere": Asker(name="session elsewhere", key=ada.session, secret=ada.session),
        "sandbox secret elsewhere": Asker(name="sandbox secret elsewhere", key=ada.secret, session=ada.secret),
        "token elsewhere": Asker(
            name="token elsewhere",
            session=server.accounts.tokens.issue(user),
            secret=server.accounts.tokens.issue(user),
        ),
        "what is kept of a key": Asker(
            name="what is kept of a key", key=digest(ada.key), session=digest(ada.session), secret=digest(ada.secret)
        ),
        "an id": Asker(name="an id", key=first.id, session=hers.ids["log_in"], secret=hers.ids["session_id"]),
        "a reset token": Asker(name="a reset token", key=hers.reset, session=hers.reset, secret=hers.reset),
        "no word": Asker(name="no word", key="null", session="null", secret="null"),
    }


def report(wrong: list[str]) -> None:
    """Nothing is wrong, or a line for each thing that is."""
    assert not wrong, "\n".join(wrong)


async def ask(world: World, asker: Asker, row: Row, ids: dict[str, str]) -> httpx.Response:
    """The answer; of a WebSocket, that to its handshake."""
    path, server = row.url(ids), world.server
    if row.method != "WEBSOCKET":
        content: Any = {"json": row.body} if row.body is not None else {"content": row.content}
        return await server.ask(asker, row.method, path, door=row.door, params=dict(row.query), **content)
    query = str(httpx.QueryParams(dict(row.query)))
    url = f"{server.url.replace('http', 'ws', 1)}{path}{query and '?' + query}"
    headers = asker.headers(row.door, server.url)
    origin = headers.pop("Origin", None)
    try:
        async with websockets.connect(url, additional_headers=headers, origin=origin, open_timeout=60, proxy=None):  # type: ignore[arg-type]
            return httpx.Response(101)
    except websockets.InvalidStatus as error:
        answer = error.response
        return httpx.Response(
            answer.status_code, headers=list(answer.headers.raw_items()), content=bytes(answer.body or b"")
        )


def told(world: World, answer: httpx.Response, row: Row, ids: Mapping[str, str]) -> list[str]:
    """What of Ada's stands in an answer, and not in what was asked."""
    asked = unquote(row.url(ids))
    return [f"{row}: tells {word}" for word in world.hers.words if word in answer.text and word not in asked]


def plain(response: httpx.Response, ids: dict[str, str]) -> tuple[Any, ...]:
    """An answer without what must differ: *ids*, the request's own id."""
    text = response.text
    request = response.headers.get("x-request-id", "")
    for one in sorted({*ids.values()}, key=len, reverse=True):
        text = text.replace(one, "<id>")
    text = text.replace(request, "<request>") if request else text
    names = {name for name in response.headers if name not in _VARYING and not name.startswith("ratelimit")}
    kept = tuple((name, response.headers[name]) for name in sorted(names) if not name.startswith("x-ratelimit"))
    return response.status_code, text, kept


def ghosts(ids: dict[str, str]) -> dict[str, str]:
    """Names of the same form, of what never was."""
    digits = str.maketrans("0123456789abcdef", "fedcba9876543210")
    swapped = {name: value.translate(digits) for name, value in ids.items()}
    # What is no number in base 16 is told apart by its last letters.
    upper = {name: re.sub(r"[0-9A-Z]{8}$", "ZZZZZZZ1", value) for name, value in ids.items() if value.isupper()}
    return {**swapped, **upper, "volume_id": re.sub(r".{8}$", "ZZZZZZZ1", ids["volume_id"])}


def pages(things: Things) -> dict[str, str]:
    return {**things.ids, "page": "x"}


def test_every_endpoint_has_a_row_and_every_row_an_endpoint(world: World) -> None:
    """But for those that refuse: `test_what_has_no_row_is_refused_whoever_asks`."""
    routes = set(world.server.routes)
    assert {str(row) for row in ROWS if (row.method, row.path) not in routes and row.door != "secret"} == set()
    assert len(_ROW_OF) == len(ROWS)


async def test_what_has_no_row_is_refused_whoever_asks(world: World) -> None:
    """So an endpoint that is new must be given a row: it would answer its owner otherwise, even if only 400 or 403."""
    wrong: list[str] = []
    for method, path in world.server.routes:
        if (method, path.replace("/{slot:path}", "")) in _ROW_OF or method in ("CONNECT", "TRACE"):
            continue
        door = next((row.door for row in ROWS if row.path == path), "session" if path.startswith("/api/") else "key")
        row = Row(method=method, path=path, kind=Kind.MINE, door=door)
        ids = {one: world.hers.ids.get(one, "x") for one in row.parameters}
        answer = await ask(world, world.ada, row, ids)
        says_what_there_is = method == "OPTIONS" and not answer.content
        if answer.status_code not in (401, 404, 405) and not says_what_there_is:
            wrong.append(f"{row}, which has no row: {answer.status_code} {answer.text[:99]}")
    report(wrong)


def is_let_in(row: Row) -> bool:
    return row.kind in (Kind.OPEN, Kind.SEALED)


async def of_refused(world: World, asker: Asker, rows: Iterable[Row]) -> list[str]:
    """What is wrong with the answers to *asker*, who is nobody."""
    ids, wrong = pages(world.hers), []
    for row in rows:
        answer = await ask(world, asker, row, ids)
        # 410: the secret of a sandbox that has ended.
        right = {401, 410} if row.door == "secret" else {401}
        if answer.status_code not in right:
            wrong.append(f"{row}: {answer.status_code} {answer.text[:200]}")
        wrong += told(world, answer, row, ids)
    return wrong


STALE = (
    "nobody",
    "revoked",
    "expired",
    "rotated",
    "expired token",
    "unsigned token",
    "forged token",
    "locked",
    "locked token",
    "removed",
)


@pytest.mark.parametrize("name", STALE)
async def test_who_is_let_in_no_more_is_refused_everywhere(world: World, name: str) -> None:
    before = world.server.facts(world.hers.words)
    closed = [row for row in ROWS if not is_let_in(row)]
    report(await of_refused(world, world.stale[name], closed))
    assert world.server.facts(world.hers.words) == before


CONFUSED = (
    "key elsewhere",
    "session elsewhere",
    "sandbox secret elsewhere",
    "token elsewhere",
    "what is kept of a key",
    "an id",
    "a reset token",
    "no word",
)


@pytest.mark.parametrize("name", CONFUSED)
async def test_what_opens_one_door_opens_no_other(world: World, name: str) -> None:
    before = world.server.facts(world.hers.words)
    closed = [row for row in ROWS if not is_let_in(row)]
    report(await of_refused(world, world.confused[name], closed))
    assert world.server.facts(world.hers.words) == before


async def test_a_token_opens_the_protocol_that_it_is_of_and_no_other(world: World) -> None:
    def is_its_own(row: Row) -> bool:
        return row.path.startswith(("/v1/execute", "/v1/jobs", "/v1/auth"))

    closed = [row for row in ROWS if row.door in ("key", "secret", "token") and not is_let_in(row)]
    report(await of_refused(world, world.token, [row for row in closed if not is_its_own(row)]))
    ids, wrong = pages(world.hers), []
    for row in closed:
        if is_its_own(row) and not row.changes:
            status = (await ask(world, world.token, row, ids)).status_code
            wrong += [f"{row}: {status}"] if status in REFUSED else []
    report(wrong)


async def of_others(world: World, asker: Asker, rows: Iterable[Row], *, is_admin: bool = False) -> list[str]:
    """What is wrong with the answers to *asker*, who is somebody else."""
    hers, wrong = pages(world.hers), []
    unknown = ghosts(hers)
    for row in rows:
        answer = await ask(world, asker, row, hers)
        wrong += told(world, answer, row, hers)
        if row.kind is Kind.OWN:
            never = await ask(world, asker, row, unknown)
            if answer.status_code != 404:
                wrong.append(f"{row}: {answer.status_code} {answer.text[:200]}")
            if plain(answer, hers) != plain(never, unknown):
                wrong.append(f"{row}: {plain(answer, hers)}, but of what never was: {plain(never, unknown)}")
        elif row.kind is Kind.ADMIN:
            if (answer.status_code == 403) is is_admin:
                wrong.append(f"{row}: {answer.status_code} {answer.text[:200]}")
        elif row.kind is Kind.MINE and answer.status_code in REFUSED:
            wrong.append(f"{row}: {answer.status_code} {answer.text[:200]}")
    return wrong


async def test_another_account_gets_nothing_of_what_is_not_its_own(world: World) -> None:
    before = world.server.facts(world.hers.words)
    rows = [row for row in ROWS if not (row.ends and row.kind is Kind.MINE) and not is_let_in(row)]
    report(await of_others(world, world.eve, rows))
    assert world.server.facts(world.hers.words) == before


async def test_a_slot_opens_nothing(world: World) -> None:
    """Boxes are asked for below `/v1/<anything>`, too: whose they are says the key alone."""
    own = tuple(f"/v1/{one}" for one in ("boxes", "images", "volumes", "metrics"))
    for slot in ("default", world.hers.ids["user_id"], "a/longer/one"):
        rows = [
            replace(row, path=row.path.replace("/v1/", f"/v1/{slot}/", 1))
            for row in ROWS
            if row.path.startswith(own) and not is_let_in(row) and (row.kind is Kind.OWN or not row.changes)
        ]
        report(await of_refused(world, _NOBODY, rows))
        report(await of_others(world, world.eve, rows if slot == "default" else rows[:5]))


async def test_nor_by_way_of_something_of_its_own(world: World) -> None:
    """Its own box, with the execution or the snapshot of another's."""
    ids = {**pages(world.hers), "box_id": world.eves.ids["box_id"]}
    wrong = []
    for row in ROWS:
        inner = [one for one in row.parameters if one in ("execution_id", "name", "alias")]
        if row.kind is Kind.OWN and inner and "box_id" in row.parameters:
            answer = await ask(world, world.eve, row, ids)
            never = await ask(world, world.eve, row, ghosts(ids) | {"box_id": ids["box_id"]})
            if answer.status_code != 404 or answer.status_code != never.status_code:
                wrong.append(f"{row}: {answer.status_code}, {never.status_code} {answer.text[:200]}")
    report(wrong)


async def test_an_administrator_of_the_portal_sees_jobs_and_nothing_else_of_others(world: World) -> None:
    """By the log-in. By an API key, they are like anybody."""
    before = world.server.facts(world.hers.words)
    rows = [row for row in ROWS if not row.ends and row.kind in (Kind.OWN, Kind.MINE, Kind.ADMIN)]
    by_key = [row for row in rows if row.door == "key"]
    report(await of_others(world, world.root, by_key))
    by_session = [row for row in rows if row.door == "session"]
    theirs = {"/api/admin/usage", "/api/admin/users"}  # which show everybody
    closed = [row for row in by_session if not row.is_job and row.path not in theirs]
    report(await of_others(world, world.root, closed, is_admin=True))
    for row in by_session:
        if row.path in theirs or (row.is_job and not row.changes):
            answer = await ask(world, world.root, row, pages(world.hers))
            assert answer.status_code not in REFUSED, row
    assert world.server.facts(world.hers.words) == before


async def test_the_operators_key_sees_jobs_and_images_and_nothing_else_of_others(world: World) -> None:
    before = world.server.facts(world.hers.words)
    rows = [row for row in ROWS if row.door == "key" and not row.ends and row.kind in (Kind.OWN, Kind.MINE, Kind.ADMIN)]
    report(await of_others(world, world.operator, [row for row in rows if not row.is_job], is_admin=True))
    for row in rows:
        if row.is_job and not row.changes:
            assert (await ask(world, world.operator, row, pages(world.hers))).status_code not in REFUSED, row
    assert world.server.facts(world.hers.words) == before


async def test_what_needs_no_one_answers_anybody(world: World) -> None:
    ids = pages(world.hers)
    for row in ROWS:
        if row.kind is Kind.OPEN and row.path != "/languages":  # which starts all of them, to ask for their versions
            for asker in (_NOBODY, world.stale["locked"]):
                answer = await ask(world, asker, row, ids)
                assert answer.status_code not in (401, 403), (row, asker.name)
                assert not [word for word in world.hers.words if word in answer.text], row
    assert world.server.facts(world.hers.words)


async def test_no_log_in_and_no_key_stands_for_a_proof(world: World) -> None:
    """A wrong password, a guessed token: nobody comes in by one, logged in or not, and it changes nothing of theirs."""
    before = world.server.facts(world.hers.words)
    ids = pages(world.hers)
    for row in ROWS:
        if row.kind is Kind.SEALED:
            for asker in (_NOBODY, world.ada, world.root, world.operator):
                answer = await ask(world, asker, row, ids)
                is_silent = answer.status_code in (202, 303)  # whatever was asked; of a page, to the log-in
                assert is_silent or 400 <= answer.status_code < 500, (row, asker.name, answer.status_code)
                assert "stockade_session=" not in answer.headers.get("set-cookie", ""), row
    assert world.server.facts(world.hers.words) == before


async def test_whoever_it_belongs_to_is_let_in_everywhere(world: World) -> None:
    """The last one: it ends what there was. So the refusals above were for who asked, not for what was asked."""
    ids, wrong = pages(world.hers), []
    rows = [row for row in ROWS if row.kind in (Kind.OWN, Kind.MINE)]
    # What looks, then what changes, then what ends something: the innermost first, and the log-in last.
    order = sorted(rows, key=lambda row: (row.ends, row.changes, row.path == "/api/session", -len(row.path)))
    for row in order:
        answer = await ask(world, world.ada, row, ids)
        is_refused = answer.status_code in REFUSED and "not the password" not in str(row.body)
        is_fault = answer.status_code >= 500 and answer.status_code != 501
        if is_refused or is_fault:
            wrong.append(f"{row}: {answer.status_code} {answer.text[:200]}")
    report(wrong)
