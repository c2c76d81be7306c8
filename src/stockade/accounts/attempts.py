"""How often somebody may guess a password.

Failures are counted for three subjects, each kept as a digest only:

- an e-mail address as tried from one network address: after a few, that network address has to wait;
- a network address: for who tries many e-mail addresses;
- an e-mail address, from all network addresses: for guesses that are spread over many. This wait is short.

The last two do not concern an e-mail address that has been logged in from that network address lately: so nobody can
lock somebody else out for long.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row

from stockade.errors import LimitExceeded
from stockade.store import Database
from stockade.store import users as rows

__all__ = ["Attempts"]

FORGET_AFTER = timedelta(hours=1)
"""Failures count no more when the last one is so long ago."""
KNOWN_FOR = timedelta(days=90)
"""For so long it is remembered from where somebody has logged in."""


@dataclass(frozen=True, kw_only=True)
class _Rule:
    free: int
    """Failures after which nobody has to wait."""
    first_s: float
    """The wait after one more; doubles with each."""
    most_s: float

    def wait(self, failures: int) -> timedelta | None:
        over = failures - self.free
        if over < 0:
            return None
        return timedelta(seconds=min(self.most_s, self.first_s * 2.0 ** min(over, 30)))


_PAIR = _Rule(free=5, first_s=30.0, most_s=900.0)
_PLACE = _Rule(free=40, first_s=30.0, most_s=900.0)
_OWNER = _Rule(free=20, first_s=5.0, most_s=60.0)


@dataclass(kw_only=True)
class _Turn:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Attempts:
    """Counts attempts, and lets nobody make too many."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._clock = clock
        self._turns: dict[str, _Turn] = {}
        self._purged_at: datetime | None = None

    async def guess(self, email_key: str, address: str, check: Callable[[], Awaitable[bool]]) -> bool:
        """What *check* says of a password, and have it counted.

        Those that one network address makes for one e-mail address are made one after the other: so no number of them
        at once gets round the count.

        Args:
            address: where it comes from, as `wire.clients.address` has it; empty for a place that is not counted.

        Raises:
            LimitExceeded: too many have failed. *check* has not been called, and nothing was counted.
        """
        place, pair, owner = (
            _subject("place", address),
            _subject("pair", email_key, address),
            _subject("owner", email_key),
        )
        rules = {pair: _PAIR, owner: _OWNER} | ({place: _PLACE} if address else {})
        async with self._turn(pair):
            now = self._clock()
            known = await self._database.read(lambda connection: rows.find_attempts(connection, tuple(rules)))
            mine = known.get(pair)
            if mine is not None and mine.succeeded_at is not None and mine.succeeded_at > now - KNOWN_FOR:
                rules = {pair: _PAIR}  # others' failures, there or elsewhere, keep nobody from where they belong
            _refuse(known, rules, now)
            is_right = await check()
            now = self._clock()

            def count(connection: Connection) -> None:
                if is_right:
                    self._count_success(connection, pair, owner, now)
                else:
                    _count_failure(connection, rules, now)

            await self._database.write(count)
        return is_right

    async def take(self, what: str, address: str, *, most: int, every: timedelta) -> None:
        """Count that somebody at *address* did *what*, which may be done *most* times in *every*.

        Raises:
            LimitExceeded: it was done as often.
        """
        if not address:
            return
        now = self._clock()
        # Counted in windows of their own: one subject for each, forgotten like the others.
        window = int(now.timestamp() // every.total_seconds())
        subject = _subject(what, address, str(window))
        ends = datetime.fromtimestamp((window + 1) * every.total_seconds(), UTC)

        def count(connection: Connection) -> int:
            self._purge(connection, now)
            return rows.count_attempt(connection, subject, at=now)

        if await self._database.write(count) > most:
            raise _too_many((ends - now).total_seconds())

    async def trust(self, email_key: str, address: str) -> None:
        """Take note that who owns *email_key* has been at *address*, and has no failures to wait for."""
        pair, owner = _subject("pair", email_key, address), _subject("owner", email_key)
        now = self._clock()
        await self._database.write(lambda connection: self._count_success(connection, pair, owner, now))

    @contextlib.asynccontextmanager
    async def _turn(self, subject: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(subject, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[subject]

    def _count_success(self, connection: Connection, pair: str, owner: str, now: datetime) -> None:
        self._purge(connection, now)
        clean: dict[str, Any] = {"failures": 0, "last_at": now, "blocked_until": None}
        rows.put_attempts(connection, pair, clean | {"succeeded_at": now})
        if rows.find_attempts(connection, (owner,)):
            rows.put_attempts(connection, owner, clean | {"succeeded_at": None})

    def _purge(self, connection: Connection, now: datetime) -> None:
        """Forget what is over, once an hour."""
        if self._purged_at is not None and now < self._purged_at + FORGET_AFTER:
            return
        self._purged_at = now
        rows.delete_attempts(connection, failed_before=now - 24 * FORGET_AFTER, succeeded_before=now - KNOWN_FOR)


def _refuse(known: dict[str, Row[Any]], rules: dict[str, _Rule], now: datetime) -> None:
    blocks = [known[one].blocked_until for one in rules if one in known and known[one].blocked_until is not None]
    if blocks and (until := max(blocks)) > now:
        raise _too_many((until - now).total_seconds())


def _count_failure(connection: Connection, rules: dict[str, _Rule], now: datetime) -> None:
    known = rows.find_attempts(connection, tuple(rules))
    # Always in the same order: two transactions that wait for each other's rows would both be ended.
    for subject in sorted(rules):
        found = known.get(subject)
        before = found.failures if found is not None and found.last_at > now - FORGET_AFTER else 0
        wait = rules[subject].wait(before + 1)
        values = {
            "failures": before + 1,
            "last_at": now,
            "blocked_until": None if wait is None else now + wait,
            "succeeded_at": found.succeeded_at if found is not None else None,
        }
        rows.put_attempts(connection, subject, values)


def _too_many(seconds: float) -> LimitExceeded:
    return LimitExceeded("too many attempts; wait a moment, then try again", retry_after_s=max(1.0, seconds))


def _subject(*parts: str) -> str:
    # What people typed may hold lone surrogates.
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
