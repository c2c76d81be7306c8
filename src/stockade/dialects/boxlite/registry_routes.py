"""Routes of what an account logs in to registries with."""

from fastapi import APIRouter, Request, Response

from stockade.dialects.boxlite.documented import operation
from stockade.dialects.boxlite.engine_needs import Registries
from stockade.dialects.boxlite.image_objects import registry_object
from stockade.dialects.boxlite.service import Context
from stockade.dialects.boxlite.slots import ScopedRouter
from stockade.dialects.boxlite.wire import RegistriesAnswer, RegistryAnswer, RegistryBody
from stockade.model import Actor

__all__ = ["registry_routes"]

_EXAMPLE = {
    "registry_host": "registry.example.com",
    "username": "ci",
    "password": "secret",
    "repository_prefix": "team",
}


def registry_routes(context: Context, registries: Registries) -> APIRouter:
    """The routes, over *registries*."""
    router = ScopedRouter()
    edge = context.edge

    @router.get(
        "/v1/images/registries",
        **operation("list_registries", "List credentials of registries", answer=RegistriesAnswer),
    )
    async def list_all(request: Request) -> Response:
        """The account's; never with a password."""

        async def work(actor: Actor) -> object:
            return {"registries": [registry_object(one) for one in await registries.list(actor)]}

        return await edge.call(request, work)

    @router.post(
        "/v1/images/registries",
        **operation(
            "create_registry",
            "Keep a credential of a registry",
            status=201,
            answer=RegistryAnswer,
            errors=(403, 409),
            body=(RegistryBody, _EXAMPLE),
        ),
    )
    async def create(request: Request) -> Response:
        """For the account's own pulls, from repositories that begin with the prefix. It is kept encrypted."""

        async def work(actor: Actor, body: RegistryBody) -> object:
            made = await registries.create(
                actor,
                host=body.registry_host,
                username=body.username,
                password=body.password,
                prefix=body.repository_prefix or "",
            )
            return registry_object(made)

        return await edge.call_with(request, RegistryBody, work, status=201)

    @router.delete(
        "/v1/images/registries/{registry}",
        **operation("remove_registry", "Remove a credential", status=204, text="It is gone.", errors=(404,)),
    )
    async def remove(request: Request, registry: str) -> Response:
        """By its id."""

        async def work(actor: Actor) -> None:
            await registries.remove(actor, registry)

        return await edge.call(request, work, status=204)

    return router
