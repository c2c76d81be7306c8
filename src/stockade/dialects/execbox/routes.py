"""All routes of the execbox dialect."""

from fastapi import APIRouter

from stockade.dialects.execbox.account_routes import add_accounts
from stockade.dialects.execbox.accounting import Accounting
from stockade.dialects.execbox.edge import Edge
from stockade.dialects.execbox.file_routes import add_files
from stockade.dialects.execbox.key_routes import add_keys
from stockade.dialects.execbox.service import Sessions
from stockade.dialects.execbox.session_routes import add_sessions
from stockade.dialects.execbox.stream_routes import add_streams
from stockade.dialects.execbox.unknown_routes import add_unknown

__all__ = ["make_router"]


def make_router(sessions: Sessions, accounting: Accounting, edge: Edge) -> APIRouter:
    """The routes, over *sessions* and *accounting*."""
    router = APIRouter(tags=["execbox"])
    add_streams(router, sessions, edge)
    add_sessions(router, sessions, edge)
    add_files(router, sessions, edge)
    add_accounts(router, accounting, edge)
    add_keys(router, accounting, edge)
    add_unknown(router, edge)
    return router
