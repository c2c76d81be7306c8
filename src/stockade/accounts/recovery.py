"""Passwords that are forgotten, and addresses that are to be proved: by mailed tokens, each good for one use."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import Connection

from stockade.accounts import inputs
from stockade.accounts.mail import Letter
from stockade.accounts.secrets import digest, new_secret, preview
from stockade.accounts.user_base import UserBase, now, required
from stockade.errors import Invalid, Unsupported
from stockade.model.users import User
from stockade.store import accounts as rows
from stockade.store import users as user_rows

__all__ = ["Recovery", "UsedUp"]

log = structlog.get_logger()

RESET, VERIFY = "reset", "verify"
LIVES = {RESET: timedelta(hours=1), VERIFY: timedelta(days=1)}
MOST_LETTERS = 3
"""Of a kind to one user in an hour: nobody's box is filled by strangers."""
LONGEST_TOKEN = 256


class UsedUp(Invalid):
    """A token out of a mail that is unknown, used or too old: nobody learns which."""

    code = "auth.token_used_up"

    def __init__(self) -> None:
        super().__init__("this link is not valid any more; ask for another one")


@dataclass(frozen=True, kw_only=True)
class Recovery(UserBase):
    """What is done by mail; without an SMTP server the operator does it (`stockade users reset`)."""

    async def begin_reset(self, email: str, *, address: str = "") -> None:
        """Mail a link to whoever has that address, by which they choose another password.

        Says nothing of whether somebody has it, by the time that it takes neither: the mail is sent afterwards.

        Raises:
            LimitExceeded: somebody at *address* has asked too often.
        """
        await self.attempts.take("reset", address, most=20, every=timedelta(hours=1))
        key = inputs.email_key(email).encode(errors="replace").decode().replace("\0", "?")
        token = secrets.token_urlsafe(32)

        def begin(connection: Connection) -> User | None:
            user = user_rows.find_user_by_email(connection, key)
            if user is None or user.is_locked or not self.sends_mail:
                return user
            return user if self._issue(connection, user, RESET, token, most=MOST_LETTERS) else None

        user = await self.database.write(begin)
        if user is None or user.is_locked:
            return
        if not self.sends_mail:
            log.info("users.reset_asked", user_id=user.id, hint=f"`stockade users reset {user.id}` makes a link")
            return
        self.mailer.post(
            Letter(
                to=user.email,  # as it is recorded, not as somebody has written it just now
                subject="Choose a new password",
                text=f"Hello {user.name},\n\nsomebody, hopefully you, has asked for a new password on "
                f"{self._where}. Choose one here, within an hour:\n\n{self.link('reset', token)}\n\n"
                "If it was not you, do nothing: your password stays as it is.\n",
            )
        )

    async def reset_token(self, user_id: str, *, by: str = "operator") -> str:
        """A token for `finish_reset`, for the operator to hand over; good for an hour.

        Raises:
            NotFound: there is no such user.
        """
        token = secrets.token_urlsafe(32)

        def make(connection: Connection) -> None:
            user = required(user_rows.find_user(connection, user_id))
            self._issue(connection, user, RESET, token, by=by)

        await self.database.write(make)
        return token

    async def finish_reset(self, token: str, password: str) -> User:
        """Choose another password. All sessions end, and every token of before is worthless.

        Where that is the first proof that the address is theirs, so are the secrets of all API keys: perhaps somebody
        else has registered with it, and waits for its owner to come.

        Raises:
            WrongInput: the password is too short or too long; the token stays good.
            UsedUp: the token is unknown, used, or too old.
        """
        inputs.password(password)
        user = await self._bearer(token, RESET)
        if user.is_locked:
            raise UsedUp
        kept = await self.passwords.hash(password)

        def finish(connection: Connection) -> User:
            if not user_rows.take_token(connection, digest(token), RESET, now=now()):
                raise UsedUp  # somebody was quicker
            changes = {}
            # Who reads the mail to that address has shown that it is theirs.
            if self.sends_mail and user.email_verified_at is None:
                changes["email_verified_at"] = now()
                self._renew_keys(connection, user)
            return self._put_password(connection, user, kept, changes=changes, action="password_reset")

        changed = await self.database.write(finish)
        self.changed()
        return changed

    def _renew_keys(self, connection: Connection, user: User) -> None:
        """Give every key of the account a secret that nobody has seen; its owner can rotate those that are needed."""
        for key in rows.keys_of(connection, user.account_id):
            unseen = new_secret()
            rows.change_key(connection, key.id, {"hash": digest(unseen), "preview": preview(unseen)})
        self.note(connection, user, "keys_renewed")

    async def set_password(
        self, user: User, password: str, *, but: str | None = None, action: str = "password_set", by: str = ""
    ) -> User:
        """Put *password* in the place of the user's; sessions end but *but*, tokens of before are worthless."""
        kept = await self.passwords.hash(password)
        changed = await self.database.write(
            lambda connection: self._put_password(connection, user, kept, but=but, action=action, by=by)
        )
        self.changed()
        return changed

    async def begin_verification(self, user: User) -> None:
        """Mail a link to the user's address, by which they prove that it is theirs. Nothing happens when they have, or
        when they have been sent several within the hour.

        Raises:
            Unsupported: this server sends no mail.
        """
        if not self.sends_mail:
            raise Unsupported("this server sends no mail (users.mail.host, SMTP_HOST)")
        if user.email_verified_at is not None:
            return
        token = secrets.token_urlsafe(32)
        if not await self.database.write(
            lambda connection: self._issue(connection, user, VERIFY, token, most=MOST_LETTERS)
        ):
            return
        self.mailer.post(
            Letter(
                to=user.email,
                subject="Is this your address?",
                # Without a name: whoever made the account has chosen it, and whom to write to.
                text=f"Hello,\n\nan account on {self._where} was made with this address. "
                f"If it is yours, say so here, within a day:\n\n{self.link('verify', token)}\n\n"
                "If it is not, do nothing.\n",
            )
        )

    async def verify_email(self, token: str) -> User:
        """Take note that the user's address is theirs.

        Raises:
            UsedUp: the token is unknown, used, or too old.
        """
        user = await self._bearer(token, VERIFY)

        def verify(connection: Connection) -> User:
            at = now()
            if not user_rows.take_token(connection, digest(token), VERIFY, now=at):
                raise UsedUp  # somebody was quicker
            user_rows.delete_tokens(connection, user.id, VERIFY)
            self.note(connection, user, "email_verified")
            changes = {"email_verified_at": at, "updated_at": at}
            return required(user_rows.change_user(connection, user.id, changes))

        changed = await self.database.write(verify)
        self.changed()
        return changed

    async def confirm(self, user: User, password: str, *, address: str = "") -> None:
        """Make sure that it is the user who asks, before something that cannot be undone. Who has no password, because
        they log in by OpenID Connect, has none to say.

        Raises:
            WrongCredentials: that is not the password.
            LimitExceeded: it was guessed wrong too often.
        """
        kept = await self.database.read(lambda connection: user_rows.password_hash(connection, user.id))
        if kept is None:
            return
        inputs.presented_password(password)
        check: Callable[[], Any] = lambda: self.passwords.check(password, kept)  # noqa: E731
        # A count of its own: what goes wrong in somebody's session keeps nobody from logging in.
        if not await self.attempts.guess(f"session {user.id}", address, check):
            raise inputs.WrongCredentials

    def link(self, page: str, token: str) -> str:
        """Where the portal takes *token*. Behind a `#`, which browsers do not send: it stands in no server's log."""
        return f"{self.settings.public_url.rstrip('/')}/{page}#token={token}"

    @property
    def _where(self) -> str:
        return self.settings.public_url or "this server"

    async def _bearer(self, token: str, purpose: str) -> User:
        if len(token) > LONGEST_TOKEN:
            raise UsedUp
        found = await self.database.read(
            lambda connection: user_rows.find_token(connection, digest(token), purpose, now=now())
        )
        if found is None:
            raise UsedUp
        return found

    def _issue(
        self, connection: Connection, user: User, purpose: str, token: str, *, most: int | None = None, by: str = ""
    ) -> bool:
        """Record a token, if no more than *most* were within the hour; whether it was."""
        at = now()
        recent = user_rows.tokens_of(connection, user.id, purpose, since=at - timedelta(hours=1))
        if most is not None and recent >= most:
            return False
        user_rows.insert_token(
            connection,
            digest(token),
            user_id=user.id,
            purpose=purpose,
            created_at=at,
            expires_at=at + LIVES[purpose],
        )
        self.note(connection, user, f"{purpose}_begun", by=by or "public")
        return True

    def _put_password(
        self,
        connection: Connection,
        user: User,
        kept: str,
        *,
        but: str | None = None,
        changes: dict[str, datetime] | None = None,
        action: str,
        by: str = "",
    ) -> User:
        at = now()
        user_rows.delete_sessions(connection, user.id, but=but)
        user_rows.delete_tokens(connection, user.id, RESET)
        self.note(connection, user, action, by=by)
        values = {"password_hash": kept, "tokens_valid_from": at, "updated_at": at, **(changes or {})}
        return required(user_rows.change_user(connection, user.id, values))
