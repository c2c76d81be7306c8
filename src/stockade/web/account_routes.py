"""Routes of what somebody has: profile, log-ins, keys."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stockade.accounts import NewKey
from stockade.web import translate
from stockade.web.edge import Caller, Edge, json_response
from stockade.web.session_routes import LogIns
from stockade.web.wire import AccountBody, ChangeKeyBody, DeleteAccountBody, KeyBody
from stockade.wire.clients import address

__all__ = ["add_account", "add_keys"]

_INSIDE = {"daily_limit": "custom_daily_limit", "concurrent_limit": "custom_concurrent_limit"}


def add_account(router: APIRouter, log_ins: LogIns, forget: Callable[[str], Awaitable[None]]) -> None:
    """Profile, export, deletion; log-ins.

    Args:
        forget: removes what an account has outside the database of accounts.
    """
    edge, users = log_ins.edge, log_ins.accounts.users

    async def change(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            body = await edge.read(request, AccountBody)
            user = await users.change(caller.user, name=body.name, organization=body.organization)
            return await log_ins.answer(user, caller.secret)

        return await edge.call(request, work)

    async def delete(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            body = await edge.read(request, DeleteAccountBody)
            await users.delete(
                caller.user, password=body.password, email=body.email, address=address(request), forget=forget
            )
            response = Response(status_code=204)
            edge.cookies.clear(response, edge.cookies.session)
            return response

        return await edge.call(request, work)

    async def export(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            headers = {"Content-Disposition": 'attachment; filename="stockade-account.json"'}
            return json_response(await users.export(caller.user), headers=headers)

        return await edge.call(request, work)

    router.add_route("/api/account", change, methods=["PATCH"])
    router.add_route("/api/account", delete, methods=["DELETE"])
    router.add_route("/api/account/export", export, methods=["GET"])
    _add_log_ins(router, log_ins)


def _add_log_ins(router: APIRouter, log_ins: LogIns) -> None:
    edge, sessions = log_ins.edge, log_ins.accounts.sessions

    async def list_all(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            found = await sessions.list(caller.user)
            return {"sessions": [translate.session(one, current=caller.session) for one in found]}

        return await edge.call(request, work)

    async def end(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            await sessions.end(caller.user, request.path_params["session_id"])
            return None

        return await edge.call(request, work)

    async def end_others(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            await sessions.end_all(caller.user, but=caller.session.id)
            return None

        return await edge.call(request, work)

    router.add_route("/api/sessions", list_all, methods=["GET"])
    router.add_route("/api/sessions", end_others, methods=["DELETE"])
    router.add_route("/api/sessions/{session_id}", end, methods=["DELETE"])


def add_keys(router: APIRouter, edge: Edge) -> None:
    """API keys of the account."""
    keys = edge.accounts.keys

    async def list_all(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            return {"keys": [translate.key(one) for one in await keys.list(caller.actor)]}

        return await edge.call(request, work)

    async def create(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            body = await edge.read(request, KeyBody)
            return _with_secret(await keys.create(caller.actor, **_inside(body.model_dump())))

        return await edge.call(request, work, status=201)

    async def change(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            body = await edge.read(request, ChangeKeyBody)
            sent = body.model_dump(include=set(body.model_fields_set))
            # These two cannot be taken away.
            changes = {name: value for name, value in sent.items() if value is not None or name not in _TEXTS}
            return translate.key(await keys.update(caller.actor, request.path_params["key_id"], _inside(changes)))

        return await edge.call(request, work)

    async def rotate(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            return _with_secret(await keys.rotate(caller.actor, request.path_params["key_id"]))

        return await edge.call(request, work)

    async def revoke(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            await keys.deactivate(caller.actor, request.path_params["key_id"])
            return None

        return await edge.call(request, work)

    router.add_route("/api/keys", list_all, methods=["GET"])
    router.add_route("/api/keys", create, methods=["POST"])
    router.add_route("/api/keys/{key_id}", change, methods=["PATCH"])
    router.add_route("/api/keys/{key_id}", revoke, methods=["DELETE"])
    router.add_route("/api/keys/{key_id}/rotate", rotate, methods=["POST"])


_TEXTS = frozenset({"name", "description"})


def _inside(members: Mapping[str, Any]) -> dict[str, Any]:
    return {_INSIDE.get(name, name): value for name, value in members.items()}


def _with_secret(made: NewKey) -> dict[str, Any]:
    return {"key": translate.key(made.key), "secret": made.secret}
