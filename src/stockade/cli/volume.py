"""`stockade volume`: disks that belong to no box, on a server."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from stockade.cli.box import GIB, Name, each, gigabytes, print_table, with_boxes
from stockade.cli.options import AsJson
from stockade.cli.sandbox_server import ApiKey, Url, the_server

if TYPE_CHECKING:
    from stockade.cli.box_client import BoxClient

__all__ = ["volume"]

volume = typer.Typer(
    help="Volumes, on a server: disks that boxes mount (`stockade box create --volume`) and that outlive them.",
    no_args_is_help=True,
)


@volume.command("create")
def create(
    name: Name = None,
    size: Annotated[str | None, typer.Option(metavar="SIZE", help='Size, in whole gigabytes: "8G".')] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make an empty volume and print its id."""
    size_gb = None if size is None else gigabytes(size, "--size")

    def work(client: "BoxClient") -> None:
        made = client.create_volume(name=name, size_gb=size_gb)
        print(json.dumps(made) if as_json else made["id"])

    with_boxes(the_server(url, api_key), work)


@volume.command("list")
def list_(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List the volumes of the account."""

    def work(client: "BoxClient") -> None:
        found = client.volumes()
        if as_json:
            print(json.dumps(found))
            return
        shown = [{**one, "size": f"{one['size_bytes'] / GIB:g} GiB"} for one in found]
        print_table(("Id", "Name", "Size", "Created"), shown, ("id", "name", "size", "created_at"))

    with_boxes(the_server(url, api_key), work)


@volume.command("remove")
def remove(
    volumes: Annotated[list[str], typer.Argument(metavar="VOLUME", help="Ids or names.")],
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Also those that a box names; it does not start any more then.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove volumes with all that is on them. Prints each that is gone."""
    each(the_server(url, api_key), volumes, lambda client, one: client.remove_volume(one, force=force))
