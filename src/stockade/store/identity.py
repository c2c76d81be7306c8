"""Which server this is: several may record in one database, and each looks after its own sandboxes only."""

import os
import re
import uuid
from pathlib import Path

from stockade.errors import Fault, Unavailable

__all__ = ["has_server", "server_id", "write_once"]

_FILE = "server-id"


def server_id(state_dir: Path) -> str:
    """The id of the server whose state is in *state_dir*: made once, then always the same.

    Raises:
        Unavailable: it cannot be read or written.
        Fault: its file is damaged.
    """
    path = state_dir / _FILE
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            write_once(path, f"{uuid.uuid4()}\n")
        found = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        found = ""
    if not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found):
        raise Fault(
            f"{path}: is damaged. Restore it; with a new one the server takes none of its sandboxes for its own"
        )
    return found


def has_server(state_dir: Path) -> bool:
    """Whether a server has, or had, its state in *state_dir*."""
    return (state_dir / _FILE).exists()


def write_once(path: Path, text: str) -> None:
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
