"""Routes of admins: users, health, workers, the queue."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stockade import __version__
from stockade.accounts import Accounts
from stockade.engine import Engine
from stockade.errors import NotFound, StockadeError
from stockade.model.users import Role, UserRecord
from stockade.store import Database
from stockade.web import translate
from stockade.web.edge import Caller, Edge
from stockade.web.failures import FieldInvalid
from stockade.web.job_routes import to_number
from stockade.web.leaving import Leaving
from stockade.web.wire import UserBody

__all__ = ["Health", "add_admin"]

ANSWER_S = 5.0
MOST_LISTED = 200


@dataclass(frozen=True, kw_only=True)
class Health:
    """How the parts of this server are."""

    engine: Engine
    database: Database
    jobs_store: str
    """Where jobs are kept: `sqlite`, `postgresql` or `redis`."""
    started: float = field(default_factory=time.monotonic)

    async def read(self) -> dict[str, Any]:
        report = await self.engine.backend.report()
        return {
            "server": {"version": __version__, "uptimeS": round(time.monotonic() - self.started, 3)},
            "database": {
                "kind": "sqlite" if self.database.is_sqlite else "postgresql",
                "ok": await _answers(self.database),
            },
            "jobs": {
                "store": self.jobs_store,
                "ok": self.engine.jobs is not None and await _answers(self.engine.jobs.store),
            },
            "features": [
                {
                    "name": one.name,
                    "enforced": one.enforced,
                    "mechanism": one.mechanism,
                    "remedy": one.remedy,
                    "required": one.required,
                }
                for one in report.features
            ],
            "details": dict(report.details),
        }

    async def nodes(self) -> dict[str, Any]:
        queue, jobs = self.engine.queue, self.engine.jobs
        workers = [] if jobs is None else [translate.worker(one) for one in await jobs.workers()]
        places = {"all": queue.places, "running": queue.running, "waiting": queue.waiting}
        return {"workers": workers, "places": places}

    async def queue(self) -> dict[str, Any]:
        if self.engine.jobs is None:
            return {"queued": {}, "delayed": 0, "running": 0, "dead": 0}
        return translate.queue_depth(await self.engine.jobs.depth())


async def _answers(store: Any) -> bool:
    try:
        async with asyncio.timeout(ANSWER_S):
            await store.ping()
    except (StockadeError, TimeoutError):
        return False
    return True


def add_admin(router: APIRouter, health: Health, edge: Edge, leaving: Leaving) -> None:
    """All routes of admins but usage."""
    users = edge.accounts.users

    async def list_users(request: Request) -> Response:
        async def work(_caller: Caller) -> object:
            query = request.query_params
            limit = to_number(query, "limit", least=1, most=MOST_LISTED, default=50)
            page = await users.list(query=query.get("q") or "", limit=limit, cursor=query.get("cursor") or None)
            return {"users": [_told(one) for one in page.users], "cursor": page.cursor}

        return await edge.admin(request, work)

    async def change_user(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            user_id: str = request.path_params["user_id"]
            body = await edge.read(request, UserBody)
            if body.role is None and body.tier is None and body.is_locked is None:
                raise FieldInvalid("", "nothing is to be changed")
            by = f"user {caller.user.id}"
            if body.role is not None:
                await users.set_role(user_id, Role(body.role), by=by)
            if body.tier is not None:
                await users.set_tier(user_id, body.tier, by=by)
            if body.is_locked is not None:
                user = await users.lock(user_id, body.is_locked, by=by)
                if user.is_locked:
                    await leaving.stop(user.account_id)
            return await _as_admins_see(edge.accounts, user_id)

        return await edge.admin(request, work)

    async def delete_user(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            await users.remove(request.path_params["user_id"], by=f"user {caller.user.id}", forget=leaving.forget)
            return None

        return await edge.admin(request, work)

    async def read_health(request: Request) -> Response:
        return await edge.admin(request, lambda _: health.read())

    async def read_nodes(request: Request) -> Response:
        return await edge.admin(request, lambda _: health.nodes())

    async def read_queue(request: Request) -> Response:
        return await edge.admin(request, lambda _: health.queue())

    router.add_route("/api/admin/users", list_users, methods=["GET"])
    router.add_route("/api/admin/users/{user_id}", change_user, methods=["PATCH"])
    router.add_route("/api/admin/users/{user_id}", delete_user, methods=["DELETE"])
    router.add_route("/api/admin/health", read_health, methods=["GET"])
    router.add_route("/api/admin/nodes", read_nodes, methods=["GET"])
    router.add_route("/api/admin/queue", read_queue, methods=["GET"])


async def _as_admins_see(accounts: Accounts, user_id: str) -> Mapping[str, Any]:
    """A user that was changed just now."""
    page = await accounts.users.list(query=user_id, limit=1)
    if not page.users:
        raise NotFound("there is no such user")
    return _told(page.users[0])


def _told(found: UserRecord) -> Mapping[str, Any]:
    user = found.user
    return translate.user(user) | translate.without_none(
        {
            "tier": found.account.tier,
            "accountId": user.account_id,
            "lastLoginAt": user.last_login_at and translate.timestamp(user.last_login_at),
            "isLocked": user.is_locked,
        }
    )
