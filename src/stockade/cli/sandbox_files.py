"""`stockade sandbox cp`: files and directories, into a sandbox and out of it."""

import os
import posixpath
import signal
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from stockade.cli.sandbox_conversation import standard_input
from stockade.cli.sandbox_server import ApiKey, Server, Url, say, telling_failures, the_server, with_client

if TYPE_CHECKING:
    from stockade.sdk import AsyncClient, Client

__all__ = ["cp"]

PIPE = "-"


@dataclass(frozen=True, kw_only=True)
class Place:
    """One side of a copy."""

    sandbox_id: str | None
    """`None` for here."""
    path: str


def cp(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Local path, ID:PATH, or `-` for standard input.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Local path, ID:PATH, or `-` for standard output.")],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Copy a file or a directory into a sandbox or out of it.

    As `cp -r` does: what goes to a directory that exists lands in it under its own name. Permissions are kept, owners
    are not. A directory goes to standard output as a tar archive. Links that lead out of a directory which is copied
    from a sandbox are left out, and told.
    """
    origin, goal = _place(source), _place(target)
    if (origin.sandbox_id is None) == (goal.sandbox_id is None):
        raise typer.BadParameter("one of FROM and TO is in a sandbox, as ID:PATH; the other is not")
    server = the_server(url, api_key)
    if source == PIPE:
        assert goal.sandbox_id is not None
        _copy_standard_input(server, goal.sandbox_id, goal.path)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)  # so that no temporary file stays
    with telling_failures(server):
        from stockade.sdk import Client

        with Client(server.url, server.api_key) as client:
            if goal.sandbox_id is not None:
                _copy_in(client, origin.path, goal.sandbox_id, goal.path)
            else:
                assert origin.sandbox_id is not None
                _copy_out(client, origin.sandbox_id, origin.path, goal.path)


def _place(text: str) -> Place:
    """`ID:PATH`, or a local path; one with a colon in it is told from the former by `./` before it."""
    sandbox_id, colon, path = text.partition(":")
    if not colon or "/" in sandbox_id or not sandbox_id:
        return Place(sandbox_id=None, path=text)
    if not path:
        raise typer.BadParameter(f"{text!r} names no path in the sandbox")
    return Place(sandbox_id=sandbox_id, path=path)


def _leave(number: int, frame: object) -> NoReturn:
    raise typer.Exit(128 + number)


def _copy_standard_input(server: Server, sandbox_id: str, path: str) -> NoReturn:
    # Not with the other client, which reads in a thread: one that waits for a pipe cannot be ended.
    async def work(client: "AsyncClient") -> None:
        await client.upload(sandbox_id, path, standard_input())

    with_client(server, work)


def _copy_in(client: "Client", source: str, sandbox_id: str, path: str) -> None:
    from stockade.sdk.archives import pack

    local = Path(source)
    found = local.stat()
    into = _is_directory(client, sandbox_id, path)
    if stat.S_ISDIR(found.st_mode):
        goal = posixpath.join(path, local.resolve().name) if into else path
        client.upload_archive(sandbox_id, goal, pack(local))
        return
    goal = posixpath.join(path, local.name) if into or path.endswith("/") else path
    with local.open("rb") as file:
        client.upload(sandbox_id, goal, file, mode=stat.S_IMODE(found.st_mode) & 0o777)


def _copy_out(client: "Client", sandbox_id: str, path: str, target: str) -> None:
    is_directory = _is_directory(client, sandbox_id, path)
    if target == PIPE:
        receive = client.download_archive if is_directory else client.download
        with receive(sandbox_id, path) as parts:
            for part in parts:
                sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        return
    goal = Path(target)
    if goal.is_dir():
        goal /= _name(path)
    if is_directory:
        _unpack(client, sandbox_id, path, goal)
    else:
        _download(client, sandbox_id, path, goal)


def _unpack(client: "Client", sandbox_id: str, path: str, goal: Path) -> None:
    from stockade.sdk.archives import unpack

    with client.download_archive(sandbox_id, path) as parts:
        for left_out in unpack(parts, goal):
            say(f"left out: {_printable(left_out)}")


def _download(client: "Client", sandbox_id: str, path: str, goal: Path) -> None:
    """Write to a temporary name beside it and rename, so that no half file has the final name."""
    if goal.exists() and not goal.is_file():
        # A device, a pipe: whoever names it wants it written to.
        with client.download(sandbox_id, path) as parts, goal.open("wb") as file:
            file.writelines(parts)
        return
    goal = goal.resolve()  # of a link, what it leads to is written
    with client.download(sandbox_id, path) as parts:
        descriptor, name = tempfile.mkstemp(dir=goal.parent, prefix=f".{goal.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), _mode(client, sandbox_id, path) & ~_umask())
                file.writelines(parts)
            temporary.replace(goal)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _mode(client: "Client", sandbox_id: str, path: str) -> int:
    """Permission bits of a file inside."""
    parent, name = posixpath.split(path)
    for one in client.entries(sandbox_id, parent or "."):
        if one.name == name:
            return one.mode & 0o777
    return 0o644


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _is_directory(client: "Client", sandbox_id: str, path: str) -> bool:
    from stockade.sdk import BadRequest, NotFound

    try:
        client.entries(sandbox_id, path)
    except BadRequest:
        return False  # a file
    except NotFound:
        client.get(sandbox_id)  # which tells whether it is the sandbox that is missing
        return False
    return True


def _name(path: str) -> str:
    """The last part of a path inside. It is the user's own text, yet it shall not lead elsewhere."""
    name = posixpath.basename(posixpath.normpath(path))
    if name in ("", ".", "..", "/"):
        raise typer.BadParameter(f"{path!r} has no name: say what it shall be called here")
    return name


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "\ufffd" for one in text)
