"""Who asks: an API key of the server, a token of `/v1/auth`, or nobody where the server is open."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request

from stockade.dialects.code_sandbox.failures import Unauthorized
from stockade.errors import Denied
from stockade.model import Actor
from stockade.wire.auth import KeyVerifier, anonymous
from stockade.wire.clients import address

__all__ = ["MISSING", "Access", "bearer"]

MISSING = "missing or invalid authorization header"
_BAD = "invalid token"
_DOTS = 2
"""Of a JSON Web Token."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may come in, and how they show that."""

    keys: KeyVerifier
    token_actor: Callable[[str], Awaitable[Actor]] | None
    """Whose a token is; raises `Denied` for one that is not good. `None` where nobody can log in."""
    is_open: bool
    """Whether who shows nothing is answered."""

    async def actor(self, request: Request, *, lenient: bool = False) -> Actor:
        """Who asks.

        Args:
            lenient: where the server is open, credentials that are not good count as none: the reference never looked
                at them.

        Raises:
            Unauthorized: nobody whom this server knows.
            Unavailable: it cannot be told now.
        """
        presented = request.headers.get("x-api-key", "") or bearer(request)
        if not presented:
            if self.is_open and (lenient or "authorization" not in request.headers):
                return anonymous(address(request))
            raise Unauthorized(MISSING)
        try:
            return await self._known(presented)
        except Unauthorized:
            if self.is_open and lenient:
                return anonymous(address(request))
            raise

    async def _known(self, presented: str) -> Actor:
        if self.token_actor is None or presented.count(".") != _DOTS:
            return await self._bearer_of_key(presented, _BAD)
        try:
            return await self.token_actor(presented)
        except Denied as error:
            # A key that the operator chose may look like a token.
            return await self._bearer_of_key(presented, str(error))

    async def _bearer_of_key(self, presented: str, otherwise: str) -> Actor:
        actor = await self.keys.verify(presented)
        if actor is None:
            raise Unauthorized(otherwise)
        return actor


def bearer(request: Request) -> str:
    """The token in `Authorization: Bearer <token>`; empty when there is none, or the header has another form."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" and token and " " not in token else ""
