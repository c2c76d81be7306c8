"""The portal: the web application of the merged server, its pages, and the API below `/api` that only it uses.

The pages are built from `portal/` (`make setup`). Who uses them is known by a cookie, which no other API takes; and no
API key or token is taken here. docs/portal.md has the whole.

| module | holds |
|---|---|
| `pages` | the built files, and the page that all paths of the portal answer with |
| `security` | cookies, tokens against forged requests, whose page asks, headers |
| `edge`, `failures`, `wire` | who asks, how often; how errors are told; what bodies hold |
| `*_routes`, `terminal` | HTTP and WebSocket |
| `sandboxes`, `translate`, `sending`, `logs`, `examples` | what routes need |
"""

from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter

from stockade.accounts import Accounts
from stockade.config import Config
from stockade.store import UsageTable
from stockade.web.account_routes import add_account, add_keys
from stockade.web.admin_routes import Health, add_admin
from stockade.web.edge import Edge
from stockade.web.file_routes import add_files, is_upload
from stockade.web.job_routes import add_jobs, add_languages
from stockade.web.leaving import Leaving
from stockade.web.pages import DIRECTORY, Bundle, add_pages
from stockade.web.sandbox_routes import add_sandboxes
from stockade.web.sandboxes import AccountSandboxes
from stockade.web.security import Cookies
from stockade.web.session_routes import LogIns, add_sessions
from stockade.web.terminal import add_terminal
from stockade.web.unavailable import add_missing
from stockade.web.usage_routes import Usage, add_usage
from stockade.wire.dialect import Services
from stockade.wire.rates import Concurrency, RateLimiter

__all__ = ["UNBOUNDED", "bounds_itself", "is_upload", "portal"]

UNBOUNDED = 1 << 62
"""What `Guard.largest_body` is to say of uploads (`is_upload`), which bound themselves."""
_BURST = 4


def portal(services: Services, config: Config, *, assets: Path = DIRECTORY) -> APIRouter:
    """The routes of the merged server.

    Raises:
        ValueError: the server has no accounts.
    """
    if services.accounts is None:
        raise ValueError("the portal needs accounts")
    parts = _Parts(services=services, config=config, accounts=services.accounts)
    edge, engine = parts.edge(), services.engine
    router = APIRouter(include_in_schema=False)
    log_ins = LogIns(accounts=services.accounts, edge=edge, limits=engine.limits)
    add_sessions(router, log_ins)
    database = services.accounts.operation.database
    leaving = Leaving(engine=engine)
    add_account(router, log_ins, leaving.forget)
    add_keys(router, edge)
    add_languages(router, engine.languages, edge)
    add_usage(router, Usage(table=UsageTable(database), edge=edge))
    add_admin(router, Health(engine=engine, database=database, jobs_store=parts.jobs_store()), edge, leaving)
    if engine.jobs is not None:
        add_jobs(router, engine.jobs, engine.languages, edge)
    else:
        add_missing(router, "/api/jobs", "this server has no queue of jobs", edge)
    if engine.sandboxes is not None:
        sandboxes = AccountSandboxes(engine=engine.sandboxes)
        add_sandboxes(router, sandboxes, config.ports, edge)
        add_files(router, sandboxes, edge)
        add_terminal(router, sandboxes, edge)
    else:
        add_missing(router, "/api/sandboxes", "this server has no sandboxes that live", edge)
    add_pages(router, Bundle(directory=assets))
    return router


def bounds_itself(path: str) -> bool:
    """Whether requests to *path* are streams, whose number is bounded here and not by the server's places."""
    return path.startswith("/api/jobs/") and path.endswith("/events")


@dataclass(frozen=True, kw_only=True)
class _Parts:
    services: Services
    config: Config
    accounts: Accounts

    def edge(self) -> Edge:
        settings, users = self.config.portal, self.config.users
        public_url = users.public_url.rstrip("/")

        def limiter() -> RateLimiter:
            return RateLimiter(per_minute=60 * settings.requests_per_s, burst=_BURST * settings.requests_per_s)

        return Edge(
            accounts=self.accounts,
            cookies=Cookies(is_secure=public_url.lower().startswith("https:"), session_s=users.session_s),
            config=settings,
            public_url=public_url,
            rates=limiter(),
            public_rates=limiter(),
            streams=Concurrency(per_actor=settings.streams_per_user),
            body_timeout_s=self.services.server.body_timeout_s,
        )

    def jobs_store(self) -> str:
        if self.config.jobs.redis_url:
            return "redis"
        return "sqlite" if self.accounts.operation.database.is_sqlite else "postgresql"
