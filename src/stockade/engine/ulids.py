"""Identifiers that sort as the moments do at which they were made: https://github.com/ulid/spec"""

import secrets
import time

__all__ = ["new_ulid"]

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CHARACTERS = 26
_RANDOM_BITS = 80


def new_ulid(*, now: float | None = None) -> str:
    """A new one: 26 characters, upper case; *now* in seconds since the epoch."""
    milliseconds = int((time.time() if now is None else now) * 1000)
    number = milliseconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in reversed(range(_CHARACTERS)))
