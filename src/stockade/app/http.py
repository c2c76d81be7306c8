"""The ASGI application: dialects, health, metrics and documentation on one address."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from stockade import __version__, errors, registry, web
from stockade.accounts import Accounts
from stockade.app.connections import Bounded
from stockade.app.guard import Guard
from stockade.app.metrics import BoxMetrics, CompilationMetrics
from stockade.app.tracing import Traced
from stockade.config import Config, ServerConfig, is_loopback
from stockade.engine import Engine
from stockade.store import Database
from stockade.wire.auth import KeyVerifier
from stockade.wire.dialect import Dialect, Services, SoleSandbox
from stockade.wire.routes import DirectRoute

__all__ = ["Parts", "create_app", "dialect_settings", "new_registry", "translated"]

SPARE_REQUESTS = 256
"""Requests beyond those that run or wait for a place: those that still send their body, health checks, metrics."""

STATUS: Mapping[type[errors.StockadeError], int] = {
    errors.Invalid: 400,
    errors.Denied: 401,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.LimitExceeded: 429,
    errors.Unsupported: 501,
    errors.Unavailable: 503,
}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What applications are made of; all of a server's share one."""

    config: Config
    engine: Engine
    keys: KeyVerifier
    accounts: Accounts | None = None
    database: Database | None = None
    registry: CollectorRegistry
    sole: SoleSandbox | None = None
    """Where the server is there for one sandbox alone: which."""
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, kw_only=True)
class Direct:
    """Calls the handlers of direct routes itself; all else is the framework's."""

    app: ASGIApp
    routes: Mapping[tuple[str, str], DirectRoute]
    """By method and path."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self.routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = route  # where the framework notes it, too
        response = await route.endpoint(Request(scope, receive))
        await response(scope, receive, send)


def dialect_settings(names: Sequence[str] = ()) -> dict[str, type | None]:
    """The settings class of each dialect, for `config.load`; all installed ones when *names* is empty."""
    return {name: registry.find("dialects", name).settings for name in names or registry.names("dialects")}


def translated(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """*environ* with the variables that users of other systems have set, as ours; and what to tell the operator.

    Raises:
        ConfigError: one of them is so wrong that the original would not start either.
    """
    found, notices = dict(environ), list[str]()
    for name in registry.names("dialects"):
        dialect: Dialect = registry.find("dialects", name)
        if dialect.variables is not None:
            ours, told = dialect.variables(environ)
            found |= ours
            notices += told
    return found, notices


def new_registry(engine: Engine) -> CollectorRegistry:
    """A metrics registry with the process's own figures and the queue's."""
    metrics = CollectorRegistry()
    ProcessCollector(namespace="stockade", registry=metrics)
    Gauge("stockade_running", "Programs that run now.", registry=metrics).set_function(lambda: engine.queue.running)
    Gauge("stockade_queued", "Requests that wait for a place.", registry=metrics).set_function(
        lambda: engine.queue.waiting
    )
    Gauge("stockade_places", "Programs that may run at once.", registry=metrics).set(engine.queue.places)
    CompilationMetrics(metrics, engine.compilations)
    if engine.boxes is not None:
        BoxMetrics(metrics, engine.boxes)
    return metrics


def create_app(parts: Parts, *, host: str, only: str = "") -> ASGIApp:
    """The application for a listener on *host*.

    Args:
        only: this dialect alone, as its protocol says; else all configured ones together.

    Raises:
        Invalid: there is no such dialect.
    """
    config = parts.config
    names = (only,) if only else config.server.dialects or registry.names("dialects")
    dialects: list[Dialect] = [registry.find("dialects", name) for name in names]
    open_access = is_loopback(host) or config.server.insecure
    app = FastAPIOffline(
        title=only or "Stockade",
        version=__version__,
        summary="Runs code that nobody vouches for, in a fresh Linux sandbox for every run.",
        description="\n".join(f"- **{dialect.name}**: {dialect.summary}" for dialect in dialects),
        redoc_url=None,
        redirect_slashes=False,  # to another path leads another request; a client that posts does not follow
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )

    def services(dialect: str = "") -> Services:
        return Services(
            engine=parts.engine,
            keys=parts.keys,
            accounts=parts.accounts,
            settings=config.dialects.get(dialect),
            server=config.server,
            registry=parts.registry,
            open_access=open_access,
            is_alone=bool(only),
            sole=parts.sole,
        )

    mounted = {dialect.name: services(dialect.name) for dialect in dialects}
    direct: dict[tuple[str, str], DirectRoute] = {}
    for dialect in dialects:
        router = dialect.router(mounted[dialect.name])
        app.include_router(router)
        for route in router.routes:
            if isinstance(route, DirectRoute):
                direct |= {(method, route.path): route for method in route.methods or ()}
    has_portal = not only and parts.accounts is not None and parts.sole is None and config.portal.enabled
    if has_portal:
        app.include_router(web.portal(services(), config))
    _add_health(app, parts, dialects, mounted, merged=not only)
    _add_metrics(app, parts, open_access=open_access)
    _add_errors(app, dialects[0].refusal if only else None)

    def largest_body(path: str) -> int | None:
        if has_portal and web.is_upload(path):
            return web.UNBOUNDED
        for dialect in dialects:
            if dialect.largest_body is not None:
                found = dialect.largest_body(mounted[dialect.name], path)
                if found is not None:
                    return found
        return None

    def bounds_itself(path: str) -> bool:
        if has_portal and web.bounds_itself(path):
            return True
        return any(one.bounds_itself is not None and one.bounds_itself(mounted[one.name], path) for one in dialects)

    whole = Direct(app=app, routes=direct)
    guarded = _guarded(whole, config.server, host=host, open_access=open_access, largest_body=largest_body)
    most = config.queue.places + config.queue.length + SPARE_REQUESTS
    traced = Traced(guarded, has_spans=bool(config.tracing.endpoint))
    return Bounded(traced, most=most, excepted=bounds_itself)


def _add_health(
    app: FastAPI, parts: Parts, dialects: Sequence[Dialect], mounted: Mapping[str, Services], *, merged: bool
) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["server"], summary="Whether the server works", operation_id="health")
    async def health() -> dict[str, object]:
        if parts.database is not None:
            await parts.database.ping()  # Unavailable is answered with 503
        members: dict[str, object] = {}
        if merged:
            queue = parts.engine.queue
            members = {
                "status": "healthy",
                "server": "stockade",
                "version": __version__,
                "dialects": [dialect.name for dialect in dialects],
                "uptime_s": round(time.monotonic() - parts.started, 3),
                "running": queue.running,
                "queued": queue.waiting,
            }
        for dialect in dialects:
            if dialect.health is not None:
                members |= dialect.health(mounted[dialect.name])
        return members


def _add_metrics(app: FastAPI, parts: Parts, *, open_access: bool) -> None:
    public = open_access or parts.config.server.metrics_public

    @app.get(
        "/metrics",
        tags=["server"],
        summary="Prometheus metrics",
        operation_id="metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics(request: Request) -> Response:
        if not public:
            await _demand_operator(request, parts.keys)
        return Response(generate_latest(parts.registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


async def _demand_operator(request: Request, keys: KeyVerifier) -> None:
    """Refuse who has none of the operator's keys: what is counted is of all accounts together."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    presented = request.headers.get("x-api-key", "") or (token.strip() if scheme.lower() == "bearer" else "")
    actor = await keys.verify(presented)
    if actor is None:
        raise errors.Denied("metrics need an API key of the operator's here: X-API-Key, or Authorization: Bearer")
    if not actor.is_admin:
        raise HTTPException(403, "metrics are of all accounts together: they need an API key of the operator's")


def _add_errors(app: FastAPI, refusal: Callable[[int], Response | None] | None) -> None:
    """Every error of the server itself is JSON: `error` says what, `message` says more.

    Args:
        refusal: other words, of a dialect that has the address for itself.
    """

    async def http_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if refusal is not None and (worded := refusal(error.status_code)) is not None:
            return worded
        phrase = "Request body too large" if error.status_code == 413 else HTTPStatus(error.status_code).phrase
        headers = {**(error.headers or {}), **({"connection": "close"} if error.status_code == 413 else {})}
        body = {"error": phrase, "message": error.detail}
        if error.status_code == 404:
            body["code"] = "NOT_FOUND"  # execbox's clients go by it, whatever the path
        return JSONResponse(body, status_code=error.status_code, headers=headers)

    async def own_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.StockadeError)
        status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
        headers = {}
        if isinstance(error, errors.Unavailable | errors.LimitExceeded):
            headers["retry-after"] = str(max(1, round(error.retry_after_s)))
        body = {"error": error.code, "message": str(error)}
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            body["code"] = "UNAVAILABLE"  # of /health, too, execbox's clients expect theirs
        return JSONResponse(body, status_code=status, headers=headers)

    async def crash(_request: Request, _error: Exception) -> Response:
        return JSONResponse({"error": "Internal error", "message": "the server's log has details"}, status_code=500)

    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(errors.StockadeError, own_error)
    app.add_exception_handler(Exception, crash)


def _guarded(
    app: ASGIApp,
    server: ServerConfig,
    *,
    host: str,
    open_access: bool,
    largest_body: Callable[[str], int | None],
) -> ASGIApp:
    inner = app
    origins: frozenset[str] = frozenset()
    if server.cors_enabled:
        origins = frozenset(origin.lower().rstrip("/") for origin in server.cors_allowed_origins)
        inner = CORSMiddleware(
            app,
            allow_origins=server.cors_allowed_origins,
            allow_methods=server.cors_allowed_methods,
            allow_headers=server.cors_allowed_headers,
            allow_credentials=server.cors_allow_credentials,
            max_age=int(server.cors_max_age_s),
        )
    return Guard(
        app=inner,
        max_body_bytes=server.max_body_bytes,
        largest_body=largest_body,
        open_access=open_access,
        hosts=Guard.names(host, server.trusted_hosts, open_access=open_access),
        origins=origins,
    )
