"""`stockade box`: sandboxes that can be stopped and started again, on a server."""

import json
import math
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockade.cli.box_files import cp, export, import_
from stockade.cli.box_process import attach, exec_
from stockade.cli.options import AsJson
from stockade.cli.sandbox_server import ApiKey, Server, Url, say, telling_failures, the_server
from stockade.cli.sandbox_streams import Env, environment

if TYPE_CHECKING:
    from stockade.cli.box_client import BoxClient

__all__ = ["GIB", "Name", "box", "each", "gigabytes", "print_table", "with_boxes"]

MIB, GIB = 1 << 20, 1 << 30
TO_THE_END = {"allow_interspersed_args": False}
"""What follows belongs to the command inside, its options too."""
REMOVED_WITH_STOP = 1
"""`auto_delete` of a box that is removed when it stops."""

box = typer.Typer(
    help="Boxes, on a server: sandboxes with a disk that stays when they are stopped.", no_args_is_help=True
)

Box = Annotated[str, typer.Argument(metavar="BOX", help="Id or name.")]
Boxes = Annotated[list[str], typer.Argument(metavar="BOX", help="Ids or names.")]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Its name; else it has none.")]
SnapshotName = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="Its name.")]
FromSnapshot = Annotated[
    str | None, typer.Option("--snapshot", metavar="SNAPSHOT", help="As of this snapshot; else as it is now.")
]


@box.command("create", context_settings=TO_THE_END)
def create(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND...]", help="Main process, which a start begins. Else the image's own."),
    ] = None,
    image: Annotated[
        str, typer.Option(metavar="IMAGE", help="Reference or alias; `host` is the server's own programs.")
    ] = "host",
    name: Name = None,
    env: Env = None,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w", metavar="DIR", help="Working directory.")] = None,
    user: Annotated[
        str | None, typer.Option("--user", "-u", metavar="USER", help="A name of the image's, or UID[:GID].")
    ] = None,
    cpus: Annotated[int | None, typer.Option(metavar="COUNT", min=1, max=255, help="Processors.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help='Memory limit: "512MiB", "2G".')] = None,
    disk: Annotated[str | None, typer.Option(metavar="SIZE", help='Disk, in whole gigabytes: "8G".')] = None,
    no_network: Annotated[bool, typer.Option("--no-network", help="It may connect nowhere.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Name, `*.name`, address or network; as often as wanted. Else all."),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option("--volume", "-v", metavar="VOLUME:PATH[:ro]", help="Mount a volume; as often as wanted."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME@HOST[,HOST]",
            help="It sees a placeholder in NAME, in whose place requests to these hosts have the value that NAME has "
            "in our environment; as often as wanted.",
        ),
    ] = None,
    auto_stop: Annotated[
        str | None, typer.Option(metavar="DURATION", help='Stop it after so long without use: "15m"; 0s for never.')
    ] = None,
    auto_delete: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Remove it so long after a stop; 0s for never.")
    ] = None,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give the main process a terminal.")] = False,
    rm: Annotated[bool, typer.Option("--rm", help="Remove it when it stops.")] = False,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", metavar="NAME=VALUE", help="As often as wanted.")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Start it, too.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make a box and print its id."""
    body: dict[str, Any] = {
        "image": image,
        "name": name,
        "env": environment(env),
        "working_dir": workdir,
        "user": user,
        "cpus": cpus,
        "memory_mib": None if memory is None else math.ceil(_size(memory, "--memory") / MIB),
        "disk_size_gb": None if disk is None else gigabytes(disk, "--disk"),
        "cmd": command or None,
        "entrypoint": [] if command else None,
        "tty": tty or None,
        "volumes": [_volume(one) for one in volume or ()],
        "secrets": [_secret(one) for one in secret or ()] or None,
        "labels": dict(_pair(one) for one in label or ()),
        "auto_stop": None if auto_stop is None else _seconds(auto_stop, "--auto-stop"),
        "auto_delete": REMOVED_WITH_STOP if rm else _after_stop(auto_delete),
        "auto_remove": False,
        "network": {"mode": "disabled"} if no_network else {"mode": "enabled", "allow_net": allow or []},
    }

    def work(client: "BoxClient") -> None:
        made = client.create({member: value for member, value in body.items() if value is not None})
        if start:
            try:
                made = client.act(made["box_id"], "start")
            except Exception:
                say(f"box {made['box_id']} was made, and could not be started")
                raise
        print(json.dumps(made) if as_json else made["box_id"])

    with_boxes(the_server(url, api_key), work)


def _volume(text: str) -> dict[str, Any]:
    volume, _, rest = text.partition(":")
    path, is_read_only = rest.removesuffix(":ro"), rest.endswith(":ro")
    if not volume or not posixpath.isabs(path):
        raise typer.BadParameter(f"{text!r} is not VOLUME:PATH or VOLUME:PATH:ro", param_hint="--volume")
    return {"managed_volume": volume, "guest_path": path, "read_only": is_read_only}


def _secret(text: str) -> dict[str, Any]:
    name, _, hosts = text.partition("@")
    if not name or not hosts:
        raise typer.BadParameter(f"{text!r} is not NAME@HOST or NAME@HOST,HOST", param_hint="--secret")
    value = os.environ.get(name)  # not an argument: others on this machine can read those
    if not value:
        raise typer.BadParameter(f"{name} is not set in the environment", param_hint="--secret")
    return {"name": name, "value": value, "hosts": hosts.split(",")}


def _pair(text: str) -> tuple[str, str]:
    name, has_value, value = text.partition("=")
    if not name or not has_value:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--label")
    return name, value


def _size(text: str, option: str) -> int:
    from stockade.settings import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def gigabytes(text: str, option: str) -> int:
    """A size in whole gigabytes, of 2^30 bytes as the server counts them. Raises BadParameter: *text* is no size."""
    return math.ceil(_size(text, option) / GIB)


def _seconds(text: str, option: str) -> int:
    from stockade.settings import parse_duration

    try:
        return math.ceil(parse_duration(text))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _after_stop(text: str | None) -> int | None:
    if text is None:
        return None
    seconds = _seconds(text, "--auto-delete")
    return max(seconds, REMOVED_WITH_STOP + 1) if seconds else 0


@box.command("list")
def list_(
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help="Only those that are so: running, stopped, configured, …")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the boxes of the account, the newest first."""

    def work(client: "BoxClient") -> None:
        found = client.list(status=status)
        if as_json:
            print(json.dumps(found))
            return
        members = ("box_id", "name", "status", "image", "created_at")
        print_table(("Id", "Name", "Status", "Image", "Created"), found, members)

    with_boxes(the_server(url, api_key), work)


@box.command("show")
def show(box: Box, url: Url = None, api_key: ApiKey = None) -> None:
    """Print all that is known of a box, as JSON."""
    with_boxes(the_server(url, api_key), lambda client: print(json.dumps(client.get(box), indent=2)))


@box.command("start")
def start_(boxes: Boxes, url: Url = None, api_key: ApiKey = None) -> None:
    """Start boxes. Prints each that runs."""
    each(the_server(url, api_key), boxes, lambda client, one: client.act(one, "start"))


@box.command("stop")
def stop(boxes: Boxes, url: Url = None, api_key: ApiKey = None) -> None:
    """Stop boxes: their processes end, their disks stay. Prints each that has stopped."""
    each(the_server(url, api_key), boxes, lambda client, one: client.act(one, "stop"))


@box.command("pause")
def pause(boxes: Boxes, url: Url = None, api_key: ApiKey = None) -> None:
    """Let boxes stand still, with all that they have in memory. Prints each that does."""
    each(the_server(url, api_key), boxes, lambda client, one: client.act(one, "pause"))


@box.command("resume")
def resume(boxes: Boxes, url: Url = None, api_key: ApiKey = None) -> None:
    """Let boxes go on that were paused. Prints each that does."""
    each(the_server(url, api_key), boxes, lambda client, one: client.act(one, "resume"))


@box.command("remove")
def remove(
    boxes: Boxes,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also those that run.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove boxes with their disks and snapshots. Prints each that is gone."""
    each(the_server(url, api_key), boxes, lambda client, one: client.remove(one, force=force))


@box.command("snapshot")
def snapshot(box: Box, name: SnapshotName, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Keep the disk of a box as it is now, under a name; also while it runs."""

    def work(client: "BoxClient") -> None:
        made = client.snapshot(box, name)
        print(json.dumps(made) if as_json else made["name"])

    with_boxes(the_server(url, api_key), work)


@box.command("snapshots")
def snapshots(
    box: Box,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="SNAPSHOT", help="Remove one; as often as wanted.")
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the snapshots of a box, or remove some."""

    def work(client: "BoxClient") -> None:
        for one in remove or ():
            client.remove_snapshot(box, one)
            print(one)
        if not remove:
            found = client.snapshots(box)
            if as_json:
                print(json.dumps(found))
            else:
                shown = [{**one, "created_at": _moment(one["created_at"])} for one in found]
                print_table(("Name", "Bytes", "Created"), shown, ("name", "size_bytes", "created_at"))

    with_boxes(the_server(url, api_key), work)


@box.command("restore")
def restore(box: Box, name: SnapshotName, url: Url = None, api_key: ApiKey = None) -> None:
    """Let the disk of a stopped box be again what it was; what it holds now is gone."""
    with_boxes(the_server(url, api_key), lambda client: client.restore(box, name))


@box.command("clone")
def clone(
    box: Box,
    name: Name = None,
    snapshot: FromSnapshot = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make another box like one, with a copy of its disk, and print its id."""

    def work(client: "BoxClient") -> None:
        made = client.clone(box, name=name, snapshot=snapshot)
        print(json.dumps(made) if as_json else made["box_id"])

    with_boxes(the_server(url, api_key), work)


@box.command("fork")
def fork(
    box: Box,
    count: Annotated[int, typer.Argument(metavar="COUNT", min=1, help="How many.")],
    snapshot: FromSnapshot = None,
    no_start: Annotated[bool, typer.Option("--no-start", help="Do not start them.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make several copies of a box at once, all of the same moment, start them, and print their ids."""

    def work(client: "BoxClient") -> None:
        made = client.fork(box, count, snapshot=snapshot, start=not no_start)
        print(json.dumps(made) if as_json else "\n".join(one["box_id"] for one in made))

    with_boxes(the_server(url, api_key), work)


def with_boxes(server: Server, work: "Callable[[BoxClient], None]") -> None:
    """Do it on a server, and complain as the other commands do."""
    from stockade.cli.box_client import BoxClient

    with telling_failures(server), BoxClient(server) as client:
        work(client)


def each(server: Server, boxes: list[str], act: "Callable[[BoxClient, str], object]") -> None:
    """Do it for all of them, whatever becomes of the others."""
    from stockade.sdk import ApiError, Unauthorized

    failed = False

    def work(client: "BoxClient") -> None:
        nonlocal failed
        for one in boxes:
            try:
                act(client, one)
                print(one)
            except Unauthorized:
                raise
            except ApiError as error:
                say(f"{one}: {error}")
                failed = True

    with_boxes(server, work)
    if failed:
        raise typer.Exit(1)


def _moment(seconds: float) -> str:
    """As the server writes the times of boxes; those of snapshots come as a number."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def print_table(titles: Sequence[str], rows: Sequence[Mapping[str, Any]], members: Sequence[str]) -> None:
    """Print a row for each of *rows*: those of its members, under those titles."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=title == "Id", overflow="fold")
    for row in rows:
        table.add_row(*("" if row.get(member) is None else escape(str(row[member])) for member in members))
    Console(highlight=False).print(table)


box.command("exec", context_settings=TO_THE_END)(exec_)
box.command("attach")(attach)
box.command("cp")(cp)
box.command("export")(export)
box.command("import")(import_)
