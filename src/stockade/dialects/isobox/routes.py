"""The routes of the isobox dialect. Each handler names a body and what is done with it; `edge` does the rest."""

from typing import Any

from fastapi import APIRouter, Request, Response

from stockade.dialects.isobox.edge import Edge
from stockade.dialects.isobox.service import Isobox
from stockade.dialects.isobox.wire import (
    AuthStatus,
    CasesBody,
    DedupStats,
    Error,
    ExecuteAnswer,
    ExecuteBody,
    FilesBody,
    LanguageEntry,
    UrlsBody,
)
from stockade.wire.openapi import request_body
from stockade.wire.routes import DirectRoute

__all__ = ["make_router"]

VERSIONS_TIMEOUT_S = 20.0
"""Runtimes are asked for their versions in sandboxes, once in a while; the list does not wait longer than this."""

_PROGRAM = {"language": "python", "code": "print(6 * 7)"}
_CASES = {
    "language": "python",
    "code": "print(int(input()) ** 2)",
    "test_cases": [{"name": "three", "input": "3", "expected_output": "9"}],
}
_FILES = {
    "language": "python",
    "code": "print(input()[::-1])",
    "test_files": [{"name": "n", "content": "Hello"}],
}
_URLS = {
    "language": "python",
    "code": "print(input())",
    "test_urls": [{"name": "n", "url": "https://example.org/input.txt"}],
}

Responses = dict[int | str, dict[str, Any]]

_ERRORS: Responses = {
    400: {
        "model": Error,
        "description": "The request is wrong, or its language or limits are not to be had here.",
    },
    401: {
        "model": Error,
        "description": "Credentials are demanded, and none or wrong ones were sent.",
    },
    408: {"model": Error, "description": "The body did not arrive in time."},
    413: {"model": Error, "description": "The body is too large."},
    429: {
        "model": Error,
        "description": "Too many requests; `Retry-After` says when to try again.",
    },
    500: {
        "model": Error,
        "description": "The program could not be run; nothing is wrong with the request.",
    },
    503: {
        "model": Error,
        "description": "No place is free and the queue is full; see `Retry-After`.",
    },
}
_RUN: Responses = {
    200: {"model": ExecuteAnswer, "description": "What came of the program."},
    **_ERRORS,
}


def make_router(isobox: Isobox, edge: Edge) -> APIRouter:
    """The routes, over *isobox*."""
    router = APIRouter(tags=["isobox"], route_class=DirectRoute)
    _add_execution(router, isobox, edge)
    _add_information(router, isobox, edge)
    return router


def _add_execution(router: APIRouter, isobox: Isobox, edge: Edge) -> None:
    async def execute(request: Request) -> Response:
        """Run a program in a fresh sandbox: no network, its own files, limits on everything. A program that fails is
        a 200 too; `exit_code` and `outcome` say how it ended."""
        return await edge.program(request, ExecuteBody, isobox.execute)

    for path, name, summary in (
        ("/execute", "execute", "Run a program"),
        (
            "/api/v1/execute",
            "execute_v1",
            "Run a program (path of isobox's later versions)",
        ),
    ):
        router.post(
            path,
            operation_id=f"isobox_{name}",
            summary=summary,
            response_class=Response,
            responses=_RUN,
            openapi_extra=request_body(ExecuteBody, _PROGRAM),
        )(execute)

    @router.post(
        "/api/v1/execute/test-cases",
        operation_id="isobox_execute_test_cases",
        summary="Run a program once for each test case",
        response_class=Response,
        responses=_RUN,
        openapi_extra=request_body(CasesBody, _CASES),
    )
    async def execute_test_cases(request: Request) -> Response:
        """Compile once, then run each case in a sandbox of its own. `exit_code` is 0 when all passed."""
        return await edge.program(request, CasesBody, isobox.execute_cases)

    @router.post(
        "/api/v1/execute/test-files",
        operation_id="isobox_execute_test_files",
        summary="Run a program once for each named input",
        response_class=Response,
        responses=_RUN,
        openapi_extra=request_body(FilesBody, _FILES),
    )
    async def execute_test_files(request: Request) -> Response:
        """As with test cases; nothing is expected of the output."""
        return await edge.program(request, FilesBody, isobox.execute_files)

    @router.post(
        "/api/v1/execute/test-urls",
        operation_id="isobox_execute_test_urls",
        summary="Run a program once for each input that a URL names",
        response_class=Response,
        responses=_RUN,
        openapi_extra=request_body(UrlsBody, _URLS),
    )
    async def execute_test_urls(request: Request) -> Response:
        """The server fetches the inputs, only from hosts that its operator has listed (`test_url_hosts`)."""
        return await edge.program(request, UrlsBody, isobox.execute_urls)


def _add_information(router: APIRouter, isobox: Isobox, edge: Edge) -> None:
    @router.get(
        "/languages",
        operation_id="isobox_languages",
        summary="Which languages there are",
        response_class=Response,
        responses={200: {"model": list[LanguageEntry]}},
    )
    async def languages(request: Request) -> Response:
        """Every language that the server knows, installed or not."""
        return await edge.plain(request, lambda: _languages(isobox))

    @router.get(
        "/auth/status",
        operation_id="isobox_auth_status",
        summary="Whether credentials are demanded",
        response_class=Response,
        responses={200: {"model": AuthStatus}, 503: _ERRORS[503]},
    )
    async def auth_status(request: Request) -> Response:
        """Says also whether the credentials that were sent with this request are good."""
        return await edge.plain(request, lambda: _auth_status(edge, request))

    @router.get(
        "/admin/dedup/stats",
        operation_id="isobox_dedup_stats",
        summary="State of deduplication",
        response_class=Response,
        responses={200: {"model": DedupStats}, 401: _ERRORS[401], 503: _ERRORS[503]},
    )
    async def dedup_stats(request: Request) -> Response:
        """How many answers are kept, and how often they served."""
        return await edge.plain(request, lambda: _dedup_stats(isobox), guarded=True)


async def _languages(isobox: Isobox) -> list[dict[str, Any]]:
    known = isobox.engine.languages
    versions = await isobox.versions(VERSIONS_TIMEOUT_S)
    return [
        LanguageEntry(
            name=language.name,
            display_name=language.display_name,
            requires_compilation=language.compile is not None,
            file_extensions=list(language.extensions),
            version=versions.get(language.name) or None,
            available=known.is_available(language.name),
            packages=list(language.packages),
        ).model_dump()
        for language in known.all()
    ]


async def _auth_status(edge: Edge, request: Request) -> dict[str, Any]:
    status = AuthStatus(
        authenticated=await edge.access.presents_good_credentials(edge.credentials(request)),
        auth_enabled=edge.access.enabled,
        auth_type=edge.access.kind,
        message="Authentication status endpoint",
        token_url=edge.settings.oauth2_token_url if edge.access.kind == "oauth2" else None,
    )
    return status.model_dump(exclude_none=True)


async def _dedup_stats(isobox: Isobox) -> dict[str, Any]:
    if isobox.cache is None:
        stats = DedupStats(
            dedup_enabled=False,
            message="Deduplication is off; DEDUP_ENABLED=true turns it on",
        )
    else:
        stats = DedupStats(
            dedup_enabled=True,
            message="Deduplication is on",
            cache_type=isobox.cache.kind,
            ttl_seconds=isobox.cache.ttl_s,
            entries=await isobox.cache.entries(),
            hits=isobox.dedup.hits,
            misses=isobox.dedup.misses,
        )
    return stats.model_dump(exclude_none=True)
