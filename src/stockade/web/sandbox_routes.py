"""Routes of sandboxes that live: list, create, read, stop, kill, extend, logs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stockade.config_ports import PortsConfig
from stockade.errors import InvalidLimit
from stockade.model import Actor, Sandbox
from stockade.web import translate
from stockade.web.edge import Caller, Edge
from stockade.web.failures import FieldInvalid
from stockade.web.job_routes import to_number
from stockade.web.logs import kept_output
from stockade.web.sandboxes import AccountSandboxes, urls_of
from stockade.web.wire import ExtendBody, SandboxBody
from stockade.wire.clients import while_connected

__all__ = ["add_sandboxes"]

MOST_LISTED = 200
_AS_SENT = {"wall_s": "timeout_s"}


@dataclass(frozen=True, kw_only=True)
class _SandboxRoutes:
    sandboxes: AccountSandboxes
    ports: PortsConfig
    edge: Edge

    def told(self, request: Request, sandbox: Sandbox) -> dict[str, Any]:
        scheme = "https" if self.edge.cookies.is_secure else request.url.scheme
        host = request.headers.get("host", "")
        return translate.sandbox(sandbox, urls_of(sandbox, self.ports, host=host, scheme=scheme))

    async def changed(self, request: Request, change: Callable[[Actor, str], Awaitable[Sandbox]]) -> Response:
        """Do something to the sandbox of the path, and tell what it is then."""

        async def work(caller: Caller) -> object:
            sandbox_id: str = request.path_params["sandbox_id"]
            bearer = await self.sandboxes.bearer(caller.actor, sandbox_id)
            return self.told(request, await change(bearer, sandbox_id))

        return await self.edge.call(request, work)


def add_sandboxes(router: APIRouter, sandboxes: AccountSandboxes, ports: PortsConfig, edge: Edge) -> None:
    """All routes of sandboxes but those of files and of the terminal."""
    routes = _SandboxRoutes(sandboxes=sandboxes, ports=ports, edge=edge)
    engine = sandboxes.engine

    async def list_some(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            query = request.query_params
            limit = to_number(query, "limit", least=1, most=MOST_LISTED, default=50)
            page = await sandboxes.list(
                caller.actor, query.get("state") or "all", limit=limit, cursor=query.get("cursor") or None
            )
            return {"sandboxes": [routes.told(request, one) for one in page.items], "cursor": page.cursor}

        return await edge.call(request, work)

    async def create(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            wanted = sandboxes.request(caller.actor, await edge.read(request, SandboxBody))
            try:
                made = await while_connected(request, engine.create(caller.actor, wanted))
            except InvalidLimit as error:
                raise FieldInvalid(_AS_SENT.get(error.name, error.name), str(error)) from None
            return routes.told(request, made)

        return await edge.call(request, work, status=201)

    async def read(request: Request) -> Response:
        return await routes.changed(request, engine.get)

    async def stop(request: Request) -> Response:
        return await routes.changed(request, engine.stop)

    async def kill(request: Request) -> Response:
        return await routes.changed(request, engine.kill)

    async def extend(request: Request) -> Response:
        async def change(bearer: Actor, sandbox_id: str) -> Sandbox:
            body = await edge.read(request, ExtendBody)
            return await engine.extend(bearer, sandbox_id, body.seconds)

        return await routes.changed(request, change)

    async def logs(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            stream = request.query_params.get("stream") or "stdout"
            if stream not in ("stdout", "stderr"):
                raise FieldInvalid("stream", "stream: must be stdout or stderr")
            sandbox_id: str = request.path_params["sandbox_id"]
            bearer = await sandboxes.bearer(caller.actor, sandbox_id)
            source = await engine.attach(bearer, sandbox_id)
            try:
                content = await kept_output(source, is_stderr=stream == "stderr")
            finally:
                source.close()
            return Response(content, media_type="text/plain; charset=utf-8")

        return await edge.call(request, work)

    router.add_route("/api/sandboxes", list_some, methods=["GET"])
    router.add_route("/api/sandboxes", create, methods=["POST"])
    router.add_route("/api/sandboxes/{sandbox_id}", read, methods=["GET"])
    router.add_route("/api/sandboxes/{sandbox_id}/stop", stop, methods=["POST"])
    router.add_route("/api/sandboxes/{sandbox_id}/kill", kill, methods=["POST"])
    router.add_route("/api/sandboxes/{sandbox_id}/extend", extend, methods=["POST"])
    router.add_route("/api/sandboxes/{sandbox_id}/logs", logs, methods=["GET"])
