"""Answers for what this server has not."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stockade.errors import Unsupported
from stockade.web.edge import Caller, Edge

__all__ = ["add_missing"]


def add_missing(router: APIRouter, path: str, message: str, edge: Edge) -> None:
    """Answer everything at and below *path* with 501 and *message*, once somebody is logged in."""

    async def missing(request: Request) -> Response:
        async def work(_caller: Caller) -> object:
            raise Unsupported(message)

        return await edge.call(request, work)

    for one in (path, path + "/{rest:path}"):
        router.add_route(one, missing, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
