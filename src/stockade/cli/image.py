"""`stockade image`: images that sandboxes and boxes are made from."""

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from stockade.cli.image_bars import shown
from stockade.cli.jobs import loaded_config
from stockade.cli.options import AsJson, ConfigFile, DataDir
from stockade.cli.sandbox_server import ApiKey, Server, Url, telling_failures, the_server
from stockade.errors import Conflict, Invalid, NotFound

if TYPE_CHECKING:
    from stockade.cli.image_places import Place, Steps
    from stockade.cli.image_server import OnServer
    from stockade.config import Config

__all__ = ["image"]

T = TypeVar("T")

image = typer.Typer(
    help="Images that boxes are made from: pull, build or import them, list and remove them. On the server that --url "
    "or STOCKADE_URL names, or that uses the data directory; where none does, in the data directory itself.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="IMAGE", help="Reference, alias or digest.")]
ByReference = Annotated[str, typer.Argument(metavar="REFERENCE", help="As with Docker: `alpine:3.20`, `ghcr.io/a/b`.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


@image.command("pull")
def pull(
    reference: ByReference,
    force: Annotated[
        bool, typer.Option("--force", help="Ask the registry although it is here: its tag may have moved.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Bring an image here from its registry, and print its digest."""
    _bring(lambda place: place.pull(reference, force=force), data_dir, config, url, api_key, quiet, as_json)


@image.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", exists=True, help="`docker save` archive, or directory of an OCI layout.")
    ],
    reference: ByReference,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Which of several images, as the archive calls it.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Bring an image here from a file, for everybody, and print its digest."""
    _bring(
        lambda place: place.import_file(path, name=name, reference=reference),
        data_dir, config, url, api_key, quiet, as_json,
    )  # fmt: skip


@image.command("build-debian")
def build_debian(
    reference: ByReference,
    packages: Annotated[
        str, typer.Option("--packages", metavar="A,B,…", help="Packages beyond the smallest system with apt.")
    ] = "",
    suite: Annotated[
        str | None, typer.Option(metavar="NAME", help="`bookworm`, …; else this machine's own.", show_default=False)
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(metavar="URL", help="Where packages come from; else Debian's.", show_default=False)
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make an image of Debian on this machine (with mmdebstrap), and print its digest."""
    from stockade.engine.image_debian import Debian

    with tempfile.TemporaryDirectory(prefix="stockade-debian-") as directory:
        source = Debian(
            [one for one in packages.replace(",", " ").split() if one],
            directory=Path(directory),
            suite=suite,
            mirror=mirror,
        )
        _bring(lambda place: place.add(source, reference=reference), data_dir, config, url, api_key, quiet, as_json)


@image.command("list")
def list_(
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List images, the oldest first."""
    found = _with_place(lambda place: place.list(), data_dir, config, url, api_key)
    if as_json:
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    from stockade.engine.image_references import Reference

    def short(names: list[str]) -> str:
        """As people write them."""
        return escape("\n".join(Reference.parse(name).familiar for name in names))

    table = Table(box=None, pad_edge=False)
    for title in ("Reference", "Digest", "Size", "From", "Used", "Also"):
        table.add_column(title, no_wrap=title == "Digest", overflow="fold")
    for one in found:
        table.add_row(
            short([one["reference"]]),
            one["digest"].removeprefix("sha256:")[:12],
            decimal(one["size_bytes"] or 0),
            escape(one["source"]),
            datetime.fromisoformat(one["used_at"]).astimezone().strftime("%Y-%m-%d %H:%M"),
            short(one["aliases"]),
        )
    Console(highlight=False).print(table)


@image.command("show")
def show(
    name: Name, data_dir: DataDir = None, config: ConfigFile = None, url: Url = None, api_key: ApiKey = None
) -> None:
    """Print all about an image, as JSON."""
    print(json.dumps(_with_place(lambda place: place.show(name), data_dir, config, url, api_key), indent=2))


@image.command("alias")
def alias(
    name: Name,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="Further name, that leads there from now on.")],
    remove: Annotated[bool, typer.Option("--remove", help="It leads there no more.")] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Give an image a further name, or take one away."""
    _with_place(
        lambda place: place.unalias(name, alias) if remove else place.alias(name, alias),
        data_dir, config, url, api_key,
    )  # fmt: skip


@image.command("remove")
def remove(
    names: Annotated[list[str], typer.Argument(metavar="IMAGE", help="References, aliases or digests.")],
    data_dir: DataDir = None,
    config: ConfigFile = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove images that no box stands on, with all their names."""

    async def work(place: "Place") -> None:
        for name in names:
            await place.remove(name)
            print(name)

    _with_place(work, data_dir, config, url, api_key)


@image.command("prune")
def prune(
    unused: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help='Unused for so long: "7d"; else registries.unused_s.'),
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove images that nobody has used for long, and layers without an image."""
    from rich.filesize import decimal

    from stockade.settings import parse_duration

    try:
        unused_s = None if unused is None else parse_duration(unused)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--unused") from None
    gone = _with_place(lambda place: place.prune(unused_s), data_dir, config, url, api_key)
    if as_json:
        print(json.dumps(gone))
        return
    for one in gone["removed"]:
        print(one)
    print(f"freed {decimal(gone['freed_bytes'])}", file=sys.stderr)


@image.command("usage")
def usage(
    as_json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show how many images there are, and how much room they take."""
    from rich.filesize import decimal

    found = _with_place(lambda place: place.usage(), data_dir, config, url, api_key)
    if as_json:
        print(json.dumps(found))
        return
    most = "" if found["limit"] is None else f" of {found['limit']}"
    print(f"{found['count']}{most} images, {decimal(found['known_bytes'])}")


@image.command("login")
def login(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The registry: `docker.io`, `ghcr.io`, …")],
    username: Annotated[str, typer.Option(metavar="NAME", help="Who you are there.")],
    prefix: Annotated[str, typer.Option(metavar="PATH", help="For repositories below this path only.")] = "",
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Have a server keep credentials for a registry, for the account of the key.

    The password is asked for; without a terminal it is read from standard input. What is pulled with it is the
    account's alone.
    """
    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, err=True)
    else:
        password = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    made = _with_server(
        the_server(url, api_key),
        lambda place: place.log_in(host, username=username, password=password, prefix=prefix),
    )
    print(made["id"])


@image.command("logins")
def logins(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List the registries that a server has credentials for, of the account of the key."""
    found = _with_server(the_server(url, api_key), lambda place: place.registries())
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        where = "/".join(filter(None, (one["registry_host"], one["repository_prefix"])))
        print(f"{one['id']}  {where}  {one['username']}")


@image.command("logout")
def logout(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The registry, or the id that `logins` prints.")],
    prefix: Annotated[str, typer.Option(metavar="PATH", help="As with `login`.")] = "",
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Have a server forget credentials."""

    async def work(place: "OnServer") -> None:
        for one in await place.registries():
            if host == one["id"] or (host, prefix) == (one["registry_host"], one["repository_prefix"]):
                await place.log_out(one["id"])
                return
        raise NotFound(f"there are no credentials for {'/'.join(filter(None, (host, prefix)))}")

    _with_server(the_server(url, api_key), work)


def _bring(
    begin: "Callable[[Place], Steps]",
    data_dir: DataDir,
    config: ConfigFile,
    url: str | None,
    api_key: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    async def work(place: "Place") -> Mapping[str, Any]:
        return await shown(begin(place), is_quiet=quiet)

    made = _with_place(work, data_dir, config, url, api_key)
    print(json.dumps(made) if as_json else made["digest"])


def _with_place(
    work: "Callable[[Place], Awaitable[T]]",
    data_dir: DataDir,
    config: ConfigFile,
    url: str | None,
    api_key: str | None,
) -> T:
    """What *work* makes of the images of the server, or of the data directory."""
    if url or os.environ.get("STOCKADE_URL"):
        if data_dir is not None:
            raise Invalid("--data-dir is for the directory of this machine, --url for a server: name one of them")
        return _with_server(the_server(url, api_key), work)
    loaded = loaded_config(data_dir, config)
    if _is_served(loaded):
        return _with_server(the_server(_address(loaded), api_key), work)
    return asyncio.run(_in(_here(loaded), work))


def _with_server(server: Server, work: "Callable[[OnServer], Awaitable[T]]") -> T:
    from stockade.cli.image_server import OnServer

    with telling_failures(server):
        return asyncio.run(_in(OnServer(server), work))
    raise AssertionError("telling_failures ends the program")


async def _in(place: Any, work: "Callable[[Any], Awaitable[T]]") -> T:
    async with place as entered:
        return await work(entered)


@contextlib.asynccontextmanager
async def _here(config: "Config") -> "AsyncIterator[Place]":
    from stockade.app.images import image_store
    from stockade.app.logs import configure
    from stockade.cli.image_places import Here
    from stockade.config import LogConfig

    configure(LogConfig(level="warning", format="console"))  # a server's events are not what somebody waits for here
    async with image_store(config) as (store, operator):
        yield Here(store, operator)


def _is_served(config: "Config") -> bool:
    """Whether a server uses the data directory."""
    from stockade.app.lock import exclusive

    try:
        with exclusive(config.data_dir):
            return False
    except Conflict:
        return True


def _address(config: "Config") -> str:
    """Where the server of this configuration answers, as seen from its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.server.host, config.server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.server.port}"
