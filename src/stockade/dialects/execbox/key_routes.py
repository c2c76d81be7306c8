"""Routes of an account's API keys."""

from fastapi import APIRouter, Request, Response

from stockade.dialects.execbox.accounting import Accounting
from stockade.dialects.execbox.documented import BEARER, failing
from stockade.dialects.execbox.edge import Edge
from stockade.dialects.execbox.wire import CreateKeyBody, KeyAnswer, KeysAnswer, NewKeyAnswer, UpdateKeyBody
from stockade.model import Actor
from stockade.wire.openapi import request_body

__all__ = ["add_keys"]


def add_keys(router: APIRouter, accounting: Accounting, edge: Edge) -> None:
    """List, create, read, change, delete, rotate."""
    _add_collection(router, accounting, edge)
    _add_single(router, accounting, edge)


def _add_collection(router: APIRouter, accounting: Accounting, edge: Edge) -> None:
    @router.get(
        "/v1/account/keys",
        operation_id="listAPIKeys",
        summary="List API keys",
        response_class=Response,
        responses={200: {"model": KeysAnswer}, **failing()},
        dependencies=BEARER,
    )
    async def keys(request: Request) -> Response:
        """All keys of the account, oldest first, those that were deleted too."""
        return await edge.call(request, accounting.keys)

    @router.post(
        "/v1/account/keys",
        operation_id="createAPIKey",
        summary="Create an API key",
        status_code=201,
        response_class=Response,
        responses={201: {"model": NewKeyAnswer}, **failing(400, 408, 413)},
        openapi_extra=request_body(CreateKeyBody, {"name": "ci"}),
        dependencies=BEARER,
    )
    async def create(request: Request) -> Response:
        """The key itself is shown only here."""
        return await edge.call_with(request, CreateKeyBody, accounting.create_key, status=201)


def _add_single(router: APIRouter, accounting: Accounting, edge: Edge) -> None:
    @router.get(
        "/v1/account/keys/{key_id}",
        operation_id="getAPIKey",
        summary="Read an API key",
        response_class=Response,
        responses={200: {"model": KeyAnswer}, **failing(400, 404)},
        dependencies=BEARER,
    )
    async def read(request: Request, key_id: str) -> Response:
        """All that is known of it but the key itself."""
        return await edge.call(request, lambda actor: accounting.key(actor, key_id))

    @router.put(
        "/v1/account/keys/{key_id}",
        operation_id="updateAPIKey",
        summary="Change an API key",
        response_class=Response,
        responses={200: {"model": KeyAnswer}, **failing(400, 404, 408, 413)},
        openapi_extra=request_body(UpdateKeyBody, {"name": "ci-2"}),
        dependencies=BEARER,
    )
    async def change(request: Request, key_id: str) -> Response:
        """Any subset; an empty `name` clears it."""

        async def work(actor: Actor, body: UpdateKeyBody) -> object:
            return await accounting.change_key(actor, key_id, body)

        return await edge.call_with(request, UpdateKeyBody, work)

    @router.delete(
        "/v1/account/keys/{key_id}",
        operation_id="deleteAPIKey",
        summary="Deactivate an API key",
        status_code=204,
        response_class=Response,
        responses={204: {"description": "It is good no more."}, **failing(400, 404)},
        dependencies=BEARER,
    )
    async def delete(request: Request, key_id: str) -> Response:
        """Its record stays. The account's primary key cannot be deleted."""
        return await edge.call(request, lambda actor: accounting.delete_key(actor, key_id))

    @router.post(
        "/v1/account/keys/{key_id}/rotate",
        operation_id="rotateAPIKey",
        summary="Give an API key a new secret",
        response_class=Response,
        responses={200: {"model": NewKeyAnswer}, **failing(400, 404)},
        dependencies=BEARER,
    )
    async def rotate(request: Request, key_id: str) -> Response:
        """The old one is good no more when this answers."""
        return await edge.call(request, lambda actor: accounting.rotate_key(actor, key_id))
