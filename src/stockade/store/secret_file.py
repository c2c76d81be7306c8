"""Secrets of the server's own that nobody has to know: made once, and kept in the directory of its state."""

import secrets
from pathlib import Path

from stockade.store.identity import kept_text

__all__ = ["kept_secret"]


def kept_secret(state_dir: Path, name: str) -> str:
    """The secret in the file *name* of *state_dir*: 256 random bits, made the first time, then always the same.

    Raises:
        Unavailable: it cannot be read or written.
        Fault: its file is damaged.
    """
    return kept_text(
        state_dir / name,
        make=lambda: secrets.token_hex(32),
        pattern=r"[0-9a-f]{64}",
        remedy="Restore it, or remove it: what it has signed is then worth nothing",
    )
