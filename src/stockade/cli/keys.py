"""`stockade keys`: the API keys in the database of a data directory, or of DATABASE_URL.

A running server takes note of a change within a second.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from stockade.cli.options import AsJson, ConfigFile, DataDir

if TYPE_CHECKING:
    from stockade.accounts import Accounts, NewKey
    from stockade.model.accounts import Account, ApiKey

__all__ = ["keys", "with_accounts"]

T = TypeVar("T")

keys = typer.Typer(help="API keys: list them, make one, change, rotate or revoke one.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.")]
NameOrId = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, or its id.")]
Description = Annotated[str | None, typer.Option("--description", help="What it is for.", show_default=False)]
Expires = Annotated[
    str | None,
    typer.Option(
        "--expires", metavar="WHEN", help='"30d", "12h", a date (2030-12-31), or "never".', show_default=False
    ),
]
Daily = Annotated[
    int | None,
    typer.Option("--daily-limit", metavar="N", help="Sandboxes in a UTC day; 0 for its tier's.", show_default=False),
]
Concurrent = Annotated[
    int | None,
    typer.Option("--concurrent-limit", metavar="N", help="Sandboxes at a time; 0 for its tier's.", show_default=False),
]
Rate = Annotated[
    int | None,
    typer.Option("--rate-limit", metavar="N", help="Requests per second; 0 for its tier's.", show_default=False),
]
BACKEND = "The one backend that its sandboxes may come from; empty for whichever a request names."
TEMPLATES = "Whether its runs may begin from templates, whose forks share hash seed and address-space layout."


@keys.command("list")
def list_keys(as_json: AsJson = False, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """List the keys. None of them can be shown again: only hashes are kept."""
    found = with_accounts(data_dir, config, lambda accounts: accounts.operation.list_keys())
    if as_json:
        print(json.dumps([_shown(key, account) for key, account in found]))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("Name", "Id", "Key", "Tier", "State"):
        table.add_column(title, overflow="fold", no_wrap=title in ("Id", "Key"))
    for key, account in found:
        table.add_row(escape(key.name), key.id, escape(key.preview), escape(account.tier), _state(key))
    Console().print(table)


@keys.command("create")
def create_key(
    name: Name,
    tier: Annotated[
        str | None,
        typer.Option("--tier", help="Make a new account of this tier, with this key; else it is the operator's own."),
    ] = None,
    email: Annotated[str, typer.Option("--email", help="Of the new account.", show_default=False)] = "",
    description: Description = None,
    expires: Expires = None,
    daily_limit: Daily = None,
    concurrent_limit: Concurrent = None,
    rate_limit: Rate = None,
    templates: Annotated[bool, typer.Option("--templates/--no-templates", help=TEMPLATES)] = True,
    backend: Annotated[str, typer.Option("--backend", metavar="NAME", help=BACKEND, show_default=False)] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Make a key and print it, once."""
    given = _changes(description, expires, daily_limit, concurrent_limit, rate_limit)
    made = with_accounts(
        data_dir,
        config,
        lambda accounts: accounts.operation.create_key(
            name, tier=tier, email=email, templates=templates, backend=backend, **given
        ),
    )
    _print_secret(made, as_json=as_json)


keys.command("add", hidden=True, deprecated=True)(create_key)


@keys.command("set")
def set_key(
    name: NameOrId,
    new_name: Annotated[str | None, typer.Option("--name", help="Another name.", show_default=False)] = None,
    tier: Annotated[
        str | None, typer.Option("--tier", help="Another tier, for its account with all keys.", show_default=False)
    ] = None,
    description: Description = None,
    expires: Expires = None,
    daily_limit: Daily = None,
    concurrent_limit: Concurrent = None,
    rate_limit: Rate = None,
    templates: Annotated[
        bool | None, typer.Option("--templates/--no-templates", help=TEMPLATES, show_default=False)
    ] = None,
    backend: Annotated[str | None, typer.Option("--backend", metavar="NAME", help=BACKEND, show_default=False)] = None,
    active: Annotated[
        bool | None, typer.Option("--active/--inactive", help="Whether it lets anybody in.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Change a key."""
    changes = _changes(description, expires, daily_limit, concurrent_limit, rate_limit)
    changes |= {"name": new_name} if new_name is not None else {}
    changes |= {"templates": templates} if templates is not None else {}
    changes |= {"backend": backend} if backend is not None else {}
    changes |= {"is_active": active} if active is not None else {}
    if not changes and tier is None:
        raise typer.BadParameter("nothing to change")
    with_accounts(data_dir, config, lambda accounts: accounts.operation.set_key(name, changes, tier=tier))


@keys.command("revoke")
def revoke_key(name: NameOrId, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Switch a key off. It stays listed, and `stockade keys set NAME --active` lets it in again."""
    with_accounts(data_dir, config, lambda accounts: accounts.operation.set_key(name, {"is_active": False}))


@keys.command("rotate")
def rotate_key(name: NameOrId, as_json: AsJson = False, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Put a new key in the place of one, and print it, once. The old one is worthless from then on."""
    made = with_accounts(data_dir, config, lambda accounts: accounts.operation.rotate_key(name))
    _print_secret(made, as_json=as_json)


def with_accounts(data_dir: DataDir, config: ConfigFile, work: "Callable[[Accounts], Awaitable[T]]") -> T:
    """What *work* makes of the configured database, which is made, or brought up to date, where needed."""
    from stockade.accounts import Accounts
    from stockade.app.engine import prepare_data_dir
    from stockade.app.records import database_place
    from stockade.config import load
    from stockade.store import Database

    loaded = load(file=config, options={"data_dir": data_dir})
    # One that is there is left as it is: a server that runs as somebody else has opened it a little.
    if not loaded.data_dir.is_dir():
        prepare_data_dir(loaded.data_dir)

    async def run() -> T:
        async with await Database.open(database_place(loaded), timeout_s=loaded.database.timeout_s) as database:
            accounts = Accounts.on(database, loaded.accounts, users=loaded.users)
            try:
                return await work(accounts)
            finally:
                await accounts.close()

    return asyncio.run(run())


def _changes(
    description: str | None, expires: str | None, daily: int | None, concurrent: int | None, rate: int | None
) -> dict[str, Any]:
    """The members of a key that options set."""
    numbers = {"custom_daily_limit": daily, "custom_concurrent_limit": concurrent, "rate_limit_rps": rate}
    changes: dict[str, Any] = {name: value or None for name, value in numbers.items() if value is not None}
    if description is not None:
        changes["description"] = description
    if expires is not None:
        changes["expires_at"] = parse_expiry(expires, now=datetime.now(UTC))
    return changes


def parse_expiry(text: str, *, now: datetime) -> datetime | None:
    """When a key expires: after "30d", "12h", on a date or at a moment (UTC unless it says otherwise), or never."""
    from stockade.settings import parse_duration

    if text == "never":
        return None
    try:
        return now + timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f'{text!r} is no duration like "30d", no date like 2030-12-31, and not "never"', param_hint="--expires"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _print_secret(made: "NewKey", *, as_json: bool) -> None:
    print(json.dumps({"id": made.key.id, "name": made.key.name, "key": made.secret}) if as_json else made.secret)


def _shown(key: "ApiKey", account: "Account") -> dict[str, object]:
    """What may be told of a key: all but its hash."""
    return {
        "id": key.id,
        "name": key.name,
        "description": key.description,
        "preview": key.preview,
        "created": _moment(key.created_at),
        "last_used": _moment(key.last_used_at) if key.last_used_at else None,
        "expires": _moment(key.expires_at) if key.expires_at else None,
        "active": key.is_active,
        "templates": key.templates,
        "backend": key.backend or None,
        "account": account.id,
        "email": account.email,
        "tier": account.tier,
        "admin": account.is_admin,
        "daily_limit": key.custom_daily_limit,
        "concurrent_limit": key.custom_concurrent_limit,
        "rate_limit": key.rate_limit_rps,
    }


def _state(key: "ApiKey") -> str:
    if not key.is_active:
        words = "revoked"
    elif key.expires_at is None:
        words = "active"
    else:
        words = f"until {_moment(key.expires_at)}" if key.expires_at > datetime.now(UTC) else "expired"
    if key.backend:
        words = f"{words}, {key.backend}"
    return words if key.templates else f"{words}, no templates"


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
