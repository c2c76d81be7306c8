"""A provider of OpenID Connect on loopback: real HTTP, keys of its own, and as strict as the specification asks."""

import asyncio
import base64
import contextlib
import hashlib
import secrets
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT_ID, CLIENT_SECRET = "stockade", "a secret of ours, over there"


@dataclass(kw_only=True)
class Provider:
    """Lets everybody in as `person`."""

    issuer: str
    redirect: str
    person: dict[str, Any] = field(
        default_factory=lambda: {"sub": "ada-1", "name": "Ada", "email": "ada@example.com", "email_verified": True}
    )
    changes: dict[str, Any] = field(default_factory=dict)
    """Claims of ID tokens that are to be wrong; `None` leaves one out."""
    key: Any = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "1", "use": "sig"}))
    algorithm: str = "RS256"
    signs_with: Any = None
    """Another key than the one that is published."""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    fetched: list[str] = field(default_factory=list)

    def renew(self) -> None:
        """Have another key, of another kind."""
        self.key, self.algorithm = ECKey.generate_key("P-256", {"kid": "2", "use": "sig"}), "ES256"

    def app(self) -> Starlette:
        routes = [
            Route("/.well-known/openid-configuration", self._configuration),
            Route("/authorize", self._authorize),
            Route("/token", self._token, methods=["POST"]),
            Route("/keys", self._keys),
        ]
        return Starlette(routes=routes)

    async def _configuration(self, _request: Request) -> Response:
        self.fetched.append("configuration")
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": [self.algorithm],
                "authorization_response_iss_parameter_supported": True,
            }
        )

    async def _keys(self, _request: Request) -> Response:
        self.fetched.append("keys")
        return JSONResponse({"keys": [self.key.as_dict(private=False), {"kty": "oct", "k": "AAAA"}]})

    async def _authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT_ID
        assert query["redirect_uri"] == self.redirect
        assert "openid" in query["scope"].split()
        assert query["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        answer = {"code": code, "state": query["state"], "iss": self.issuer}
        return RedirectResponse(f"{self.redirect}?{urlencode(answer)}")

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        given = base64.b64decode(request.headers.get("authorization", "Basic ")[6:]).decode()
        asked = self.codes.pop(str(form.get("code")), None)
        proof = hashlib.sha256(str(form.get("code_verifier", "")).encode()).digest()
        challenge = base64.urlsafe_b64encode(proof).decode().rstrip("=")
        if given != f"{CLIENT_ID}:{CLIENT_SECRET.replace(' ', '%20')}" and given != f"{CLIENT_ID}:{CLIENT_SECRET}":
            return JSONResponse({"error": "invalid_client"}, 401)
        if (
            asked is None
            or form.get("grant_type") != "authorization_code"
            or form.get("redirect_uri") != self.redirect
            or challenge != asked["code_challenge"]
        ):
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        times = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        claims = {name: value for name, value in (self.person | times | self.changes).items() if value is not None}
        header = {"alg": self.algorithm, "kid": self.key.as_dict()["kid"]}
        token = jwt.encode(header, claims, self.signs_with or self.key, algorithms=[self.algorithm])
        return JSONResponse({"access_token": secrets.token_urlsafe(16), "token_type": "Bearer", "id_token": token})


@contextlib.asynccontextmanager
async def providing(public_url: str) -> AsyncIterator[Provider]:
    """A provider that sends people back to *public_url*."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        issuer = f"http://127.0.0.1:{listening.getsockname()[1]}"
        provider = Provider(issuer=issuer, redirect=f"{public_url}/api/oidc/callback")
        config = uvicorn.Config(provider.app(), log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment] (they are pytest's)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield provider
        finally:
            server.should_exit = True
            await asyncio.wait_for(serving, 30)
