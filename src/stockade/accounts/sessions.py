"""Log-ins of browsers. The secret of each is in a cookie there; here is only its hash."""

import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from stockade.accounts.secrets import digest
from stockade.config_users import UsersConfig
from stockade.errors import NotFound, StockadeError
from stockade.model.users import User, UserSession
from stockade.store import Database
from stockade.store import accounts as account_rows
from stockade.store import users as rows

__all__ = ["UserSessions", "csrf_token"]

REMEMBER_S = 1.0
"""A session that another process ends counts for so long at most."""
MOST_REMEMBERED = 10_000
NOTE_USE_EVERY = timedelta(seconds=60)
MOST_OF_USER = 100
"""The one unused for longest makes room for another."""
LONGEST_SECRET = 256
LONGEST_AGENT = 300
PURGE_EVERY_S = 600.0


def csrf_token(secret: str) -> str:
    """What a page must send with every change, beside the cookie that holds *secret*: another site's page can have the
    cookie sent, but cannot know this. Of a secret nobody learns anything by its token.
    """
    return hmac.new(secret.encode(errors="surrogatepass"), b"stockade csrf", hashlib.sha256).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _Known:
    user: User
    session: UserSession
    until: float


class UserSessions:
    """Begins, finds and ends sessions. A session ends when its time is up, when it is not used for long, when its user
    ends it, is locked or removed, or chooses another password.
    """

    def __init__(
        self,
        database: Database,
        settings: UsersConfig,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._life = timedelta(seconds=settings.session_s)
        self._idle = timedelta(seconds=settings.idle_s)
        self._clock = clock
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}
        self._changes = 0
        self._purged: float | None = None

    async def begin(self, user: User, *, address: str, agent: str) -> tuple[str, UserSession]:
        """A new session of *user*, who has just logged in, and its secret, which nothing can show again.

        Args:
            address: where it comes from.
            agent: what the browser calls itself; cut where it is long.

        Raises:
            NotFound: the user has been removed or locked meanwhile.
        """
        secret = secrets.token_urlsafe(32)
        at = self._clock()
        session = UserSession(
            id=secrets.token_hex(16),
            user_id=user.id,
            address=address,
            agent=_printable(agent),
            created_at=at,
            used_at=at,
            expires_at=at + self._life,
        )

        def begin(connection: Connection) -> None:
            current = rows.find_user(connection, user.id)
            if current is None or current.is_locked:
                raise NotFound("there is no such user")
            self._purge(connection, at)
            for old in rows.list_sessions(connection, user.id)[MOST_OF_USER - 1 :]:
                rows.delete_session(connection, user.id, old.id)
            rows.insert_session(connection, session, digest=digest(secret))

        await self._database.write(begin)
        return secret, session

    async def find(self, secret: str) -> tuple[User, UserSession] | None:
        """Whose session *secret* is; `None` for one that is unknown or over.

        Raises:
            Unavailable: the database cannot tell now.
        """
        if not secret or len(secret) > LONGEST_SECRET:
            return None
        hash = digest(secret)
        known = self._known.get(hash)
        if known is None or known.until <= self._monotonic():
            known = await self._ask(hash)
        if known is None or self._is_over(known.session) or known.user.is_locked:
            return None
        if known.session.used_at + NOTE_USE_EVERY <= self._clock():
            known = await self._touch(hash, known)
        return known.user, known.session

    async def list(self, user: User) -> "tuple[UserSession, ...]":
        """The user's sessions, last used first."""
        found = await self._database.read(lambda connection: rows.list_sessions(connection, user.id))
        return tuple(one for one in found if not self._is_over(one))

    async def end(self, user: User, session_id: str) -> None:
        """End one of the user's sessions.

        Raises:
            NotFound: they have no such session.
        """

        def end(connection: Connection) -> bool:
            is_gone = rows.delete_session(connection, user.id, session_id)
            if is_gone:
                self._note(connection, user, "logged_out")
            return is_gone

        is_gone = await self._database.write(end)
        self.forget()
        if not is_gone:
            raise NotFound("there is no such session")

    async def end_all(self, user: User, *, but: str | None = None) -> int:
        """End all of the user's sessions but one, by its id; how many there were."""

        def end(connection: Connection) -> int:
            self._note(connection, user, "logged_out_everywhere")
            return rows.delete_sessions(connection, user.id, but=but)

        ended = await self._database.write(end)
        self.forget()
        return ended

    def forget(self) -> None:
        """Ask the database anew about every session: something has changed."""
        self._changes += 1
        self._known.clear()

    async def _ask(self, hash: str) -> _Known | None:
        changes = self._changes
        found = await self._database.read(lambda connection: rows.find_session(connection, hash))
        if found is None:
            self._known.pop(hash, None)
            return None
        known = _Known(user=found[0], session=found[1], until=self._monotonic() + REMEMBER_S)
        if changes == self._changes:  # else it may be what was there before the change
            self._remember(hash, known)
        return known

    async def _touch(self, hash: str, known: _Known) -> _Known:
        at = self._clock()
        touched = replace(known, session=replace(known.session, used_at=at))
        if hash in self._known:
            self._known[hash] = touched  # first: others that come meanwhile need not write the same
        # It is good to know, no more: no request fails for it.
        with contextlib.suppress(StockadeError):
            await self._database.write(lambda connection: rows.touch_session(connection, known.session.id, at))
        return touched

    def _remember(self, hash: str, known: _Known) -> None:
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        self._known[hash] = known

    def _is_over(self, session: UserSession) -> bool:
        at = self._clock()
        return session.expires_at <= at or session.used_at + self._idle <= at

    def _purge(self, connection: Connection, at: datetime) -> None:
        if self._purged is None or self._purged + PURGE_EVERY_S <= self._monotonic():
            self._purged = self._monotonic()
            rows.delete_expired(connection, now=at, idle_since=at - self._idle)

    def _note(self, connection: Connection, user: User, action: str) -> None:
        account_rows.note(connection, action, account_id=user.account_id, by=f"user {user.id}")


def _printable(agent: str) -> str:
    """*agent* as it can be kept and shown."""
    return "".join(one for one in agent[:LONGEST_AGENT] if one.isprintable())
