"""Images from registries, by the OCI distribution protocol.

Own code, not a library: those for Python (oras, python-dxf) resolve names and follow redirects by themselves, so that
nobody could check where a tenant's reference leads, and block; `skopeo` does the same in a process of its own, and
writes the whole image to a disk before anything is unpacked.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

import httpx

from stockade.config_boxes import RegistriesConfig
from stockade.engine.image_references import Reference
from stockade.errors import Invalid, Unavailable
from stockade.model.registries import Login
from stockade.settings import ConfigError
from stockade.wire.fetch import Resolve, resolve, within
from stockade.wire.registries.failures import ImageMissing, ImageRejected, RegistryNotAllowed
from stockade.wire.registries.hops import Hops, new_client
from stockade.wire.registries.session import Deadline, Session, registry_url
from stockade.wire.registries.source import RegistrySource

__all__ = ["ImageMissing", "ImageRejected", "Registries", "RegistryNotAllowed", "RegistrySource"]


class Logins(Protocol):
    """Who knows what accounts log in with; see `engine.registry_credentials.RegistryCredentials`."""

    async def find(self, account_id: str, reference: Reference, /) -> Login | None: ...


class Registries:
    """All registries that may be asked. An asynchronous context manager, of one event loop."""

    def __init__(
        self,
        config: RegistriesConfig,
        credentials: Logins | None = None,
        *,
        resolve: Resolve = resolve,
        client: Callable[[], httpx.AsyncClient] = new_client,
    ) -> None:
        """Nothing is asked yet.

        Args:
            credentials: of accounts; `None` where there are none.
            resolve: finds the addresses of names.
            client: makes the one that all requests go through.

        Raises:
            ConfigError: `permit_private` names what is no network, or `allowed` what is no registry.
        """
        self._config = config
        self._credentials = credentials
        self._resolve = resolve
        self._new_client = client
        self._permitted = within(config.permit_private, setting="registries.permit_private")
        self._insecure = frozenset(one.lower() for one in config.insecure)
        self._allowed = frozenset(_registry_of(one) for one in config.allowed)
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._client = self._new_client()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def source(self, reference: str, *, account_id: str = "") -> RegistrySource:
        """The image of *reference*, with what the account logs in to its registry with, if anything.

        What is done with the source must be done within `pull_time_s` from now on.

        Raises:
            Invalid: it is no reference.
            RegistryNotAllowed: requests may not name this registry.
            Unavailable: the server is ending, or the database is away.
        """
        found = Reference.parse(reference, default_registry=self._config.default)
        if self._allowed and found.registry not in self._allowed:
            raise RegistryNotAllowed(
                f"{found}: images are not brought from {found.registry} here; from: {', '.join(sorted(self._allowed))}"
            )
        login = await self._credentials.find(account_id, found) if self._credentials is not None else None
        if self._client is None:
            raise Unavailable("the server is ending; ask again in a moment")
        hops = Hops(
            client=self._client,
            home=registry_url(found.registry, insecure=self._insecure),
            permitted=self._permitted,
            insecure=self._insecure,
            resolve=self._resolve,
        )
        session = Session(hops=hops, reference=found, login=login, deadline=Deadline(self._config.pull_time_s))
        return RegistrySource(session=session, most_bytes=self._config.most_image_bytes)


def _registry_of(name: str) -> str:
    """A registry of the setting `allowed`, as references in full have it.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = Reference.parse(f"{name}/x/x")
        if found.repository == "x/x":  # else the name is taken for a part of the path at Docker Hub
            return found.registry
    except Invalid:
        pass
    raise ConfigError(f"registries.allowed: {name!r} is no registry's host; one looks like ghcr.io or localhost:5000")
