"""What accounts log in to registries with: kept encrypted, used for their own pulls, never shown again.

| threat | mechanism |
|---|---|
| whoever reads the database or a backup logs in with it | AES-256-GCM with a key that lies beside the database, not in it |
| whoever writes to the database moves a password to another account, or to a registry of their own | id, account, host, prefix and user name are authenticated along |
| another tenant pulls with it | looked up by account; what came with it belongs to that account alone |
| it is sent to somebody else | by the registry's exact host and whole components of the repository's path |
"""  # noqa: E501

import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

import structlog

from stockade.engine.image_references import InvalidReference, Reference
from stockade.errors import Denied, Fault, Invalid, LimitExceeded, NotFound
from stockade.model import Actor
from stockade.model.registries import Login, RegistryCredential, SealedCredential
from stockade.store.seals import Seal

__all__ = ["CredentialTable", "RegistryCredentials"]

log = structlog.get_logger()

MOST_OF_ACCOUNT = 100
MOST_USERNAME = 256
MOST_PASSWORD = 16 * 1024
"""Characters; keys of service accounts are JSON documents."""


class CredentialTable(Protocol):
    """Where they are kept. Everything raises Unavailable while that is away."""

    async def insert(self, row: SealedCredential, *, by: str) -> None:
        """Add one. Raises Conflict when the account has one for the same host and prefix."""
        ...

    async def of_account(self, account_id: str) -> Sequence[SealedCredential]:
        """The account's, the oldest first."""
        ...

    async def delete(self, account_id: str, id: str, *, by: str) -> bool:
        """Remove one; False when the account has none of that id."""
        ...


class RegistryCredentials:
    """The credentials of all accounts."""

    def __init__(self, table: CredentialTable, *, seal: Seal) -> None:
        """Take where they are kept, and what encrypts them: what was encrypted with another key cannot be read."""
        self._table = table
        self._seal = seal

    async def create(
        self, actor: Actor, *, host: str, username: str, password: str, prefix: str = ""
    ) -> RegistryCredential:
        """Keep a credential for the actor's account.

        Args:
            host: of the registry, with its port where it is not the usual one.
            prefix: for which repositories there; of several that fit a repository, the longest counts.

        Raises:
            Denied: the actor has no account.
            Invalid: something of it cannot be right.
            Conflict: the account has one for this host and prefix; remove that first.
            LimitExceeded: it has too many.
        """
        _check_actor(actor)
        registry, repository = _place(host, prefix)
        if not 0 < len(username) <= MOST_USERNAME or not username.isprintable() or ":" in username:
            raise Invalid(
                f"username: must be 1 to {MOST_USERNAME} characters, none of them a colon or a control character"
            )
        if not 0 < len(password) <= MOST_PASSWORD or "\0" in password:
            raise Invalid(f"password: must be 1 to {MOST_PASSWORD} characters")
        if len(await self._table.of_account(actor.account_id)) >= MOST_OF_ACCOUNT:
            raise LimitExceeded(f"the account has {MOST_OF_ACCOUNT} registries already; remove one that is not used")
        row = SealedCredential(
            id=str(uuid.uuid4()),
            account_id=actor.account_id,
            registry_host=registry,
            repository_prefix=repository,
            username=username,
            created_at=datetime.now(UTC),
            secret=b"",
        )
        try:
            row = replace(row, secret=self._seal.close(password.encode(), about=_bound_to(row)))
        except UnicodeEncodeError:
            raise Invalid("password: has characters that UTF-8 cannot write") from None
        await self._table.insert(row, by=actor.id)
        return _told(row)

    async def list(self, actor: Actor) -> "list[RegistryCredential]":
        """The account's credentials, the oldest first.

        Raises:
            Denied: the actor has no account.
        """
        _check_actor(actor)
        return [_told(row) for row in await self._table.of_account(actor.account_id)]

    async def remove(self, actor: Actor, id: str) -> None:
        """Forget a credential. Images that were pulled with it stay the account's.

        Raises:
            Denied: the actor has no account.
            NotFound: the account has none of that id.
        """
        _check_actor(actor)
        if not await self._table.delete(actor.account_id, id, by=actor.id):
            raise NotFound(f"there is no registry {id!r}")

    async def find(self, account_id: str, reference: Reference) -> Login | None:
        """What an account has for the repository of *reference*; of several, the one of the longest prefix.

        `None` also for one that was encrypted with another server's secret; that is logged.
        """
        if not account_id:
            return None
        fitting = [row for row in await self._table.of_account(account_id) if _fits(row, reference)]
        for row in sorted(fitting, key=lambda one: len(one.repository_prefix), reverse=True):
            password = self._opened(row)
            if password is not None:
                return Login(username=row.username, password=password)
            log.warning("registry.credential_unreadable", account_id=account_id, credential_id=row.id)
        return None

    def _opened(self, row: SealedCredential) -> str | None:
        """The password; `None` when the row was written with another secret, or changed since."""
        try:
            return self._seal.open(row.secret, about=_bound_to(row)).decode()
        except Fault:
            return None


def _bound_to(row: RegistryCredential) -> str:
    """What a password belongs to; members cannot run into each other, since none holds a NUL."""
    return "\0".join(("registry", row.id, row.account_id, row.registry_host, row.repository_prefix, row.username))


def _check_actor(actor: Actor) -> None:
    if not actor.account_id:
        raise Denied("credentials of registries belong to an account, and this caller has none: use an API key")


def _place(host: str, prefix: str) -> tuple[str, str]:
    """Host and prefix as references in full have them."""
    # `docker login` writes https://index.docker.io/v1/ for Docker Hub; people copy that.
    name = re.sub(r"^https?://", "", host.strip()).rstrip("/").removesuffix("/v1")
    path = prefix.strip().strip("/")
    try:
        if "/" in name or not ("." in name or ":" in name or name == "localhost"):
            raise Invalid(f"registry host {host[:100]!r}: must be as in references: ghcr.io, localhost:5000")
        # One more component: by itself, a name at Docker Hub would become library/<name>.
        found = Reference.parse(f"{name}/{path}/x" if path else f"{name}/x/x")
    except InvalidReference as error:
        raise Invalid(f"registry host or repository prefix: {error}") from None
    return found.registry, found.repository.removesuffix("/x") if path else ""


def _fits(row: RegistryCredential, reference: Reference) -> bool:
    prefix = row.repository_prefix
    return row.registry_host == reference.registry and (
        not prefix or f"{reference.repository}/".startswith(f"{prefix}/")
    )


def _told(row: SealedCredential) -> RegistryCredential:
    return RegistryCredential(
        id=row.id,
        account_id=row.account_id,
        registry_host=row.registry_host,
        repository_prefix=row.repository_prefix,
        username=row.username,
        created_at=row.created_at,
    )
