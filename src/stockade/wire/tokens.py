"""JSON Web Tokens, RS256, checked against the issuer's published keys. Needs the extra `jwt`."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import jwt

from stockade.errors import Unavailable
from stockade.model import Actor
from stockade.wire.auth import TokenInvalid

__all__ = ["JwtVerifier"]

FETCH_TIMEOUT_S = 5.0
MAX_KEY_SET_BYTES = 256 * 1024
REFRESH_S = 10.0
"""An unknown key id makes us ask the issuer again, but not more often than this: anyone can make up ids."""
LEEWAY_S = 10.0


@dataclass(kw_only=True)
class JwtVerifier:
    """Accepts a token that is signed with one of the issuer's keys, for this audience, and in force now."""

    issuer: str
    audience: str
    keys_url: str
    cache_ttl_s: float
    clock: Callable[[], float] = time.monotonic
    _keys: dict[str, Any] = field(default_factory=dict)
    _fetched: float | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def verify(self, token: str) -> Actor:
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError):  # its header is JSON, which may be deeper than the stack
            raise TokenInvalid("the token is not a JSON Web Token", kind="jwt") from None
        if not isinstance(key_id, str):
            raise TokenInvalid("the token names no key (kid)", kind="jwt")
        key = await self._key(key_id)
        try:
            # The algorithm is ours to say: the token's own header could ask for none, or for HMAC with the public key.
            claims = jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                audience=self.audience,
                issuer=self.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, RecursionError) as error:
            raise TokenInvalid(str(error), kind="jwt") from None
        return Actor(id=f"jwt:{claims['sub']}")

    async def _key(self, key_id: str) -> Any:
        async with self._lock:  # a hundred requests with one new key id fetch once
            age_s = None if self._fetched is None else self.clock() - self._fetched
            stale = age_s is None or age_s >= self.cache_ttl_s
            if stale or (key_id not in self._keys and age_s is not None and age_s >= REFRESH_S):
                self._keys = await self._fetch()
                self._fetched = self.clock()
            if key_id not in self._keys:
                raise TokenInvalid("the token's key is none of the issuer's", kind="jwt")
            return self._keys[key_id]

    async def _fetch(self) -> dict[str, Any]:
        """The issuer's RSA keys by id; others in the set are none of our business."""
        try:
            async with (
                asyncio.timeout(FETCH_TIMEOUT_S),
                httpx.AsyncClient() as client,
                client.stream("GET", self.keys_url) as response,
            ):
                response.raise_for_status()
                raw = b""
                async for part in response.aiter_bytes():
                    raw += part
                    if len(raw) > MAX_KEY_SET_BYTES:
                        raise ValueError("the key set is too large")
            entries = json.loads(raw)["keys"]
            usable = [e for e in entries if e.get("kty") == "RSA" and e.get("use", "sig") == "sig" and "kid" in e]
            return {entry["kid"]: jwt.PyJWK(entry, algorithm="RS256").key for entry in usable}
        except (
            httpx.HTTPError,
            TimeoutError,
            ValueError,
            RecursionError,
            KeyError,
            TypeError,
            AttributeError,
            jwt.PyJWTError,
        ) as error:
            raise Unavailable(f"the token issuer's keys could not be fetched: {type(error).__name__}") from None
