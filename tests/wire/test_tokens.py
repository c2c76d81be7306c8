"""Bearer tokens: JSON Web Tokens and OAuth 2, confirmed by somebody else's server."""

import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stockade.errors import Invalid, Unavailable
from stockade.wire.auth import TokenInvalid
from stockade.wire.oauth2 import OAuth2Verifier
from stockade.wire.urls import require_https

jwt = pytest.importorskip("jwt", reason="the extra jwt is not installed")
rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa", reason="the extra jwt is not installed")

pytestmark = pytest.mark.anyio
ISSUER, AUDIENCE = "https://issuer.example", "stockade"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Issuer:
    """Signs tokens and publishes its keys."""

    upstream: Any
    keys: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)

    def add_key(self, key_id: str) -> None:
        self.keys[key_id] = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def key_set(self) -> dict[str, Any]:
        entries = []
        for key_id, key in self.keys.items():
            entry = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
            entries.append({**entry, "kid": key_id, "use": "sig"})
        return {"keys": [{"kty": "EC", "kid": "other"}, *entries]}

    def token(self, key_id: str = "one", *, kid: str | None = None, **claims: Any) -> str:
        payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + 60, **claims}
        payload = {name: value for name, value in payload.items() if value is not None}
        return str(jwt.encode(payload, self.keys[key_id], algorithm="RS256", headers={"kid": kid or key_id}))

    def verifier(self, **members: Any) -> Any:
        from stockade.wire.tokens import JwtVerifier

        url = self.upstream.says("/keys", lambda: JSONResponse(self.key_set()))
        return JwtVerifier(
            **{
                "issuer": ISSUER,
                "audience": AUDIENCE,
                "keys_url": url,
                "cache_ttl_s": 3600.0,
                "clock": self.clock,
                **members,
            }
        )


@pytest.fixture
def issuer(upstream: Any) -> Issuer:
    issuer = Issuer(upstream=upstream)
    issuer.add_key("one")
    return issuer


async def test_a_good_token_names_its_owner(issuer: Issuer) -> None:
    verifier = issuer.verifier()
    assert (await verifier.verify(issuer.token())).id == "jwt:ann"
    assert (await verifier.verify(issuer.token(aud=["other", AUDIENCE]))).id == "jwt:ann"
    assert len(issuer.upstream.requests) == 1, "the keys are kept"


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1},
        {"exp": None},
        {"iss": "https://other.example"},
        {"iss": None},
        {"aud": "other"},
        {"aud": None},
        {"sub": None},
        {"nbf": time.time() + 3600},
    ],
)
async def test_a_token_for_others_or_another_time_is_refused(issuer: Issuer, claims: dict[str, Any]) -> None:
    with pytest.raises(TokenInvalid):
        await issuer.verifier().verify(issuer.token(**claims))


async def test_a_foreign_signature_is_refused(issuer: Issuer) -> None:
    verifier = issuer.verifier()
    forger = Issuer(upstream=issuer.upstream)
    forger.add_key("one")
    with pytest.raises(TokenInvalid, match="ignature"):
        await verifier.verify(forger.token())


async def test_the_token_does_not_choose_the_algorithm(issuer: Issuer) -> None:
    """Neither none, nor HMAC with the public key as its secret."""
    verifier = issuer.verifier()
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": time.time() + 60}
    unsigned = jwt.encode(claims, "", algorithm="none", headers={"kid": "one"})
    shared = jwt.encode(claims, "s" * 64, algorithm="HS256", headers={"kid": "one"})
    for token in (unsigned, shared):
        with pytest.raises(TokenInvalid):
            await verifier.verify(token)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "e30.e30.e30"])
async def test_what_is_no_token_is_refused_without_asking(issuer: Issuer, token: str) -> None:
    with pytest.raises(TokenInvalid):
        await issuer.verifier().verify(token)
    assert issuer.upstream.requests == []


async def test_a_new_key_is_fetched_but_not_for_every_made_up_id(issuer: Issuer) -> None:
    verifier = issuer.verifier()
    await verifier.verify(issuer.token())
    issuer.add_key("two")
    for _ in range(5):
        with pytest.raises(TokenInvalid, match="none of the issuer's"):
            await verifier.verify(issuer.token("two"))
    assert len(issuer.upstream.requests) == 1
    issuer.clock.now += 11
    assert (await verifier.verify(issuer.token("two"))).id == "jwt:ann"
    assert len(issuer.upstream.requests) == 2


async def test_a_withdrawn_key_is_forgotten_after_the_cache_time(issuer: Issuer) -> None:
    verifier = issuer.verifier(cache_ttl_s=60.0)
    token = issuer.token()
    await verifier.verify(token)
    issuer.keys.clear()
    issuer.clock.now += 61
    with pytest.raises(TokenInvalid):
        await verifier.verify(token)


async def test_an_issuer_that_fails_is_not_the_callers_fault(issuer: Issuer) -> None:
    verifier = issuer.verifier()
    for broken in (Response("x", status_code=500), Response("not json"), JSONResponse([1]), JSONResponse({"keys": 5})):
        issuer.upstream.says("/keys", lambda broken=broken: broken)
        with pytest.raises(Unavailable):
            await verifier.verify(issuer.token())


def oauth2(upstream: Any, answer: Any, *, introspection: bool = False, clock: Clock | None = None) -> OAuth2Verifier:
    url = upstream.says("/ask", lambda: answer)
    which = {"introspection_url": url, "client_id": "us", "client_secret": "s3"} if introspection else {}
    return OAuth2Verifier(**{"userinfo_url": url, **which, "clock": clock or Clock()})


async def test_the_provider_is_asked_once_a_minute(upstream: Any) -> None:
    clock = Clock()
    verifier = oauth2(upstream, JSONResponse({"sub": "ann"}), clock=clock)
    for _ in range(3):
        assert (await verifier.verify("tok")).id == "oauth2:ann"
    assert len(upstream.requests) == 1
    assert upstream.requests[0].headers["authorization"] == "Bearer tok"
    clock.now += 61
    await verifier.verify("tok")
    assert len(upstream.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [
        Response(status_code=401),
        Response(status_code=403),
        JSONResponse({}),
        JSONResponse({"sub": ""}),
        JSONResponse({"sub": 5}),
        JSONResponse({"sub": "ann", "exp": 999}),
    ],
)
async def test_what_the_provider_does_not_confirm_is_refused(upstream: Any, answer: Response) -> None:
    with pytest.raises(TokenInvalid):
        await oauth2(upstream, answer).verify("tok")


@pytest.mark.parametrize(
    "answer", [Response(status_code=500), Response("hello"), JSONResponse([]), Response(status_code=302)]
)
async def test_a_provider_that_fails_confirms_nothing(upstream: Any, answer: Response) -> None:
    with pytest.raises(Unavailable):
        await oauth2(upstream, answer).verify("tok")


async def test_an_unreachable_provider_confirms_nothing() -> None:
    with pytest.raises(Unavailable):
        await OAuth2Verifier(userinfo_url="http://127.0.0.1:1/").verify("tok")


async def test_introspection_says_whether_a_token_is_active(upstream: Any) -> None:
    seen: list[bytes] = []

    async def answer(request: Request) -> Response:
        seen.append(await request.body())
        return JSONResponse({"active": b"token=good" in seen[-1], "sub": "ann"})

    verifier = oauth2(upstream, Response(), introspection=True)
    upstream.on("/ask", answer)
    assert (await verifier.verify("good")).id == "oauth2:ann"
    with pytest.raises(TokenInvalid, match="not active"):
        await verifier.verify("bad")
    assert upstream.requests[0].headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize("active", ["true", 1, None])
async def test_active_must_be_true_itself(upstream: Any, active: Any) -> None:
    with pytest.raises(TokenInvalid):
        await oauth2(upstream, JSONResponse({"active": active, "sub": "ann"}), introspection=True).verify("tok")


async def test_introspection_that_refuses_us_confirms_nothing(upstream: Any) -> None:
    with pytest.raises(Unavailable):
        await oauth2(upstream, Response(status_code=401), introspection=True).verify("tok")


@pytest.mark.parametrize("url", ["https://issuer.example/keys", "http://127.0.0.1:5/keys", "http://localhost/", ""])
async def test_safe_urls_pass(url: str) -> None:
    assert require_https("setting", url) == url


@pytest.mark.parametrize("url", ["http://issuer.example/keys", "ftp://127.0.0.1/", "issuer.example"])
async def test_urls_that_others_can_answer_are_refused(url: str) -> None:
    with pytest.raises(Invalid, match="setting: must begin with https"):
        require_https("setting", url)
