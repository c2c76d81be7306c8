"""Who is asking: API keys and bearer tokens.

A dialect reads `Credentials` from its own headers and hands them to an `Authenticator`; what is refused comes
back as a kind of `Denied` that the dialect words in its own way.
"""

import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from stockade.errors import Denied, Invalid, Unavailable
from stockade.model import Actor

__all__ = [
    "ApiKeyAuth",
    "ApiKeys",
    "Authenticator",
    "BearerAuth",
    "Credentials",
    "KeyInvalid",
    "KeyMissing",
    "KeyVerifier",
    "OpenAccess",
    "TokenInvalid",
    "TokenMalformed",
    "TokenMissing",
    "TokenVerifier",
    "anonymous",
]


class KeyMissing(Denied):
    """No API key was sent."""

    code = "auth.key_missing"


class KeyInvalid(Denied):
    """The API key is not one of ours."""

    code = "auth.key_invalid"


class TokenMissing(Denied):
    """No Authorization header was sent."""

    code = "auth.token_missing"


class TokenMalformed(Denied):
    """The Authorization header holds no bearer token."""

    code = "auth.token_malformed"


class TokenInvalid(Denied):
    """The bearer token was not confirmed; the message says why, without the token."""

    code = "auth.token_invalid"

    def __init__(self, message: str, *, kind: str) -> None:
        self.kind = kind
        """What it was taken for: `jwt` or `oauth2`."""
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a caller presented. Never logged."""

    address: str
    api_key: str | None = None
    authorization: str | None = None


class Authenticator(Protocol):
    """Turns credentials into an actor."""

    async def actor(self, credentials: Credentials) -> Actor:
        """Who presents *credentials*.

        Raises:
            Denied: nobody whom this server knows.
            Unavailable: who could tell cannot be asked now.
        """
        ...


class KeyVerifier(Protocol):
    """Knows the server's API keys: `stockade.accounts.Accounts` does."""

    async def verify(self, presented: str) -> Actor | None:
        """Whose key *presented* is, or `None`. The time taken tells nothing about the keys.

        Raises:
            Unavailable: the database is away.
        """
        ...


class TokenVerifier(Protocol):
    """Knows whether a bearer token is good."""

    async def verify(self, token: str) -> Actor:
        """Whose *token* it is.

        Raises:
            TokenInvalid: nobody confirmed it.
            Unavailable: who could confirm it cannot be reached.
        """
        ...


def anonymous(address: str) -> Actor:
    """Who asks without a key."""
    return Actor(id=f"anonymous:{address}")


class ApiKeys:
    """Keys from the configuration, as hashes; an entry `sha256:<64 hex digits>` is a hash already.

    Raises:
        Invalid: an entry begins with `sha256:` and is no such hash.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        self._hashes = tuple(_digest(entry.strip()) for entry in entries if entry.strip())

    def __len__(self) -> int:
        return len(self._hashes)

    def verify(self, presented: str) -> Actor | None:
        """Whose key it is. Takes the same time for each key, right or wrong."""
        digest = hashlib.sha256(presented.encode(errors="surrogatepass")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]
        return Actor(id=f"key:{digest.hex()[:16]}") if any(matches) else None


def _digest(entry: str) -> bytes:
    if not entry.startswith("sha256:"):
        return hashlib.sha256(entry.encode()).digest()
    try:
        digest = bytes.fromhex(entry.removeprefix("sha256:"))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise Invalid("an API key that begins with sha256: must go on with 64 hexadecimal digits")
    return digest


@dataclass(frozen=True, kw_only=True)
class ApiKeyAuth:
    """Demands an API key: one of the dialect's own, or one of the server's."""

    own: ApiKeys
    server: KeyVerifier
    header: str = "X-API-Key"
    """Only for the message."""

    async def actor(self, credentials: Credentials) -> Actor:
        if not credentials.api_key:
            raise KeyMissing(f"Please provide an {self.header} header")
        actor = self.own.verify(credentials.api_key) or await self.server.verify(credentials.api_key)
        if actor is None:
            raise KeyInvalid("The provided API key is not valid")
        return actor


@dataclass(frozen=True, kw_only=True)
class BearerAuth:
    """Demands `Authorization: Bearer <token>`, and asks `verifier` about the token."""

    verifier: TokenVerifier

    async def actor(self, credentials: Credentials) -> Actor:
        if not credentials.authorization:
            raise TokenMissing("Please provide an Authorization header with Bearer token")
        if not credentials.authorization.startswith("Bearer "):
            raise TokenMalformed("Authorization header must start with 'Bearer '")
        token = credentials.authorization.removeprefix("Bearer ").strip()
        if not token:
            raise TokenMalformed("The bearer token is empty")
        return await self.verifier.verify(token)


@dataclass(frozen=True, kw_only=True)
class OpenAccess:
    """Demands nothing. A key that is presented and good still counts as its owner's."""

    known: ApiKeyAuth

    async def actor(self, credentials: Credentials) -> Actor:
        if credentials.api_key:
            try:
                return await self.known.actor(credentials)
            except (Denied, Unavailable):
                pass  # clients of open servers send stale keys, and always were answered
        return anonymous(credentials.address)
