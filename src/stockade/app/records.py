"""The database of a server, and what stands on it: accounts, and sandboxes that live."""

import contextlib
import os
import pwd
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from stockade.accounts import Accounts, Barred, Departed, read_key_file, set_aside
from stockade.app.boxes import running_ground, stands_on, with_boxes
from stockade.app.departed import clearing_up
from stockade.app.sandboxes import running_sandboxes
from stockade.backends.sandboxing import Sandboxing
from stockade.config import Config, is_loopback, parse_address
from stockade.engine import Bindings, Engine, Ports, Processes, Sandboxes, Secrets
from stockade.engine.images import Images, host_digest
from stockade.errors import Fault, Unavailable
from stockade.store import Database
from stockade.store.builds import BuildTable
from stockade.store.identity import server_id
from stockade.store.sandboxes import SandboxTable
from stockade.store.secret_file import kept_secret

__all__ = ["IMAGES", "STATE", "Records", "database_place", "open_records", "prepare_records", "with_sandboxes"]

STATE = "state"
"""Directory of what the server itself writes, below the data directory."""
IMAGES = "images"
_DATABASE_FILE = "stockade.db"
_TOKEN_SECRET = "token-secret"
_WAIT_S = 20.0
"""Time that a start waits for a database that cannot be reached."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """An open database."""

    database: Database
    accounts: Accounts
    server_id: str


def database_place(config: Config) -> str | Path:
    """URL or path of the database."""
    return config.database.url or config.data_dir / STATE / _DATABASE_FILE


async def prepare_records(
    config: Config, *, owner: pwd.struct_passwd | None = None, with_key: bool = True
) -> str | None:
    """Make the database, or bring it up to date, and see that there is a key; hand over to *owner* what it is to write.

    Args:
        with_key: not where nobody would see a new one: the first start of a server shows it.

    Returns:
        A new key, which nothing can show again; `None` where there is one already.

    Raises:
        Unavailable: the database, or the data directory, cannot be reached or written to.
        Fault: there is something in the directory of its state that does not belong there.
        Invalid, Unsupported, Fault: as `Database.open`.
    """
    state = config.data_dir / STATE
    identity = server_id(state)
    imported = read_key_file(config.data_dir)
    if os.geteuid() == 0:
        _take_back(state)
    async with await Database.open(
        database_place(config),
        timeout_s=config.database.timeout_s,
        connections=config.database.connections,
        wait_s=_WAIT_S,
    ) as database:
        secret = None
        if with_key:
            accounts = _accounts(config, database)
            try:
                secret = await accounts.operation.ensure_admin(
                    preset=config.server.api_key, imported=imported, server_id=identity
                )
            finally:
                await accounts.close()
    if imported and with_key:
        set_aside(config.data_dir)
    images = config.data_dir / IMAGES
    try:
        images.mkdir(mode=0o700, exist_ok=True)
        if owner is not None and os.geteuid() == 0:
            for directory in (state, images):
                _hand_over(directory, owner)
    except OSError as error:
        raise Unavailable(f"{images}: {error.strerror}") from error
    return secret


def _accounts(config: Config, database: Database) -> Accounts:
    """Accounts on *database*. Raises Unavailable or Fault when the secret that signs tokens cannot be had."""
    hosts = [config.server.host, *(parse_address(one)[0] for one in config.server.listen.values())]
    return Accounts.on(
        database,
        config.accounts,
        preset=config.server.api_key,
        users=config.users,
        secret=config.users.jwt_secret or kept_secret(config.data_dir / STATE, _TOKEN_SECRET),
        open_access=config.server.insecure or all(is_loopback(host) for host in hosts),
    )


def _take_back(directory: Path) -> None:
    """Make a directory root's again and see that there are plain files in it: what root opens there, by name, a server
    without privileges may have put there, one that was taken over.

    Raises:
        Fault: there is something else.
    """
    os.chown(directory, 0, 0, follow_symlinks=False)  # first: it is 0700, and so nobody else changes it now
    for path in directory.iterdir():
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise Fault(
                f"{path}: is no plain file of its own, which is all that belongs there: look at it, and remove it"
            )


def _hand_over(directory: Path, owner: pwd.struct_passwd) -> None:
    """Give a directory of ours, with the files in it, to *owner*, who may have had it before and is not trusted.

    A link in it may be one to a file of somebody else's: those stay as they are.
    """
    for path in directory.iterdir():
        file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                os.chown(f"/proc/self/fd/{file}", owner.pw_uid, owner.pw_gid)
        finally:
            os.close(file)
    os.chown(directory, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


@contextlib.asynccontextmanager
async def open_records(config: Config) -> AsyncIterator[Records]:
    """The database that `prepare_records` has made, and accounts on it, during the block.

    Raises:
        Invalid, Unsupported: as `Database.at`.
    """
    async with Database.at(
        database_place(config), timeout_s=config.database.timeout_s, connections=config.database.connections
    ) as database:
        accounts = _accounts(config, database)
        try:
            yield Records(database=database, accounts=accounts, server_id=server_id(config.data_dir / STATE))
        finally:
            await accounts.close()


@contextlib.asynccontextmanager
async def with_sandboxes(config: Config, engine: Engine, records: Records) -> AsyncIterator[Engine]:
    """*engine* with sandboxes that live, and boxes, those of the server before included; as it is where its backend has
    none.

    Raises:
        Unavailable: the database or the backend does not answer, or a directory cannot be written to.
        Invalid: the configuration of images is wrong.
    """
    sandboxing: Sandboxing | None = getattr(engine.backend, "sandboxing", None)
    if sandboxing is None:
        yield engine
        return
    state, directory = config.data_dir / STATE, config.data_dir / IMAGES
    ports = Ports(
        sandboxing,
        host=config.ports.host,
        first=config.ports.first,
        last=config.ports.last,
        idle_s=config.ports.idle_s,
        connections=config.ports.connections,
        connections_of_all=config.ports.connections_of_all,
    )
    content = partial(host_digest, config.sandbox.host_paths)
    own = Images(aliases=config.images.aliases, host_content=content)
    living: list[Sandboxes] = []
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(ports.running())
        ground = await stack.enter_async_context(
            running_ground(
                config,
                engine.backend,
                database=records.database,
                server_id=records.server_id,
                state=state,
                limits=engine.limits,
                is_own=own.is_own,
                stands_on=lambda digest: any(stands_on(one, digest) for one in living),
            )
        )
        images = own
        if ground is not None:
            enforced = {one.name for one in (await engine.backend.report()).features if one.enforced}
            images = Images(
                aliases=config.images.aliases,
                host_content=content,
                stored=ground.images,
                has_users="own_ids" in enforced,
            )
        sandboxes = await stack.enter_async_context(
            running_sandboxes(
                backend=sandboxing,
                table=SandboxTable(database=records.database, server_id=records.server_id),
                build_table=BuildTable(database=records.database, server_id=records.server_id),
                ports=ports,
                on_ended=records.accounts.usage.record_end,
                barred=Barred(database=records.database).among,
                backends=engine.runs.backends,
                limits=engine.limits,
                live=config.live,
                images=images,
                builds=config.builds,
                directory=directory,
                is_ours=lambda name: ground is not None and name in ground.workshops,
            )
        )
        living.append(sandboxes)
        engine = replace(
            engine,
            sandboxes=sandboxes,
            ports=ports,
            processes=Processes(sandboxes),
            secrets=Secrets(sandboxes),
            bindings=Bindings(sandboxes),
        )
        if ground is not None:
            engine = await stack.enter_async_context(
                with_boxes(
                    config,
                    engine,
                    ground,
                    database=records.database,
                    server_id=records.server_id,
                    state=state,
                    spool=directory,
                )
            )
        if engine.boxes is not None and engine.images is not None:
            departed = Departed(database=records.database, server_id=records.server_id)
            await stack.enter_async_context(clearing_up(departed, engine.boxes, engine.images))
        yield engine
