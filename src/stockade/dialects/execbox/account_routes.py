"""Routes of the account, its usage and limits, and the two that need no key."""

from fastapi import APIRouter, Request, Response

from stockade.dialects.execbox.accounting import Accounting
from stockade.dialects.execbox.documented import BEARER, failing, query
from stockade.dialects.execbox.edge import Edge
from stockade.dialects.execbox.session_routes import query_of
from stockade.dialects.execbox.wire import (
    AccountAnswer,
    EnhancedUsageAnswer,
    HistoryAnswer,
    LimitsAnswer,
    LimitsBody,
    QuotaRequestAnswer,
    QuotaRequestBody,
    UsageAnswer,
    WaitlistAnswer,
    WaitlistBody,
)
from stockade.wire.openapi import request_body

__all__ = ["add_accounts"]

_NUMBER = {"type": "integer", "minimum": 1}


def add_accounts(router: APIRouter, accounting: Accounting, edge: Edge) -> None:
    """Account, usage, limits; waitlist and quota requests."""
    _add_usage(router, accounting, edge)
    _add_limits(router, accounting, edge)
    _add_public(router, accounting, edge)


def _add_usage(router: APIRouter, accounting: Accounting, edge: Edge) -> None:
    @router.get(
        "/v1/account",
        operation_id="getAccount",
        summary="The account",
        response_class=Response,
        responses={200: {"model": AccountAnswer}, **failing()},
        dependencies=BEARER,
    )
    async def account(request: Request) -> Response:
        """Whose key this is."""
        return await edge.call(request, accounting.account)

    @router.get(
        "/v1/account/usage",
        operation_id="getUsage",
        summary="Today's usage",
        response_class=Response,
        responses={200: {"model": UsageAnswer}, **failing()},
        dependencies=BEARER,
    )
    async def usage(request: Request) -> Response:
        """What this key has used of its quota; -1: there is no limit."""
        return await edge.call(request, accounting.usage)

    @router.get(
        "/v1/account/usage/enhanced",
        operation_id="getEnhancedUsage",
        summary="Usage of the last days",
        response_class=Response,
        responses={200: {"model": EnhancedUsageAnswer}, **failing(400)},
        openapi_extra=query(("days", "1 to 90; 7 if not set.", _NUMBER)),
        dependencies=BEARER,
    )
    async def enhanced(request: Request) -> Response:
        """By hour and by day, of all keys of the account, with an estimate of the cost."""
        return await edge.call(request, lambda actor: accounting.enhanced(actor, query_of(request)))

    @router.get(
        "/v1/account/usage/export",
        operation_id="exportUsage",
        summary="Usage by day, as JSON or CSV",
        response_class=Response,
        responses={
            200: {"model": list[HistoryAnswer], "content": {"text/csv": {"schema": {"type": "string"}}}},
            **failing(400),
        },
        openapi_extra=query(
            ("days", "1 to 365; 30 if not set.", _NUMBER),
            ("format", "`json` or `csv`.", {"type": "string", "enum": ["json", "csv"]}),
        ),
        dependencies=BEARER,
    )
    async def export(request: Request) -> Response:
        """Newest first."""
        return await edge.call(request, lambda actor: accounting.export(actor, query_of(request)))


def _add_limits(router: APIRouter, accounting: Accounting, edge: Edge) -> None:
    @router.get(
        "/v1/account/limits",
        operation_id="getAccountLimits",
        summary="Limits of the account",
        response_class=Response,
        responses={200: {"model": LimitsAnswer}, **failing()},
        dependencies=BEARER,
    )
    async def limits(request: Request) -> Response:
        """-1: there is no limit."""
        return await edge.call(request, accounting.limits)

    @router.put(
        "/v1/account/limits",
        operation_id="updateAccountLimits",
        summary="Change limits of the account",
        response_class=Response,
        responses={200: {"model": LimitsAnswer}, **failing(400, 408, 413)},
        openapi_extra=request_body(LimitsBody, {"daily_requests_limit": 5}),
        dependencies=BEARER,
    )
    async def change_limits(request: Request) -> Response:
        """Any subset; never above what the tier gives."""
        return await edge.call_with(request, LimitsBody, accounting.change_limits)


def _add_public(router: APIRouter, accounting: Accounting, edge: Edge) -> None:
    @router.post(
        "/v1/waitlist",
        operation_id="joinWaitlist",
        summary="Sign up",
        status_code=201,
        response_class=Response,
        responses={201: {"model": WaitlistAnswer}, **failing(400, 404, 408, 413)},
        openapi_extra=request_body(WaitlistBody, {"email": "dev@example.org", "name": "Dev"}),
    )
    async def join(request: Request) -> Response:
        """An account of the tier `free`, and its key, at once; where the operator allows it."""
        return await edge.public(request, WaitlistBody, accounting.join, status=201)

    @router.post(
        "/v1/quota-requests",
        operation_id="createQuotaRequest",
        summary="Ask for more than the tier gives",
        status_code=201,
        response_class=Response,
        responses={201: {"model": QuotaRequestAnswer}, **failing(400, 408, 413)},
        openapi_extra=request_body(QuotaRequestBody, {"email": "dev@example.org", "use_case": "courses"}),
    )
    async def request_quota(request: Request) -> Response:
        """It is recorded; the operator reads it."""
        return await edge.public(request, QuotaRequestBody, accounting.request_quota, status=201)
