"""Routes of who is nobody yet, and of becoming somebody: log-in, registration, passwords, addresses, providers."""

import contextlib
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from stockade import __version__
from stockade.accounts import Accounts
from stockade.accounts.sessions import csrf_token
from stockade.engine import LimitPolicy
from stockade.errors import Denied, NotFound, StockadeError
from stockade.model.users import User
from stockade.web import translate
from stockade.web.edge import Caller, Edge, json_response
from stockade.web.failures import LogInRefused
from stockade.web.security import new_secret, path_of_ours, pre_session_token
from stockade.web.wire import EmailBody, LogInBody, PasswordBody, RegisterBody, ResetBody, TokenBody
from stockade.wire.clients import address

__all__ = ["LogIns", "add_sessions"]

_OIDC_S = 600.0
"""Time that a log-in by a provider may take."""


@dataclass(frozen=True, kw_only=True)
class LogIns:
    """Who may come in, and how."""

    accounts: Accounts
    edge: Edge
    limits: LimitPolicy

    async def meta(self, request: Request) -> Response:
        """What the pages need to know before anybody has logged in."""
        cookies = self.edge.cookies
        secret = cookies.read(request, cookies.csrf) or new_secret()
        response = json_response(
            {
                "version": __version__,
                "sign_up": self.accounts.users.is_open,
                "oidc": None if self.accounts.oidc is None else {"name": self.accounts.oidc.name},
                "mail": self.accounts.users.sends_mail,
                "csrf": pre_session_token(secret),
                "max_limits": translate.limits(self.limits.maximum),
                "default_limits": translate.limits(self.limits.defaults),
            }
        )
        cookies.write(response, cookies.csrf, secret)
        return response

    async def begin(self, request: Request, user: User, *, status: int = 200) -> Response:
        """Log *user* in: a new secret each time, so that none that somebody else has planted comes to be a log-in."""
        await self._end_former(request)
        secret, _ = await self.accounts.sessions.begin(user, address=address(request), agent=_agent(request))
        response = json_response(await self.answer(user, secret), status)
        self._write(response, secret)
        return response

    async def answer(self, user: User, secret: str) -> dict[str, Any]:
        """Who is logged in."""
        actor = await self.accounts.users.actor(user)
        return {
            "user": translate.user(user),
            "account": {"id": user.account_id, "tier": actor.tier},
            "csrf": csrf_token(secret),
        }

    async def log_in(self, request: Request) -> Response:
        body = await self.edge.read(request, LogInBody)
        try:
            user = await self.accounts.users.log_in(body.email, body.password, address=address(request))
        except Denied as error:
            raise LogInRefused(error) from None
        return await self.begin(request, user)

    async def register(self, request: Request) -> Response:
        body = await self.edge.read(request, RegisterBody)
        user = await self.accounts.users.register(
            name=body.name,
            email=body.email,
            organization=body.organization,
            password=body.password,
            address=address(request),
        )
        return await self.begin(request, user, status=201)

    async def log_out(self, caller: Caller) -> Response:
        with contextlib.suppress(NotFound):  # it ends just now
            await self.accounts.sessions.end(caller.user, caller.session.id)
        response = Response(status_code=204)
        self.edge.cookies.clear(response, self.edge.cookies.session)
        return response

    async def start_oidc(self, request: Request) -> Response:
        """To the provider."""
        oidc = self.accounts.oidc
        if oidc is None:
            raise NotFound("this server knows no provider to log in by")
        url, state = await oidc.start(path_of_ours(request.query_params.get("next", "")))
        response = RedirectResponse(url, status_code=302)
        self.edge.cookies.write(response, self.edge.cookies.oidc, state, life_s=_OIDC_S)
        return response

    async def finish_oidc(self, request: Request) -> Response:
        """Back from the provider, with what it vouches for."""
        oidc = self.accounts.oidc
        if oidc is None:
            raise NotFound("this server knows no provider to log in by")
        cookies = self.edge.cookies
        state = cookies.read(request, cookies.oidc)
        try:
            found = await oidc.finish(dict(request.query_params), state)
        except StockadeError as error:
            # Somebody looks at this answer, not a script: the page of the log-in tells them.
            response = RedirectResponse(f"/login?failed={error.code}", status_code=303)
            cookies.clear(response, cookies.oidc)
            return response
        await self._end_former(request)
        secret, _ = await self.accounts.sessions.begin(found.user, address=address(request), agent=_agent(request))
        response = RedirectResponse(path_of_ours(found.next), status_code=303)
        cookies.clear(response, cookies.oidc)
        self._write(response, secret)
        return response

    def _write(self, response: Response, secret: str) -> None:
        cookies = self.edge.cookies
        cookies.write(response, cookies.session, secret)
        cookies.clear(response, cookies.csrf)

    async def _end_former(self, request: Request) -> None:
        """End the log-in that the browser had: nobody could end it later."""
        secret = self.edge.cookies.read(request, self.edge.cookies.session)
        found = await self.accounts.sessions.find(secret) if secret else None
        if found is not None:
            user, session = found
            with contextlib.suppress(NotFound):  # it ends just now
                await self.accounts.sessions.end(user, session.id)


def add_sessions(router: APIRouter, log_ins: LogIns) -> None:
    """Who is logged in; log-in and log-out."""
    edge = log_ins.edge

    async def meta(request: Request) -> Response:
        return await edge.public(request, lambda: log_ins.meta(request))

    async def read(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            return await log_ins.answer(caller.user, caller.secret)

        return await edge.call(request, work)

    async def log_in(request: Request) -> Response:
        return await edge.public(request, lambda: log_ins.log_in(request))

    async def log_out(request: Request) -> Response:
        return await edge.call(request, log_ins.log_out)

    async def register(request: Request) -> Response:
        return await edge.public(request, lambda: log_ins.register(request))

    async def start_oidc(request: Request) -> Response:
        return await edge.public(request, lambda: log_ins.start_oidc(request))

    async def finish_oidc(request: Request) -> Response:
        return await edge.public(request, lambda: log_ins.finish_oidc(request), from_elsewhere=True)

    router.add_route("/api/meta", meta, methods=["GET"])
    router.add_route("/api/session", read, methods=["GET"])
    router.add_route("/api/session", log_in, methods=["POST"])
    router.add_route("/api/session", log_out, methods=["DELETE"])
    router.add_route("/api/register", register, methods=["POST"])
    router.add_route("/api/oidc/start", start_oidc, methods=["GET"])
    router.add_route("/api/oidc/callback", finish_oidc, methods=["GET"])
    _add_passwords(router, log_ins)
    _add_addresses(router, log_ins)


def _add_passwords(router: APIRouter, log_ins: LogIns) -> None:
    edge, users = log_ins.edge, log_ins.accounts.users

    async def change(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            body = await edge.read(request, PasswordBody)
            await users.change_password(
                caller.user, body.old, body.new, address=address(request), but=caller.session.id
            )
            return None

        return await edge.call(request, work)

    async def forgot(request: Request) -> Response:
        async def work() -> object:
            body = await edge.read(request, EmailBody)
            # The same answer whoever has the address, or nobody.
            await users.begin_reset(body.email, address=address(request))
            return {}

        return await edge.public(request, work, status=202)

    async def reset(request: Request) -> Response:
        async def work() -> object:
            body = await edge.read(request, ResetBody)
            await users.finish_reset(body.token, body.password)
            return None

        return await edge.public(request, work)

    router.add_route("/api/password", change, methods=["POST"])
    router.add_route("/api/password/forgot", forgot, methods=["POST"])
    router.add_route("/api/password/reset", reset, methods=["POST"])


def _add_addresses(router: APIRouter, log_ins: LogIns) -> None:
    edge, users = log_ins.edge, log_ins.accounts.users

    async def send(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            await users.begin_verification(caller.user)
            return {}

        return await edge.call(request, work, status=202)

    async def verify(request: Request) -> Response:
        async def work() -> object:
            body = await edge.read(request, TokenBody)
            await users.verify_email(body.token)
            return None

        return await edge.public(request, work)

    router.add_route("/api/email/verification", send, methods=["POST"])
    router.add_route("/api/email/verify", verify, methods=["POST"])


def _agent(request: Request) -> str:
    return request.headers.get("user-agent", "")
