"""Who presents a key, asked with nearly every request."""

import asyncio
import contextlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import Connection

from stockade.accounts.secrets import digest
from stockade.accounts.tiers import actor_of
from stockade.config_accounts import AccountsConfig
from stockade.errors import StockadeError, Unavailable
from stockade.model import Actor
from stockade.model.accounts import Account, AccountLimits, ApiKey
from stockade.store import Database
from stockade.store import accounts as rows

__all__ = ["Verification"]

REMEMBER_S = 1.0
"""What another process changes (`stockade keys revoke`) counts after so long at the latest; what this one changes, at
once."""
TRUSTED_S = 60.0
"""While the database is away, a key that it has confirmed is good for so long: who has a sandbox can go on using it."""
MOST_REMEMBERED = 10_000
NOTE_USE_EVERY_S = 60.0
LONGEST_KEY = 1024
CLOSE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class _Known:
    actor: Actor
    expires_at: datetime | None
    until: float
    trusted_until: float
    """As `until`, should the database be away."""


class Verification:
    """Knows the bearer of a key; asks the database once a second for each key."""

    def __init__(
        self,
        database: Database,
        config: AccountsConfig,
        *,
        preset: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._config = config
        self._preset = digest(preset) if preset else None
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._changes = 0
        self._noted: dict[str, float] = {}
        self._used: dict[str, datetime] = {}
        self._noting: asyncio.Task[None] | None = None

    async def verify(self, presented: str) -> Actor | None:
        """Whose key *presented* is. `None` for one that is unknown, switched off or expired: nobody learns which.

        Raises:
            Unavailable: the database cannot tell now, and has not for a while.
        """
        if not presented or len(presented) > LONGEST_KEY:
            return None
        hash = digest(presented)
        now = datetime.now(UTC)
        known = self._known.get(hash)
        if known is None or known.until <= self._clock():
            known = await self._confirmed(hash, known, now)
        if known is None or (known.expires_at is not None and known.expires_at <= now):
            return None
        self._note_use(known.actor.id, now)
        return known.actor

    def forget(self) -> None:
        """Ask the database anew about every key: something has changed."""
        self._changes += 1
        self._known.clear()

    async def close(self) -> None:
        """Let the notes of when keys were used be written."""
        if self._noting is not None:
            await asyncio.wait([self._noting], timeout=CLOSE_S)
            self._noting.cancel()

    async def _confirmed(self, hash: str, known: _Known | None, now: datetime) -> _Known | None:
        """What the database says of a key; while it is away, what it said last."""
        changes = self._changes
        try:
            return await self._ask(hash, now)
        except Unavailable:
            if known is None or known.trusted_until <= self._clock() or changes != self._changes:
                raise
        # Not asked again for every request: each might wait until the database's time is up.
        known = replace(known, until=min(self._clock() + REMEMBER_S, known.trusted_until))
        self._known[hash] = known
        return known

    async def _ask(self, hash: str, now: datetime) -> _Known | None:
        is_preset = self._preset is not None and hmac.compare_digest(hash, self._preset)

        def find(connection: Connection) -> tuple[ApiKey, Account, AccountLimits] | None:
            return _find_preset(connection) if is_preset else rows.find_bearer(connection, hash)

        changes = self._changes
        found = await self._database.read(find)
        if found is None:
            self._known.pop(hash, None)
            return None
        key, account, limits = found
        # The index has found the hash; how long that took says nothing of use about hashes. Compared once more all the
        # same, in constant time, so that this does not hang on how a database compares.
        is_right = is_preset or hmac.compare_digest(hash, key.hash or "")
        if not is_right or not key.is_active:
            self._known.pop(hash, None)
            return None
        known = _Known(
            actor=actor_of(key, account, limits, self._config, now=now),
            expires_at=key.expires_at,
            until=self._clock() + REMEMBER_S,
            trusted_until=self._clock() + TRUSTED_S,
        )
        if changes == self._changes:  # else it may be what was there before the change
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[hash] = known
        return known

    def _note_use(self, key_id: str, now: datetime) -> None:
        """Have it written, in the background and at most once a minute, that a key was used."""
        at = self._clock()
        if self._noted.get(key_id, -NOTE_USE_EVERY_S) + NOTE_USE_EVERY_S > at:
            return
        if len(self._noted) >= MOST_REMEMBERED:
            self._noted.clear()
        self._noted[key_id] = at
        self._used[key_id] = now
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._write_notes())

    async def _write_notes(self) -> None:
        while self._used:
            used, self._used = self._used, {}
            # It is good to know, no more: no request fails for it, and the next minute brings the next note.
            with contextlib.suppress(StockadeError):
                await self._database.write(lambda connection: rows.touch_keys(connection, used))  # noqa: B023


def _find_preset(connection: Connection) -> tuple[ApiKey, Account, AccountLimits] | None:
    key = rows.find_preset(connection)
    account = rows.find_account(connection, key.account_id) if key is not None else None
    if key is None or account is None:
        return None
    return key, account, rows.find_limits(connection, account.id)
