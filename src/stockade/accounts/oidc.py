"""Logging in by a provider of OpenID Connect: the code flow, with PKCE, state and nonce. Needs the extra `oidc`.

What must be remembered between the two halves is in a cookie of the browser that began, signed by us: so an answer of
the provider counts only there, and only for a few minutes.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import re
import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
import structlog

from stockade.accounts.users import Users
from stockade.errors import Denied, Invalid, StockadeError, Unavailable, Unsupported
from stockade.model.users import User

try:
    with warnings.catch_warnings():
        # It prefers httpx's successor, and says so to whoever reads the server's log.
        warnings.simplefilter("ignore")
        from authlib.integrations.base_client import OAuthError
        from authlib.integrations.httpx_client import AsyncOAuth2Client
    from joserfc import jwt as signed
    from joserfc.errors import JoseError
    from joserfc.jwk import KeySet
except ImportError as error:
    raise Unsupported("users.oidc: needs the extra: pip install 'stockade[oidc]'") from error

__all__ = ["CALLBACK", "Oidc", "OidcLogin", "own_path"]

log = structlog.get_logger()

CALLBACK = "/api/oidc/callback"
SCOPE = "openid email profile"
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
"""Never HS256: our secret at the provider is not for signing, nor `none`."""
TIMEOUT_S = 10.0
STATE_S = 600.0
"""Time that somebody has for logging in over there."""
REMEMBER_S = 600.0
REFRESH_S = 10.0
"""An unknown key makes us ask the provider again, but not more often than this."""
LEEWAY_S = 60
MOST_BYTES = 256 * 1024
HOME = "/app"
_OWN_PATH = re.compile(r"/(?![/\\])[!-\[\]-~]*")


@dataclass(frozen=True, kw_only=True)
class OidcLogin:
    """Somebody has logged in."""

    user: User
    next: str
    """The page of ours to which they wanted."""


@dataclass(frozen=True, kw_only=True)
class _Provider:
    authorize: str
    token: str
    keys: str
    authentication: str
    names_itself: bool
    """Its answers say whose they are (RFC 9207), and must."""


class Oidc:
    """One provider."""

    def __init__(self, users: Users, *, secret: str) -> None:
        """
        Args:
            secret: signs what browsers keep between the two halves.

        Raises:
            Invalid: something is missing in the configuration, or the provider would be spoken to in the clear.
        """
        settings = users.settings
        if not settings.oidc.client_id:
            raise Invalid("users.oidc.client_id: say by which id the provider knows this server")
        if not settings.public_url:
            raise Invalid("users.public_url: needed with users.oidc, so that the provider can send people back")
        _check_url("users.oidc.issuer", settings.oidc.issuer)
        self._users = users
        self._issuer = settings.oidc.issuer
        self._client_id = settings.oidc.client_id
        self._client_secret = settings.oidc.client_secret
        self._redirect = settings.public_url.rstrip("/") + CALLBACK
        # A key of its own: what is signed here must not do as a token, nor a token here.
        self._secret = hmac.new(secret.encode(), b"stockade oidc state", hashlib.sha256).hexdigest()
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, follow_redirects=False)
        self._lock = asyncio.Lock()
        self._provider: tuple[float, _Provider] | None = None
        self._keys: tuple[float, KeySet] | None = None

    @property
    def name(self) -> str:
        """What the button says."""
        return self._users.settings.oidc.name

    async def close(self) -> None:
        await self._http.aclose()

    async def start(self, next: str = HOME) -> tuple[str, str]:
        """Where to send the browser, and what it has to keep in a cookie meanwhile.

        Args:
            next: the page of ours to which it shall come back; anything but a path of ours counts as the first page.

        Raises:
            Unavailable: the provider does not answer.
        """
        provider = await self._discovered()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        async with self._client() as client:
            url, _ = client.create_authorization_url(
                provider.authorize, state=state, nonce=nonce, code_verifier=verifier, redirect_uri=self._redirect
            )
        kept = {"state": state, "nonce": nonce, "verifier": verifier, "next": own_path(next)}
        return url, jwt.encode(kept | {"exp": time.time() + STATE_S}, self._secret, "HS256")

    async def finish(self, query: Mapping[str, str], cookie_state: str) -> OidcLogin:
        """Who has logged in at the provider, which has sent the browser back to us.

        Args:
            query: of the request.
            cookie_state: what the browser has kept; it must forget it now.

        Raises:
            Denied: the provider has refused, or this is not the answer to what this browser began.
            Conflict, UserLocked: as `Users.admit`.
            Unavailable: the provider does not answer.
        """
        kept = self._kept(cookie_state)
        if not hmac.compare_digest(kept["state"].encode(), query.get("state", "").encode(errors="replace")):
            raise Denied("this log-in was begun elsewhere, or too long ago; begin again")
        provider = await self._discovered()
        if query.get("iss", self._issuer if not provider.names_itself else "") != self._issuer:
            raise Denied("the answer comes from another provider")
        if "error" in query:
            raise Denied("the provider has not let you in")
        claims = await self._claims(provider, query.get("code", ""), verifier=kept["verifier"], nonce=kept["nonce"])
        user = await self._users.admit(
            issuer=self._issuer,
            subject=claims["sub"],
            name=_text(claims.get("name")) or _text(claims.get("preferred_username")),
            email=_text(claims.get("email")),
            is_verified=claims.get("email_verified") is True,
        )
        return OidcLogin(user=user, next=own_path(kept["next"]))

    def _kept(self, cookie_state: str) -> dict[str, str]:
        try:
            kept: dict[str, str] = jwt.decode(
                cookie_state, self._secret, algorithms=["HS256"], options={"require": ["exp"]}
            )
        except jwt.PyJWTError:
            raise Denied("this log-in was begun elsewhere, or too long ago; begin again") from None
        return kept

    def _client(self) -> AsyncOAuth2Client:
        return AsyncOAuth2Client(
            client_id=self._client_id,
            client_secret=self._client_secret or None,
            scope=SCOPE,
            code_challenge_method="S256",
            timeout=TIMEOUT_S,
            follow_redirects=False,
        )

    async def _claims(self, provider: _Provider, code: str, *, verifier: str, nonce: str) -> dict[str, Any]:
        """What the provider says of whom it has sent. Raises Denied, Unavailable."""
        if not code:
            raise Denied("the provider has not let you in")
        async with self._client() as client:
            client.token_endpoint_auth_method = provider.authentication if self._client_secret else "none"
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    answer = await client.fetch_token(
                        provider.token, code=code, code_verifier=verifier, redirect_uri=self._redirect
                    )
            except OAuthError as error:
                log.warning("oidc.refused", error=str(error.error)[:100])
                raise Denied("the provider does not confirm that log-in; begin again") from None
            except (
                Exception
            ) as error:  # which HTTP library it goes by, and so what that raises, is the library's choice
                raise _away(error) from error
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise Denied("the provider does not say who you are")
        claims = await self._verified(provider, token)
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), nonce.encode()):
            raise Denied("the provider's answer belongs to another log-in")
        return claims

    async def _verified(self, provider: _Provider, token: str) -> dict[str, Any]:
        """The claims of an ID token that is the provider's, for us, and in force. Raises Denied, Unavailable."""
        for is_last in (False, True):
            keys = await self._key_set(provider, anew=is_last)
            try:
                claims = signed.decode(token, keys, algorithms=ALGORITHMS).claims
                signed.JWTClaimsRegistry(
                    leeway=LEEWAY_S,
                    iss={"essential": True, "value": self._issuer},
                    aud={"essential": True, "value": self._client_id},
                    exp={"essential": True},
                    iat={"essential": True},
                    sub={"essential": True},
                ).validate(claims)
                break
            except (JoseError, ValueError) as error:
                # Perhaps its keys are new; then again, with those that it has now.
                if is_last:
                    log.warning("oidc.token_refused", reason=type(error).__name__)
                    raise Denied("the provider's answer cannot be verified") from None
        # With several recipients it must be said for whom it was made.
        if claims.get("azp", self._client_id) != self._client_id or not isinstance(claims["sub"], str):
            raise Denied("the provider's answer is for somebody else")
        return dict(claims)

    async def _key_set(self, provider: _Provider, *, anew: bool) -> KeySet:
        async with self._lock:
            age = time.monotonic() - self._keys[0] if self._keys is not None else None
            if self._keys is None or age is None or age > (REFRESH_S if anew else REMEMBER_S):
                document = await self._fetch(provider.keys)
                try:
                    self._keys = (time.monotonic(), KeySet.import_key_set(_signing(document)))
                except (JoseError, ValueError, TypeError, KeyError) as error:
                    raise Unavailable("the provider's keys are not readable") from error
            return self._keys[1]

    async def _discovered(self) -> _Provider:
        """Where the provider's addresses are (OpenID Connect Discovery 1.0). Raises Unavailable."""
        async with self._lock:
            if self._provider is not None and time.monotonic() < self._provider[0] + REMEMBER_S:
                return self._provider[1]
            document = await self._fetch(self._issuer.rstrip("/") + "/.well-known/openid-configuration")
            if document.get("issuer") != self._issuer:
                raise Unavailable("the provider calls itself something else than users.oidc.issuer")
            methods = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            try:
                provider = _Provider(
                    authorize=_check_url("authorization_endpoint", document["authorization_endpoint"]),
                    token=_check_url("token_endpoint", document["token_endpoint"]),
                    keys=_check_url("jwks_uri", document["jwks_uri"]),
                    authentication="client_secret_basic" if "client_secret_basic" in methods else "client_secret_post",
                    names_itself=document.get("authorization_response_iss_parameter_supported") is True,
                )
            except (KeyError, TypeError, StockadeError) as error:
                raise Unavailable("the provider's configuration is not usable") from error
            self._provider = (time.monotonic(), provider)
            return provider

    async def _fetch(self, url: str) -> dict[str, Any]:
        """A document of the provider's. Raises Unavailable."""
        try:
            async with asyncio.timeout(TIMEOUT_S), self._http.stream("GET", url) as response:
                response.raise_for_status()
                content = b""
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > MOST_BYTES:
                        raise Unavailable("the provider sends too much")
            found = httpx.Response(200, content=content).json()
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            raise _away(error) from error
        if not isinstance(found, dict):
            raise Unavailable("the provider sends something else than an object")
        return found


def own_path(next: str) -> str:
    """*next*, if it leads to a page of ours; else the first page. `//host` and `/\\host` lead elsewhere."""
    return next if len(next) <= 2000 and _OWN_PATH.fullmatch(next) else HOME


def _check_url(name: str, url: object) -> str:
    """*url*, if nobody between us and it can read along or answer in its stead. Raises Invalid."""
    parts = urlsplit(url) if isinstance(url, str) else None
    host = parts.hostname if parts is not None else None
    if parts is not None and host and (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))):
        return str(url)
    raise Invalid(f"{name}: must begin with https:// (http:// only for this machine itself)")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _signing(document: dict[str, Any]) -> Any:
    """The keys that sign; those of kinds that we do not know are left out."""
    kinds = ("RSA", "EC", "OKP")
    keys = [one for one in document["keys"] if one.get("kty") in kinds and one.get("use", "sig") == "sig"]
    return {"keys": keys}


def _text(claim: object) -> str:
    return claim.strip()[:255] if isinstance(claim, str) else ""


def _away(error: Exception) -> Unavailable:
    log.warning("oidc.away", reason=type(error).__name__)
    return Unavailable("the provider does not answer; try again in a moment")
