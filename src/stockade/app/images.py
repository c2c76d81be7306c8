"""The images of a data directory that no server uses at the moment, for the command line."""

import contextlib
from collections.abc import AsyncIterator

from stockade.app import lock
from stockade.app.boxes import running_ground
from stockade.app.engine import load_languages, make_backend, prepare_data_dir
from stockade.app.records import STATE, database_place
from stockade.app.warden import keep_warden
from stockade.backends.base import Backend
from stockade.config import Config
from stockade.engine import LimitPolicy
from stockade.engine.image_store import ImageStore
from stockade.engine.images import Images
from stockade.errors import Unsupported
from stockade.model import Actor
from stockade.store import Database, server_id
from stockade.store.accounts import find_admin

__all__ = ["image_store"]

_OPERATOR = "operator"


@contextlib.asynccontextmanager
async def image_store(config: Config) -> AsyncIterator[tuple[ImageStore, Actor]]:
    """The images of the data directory during the block, and the operator as who asks for them.

    A warden that a server has left, because sandboxes live in it, is used as it is.

    Raises:
        Conflict: a server uses the data directory.
        Unsupported: this host has no disks, and so no images but its own.
        Unavailable, CannotEnforce, Invalid, Fault: see the parts.
    """
    prepare_data_dir(config.data_dir)
    with lock.exclusive(config.data_dir):
        state = config.data_dir / STATE
        identity = server_id(state)
        async with (
            keep_warden(config) as warden_socket,
            _started(
                make_backend(config, load_languages(config), warden_socket=warden_socket, instance=identity)
            ) as backend,
            await Database.open(
                database_place(config),
                timeout_s=config.database.timeout_s,
                connections=config.database.connections,
            ) as database,
            running_ground(
                config,
                backend,
                database=database,
                server_id=identity,
                state=state,
                limits=LimitPolicy(defaults=config.sandbox.defaults, maximum=config.sandbox.maximum),
                is_own=Images(aliases=config.images.aliases).is_own,
            ) as ground,
        ):
            if ground is None:
                raise Unsupported(f"the backend {config.sandbox.backend!r} has no disks, and so no images but its own")
            admin = await database.read(find_admin)
            yield ground.images, Actor(id=_OPERATOR, account_id=admin.id if admin else "", is_admin=True)


@contextlib.asynccontextmanager
async def _started(backend: Backend) -> AsyncIterator[Backend]:
    try:
        await backend.start()
        yield backend
    finally:
        await backend.close()
