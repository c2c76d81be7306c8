"""Secrets that open one sandbox each: made here, shown once, kept as digests.

| threat | mechanism |
|---|---|
| whoever reads the database, a backup or this server's memory opens sandboxes | only the digest (SHA-256) is kept |
| a secret is found by how long a refusal takes | nothing is compared but digests, and those in constant time |
| a secret is guessed | ours have 256 random bits; how often somebody may be wrong is the business of who asks |

A sandbox is looked up by the digest of what was presented, in a dictionary or an index. How long that takes may depend
on how the digest begins. It tells nothing of use: who presents something cannot choose the digest of it bit by bit, and
one that is known whole leads back to no secret. So one round of a fast hash is enough for secrets that are random, and
one that somebody has chosen is as good as it is hard to guess.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from stockade.engine.sandboxes import Sandboxes
from stockade.errors import Invalid
from stockade.model import Actor, Sandbox

__all__ = ["Grant", "Secrets", "checked_secret", "digest", "new_secret"]

_SECRET = re.compile(r"[!-~]{16,256}")
"""What passes an HTTP header as it is, and is no word."""


def new_secret() -> str:
    """A secret nobody has seen: 256 random bits, in characters that URLs, headers and shells leave alone."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is kept of a secret: SHA-256, in hexadecimal."""
    # What a client presents may hold anything, lone surrogates too.
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def checked_secret(secret: str) -> str:
    """*secret*, if a sandbox that is to be can be given it.

    Raises:
        Invalid: it is too short to be safe, or could not be presented in a header. The message does not repeat it.
    """
    if not _SECRET.fullmatch(secret):
        raise Invalid("secret: must be 16 to 256 printable ASCII characters, without spaces")
    return secret


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What a secret opens."""

    actor: Actor
    """On whose behalf its holder acts: the key that made the sandbox. For this sandbox alone; it is not to make
    others, since what that key may have is not in here."""
    sandbox: Sandbox
    """Its record, as it is now."""


class Secrets:
    """Finds the sandbox that a secret opens."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._lives = sandboxes.lives

    async def find(self, secret: str) -> Grant | None:
        """What *secret* opens: a sandbox that has not ended; else the one that it opened last; `None` for nothing.

        For a sandbox that runs here nobody is asked; for any other the database is, once.

        Raises:
            Unavailable: the database is away.
        """
        presented = digest(secret)
        row = self._lives.find_by_secret(presented)
        if row is None:
            row = await self._lives.table.find_by_secret(presented)
        if row is None or row.secret_digest is None or not hmac.compare_digest(row.secret_digest, presented):
            return None
        return Grant(actor=Actor(id=row.key_id, account_id=row.account_id), sandbox=row)
