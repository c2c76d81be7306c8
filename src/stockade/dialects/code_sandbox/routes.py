"""All routes together, and those that only a dialect alone on its address has."""

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from stockade.accounts import Accounts
from stockade.dialects.code_sandbox.auth_routes import add_auth
from stockade.dialects.code_sandbox.edge import METHODS, Edge
from stockade.dialects.code_sandbox.execute_routes import add_execution
from stockade.dialects.code_sandbox.job_routes import add_jobs
from stockade.dialects.code_sandbox.replies import JSON, empty_reply
from stockade.dialects.code_sandbox.service import CodeSandbox

__all__ = ["HEALTH", "make_router"]

HEALTH = {"status": "ok"}


def make_router(sandbox: CodeSandbox, edge: Edge, accounts: Accounts | None, *, is_alone: bool) -> APIRouter:
    """The routes.

    Args:
        is_alone: nothing but this dialect answers here.
    """
    router = APIRouter(tags=["code-sandbox"])
    add_execution(router, sandbox, edge)
    add_jobs(router, sandbox, edge)
    if accounts is not None:
        add_auth(router, accounts, edge)
    if is_alone:
        _add_alone(router, edge)
    return router


def _add_alone(router: APIRouter, edge: Edge) -> None:
    async def health(_request: Request) -> Response:
        return edge.finished(Response(b'{"status":"ok"}', headers={"content-type": JSON}))

    async def preflight(_request: Request) -> Response:
        return edge.finished(empty_reply(200))

    router.add_api_route("/health", health, methods=sorted(METHODS - {"OPTIONS"}), include_in_schema=False)
    router.add_api_route(
        "/{path:path}", preflight, methods=["OPTIONS"], include_in_schema=False, route_class_override=_AnyPath
    )


class _AnyPath(APIRoute):
    """A route that is none for other methods: a path that nobody has stays a 404, not a 405."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return (match, child) if match is Match.FULL else (Match.NONE, {})
