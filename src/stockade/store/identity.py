"""Which server this is: several may record in one database, and each looks after its own sandboxes only."""

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path

from stockade.errors import Fault, Unavailable

__all__ = ["has_server", "kept_text", "server_id"]

_FILE = "server-id"


def server_id(state_dir: Path) -> str:
    """The id of the server whose state is in *state_dir*: made once, then always the same.

    Raises:
        Unavailable: it cannot be read or written.
        Fault: its file is damaged.
    """
    return kept_text(
        state_dir / _FILE,
        make=lambda: str(uuid.uuid4()),
        pattern=r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        remedy="Restore it; with a new one the server takes none of its sandboxes for its own",
    )


def has_server(state_dir: Path) -> bool:
    """Whether a server has, or had, its state in *state_dir*."""
    return (state_dir / _FILE).exists()


def kept_text(path: Path, *, make: Callable[[], str], pattern: str, remedy: str) -> str:
    """The line in a file that is made the first time, with its directory, and then always the same.

    Args:
        pattern: what the line looks like.
        remedy: what to do when it does not.

    Raises:
        Unavailable: it cannot be read or written.
        Fault: it is damaged.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _write_once(path, f"{make()}\n")
        found = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        found = ""
    if not re.fullmatch(pattern, found):
        raise Fault(f"{path}: is damaged. {remedy}")
    return found


def _write_once(path: Path, text: str) -> None:
    """Make *path*, unless somebody else does; a crash leaves it whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # never over one that is there
        except FileExistsError:
            pass
    finally:
        draft.unlink(missing_ok=True)
