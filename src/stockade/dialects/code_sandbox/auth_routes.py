"""The contract's account service: register, log in, and ask whose a token is."""

from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stockade.accounts import Accounts, TokenExpired, TokenInvalid, UserLocked, WrongCredentials
from stockade.dialects.code_sandbox.access import MISSING, bearer
from stockade.dialects.code_sandbox.auth_wire import LoginBody, RegisterBody, SignedIn, Validated, from_user
from stockade.dialects.code_sandbox.documented import STRING, Described, answer, body
from stockade.dialects.code_sandbox.edge import Edge, Operation
from stockade.dialects.code_sandbox.failures import Unauthorized, plain
from stockade.dialects.code_sandbox.gojson import parse_strings
from stockade.dialects.code_sandbox.replies import Failure, json_reply
from stockade.errors import StockadeError
from stockade.wire.clients import address

__all__ = ["add_auth"]

_REGISTER = frozenset(("name", "email", "organization", "password"))
_LOGIN = frozenset(("email", "password"))
_BEARER = {
    "name": "Authorization",
    "in": "header",
    "required": True,
    "schema": STRING,
    "description": "`Bearer <token>`.",
}


def add_auth(router: APIRouter, accounts: Accounts, edge: Edge) -> None:
    """Add the routes to *router*."""
    handlers = _Handlers(accounts=accounts, edge=edge)
    register = Operation(
        method="POST",
        work=handlers.register,
        words=authenticating,
        about=Described(
            name="register",
            summary="Create an account",
            description="Where the operator lets strangers register (`users.sign_up`); else 403.",
            responses=answer(201, SignedIn, "The account, and a token."),
            extra=body(RegisterBody, {"name": "Ada", "email": "ada@example.com", "password": "correct horse battery"}),
        ),
    )
    log_in = Operation(
        method="POST",
        work=handlers.log_in,
        words=authenticating,
        about=Described(
            name="login",
            summary="Obtain a token",
            description="After several wrong passwords an address has to wait: 429 with `Retry-After`.",
            responses=answer(200, SignedIn, "The account, and a token."),
            extra=body(LoginBody, {"email": "ada@example.com", "password": "correct horse battery"}),
        ),
    )
    validate = Operation(
        method="GET",
        work=handlers.validate,
        words=authenticating,
        about=Described(
            name="validate",
            summary="Check a token",
            responses=answer(200, Validated, "It is good, and theirs."),
            extra={"parameters": [_BEARER]},
        ),
    )
    edge.add(router, "/v1/auth/register", [register])
    edge.add(router, "/v1/auth/login", [log_in])
    edge.add(router, "/v1/auth/validate", [validate])


@dataclass(frozen=True, kw_only=True)
class _Handlers:
    accounts: Accounts
    edge: Edge

    async def register(self, request: Request) -> Response:
        fields = parse_strings(await self.edge.read(request), _REGISTER)
        user = await self.accounts.users.register(
            name=fields.get("name", ""),
            email=fields.get("email", ""),
            organization=fields.get("organization", ""),
            password=fields.get("password", ""),
            address=address(request),
        )
        return json_reply({"user": from_user(user), "token": self.accounts.tokens.issue(user)}, 201)

    async def log_in(self, request: Request) -> Response:
        fields = parse_strings(await self.edge.read(request), _LOGIN)
        user = await self.accounts.users.log_in(
            fields.get("email", ""), fields.get("password", ""), address=address(request)
        )
        return json_reply({"user": from_user(user), "token": self.accounts.tokens.issue(user)})

    async def validate(self, request: Request) -> Response:
        token = bearer(request)
        if not token:
            raise Unauthorized(MISSING)
        return json_reply({"valid": True, "user": from_user(await self.accounts.tokens.verify(token))})


def authenticating(error: StockadeError) -> Failure:
    """The answer of the contract's account routes."""
    match error:
        case WrongCredentials() | UserLocked():
            # The contract knows one refusal; that somebody is locked, the portal says.
            return Failure(status=401, error="invalid credentials")
        case TokenInvalid() | TokenExpired():
            return Failure(status=401, error=str(error))
    return plain(error)
