"""Options of `stockade doctor --attack`."""

from dataclasses import dataclass
from typing import Annotated

import typer

from stockade.cli.sandbox_server import Server, the_server
from stockade.errors import Invalid

__all__ = ["Asked", "AttackKey", "AttackUrl", "BackendName", "Groups", "Only", "Ways", "asked_for"]

Ways = Annotated[
    list[str] | None,
    typer.Option("--way", metavar="NAME", help="With --attack: this way in only. May be repeated.", show_default=False),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="NAME",
        help="With --attack: this group of them only. May be repeated.",
        show_default=False,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="NAME", help="With --attack: this attack. May be repeated.", show_default=False),
]
BackendName = Annotated[
    str | None,
    typer.Option(
        "--backend", metavar="NAME", help="With --attack: another backend than the configuration's.", show_default=False
    ),
]
AttackUrl = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="With --attack: a server that runs already, instead of one of our own. It must have room for hundreds of "
        "sandboxes; limits that its protocols have no word for are its own.",
        show_default=False,
    ),
]
AttackKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        "--key",
        metavar="KEY",
        help="With --url: the API key; others on this machine can read an option. Else STOCKADE_API_KEY.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be tried."""

    ways: tuple[str, ...] = ()
    """By name; none named: all of them. The same of `groups` and `only`."""
    groups: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    backend: str = ""
    """Instead of the configuration's."""
    server: Server | None = None
    """A server that runs already; `None`: one of our own."""
    as_json: bool = False


def asked_for(
    *,
    attack: bool,
    way: list[str] | None,
    group: list[str] | None,
    only: list[str] | None,
    backend: str | None,
    url: str | None,
    api_key: str | None,
    as_json: bool,
) -> Asked | None:
    """What the options ask for; `None` where no attack is meant.

    Raises:
        Invalid: options that do not go together.
        Denied: a server is named, and there is no key for it.
    """
    if not attack:
        given = {"--way": way, "--group": group, "--only": only, "--backend": backend, "--url": url, "--key": api_key}
        if alone := [name for name, value in given.items() if value]:
            raise Invalid(f"{', '.join(alone)}: only with --attack")
        return None
    if url and backend:
        raise Invalid("--backend: a server that runs already has chosen its own; leave out --url")
    if api_key and not url:
        raise Invalid("--key: only with --url")
    return Asked(
        ways=tuple(way or ()),
        groups=tuple(group or ()),
        only=tuple(only or ()),
        backend=backend or "",
        server=the_server(url, api_key) if url else None,
        as_json=as_json,
    )
