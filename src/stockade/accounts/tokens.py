"""Bearer tokens of users: JSON Web Tokens, signed by us and for us (HS256), for the protocol below `/v1/auth`."""

import base64
import binascii
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import jwt

from stockade.config_users import UsersConfig
from stockade.errors import Denied, Invalid
from stockade.model.users import User
from stockade.store import Database
from stockade.store import users as rows

__all__ = ["SHORTEST_SECRET", "TokenExpired", "TokenInvalid", "Tokens"]

SHORTEST_SECRET = 32
"""Bytes; what is shorter can be guessed with one token at hand."""
LONGEST = 4096
REMEMBER_S = 1.0
"""As `Verification` has it for keys: what another process changes counts after so long at the latest."""
MOST_REMEMBERED = 10_000
_ALGORITHM = "HS256"


class TokenInvalid(Denied):
    """The token is not ours, is no token at all, or its user is gone."""

    code = "auth.token_invalid"

    def __init__(self) -> None:
        super().__init__("invalid token")


class TokenExpired(Denied):
    """The token was good."""

    code = "auth.token_expired"

    def __init__(self) -> None:
        super().__init__("token expired")


class Tokens:
    """Issues tokens, and knows whose they are."""

    def __init__(
        self,
        database: Database,
        settings: UsersConfig,
        *,
        secret: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Raises:
            Invalid: *secret* is too short.
        """
        if len(secret.encode()) < SHORTEST_SECRET:
            raise Invalid(
                f"users.jwt_secret (JWT_SECRET): must have at least {SHORTEST_SECRET} bytes; `openssl rand -hex 32` "
                "makes one, and where it is not set the server makes its own"
            )
        self._database = database
        self._life = timedelta(seconds=settings.token_s)
        self._secret = secret
        self._clock = clock
        self._monotonic = monotonic
        self._known: dict[str, tuple[float, User | None]] = {}
        self._changes = 0

    def forget(self) -> None:
        """Ask the database anew about everybody: something has changed."""
        self._changes += 1
        self._known.clear()

    def issue(self, user: User) -> str:
        """A token of *user*'s."""
        expires = max(self._end_of(self._clock()), self._worthless_up_to(user) + 1)
        return jwt.encode({"user_id": user.id, "email": user.email, "exp": expires}, self._secret, _ALGORITHM)

    def _end_of(self, issued: datetime) -> int:
        return math.ceil((issued + self._life).timestamp())

    def _worthless_up_to(self, user: User) -> int:
        """The latest end of a token that was issued before the user's password was changed, or the like.

        It is all that tells, for a token does not say when it was issued; and it is in whole seconds. So whoever logs
        in again and again has a token of that very second, which must not count as one of afterwards.
        """
        return 0 if user.tokens_valid_from is None else self._end_of(user.tokens_valid_from)

    async def verify(self, token: str) -> User:
        """Whose token that is.

        Raises:
            TokenExpired: its time is up.
            TokenInvalid: it is none of ours, its user is gone or locked, or has chosen another password since.
            Unavailable: the database cannot tell now.
        """
        user_id, expires = self._read(token)
        user = await self._find(user_id)
        if user is None or user.is_locked:
            raise TokenInvalid
        if expires <= self._worthless_up_to(user):
            raise TokenInvalid
        return user

    async def _find(self, user_id: str) -> User | None:
        until, known = self._known.get(user_id, (0.0, None))
        if self._monotonic() < until:
            return known
        changes = self._changes
        found = await self._database.read(lambda connection: rows.find_user(connection, user_id))
        if changes == self._changes:  # else it may be what was there before the change
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[user_id] = (self._monotonic() + REMEMBER_S, found)
        return found

    def _read(self, token: str) -> tuple[str, float]:
        """User and end of a token with the right signature and time. Raises TokenExpired, TokenInvalid."""
        if len(token) > LONGEST or not _is_strict(token):
            raise TokenInvalid
        try:
            # The algorithm is ours to say: the token's own header could ask for none.
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                options={"require": ["exp"], "verify_exp": False, "verify_aud": False},
            )
        except (jwt.PyJWTError, RecursionError):  # a header is JSON, which may be deeper than the stack
            raise TokenInvalid from None
        user_id, expires = claims.get("user_id"), claims["exp"]
        if not isinstance(user_id, str) or isinstance(expires, bool) or not isinstance(expires, int | float):
            raise TokenInvalid
        if not math.isfinite(expires):
            raise TokenInvalid
        if expires <= self._clock().timestamp():
            raise TokenExpired
        return user_id.replace("\0", ""), expires


def _is_strict(token: str) -> bool:
    """Whether each of three parts is the only way to write its bytes in base64url: a library that is lenient there
    would take a token with a changed last character for the same one.
    """
    parts = token.split(".")
    return len(parts) == 3 and all(_is_canonical(part) for part in parts)


def _is_canonical(part: str) -> bool:
    try:
        raw = part.encode("ascii")
        decoded = base64.b64decode(raw + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        return False
    return base64.urlsafe_b64encode(decoded).rstrip(b"=") == raw
