"""Which credentials the isobox dialect demands, from its settings."""

from dataclasses import dataclass

from stockade.dialects.isobox.settings import IsoboxSettings
from stockade.errors import Denied, Invalid, Unavailable, Unsupported
from stockade.wire.auth import (
    ApiKeyAuth,
    ApiKeys,
    Authenticator,
    BearerAuth,
    Credentials,
    OpenAccess,
    TokenVerifier,
)
from stockade.wire.dialect import Services
from stockade.wire.oauth2 import OAuth2Verifier
from stockade.wire.urls import require_https

__all__ = ["Access", "access"]


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may come in, and how they show that."""

    enabled: bool
    kind: str
    """`none`, `apikey`, `jwt` or `oauth2`."""
    authenticator: Authenticator

    async def presents_good_credentials(self, credentials: Credentials) -> bool:
        """Whether *credentials* would be accepted where credentials are demanded."""
        authenticator = self.authenticator
        if isinstance(authenticator, OpenAccess):
            authenticator = authenticator.known
        try:
            await authenticator.actor(credentials)
        except (Denied, Unavailable):
            return False
        return True


def access(services: Services) -> Access:
    """Who may come in.

    Credentials are demanded where the settings ask for them and wherever others can reach the server.

    Raises:
        Invalid: the settings contradict each other, or would leave a reachable server open.
        Unsupported: a needed extra is not installed.
    """
    settings: IsoboxSettings = services.settings
    own = ApiKeys(settings.api_keys)
    keys = ApiKeyAuth(own=own, server=services.keys, header=settings.api_key_header)
    if _is_off(settings, len(own), open_access=services.open_access):
        return Access(enabled=False, kind="none", authenticator=OpenAccess(known=keys))
    if settings.auth_type == "jwt":
        return Access(enabled=True, kind="jwt", authenticator=BearerAuth(verifier=_jwt(settings)))
    if settings.auth_type == "oauth2":
        return Access(
            enabled=True,
            kind="oauth2",
            authenticator=BearerAuth(verifier=_oauth2(settings)),
        )
    return Access(enabled=True, kind="apikey", authenticator=keys)


def _is_off(settings: IsoboxSettings, own_keys: int, *, open_access: bool) -> bool:
    if settings.auth_enabled == "false" or settings.auth_type == "none":
        if not open_access:
            which = "auth_enabled is false" if settings.auth_enabled == "false" else 'auth_type is "none"'
            raise Invalid(
                f"dialects.isobox: {which} while others can reach the server. Listen on a loopback address, "
                "remove the setting, or say --insecure"
            )
        return True
    if settings.auth_enabled == "true":
        return False
    return open_access and not own_keys and settings.auth_type == "apikey"


def _jwt(settings: IsoboxSettings) -> TokenVerifier:
    if not settings.jwt_issuer_url or not settings.jwt_audience:
        raise Invalid(
            'dialects.isobox: auth_type = "jwt" needs jwt_issuer_url and jwt_audience: without them a token that '
            "was made for another service would open this one"
        )
    try:
        from stockade.wire.tokens import JwtVerifier
    except ImportError:
        raise Unsupported("dialects.isobox: auth_type = \"jwt\" needs: pip install 'stockade[jwt]'") from None
    keys_url = settings.jwt_public_key_url or settings.jwt_issuer_url.rstrip("/") + "/.well-known/jwks.json"
    return JwtVerifier(
        issuer=settings.jwt_issuer_url,
        audience=settings.jwt_audience,
        keys_url=require_https("dialects.isobox.jwt_public_key_url", keys_url),
        cache_ttl_s=settings.jwt_cache_ttl_s,
    )


def _oauth2(settings: IsoboxSettings) -> TokenVerifier:
    if not settings.oauth2_userinfo_url and not settings.oauth2_introspection_url:
        raise Invalid(
            'dialects.isobox: auth_type = "oauth2" needs oauth2_userinfo_url or oauth2_introspection_url: '
            "a token that the provider has not confirmed is worth nothing"
        )
    return OAuth2Verifier(
        userinfo_url=require_https("dialects.isobox.oauth2_userinfo_url", settings.oauth2_userinfo_url),
        introspection_url=require_https(
            "dialects.isobox.oauth2_introspection_url",
            settings.oauth2_introspection_url,
        ),
        client_id=settings.oauth2_client_id,
        client_secret=settings.oauth2_client_secret,
    )
