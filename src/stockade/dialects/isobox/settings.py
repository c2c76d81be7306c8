"""What an operator can set about the isobox dialect: `[dialects.isobox]`, or isobox's own environment variables."""

from dataclasses import dataclass
from typing import Literal

from stockade.config import setting

__all__ = ["IsoboxSettings"]

_MIB = 1024 * 1024


def _auth_enabled(text: str) -> str:
    """isobox reads anything but `false` as `true`; so do we, for a misspelt value must not open the door."""
    return "false" if text.strip().lower() == "false" else "true"


def _auth_type(text: str) -> str:
    """An unknown type acts as `apikey`, as in isobox."""
    name = text.strip().lower()
    return name if name in ("none", "jwt", "oauth2") else "apikey"


@dataclass(frozen=True, kw_only=True)
class IsoboxSettings:
    """Settings of the isobox dialect."""

    auth_enabled: str = setting(
        "",
        env=("AUTH_ENABLED",),
        parse=_auth_enabled,
        help="`true` demands credentials, `false` demands none (only on loopback addresses, or with "
        "`server.insecure`). Not set: they are demanded where `api_keys` or an `auth_type` other than `apikey` is "
        "set, and on every address that others can reach.",
    )
    auth_type: str = setting(
        "apikey",
        env=("AUTH_TYPE",),
        parse=_auth_type,
        help="`apikey`, `jwt`, `oauth2` or `none`; anything else acts as `apikey`.",
    )
    api_keys: tuple[str, ...] = setting(
        (),
        env=("API_KEYS",),
        secret=True,
        help="API keys beside the server's own. `sha256:<64 hex digits>` is a key's hash, so that the key itself need "
        "not be written down.",
    )
    api_key_header: str = setting(
        "X-API-Key",
        env=("API_KEY_HEADER", "API_KEY_HEADER_NAME"),
        help="Request header that carries the key; `X-API-Key` is always read too.",
    )
    jwt_issuer_url: str = setting("", env=("JWT_ISSUER_URL",), help="`iss` of accepted tokens.")
    jwt_audience: str = setting("", env=("JWT_AUDIENCE",), help="`aud` of accepted tokens.")
    jwt_public_key_url: str = setting(
        "",
        env=("JWT_PUBLIC_KEY_URL",),
        help="Where the issuer publishes its keys (JWKS). Not set: `/.well-known/jwks.json` under the issuer.",
    )
    jwt_cache_ttl_s: float = setting(
        3600.0,
        env=("JWT_CACHE_TTL",),
        at_least=1,
        help="How long the issuer's keys are kept.",
    )
    oauth2_provider: str = setting(
        "",
        env=("OAUTH2_PROVIDER",),
        help="Name of the provider; only for people. What is asked is `oauth2_userinfo_url`.",
    )
    oauth2_client_id: str = setting(
        "",
        env=("OAUTH2_CLIENT_ID",),
        help="Who we are to the provider, for `oauth2_introspection_url`.",
    )
    oauth2_client_secret: str = setting(
        "",
        env=("OAUTH2_CLIENT_SECRET",),
        secret=True,
        help="The secret that goes with `oauth2_client_id`.",
    )
    oauth2_token_url: str = setting(
        "",
        env=("OAUTH2_TOKEN_URL",),
        help="Where clients get their tokens; told to them by `GET /auth/status`. This server never calls it.",
    )
    oauth2_userinfo_url: str = setting(
        "",
        env=("OAUTH2_USERINFO_URL",),
        help="Endpoint of the provider that answers 200 and a `sub` for a good bearer token.",
    )
    oauth2_introspection_url: str = setting(
        "",
        env=("OAUTH2_INTROSPECTION_URL",),
        help="Endpoint for token introspection (RFC 7662); asked instead of `oauth2_userinfo_url`.",
    )
    rate_limit_per_minute: int = setting(
        0,
        env=("RATE_LIMIT_PER_MINUTE",),
        at_least=0,
        help="Requests a minute for each key or address; 0: no limit.",
    )
    rate_limit_burst: int = setting(
        0,
        env=("RATE_LIMIT_BURST",),
        at_least=0,
        help="Requests that one may send at once after a pause; 0: as many as a minute allows.",
    )
    rate_limit_concurrent: int = setting(
        0,
        env=("RATE_LIMIT_CONCURRENT",),
        at_least=0,
        help="Requests of one key or address under way at a time; 0: no limit.",
    )
    dedup_enabled: bool = setting(
        False,
        env=("DEDUP_ENABLED",),
        help="Answer a request that equals an earlier one of the same key from memory. Off by default: a program need "
        "not print the same twice.",
    )
    dedup_cache_ttl_s: float = setting(3600.0, env=("DEDUP_CACHE_TTL",), at_least=1, help="How long an answer is kept.")
    dedup_cache_type: Literal["memory", "redis"] = setting(
        "memory",
        env=("DEDUP_CACHE_TYPE",),
        help="Where answers are kept; `redis` needs the extra `redis`.",
    )
    dedup_redis_url: str = setting(
        "redis://127.0.0.1:6379/0",
        env=("REDIS_URL",),
        secret=True,
        help="Redis that keeps answers.",
    )
    dedup_memory_bytes: int = setting(
        64 * _MIB,
        at_least=_MIB,
        help="Memory for kept answers; the oldest are dropped first.",
    )
    max_test_cases: int = setting(1000, at_least=1, help="Test cases of one request.")
    test_output_bytes: int = setting(
        8 * _MIB,
        at_least=65536,
        help="Output that the answer to one request with test cases holds; what is above is cut and marked.",
    )
    test_url_hosts: tuple[str, ...] = setting(
        (),
        env=("TEST_URL_HOSTS",),
        help="Hosts that `test-urls` may fetch from: names, `*.example.org` for all below, `*` for any. Empty: none. "
        "Addresses that are not public are refused in any case.",
    )
    test_url_max_bytes: int = setting(1 * _MIB, at_least=1, help="Size of one fetched input.")
    test_url_total_bytes: int = setting(16 * _MIB, at_least=1, help="Size of all fetched inputs of one request.")
    test_url_timeout_s: float = setting(10.0, at_least=0.1, help="Time for one URL, redirects included.")
    grpc_port: int = setting(
        0,
        env=("GRPC_PORT",),
        at_least=0,
        at_most=65535,
        help="Port of the gRPC service, on the host of the server; 0: none. Needs the extra `grpc`.",
    )
