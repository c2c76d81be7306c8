"""Secrets of the server's own that nobody has to know: made once, and kept in the directory of its state."""

import re
import secrets
from pathlib import Path

from stockade.errors import Fault, Unavailable
from stockade.store.identity import write_once

__all__ = ["kept_secret"]


def kept_secret(state_dir: Path, name: str) -> str:
    """The secret in the file *name* of *state_dir*: 256 random bits, made the first time, then always the same.

    Raises:
        Unavailable: it cannot be read or written.
        Fault: its file is damaged.
    """
    path = state_dir / name
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            write_once(path, f"{secrets.token_hex(32)}\n")
        found = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError:
        found = ""
    if not re.fullmatch(r"[0-9a-f]{64}", found):
        raise Fault(f"{path}: is damaged. Restore it, or remove it: what it has signed is then worth nothing")
    return found
