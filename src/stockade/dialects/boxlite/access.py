"""Who asks: the bearer of an API key, or nobody where the server is open."""

import re
from dataclasses import dataclass, replace

from starlette.requests import HTTPConnection

from stockade.dialects.boxlite.failures import Unauthenticated
from stockade.model import Actor
from stockade.wire.auth import KeyVerifier, anonymous
from stockade.wire.clients import normal_address

__all__ = ["Access"]

_BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may come in, and how they show that."""

    keys: KeyVerifier
    is_open: bool
    """Whether who shows nothing is answered."""

    async def actor(self, connection: HTTPConnection) -> Actor:
        """Who asks.

        Raises:
            Unauthenticated: nobody whom this server knows; also on an open one, where a credential was presented that
                is not good: whoever believes to have an account must not find their boxes gone.
            Unavailable: it cannot be told now.
        """
        presented = connection.headers.get("authorization")
        if presented is None:
            if not self.is_open:
                raise Unauthenticated
            nobody = anonymous(normal_address(connection.client.host if connection.client is not None else ""))
            # Boxes belong to accounts; those of nobody in particular to the address that they came from.
            return replace(nobody, account_id=nobody.id)
        match = _BEARER.fullmatch(presented)
        return await self.bearer(match[1] if match else "")

    async def bearer(self, secret: str) -> Actor:
        """Whose key *secret* is. Raises as `actor`."""
        actor = await self.keys.verify(secret) if secret else None
        if actor is None:
            raise Unauthenticated("the API key is not valid")
        return actor
