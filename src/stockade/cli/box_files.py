"""`stockade box cp`, `export` and `import`: what goes into boxes and comes out of them."""

import contextlib
import os
import posixpath
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from stockade.cli.options import AsJson
from stockade.cli.sandbox_server import ApiKey, Url, say, telling_failures, the_server

if TYPE_CHECKING:
    from stockade.cli.box_client import BoxClient

__all__ = ["cp", "export", "import_"]

PIPE = "-"
PIECE_BYTES = 1 << 18

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def cp(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Local path, or BOX:PATH.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Local path, or BOX:PATH.")],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Copy a file or a directory into a box or out of it; the box is started for that where it does not run.

    As `cp -r` does: what goes to a directory that exists lands in it under its own name. Permissions are kept, owners
    are not. Links that lead out of a directory which is copied from a box are left out, and told.
    """
    from stockade.cli.box_client import BoxClient

    (from_box, origin), (to_box, goal) = _place(source), _place(target)
    if (from_box is None) == (to_box is None):
        raise typer.BadParameter("one of FROM and TO is in a box, as BOX:PATH; the other is not")
    server = the_server(url, api_key)
    with telling_failures(server), BoxClient(server) as client:
        if to_box is not None:
            _copy_in(client, Path(origin), to_box, goal)
        else:
            assert from_box is not None
            _copy_out(client, from_box, origin, Path(goal))


def _place(text: str) -> tuple[str | None, str]:
    """Box and path; no box for a local path. One with a colon in it is told from the former by `./` before it."""
    box, colon, path = text.partition(":")
    if not colon or "/" in box or not box:
        return None, text
    if not path:
        raise typer.BadParameter(f"{text!r} names no path in the box")
    return box, path


def _copy_in(client: "BoxClient", local: Path, box: str, path: str) -> None:
    from stockade.sdk.archives import pack

    if not stat.S_ISDIR(local.stat().st_mode):
        client.upload(box, path, pack(local), is_file=True)
        return
    goal = posixpath.join(path, local.resolve().name) if _is_directory(client, box, path) else path
    client.upload(box, goal.rstrip("/") + "/", pack(local), is_file=False)


def _is_directory(client: "BoxClient", box: str, path: str) -> bool:
    from stockade.sdk import NotFound

    try:
        with client.download(box, path) as (is_directory, _):  # its beginning says it; the rest is not read
            return is_directory
    except NotFound:
        client.get(box)  # which tells whether it is the box that is missing
        return False


def _copy_out(client: "BoxClient", box: str, path: str, goal: Path) -> None:
    from stockade.sdk.archives import unpack

    with client.download(box, path) as (is_directory, archive):
        if is_directory:
            where = goal / _name(path) if goal.is_dir() else goal
            left_out = unpack(archive, where)
        else:
            goal = goal / _name(path) if goal.is_dir() else goal
            with tempfile.TemporaryDirectory(dir=goal.parent, prefix=".stockade-") as beside:
                left_out = unpack(archive, Path(beside))
                for found in Path(beside).iterdir():
                    found.replace(goal)  # so that no half file has the final name
    for one in left_out:
        say(f"left out: {''.join(letter if letter.isprintable() else chr(0xFFFD) for letter in one)}")


def _name(path: str) -> str:
    """The last part of a path inside. It is the user's own text, yet it shall not lead elsewhere."""
    name = posixpath.basename(posixpath.normpath(path))
    if name in ("", ".", "..", "/"):
        raise typer.BadParameter(f"{path!r} has no name: say what it shall be called here")
    return name


def export(
    box: Annotated[str, typer.Argument(metavar="BOX", help="Id or name.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; `-` for standard output.")],
    quiet: Quiet = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Write a box to one file, for `import`, here or on another host: what it is like, its image and its disk.

    While it runs, its disk is taken as it is at one moment. Values of secrets and volumes are not in the file.
    """
    from stockade.cli.box_client import BoxClient

    server = the_server(url, api_key)
    with (
        telling_failures(server),
        BoxClient(server) as client,
        client.export(box) as pieces,
        _moving("exported", None, is_quiet=quiet) as moving,
    ):
        if file == PIPE:
            sys.stdout.buffer.writelines(moving(pieces))
            sys.stdout.buffer.flush()
        else:
            _write(Path(file), moving(pieces))


def _write(goal: Path, pieces: Iterable[bytes]) -> None:
    """Under a temporary name beside it, then renamed: what has the final name is whole."""
    descriptor, name = tempfile.mkstemp(dir=goal.resolve().parent, prefix=f".{goal.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as target:
            target.writelines(pieces)
        temporary.replace(goal.resolve())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `export` wrote; `-` for standard input.")],
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Its name; else it has none.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Make a box of a file, and print its id. A file that is damaged is refused, and leaves nothing."""
    import json

    from stockade.cli.box_client import BoxClient

    server = the_server(url, api_key)
    with telling_failures(server), BoxClient(server) as client, _opened(file) as source:
        total = None if file == PIPE else os.fstat(source.fileno()).st_size
        with _moving("imported", total, is_quiet=quiet) as moving:
            made = client.import_(moving(_pieces(source)), name=name)
        print(json.dumps(made) if as_json else made["box_id"])


def _opened(file: str) -> "contextlib.AbstractContextManager[IO[bytes]]":
    return contextlib.nullcontext(sys.stdin.buffer) if file == PIPE else open(file, "rb")


def _pieces(source: IO[bytes]) -> Iterator[bytes]:
    while piece := source.read(PIECE_BYTES):
        yield piece


class _Counted:
    """Passes pieces on; on a terminal a bar shows how many bytes there were."""

    def __init__(self, advance: Callable[[int], object] | None) -> None:
        self._advance = advance

    def __call__(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            if self._advance is not None:
                self._advance(len(piece))


@contextlib.contextmanager
def _moving(what: str, total: int | None, *, is_quiet: bool) -> Iterator[_Counted]:
    # Bars are for who waits: they go to where errors go, so that what is printed can be piped.
    if is_quiet or not sys.stderr.isatty():
        yield _Counted(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        task = progress.add_task(what, total=total)
        yield _Counted(lambda size: progress.advance(task, size))
