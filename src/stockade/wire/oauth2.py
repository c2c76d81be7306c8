"""OAuth 2 bearer tokens, confirmed by the provider itself: by introspection (RFC 7662), else by its userinfo endpoint.

What the provider did not confirm is refused: an opaque token says nothing by itself.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from stockade.errors import Unavailable
from stockade.model import Actor
from stockade.wire.auth import TokenInvalid

__all__ = ["OAuth2Verifier"]

ASK_TIMEOUT_S = 5.0
CONFIRMED_S = 60.0
"""How long a confirmation counts: a token that is revoked works for at most this much longer."""
MAX_CONFIRMED = 10_000


@dataclass(frozen=True, kw_only=True)
class _Confirmation:
    actor: Actor
    until: float


@dataclass(kw_only=True)
class OAuth2Verifier:
    """Asks the provider about each token, and remembers a yes for a minute."""

    userinfo_url: str = ""
    introspection_url: str = ""
    """Asked instead of `userinfo_url` where it is set."""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    clock: Callable[[], float] = time.time
    _confirmed: OrderedDict[bytes, _Confirmation] = field(default_factory=OrderedDict, repr=False)

    async def verify(self, token: str) -> Actor:
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        known = self._confirmed.get(digest)
        if known is not None and self.clock() < known.until:
            return known.actor
        claims = await self._ask(token)
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject:
            raise TokenInvalid("the provider names no owner (sub) of the token", kind="oauth2")
        confirmation = _Confirmation(actor=Actor(id=f"oauth2:{subject}"), until=self._until(claims))
        self._confirmed[digest] = confirmation
        self._confirmed.move_to_end(digest)
        if len(self._confirmed) > MAX_CONFIRMED:
            self._confirmed.popitem(last=False)
        return confirmation.actor

    def _until(self, claims: Mapping[str, Any]) -> float:
        expires = claims.get("exp")
        until = self.clock() + CONFIRMED_S
        if isinstance(expires, int | float) and not isinstance(expires, bool):
            if expires <= self.clock():
                raise TokenInvalid("the token has expired", kind="oauth2")
            until = min(until, float(expires))
        return until

    async def _ask(self, token: str) -> Mapping[str, Any]:
        if not token.isascii() or not token.isprintable():
            raise TokenInvalid("the token holds characters that no token has", kind="oauth2")
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S), httpx.AsyncClient() as client:
                if self.introspection_url:
                    response = await client.post(
                        self.introspection_url,
                        data={"token": token, "token_type_hint": "access_token"},
                        auth=(self.client_id, self.client_secret),
                    )
                else:
                    response = await client.get(self.userinfo_url, headers={"Authorization": f"Bearer {token}"})
        except (httpx.HTTPError, TimeoutError) as error:
            raise Unavailable(f"the identity provider could not be asked: {type(error).__name__}") from None
        # With introspection a 401 is about our own client id, with userinfo about the token.
        if not self.introspection_url and 400 <= response.status_code < 500:
            raise TokenInvalid("the provider does not know the token", kind="oauth2")
        if response.status_code != 200:
            raise Unavailable(f"the identity provider answered {response.status_code}")
        try:
            claims = response.json()
        except ValueError:
            claims = None
        if not isinstance(claims, dict):
            raise Unavailable("the identity provider did not answer with a JSON object")
        if self.introspection_url and claims.get("active") is not True:
            raise TokenInvalid("the provider says that the token is not active", kind="oauth2")
        return claims
