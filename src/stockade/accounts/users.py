"""People: they register, log in, and change what is theirs. Each owns an account, as API keys have it."""

import secrets
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from stockade.accounts import inputs
from stockade.accounts.operation import TIERS, insert_with_account, new_key
from stockade.accounts.personal_data import PersonalData
from stockade.accounts.secrets import digest, new_secret, preview
from stockade.accounts.tiers import ADMIN, actor_of
from stockade.accounts.user_administration import UserAdministration
from stockade.accounts.user_base import new_user, now, required
from stockade.errors import Conflict, Denied, Fault, Invalid
from stockade.model import Actor
from stockade.model.users import Role, User
from stockade.store import accounts as rows
from stockade.store import users as user_rows

__all__ = ["PORTAL_KEY", "Users", "random_password"]

log = structlog.get_logger()

PORTAL_KEY = "portal"
"""Name of the first key of a user's account. Its secret has nobody seen; rotated, it is a key like any other."""
REMEMBER_S = 1.0
"""As `Verification` has it for keys: what another process changes counts after so long at the latest."""
MOST_REMEMBERED = 10_000
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Users(PersonalData, UserAdministration):
    """Who logs in. Everything that changes is in the audit log of the account."""

    _actors: dict[str, tuple[float, Actor]] = field(default_factory=dict)

    def forget(self) -> None:
        """Ask the database anew about everybody: something has changed."""
        self._actors.clear()

    async def register(
        self, *, name: str, email: str, organization: str = "", password: str, address: str = ""
    ) -> User:
        """Make somebody an account, of the tier `free`.

        Args:
            address: where it comes from; empty where that is not to count.

        Raises:
            SignUpClosed: only the operator makes accounts.
            WrongInput: a field is wrong.
            Conflict: somebody has that address.
            LimitExceeded: too many have registered from there, or tried to.
        """
        if not self.is_open:
            raise inputs.SignUpClosed
        checked = _checked(name=name, email=email, organization=organization)
        inputs.password(password)
        # Counted first: who asks whether somebody has an address does not ask without end.
        await self.attempts.take("register", address, most=200, every=_HOUR)
        if await self.find_by_email(checked["email"]) is not None:
            raise _taken()
        user = await self._insert(checked, password=password, tier=self.settings.tier, by="public")
        log.info("users.registered", user_id=user.id)
        await self.attempts.trust(inputs.email_key(user.email), address)
        if self.sends_mail:
            await self.begin_verification(user)
        return user

    async def create(
        self,
        *,
        name: str,
        email: str,
        organization: str = "",
        password: str,
        role: Role = Role.USER,
        tier: str | None = None,
    ) -> User:
        """Make somebody an account, as the operator does: whether strangers may register or not.

        Args:
            tier: `enterprise` for an admin, `free` for others, where it is not said.

        Raises:
            Invalid, Conflict: as `register`; also for a tier that there is not.
        """
        if tier is not None and tier not in TIERS:
            raise Invalid(f"tier: must be one of {', '.join(TIERS)} (got {tier!r})")
        checked = _checked(name=name, email=email, organization=organization)
        inputs.password(password)
        tier = tier or (ADMIN if role is Role.ADMIN else self.settings.tier)
        return await self._insert({**checked, "role": role}, password=password, tier=tier, by="operator")

    async def admit(self, *, issuer: str, subject: str, name: str, email: str, is_verified: bool) -> User:
        """Whom the provider of OpenID Connect vouches for; who comes the first time gets an account.

        Somebody who registered here with the same address is taken for the same person only where both sides have seen
        that the address is theirs: else whoever registers first with somebody's address would share their account.

        Raises:
            Denied: new people are not taken in, or the provider tells no address.
            Conflict: somebody else has that address.
            UserLocked: an admin has locked them.
        """
        found = await self.database.read(lambda connection: user_rows.find_user_by_subject(connection, issuer, subject))
        if found is None and email.strip():
            found = await self._link(issuer, subject, inputs.email(email), is_verified=is_verified)
        if found is None:
            if not self.settings.oidc.sign_up:
                raise Denied("you have no account on this server; ask its operator for one")
            if not email.strip():
                raise Denied("the provider does not tell your e-mail address, without which there is no account")
            checked = _checked(name=inputs.legible(name) or email.partition("@")[0], email=email, organization="")
            at = now()
            checked |= {"oidc_issuer": issuer, "oidc_subject": subject}
            checked |= {"email_verified_at": at if is_verified else None}
            found = await self._insert(checked, password=None, tier=self.settings.tier, by="oidc")
            log.info("users.registered", user_id=found.id)
        return await self._logged_in(found)

    async def log_in(self, email: str, password: str, *, address: str) -> User:
        """Who has that address and that password.

        Raises:
            WrongInput: one of them is empty, or far too long.
            WrongCredentials: nobody has both. It takes as long whether somebody has the address or not.
            UserLocked: an admin lets them in no more.
            LimitExceeded: too many attempts have failed.
            Unavailable: too many log in at once.
        """
        if not email.strip():
            raise inputs.WrongInput("email", "email is required")
        if not password.strip():
            raise inputs.WrongInput("password", "password is required")
        inputs.presented_password(password)
        key = inputs.email_key(email)[: 2 * inputs.LONGEST_EMAIL]

        def find(connection: Connection) -> tuple[User | None, str | None]:
            user = user_rows.find_user_by_email(connection, _storable(key))
            return user, user_rows.password_hash(connection, user.id) if user is not None else None

        found, kept = await self.database.read(find)
        if not await self.attempts.guess(key, address, lambda: self.passwords.check(password, kept)):
            raise inputs.WrongCredentials
        assert found is not None
        assert kept is not None
        renewed = await self.passwords.hash(password) if self.passwords.is_outdated(kept) else None
        return await self._logged_in(found, kept=kept, renewed=renewed)

    async def change(self, user: User, *, name: str | None = None, organization: str | None = None) -> User:
        """Change what a user is called, or whom they are with; `None` leaves it.

        Raises:
            WrongInput: a field is wrong.
        """
        changes: dict[str, Any] = {}
        if name is not None:
            changes["name"] = inputs.name(name)
        if organization is not None:
            changes["organization"] = inputs.organization(organization)
        if not changes:
            return user

        def change(connection: Connection) -> User:
            changed = required(user_rows.change_user(connection, user.id, changes | {"updated_at": now()}))
            self.note(connection, user, "user_changed", fields=sorted(changes))
            return changed

        changed = await self.database.write(change)
        self.changed()
        return changed

    async def change_password(
        self, user: User, old: str, new: str, *, address: str = "", but: str | None = None
    ) -> User:
        """Put *new* in the place of the password; who has none yet says nothing for *old*.

        Every session ends but *but*, by its id, and every token of before is worthless.

        Raises:
            WrongInput: *new* is too short or too long.
            WrongCredentials: *old* is not the password.
            LimitExceeded: it was guessed wrong too often.
        """
        inputs.password(new, field="new")
        await self.confirm(user, old, address=address)
        return await self.set_password(user, new, but=but, action="password_changed")

    async def actor(self, user: User) -> Actor:
        """As whom a user acts: as the bearer of the account's first key, and as an admin where they are one.

        Raises:
            UserLocked: an admin lets them in no more.
        """
        if user.is_locked:
            raise inputs.UserLocked
        at = time.monotonic()
        until, known = self._actors.get(user.id, (0.0, None))
        if known is not None and at < until:
            return replace(known, is_admin=known.is_admin or user.is_admin)

        def find(connection: Connection) -> Actor:
            key = rows.find_key(connection, user.account_id)
            account = rows.find_account(connection, user.account_id)
            if key is None or account is None:
                raise Fault(f"user {user.id} has no account; was its row removed by hand?")
            limits = rows.find_limits(connection, account.id)
            return actor_of(key, account, limits, self.config, now=now())

        actor = await self.database.read(find)
        if len(self._actors) >= MOST_REMEMBERED:
            self._actors.clear()
        self._actors[user.id] = (at + REMEMBER_S, actor)
        return replace(actor, is_admin=actor.is_admin or user.is_admin)

    async def _insert(self, checked: dict[str, Any], *, password: str | None, tier: str, by: str) -> User:
        kept = await self.passwords.hash(password) if password is not None else None
        unseen = new_secret()
        key = new_key(PORTAL_KEY, hash=digest(unseen), preview=preview(unseen))
        user = new_user(account_id=key.id, at=now(), has_password=kept is not None, **checked)

        def insert(connection: Connection) -> None:
            insert_with_account(connection, key, tier=tier, email=user.email, by=by)
            user_rows.insert_user(connection, user, email_key=inputs.email_key(user.email), password_hash=kept)
            self.note(connection, user, "user_created", by=by, user_id=user.id, role=user.role.value)

        try:
            await self.database.write(insert)
        except IntegrityError:
            raise _taken() from None
        return user

    async def _link(self, issuer: str, subject: str, email: str, *, is_verified: bool) -> User | None:
        """Who registered here with that address, from now on known by the provider too; `None` for nobody."""
        found = await self.find_by_email(email)
        if found is None:
            return None
        # Letters that are the same to us (K and the sign of Kelvin, ß and ss) may be two people's at a mail server.
        is_same = found.email.lower() == email.lower() and email.isascii() == found.email.isascii()
        if not is_same or not is_verified or found.email_verified_at is None or found.oidc_subject is not None:
            raise Conflict("somebody has registered here with your e-mail address; log in with the password")

        def link(connection: Connection) -> User:
            changes = {"oidc_issuer": issuer, "oidc_subject": subject, "updated_at": now()}
            self.note(connection, found, "oidc_linked")
            return required(user_rows.change_user(connection, found.id, changes))

        return await self.database.write(link)

    async def _logged_in(self, user: User, *, kept: str | None = None, renewed: str | None = None) -> User:
        at = now()

        def log_in(connection: Connection) -> User:
            current = user_rows.find_user(connection, user.id)
            if current is None:
                raise inputs.WrongCredentials  # removed while the password was looked at
            if current.is_locked:
                raise inputs.UserLocked
            changes: dict[str, Any] = {"last_login_at": at}
            # Not over a password that was changed meanwhile.
            if renewed is not None and user_rows.password_hash(connection, user.id) == kept:
                changes["password_hash"] = renewed
            self.note(connection, user, "logged_in")
            return required(user_rows.change_user(connection, user.id, changes))

        return await self.database.write(log_in)


def random_password() -> str:
    """One that nobody has seen, for whom the operator makes an account."""
    return secrets.token_urlsafe(18)


def _checked(*, name: str, email: str, organization: str) -> dict[str, Any]:
    # In this order: the first that is wrong is told.
    return {
        "name": inputs.name(name),
        "email": inputs.email(email),
        "organization": inputs.organization(organization),
    }


def _storable(text: str) -> str:
    """*text* as PostgreSQL takes it: what it does not take, nobody is called."""
    return text.encode(errors="replace").decode().replace("\0", "?")


def _taken() -> Conflict:
    return Conflict("user already exists")
