"""`stockade users`: people who log in, in the database of a data directory, or of DATABASE_URL.

A running server takes note of a change within a second; what somebody has who is locked or removed, it ends within some
seconds.
"""

import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from stockade.cli.options import AsJson, ConfigFile, DataDir
from stockade.model.users import Role

if TYPE_CHECKING:
    from stockade.accounts import Accounts
    from stockade.config import Config
    from stockade.model.users import User, UserRecord

__all__ = ["users"]

T = TypeVar("T")
MOST_LISTED = 200
BY = "operator"

users = typer.Typer(
    help="People who log in: list them, make one, hand out a new password, change role or tier, lock, remove.",
    no_args_is_help=True,
)

Who = Annotated[str, typer.Argument(metavar="USER", help="E-mail address of the user, or id.")]
PasswordStdin = Annotated[
    bool,
    typer.Option("--password-stdin", help="Read the password from standard input, up to the end of its first line."),
]


@users.command("list")
def list_users(
    query: Annotated[
        str,
        typer.Argument(metavar="[TEXT]", help="In name, address or organization; all, without.", show_default=False),
    ] = "",
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """List users, newest first."""

    async def everybody(accounts: "Accounts") -> "list[UserRecord]":
        found: list[UserRecord] = []
        cursor: str | None = None
        while True:
            page = await accounts.users.list(query=query, limit=MOST_LISTED, cursor=cursor)
            found += page.users
            if (cursor := page.cursor) is None:
                return found

    found = _with_accounts(data_dir, config, everybody)
    if as_json:
        print(json.dumps([_shown(one) for one in found]))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("Name", "E-mail", "Role", "Tier", "State", "Last log-in", "Id"):
        table.add_column(title, overflow="fold", no_wrap=title == "Id")
    for one in found:
        user = one.user
        shown = (escape(user.name), escape(user.email), user.role.value, escape(one.account.tier), _state(user))
        table.add_row(*shown, _moment(user.last_login_at) or "never", user.id)
    Console().print(table)


@users.command("create")
def create_user(
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="Their e-mail address.")],
    name: Annotated[str, typer.Option("--name", help="What they are called; the address, without.")] = "",
    organization: Annotated[str, typer.Option("--organization", help="Whom they are with.", show_default=False)] = "",
    role: Annotated[Role, typer.Option("--role", help="An admin sees and changes everybody's.")] = Role.USER,
    tier: Annotated[
        str | None,
        typer.Option(
            "--tier", help="Of their account; `free`, and `enterprise` for an admin, without.", show_default=False
        ),
    ] = None,
    password_stdin: PasswordStdin = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Make somebody an account, and print the password that they log in with the first time, once."""
    from stockade.accounts.users import random_password

    password = _read_password() if password_stdin else random_password()
    made = _with_accounts(
        data_dir,
        config,
        lambda accounts: accounts.users.create(
            name=name or email, email=email, organization=organization, password=password, role=role, tier=tier
        ),
    )
    shown = {} if password_stdin else {"password": password}
    if as_json:
        print(json.dumps({"id": made.id, "email": made.email, "role": made.role.value, **shown}))
    elif not password_stdin:
        print(password)


@users.command("reset")
def reset_password(
    user: Who,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Print a link by which somebody chooses a new password, for you to hand over. It is good once, for an hour."""

    async def reset(accounts: "Accounts") -> tuple[str, str]:
        token = await accounts.users.reset_token((await _find(accounts, user)).id, by=BY)
        return token, accounts.users.link("reset", token)

    token, link = _with_accounts(data_dir, config, reset)
    print(json.dumps({"token": token, "link": link}) if as_json else link)
    if link.startswith("/") and not as_json:
        print("stockade: put your server's address before it; users.public_url says where it is", file=sys.stderr)


@users.command("password")
def set_password(user: Who, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Read a new password of somebody's from standard input. Their sessions end."""
    from stockade.accounts import inputs

    password = inputs.password(_read_password())

    async def put(accounts: "Accounts") -> None:
        await accounts.users.set_password(await _find(accounts, user), password, by=BY)

    _with_accounts(data_dir, config, put)


@users.command("role")
def set_role(
    user: Who,
    role: Annotated[Role, typer.Argument(metavar="ROLE", help="`user` or `admin`.")],
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Make somebody an admin, or no admin any more."""
    _change(data_dir, config, user, lambda accounts, id: accounts.users.set_role(id, role, by=BY))


@users.command("tier")
def set_tier(
    user: Who,
    tier: Annotated[str, typer.Argument(metavar="TIER", help="`free`, `starter`, `pro`, `enterprise`, …")],
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Give somebody's account another tier."""
    _change(data_dir, config, user, lambda accounts, id: accounts.users.set_tier(id, tier, by=BY))


@users.command("lock")
def lock_user(user: Who, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Let somebody, and every key of theirs, in no more. Sessions end, jobs are cancelled, sandboxes killed."""
    from stockade.cli.jobs import loaded_config

    loaded = loaded_config(data_dir, config)

    async def lock(accounts: "Accounts") -> None:
        locked = await accounts.users.lock((await _find(accounts, user)).id, True, by=BY)
        await _stop(accounts, locked.account_id, loaded)

    _with_accounts(data_dir, config, lock)


@users.command("unlock")
def unlock_user(user: Who, data_dir: DataDir = None, config: ConfigFile = None) -> None:
    """Let somebody in again."""
    _change(data_dir, config, user, lambda accounts, id: accounts.users.lock(id, False, by=BY))


@users.command("delete")
def delete_user(
    user: Who,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
) -> None:
    """Remove somebody, with all that names them. Jobs are cancelled, and forgotten with their retention; sandboxes are
    killed; sums of usage stay.
    """
    from stockade.cli.jobs import loaded_config

    if not yes:
        typer.confirm(f"Remove {user}? That cannot be undone", abort=True)

    loaded = loaded_config(data_dir, config)

    async def remove(accounts: "Accounts") -> None:
        found = await _find(accounts, user)
        await accounts.users.remove(found.id, by=BY, forget=lambda account_id: _stop(accounts, account_id, loaded))

    _with_accounts(data_dir, config, remove)


def _change(
    data_dir: DataDir, config: ConfigFile, user: str, work: "Callable[[Accounts, str], Awaitable[object]]"
) -> None:
    async def change(accounts: "Accounts") -> object:
        return await work(accounts, (await _find(accounts, user)).id)

    _with_accounts(data_dir, config, change)


async def _stop(accounts: "Accounts", account_id: str, config: "Config") -> None:
    """Cancel the jobs of an account, and tell what ends of it: sandboxes are their server's to kill, which looks."""
    from stockade.app.jobs import open_job_store
    from stockade.engine.jobs import cancel_each, kept_s
    from stockade.model import SandboxState
    from stockade.store import SandboxTable

    database, jobs = accounts.operation.database, 0
    async with open_job_store(config, database) as store:
        async for _ in cancel_each(store, account_id, keep_s=kept_s(config.jobs)):
            jobs += 1
    if jobs:
        print(f"stockade: cancelled jobs: {jobs}; what runs of them ends within a heartbeat", file=sys.stderr)
    living = frozenset(SandboxState) - {SandboxState.ENDED}
    if found := (await SandboxTable(database=database, server_id="").list(account_id=account_id, states=living)).items:
        print(
            f"stockade: sandboxes that live: {len(found)}; their server kills them within seconds, or at its next"
            " start; their deadlines hold meanwhile",
            file=sys.stderr,
        )


def _with_accounts(data_dir: DataDir, config: ConfigFile, work: "Callable[[Accounts], Awaitable[T]]") -> T:
    from stockade.cli.keys import with_accounts

    return with_accounts(data_dir, config, work)


async def _find(accounts: "Accounts", wanted: str) -> "User":
    """Who has that address, or that id. Raises NotFound."""
    from stockade.errors import NotFound

    found = await accounts.users.find(wanted) or await accounts.users.find_by_email(wanted)
    if found is None:
        raise NotFound(f"there is no user {wanted!r}; `stockade users list` shows them")
    return found


def _read_password() -> str:
    """The first line of standard input; typed unseen at a terminal."""
    if sys.stdin.isatty():
        typed: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
        return typed
    return sys.stdin.readline().rstrip("\r\n")


def _shown(one: "UserRecord") -> dict[str, Any]:
    user, account = one.user, one.account
    return {
        "id": user.id,
        "name": user.name,
        "email": user.email,
        "organization": user.organization,
        "role": user.role.value,
        "account": account.id,
        "tier": account.tier,
        "locked": user.is_locked,
        "email_verified": user.email_verified_at is not None,
        "has_password": user.has_password,
        "created": _moment(user.created_at),
        "last_login": _moment(user.last_login_at),
    }


def _state(user: "User") -> str:
    if user.is_locked:
        return "locked"
    return "active" if user.email_verified_at is not None else "active, address not verified"


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
