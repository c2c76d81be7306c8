"""API keys themselves: made here, shown once, kept as hashes.

A key is 256 random bits, so one round of SHA-256 is enough: there is nothing to guess that a slow hash would protect.
"""

import hashlib
import re
import secrets

__all__ = ["digest", "new_secret", "preview"]

_OURS = re.compile(r"sk_[0-9a-f]{64}")


def new_secret() -> str:
    """A key nobody has seen: `sk_` and 64 hexadecimal digits."""
    return f"sk_{secrets.token_hex(32)}"


def digest(secret: str) -> str:
    """What is kept of a key: SHA-256, in hexadecimal."""
    # What a client presents may hold anything, lone surrogates too.
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def preview(secret: str) -> str:
    """A key's beginning and end, to recognise it by; nothing of one that somebody chose, which may be easy to guess."""
    return f"{secret[:7]}...{secret[-4:]}" if _OURS.fullmatch(secret) else "sk_****"
