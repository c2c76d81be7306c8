"""Sandboxes that live, as callers see them: make, find, stop, kill, extend, use.

Everything here first looks the record up, and knows a sandbox only to the key that made it. How one comes to be is in
`engine.creations`, how it ends in `engine.lives`, what a restart finds in `engine.reconcile`.
"""

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Collection, Iterable
from dataclasses import dataclass

from stockade.backends.sandboxing import MAIN, FileAccess, LiveExec, Reading, Sandboxing, Streams
from stockade.engine.builds import Builds
from stockade.engine.creations import Creations
from stockade.engine.images import Images
from stockade.engine.limits import LimitPolicy
from stockade.engine.lives import EXECUTION, Lives, moment
from stockade.engine.reconcile import Reconciler
from stockade.engine.sandbox_needs import Barred
from stockade.engine.sandbox_requests import checked_command, checked_environment, checked_path, checked_user
from stockade.errors import Conflict, Invalid, InvalidLimit, NoAnswer, NotFound, StockadeError, Unavailable
from stockade.model import (
    Actor,
    EndedBy,
    ExecSpec,
    Port,
    Protocol,
    Sandbox,
    SandboxRequest,
    SandboxState,
    Usage,
    owner_of,
)
from stockade.store.sandboxes import Page

__all__ = ["Execution", "Page", "Sandboxes", "UsageNow"]

_STOPPED_S = 5.0
"""Time that the end of a sandbox may take to be recorded, beyond the grace that it was given."""
_KILLED_S = 10.0
"""Time that the end of a killed sandbox may take to be recorded."""
_ANSWER_S = 2.0
"""Time for a question whose answer is only nice to have."""
_LIVING = frozenset(SandboxState) - {SandboxState.ENDED}
_REPLAYED = frozenset({EndedBy.ITSELF, EndedBy.DEADLINE, EndedBy.LIMIT})
"""Ends after which the output of the main process can still be read: nobody asked for them."""


@dataclass(frozen=True, kw_only=True)
class UsageNow:
    """What a sandbox has used, and uses."""

    usage: Usage
    memory_bytes: int
    """Held now; 0 once it has ended."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """A further process in a sandbox, and its streams."""

    sandbox_id: str
    process: str
    """Its name in the sandbox."""
    streams: Streams
    backend: Sandboxing
    answer_s: float

    def discard(self) -> None:
        """As `kill`, without waiting for it to have happened."""
        self.streams.discard()

    async def kill(self) -> None:
        """Kill it where it still runs, with all that it started, and drop its output. Idempotent.

        Whoever has one calls this, or `discard`, in the end.
        """
        self.streams.close()
        with contextlib.suppress(StockadeError, TimeoutError):  # gone with its sandbox; or it goes with it
            async with asyncio.timeout(self.answer_s):
                await self.backend.forget_process(self.sandbox_id, self.process)


@dataclass(frozen=True, kw_only=True)
class Sandboxes:
    """Sandboxes of all actors; knows nothing of HTTP, SQL or kernels."""

    lives: Lives
    creations: Creations
    images: Images
    builds: Builds
    limits: LimitPolicy
    """The maximum for sandboxes that live."""
    reconciler: Reconciler

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Find again what runs, then look after it during the block. What runs at its end goes on running.

        Raises:
            Unavailable: the database or the backend does not answer.
        """
        async with self.lives.tasks.running():
            await self.reconciler.start()
            yield

    @property
    def living(self) -> int:
        """How many run here."""
        return len(self.lives)

    async def end_all(self) -> None:
        """Kill all that run here and wait, a little, until that is recorded: nobody is to come back for them."""

        async def end(sandbox_id: str) -> None:
            with contextlib.suppress(StockadeError, TimeoutError):  # the next start finds out
                async with asyncio.timeout(self.lives.options.answer_s):
                    await self.lives.backend.kill(sandbox_id)
                await self.lives.ended(sandbox_id, within_s=_KILLED_S)

        await asyncio.gather(*map(end, self.lives.ids))

    async def create(self, actor: Actor, request: SandboxRequest) -> Sandbox:
        """Make a sandbox for *actor*, and return its record once it runs and that is committed.

        Its record is committed first, within the key's quota; then its layer is built where it asks for one, its ports
        are opened, it is made, and its main process is started. When anything of this fails, or the caller is
        cancelled, nothing of it is left but a record that says so (ENDED, FAILURE).

        Raises:
            Invalid: something in the request is wrong (UnknownImage, InvalidLimit, BuildFailed, …).
            Conflict: there is a sandbox of this id; or it was ended while it was being made.
            LimitExceeded: the key's quota is used up.
            Unsupported: the backend cannot make such a sandbox.
            Unavailable: there is no room now, the database is away, or the warden died (BackendLost); safe to retry
                with another id.
        """
        return await self.creations.create(actor, request)

    async def create_attached(
        self, actor: Actor, request: SandboxRequest, *, reading: Reading = Reading()
    ) -> tuple[Sandbox, Streams]:
        """As `create`, and attach to the main process before it prints anything: of that nothing can be missed.

        Raises:
            Conflict: also where there is no main process.
        """
        sandbox, streams = await self.creations.create_attached(actor, request, reading)
        if streams is None:
            raise Conflict(f"sandbox {sandbox.id} has no main process; start one with exec")
        return sandbox, streams

    async def get(self, actor: Actor, sandbox_id: str) -> Sandbox:
        """The record of a sandbox, as it is now.

        Raises:
            NotFound: there is none, or it is another key's.
            Unavailable: the database is away, or it has ended and that could not be recorded yet.
        """
        row = await self.owned(actor, sandbox_id)
        if row.state not in (SandboxState.RUNNING, SandboxState.STOPPING) or sandbox_id not in self.lives:
            return row
        # It may have ended this very moment; whoever has just seen its exit code is not told that it runs.
        is_over = False
        with contextlib.suppress(StockadeError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                known = await self.lives.backend.inspect(sandbox_id)
                # Between the end of the main process and that of the sandbox there is a moment.
                is_over = not known.is_running or known.exit_code is not None
        return await self._until_ended(row, within_s=_ANSWER_S) if is_over else row

    async def list(
        self,
        actor: Actor,
        *,
        states: Collection[SandboxState] | None = None,
        ended_by: Collection[EndedBy] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        """The sandboxes that *actor*'s key made, the newest first; all of them where there is no *limit*.

        Raises:
            Invalid: *cursor* is none of ours.
        """
        return await self.lives.table.list(actor.id, states=states, ended_by=ended_by, limit=limit, cursor=cursor)

    async def of_account(self, account_id: str, sandbox_id: str) -> Sandbox:
        """The record of a sandbox, whichever key of the account made it; to do something, act as `key_id`.

        Raises:
            NotFound: there is none, or it is another account's; which of these is not told.
            Unavailable: the database is away.
        """
        row = self.lives.find(sandbox_id) or await self.lives.table.get(sandbox_id)
        if row is None or not account_id or row.account_id != account_id:
            raise NotFound(f"sandbox {sandbox_id[:100]} not found")
        return row

    async def list_of_account(
        self,
        account_id: str,
        *,
        states: Collection[SandboxState] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page:
        """As `list`, of all keys of an account."""
        return await self.lives.table.list(account_id=account_id, states=states, limit=limit, cursor=cursor)

    async def kill_of_account(self, account_id: str) -> None:
        """Kill all that lives of an account.

        Raises:
            Unavailable: some of it runs on another server of the database, or its end could not be recorded in time;
                what could be killed is. It can be repeated.
        """
        await self._kill_each((await self.list_of_account(account_id, states=_LIVING)).items)

    async def kill_barred(self, barred: Barred) -> None:
        """Kill what runs here for accounts that are *barred*.

        Raises:
            Unavailable: as `kill_of_account`, or nobody knows which accounts are.
        """
        found = [row for row in map(self.lives.find, self.lives.ids) if row is not None and row.state in _LIVING]
        if not found:
            return
        accounts = await barred({row.account_id for row in found})
        await self._kill_each(row for row in found if row.account_id in accounts)

    async def _kill_each(self, rows: Iterable[Sandbox]) -> None:
        kills = (self.kill(Actor(id=row.key_id, account_id=row.account_id), row.id) for row in rows)
        for killed in await asyncio.gather(*kills, return_exceptions=True):
            if isinstance(killed, BaseException) and not isinstance(killed, NotFound | Conflict):
                raise killed

    async def stop(self, actor: Actor, sandbox_id: str, *, grace_s: float | None = None) -> Sandbox:
        """Ask the main process to end (SIGTERM), kill everything after *grace_s*, and return the record then.

        Raises:
            NotFound: as `get`.
            Conflict: it has ended already.
            Unavailable: it could not be stopped, or its end not be recorded, in time.
        """
        row = await self.owned(actor, sandbox_id)
        if row.state is SandboxState.CREATING:
            await self.creations.give_up(sandbox_id, EndedBy.STOP)
            row = await self.owned(actor, sandbox_id)
            if row.ended_by is EndedBy.STOP:
                return row
        self._check_here(row)
        if row.state is SandboxState.RUNNING:
            row = await self.lives.move(sandbox_id, SandboxState.STOPPING) or await self.owned(actor, sandbox_id)
        if row.state is SandboxState.ENDED:
            raise _ended(row)
        grace_s = self.lives.options.grace_s if grace_s is None else grace_s
        with contextlib.suppress(Conflict):  # it has ended meanwhile, and is being recorded
            async with self.asking(row):
                await self.lives.backend.stop(sandbox_id, grace_s=grace_s)
        return await self._until_ended(row, within_s=grace_s + _STOPPED_S)

    async def kill(self, actor: Actor, sandbox_id: str) -> Sandbox:
        """Kill everything in a sandbox, if it runs, and drop what it left; return the record then.

        The record stays. Of one that had ended before, it keeps saying how. Idempotent.

        Raises:
            NotFound: as `get`.
            Unavailable: its end could not be recorded in time.
        """
        row = await self.owned(actor, sandbox_id)
        if row.is_deleted:
            return row
        if row.state is SandboxState.CREATING:
            await self.creations.give_up(sandbox_id, EndedBy.KILL)
            row = await self.owned(actor, sandbox_id)
        if row.state is not SandboxState.ENDED:
            self._check_here(row)
            with self.lives.deleting(sandbox_id):
                with contextlib.suppress(Conflict):  # it has ended meanwhile, and is being recorded
                    async with self.asking(row):
                        await self.lives.backend.kill(sandbox_id)
                row = await self._until_ended(row, within_s=_KILLED_S)
        # Only now: until its end is recorded, the backend is who knows of it.
        with contextlib.suppress(StockadeError, TimeoutError):  # else the next clean-up does it
            async with asyncio.timeout(self.lives.options.answer_s):
                await self.lives.backend.remove(sandbox_id)
                self.lives.forget_output(sandbox_id)
        return row if row.is_deleted else await self.lives.table.mark_deleted(sandbox_id) or row

    async def extend(self, actor: Actor, sandbox_id: str, lifetime_s: float) -> Sandbox:
        """Let a sandbox live for *lifetime_s* from now on, longer or shorter than it would have.

        Raises:
            NotFound: as `get`.
            Conflict: it does not run.
            InvalidLimit: its whole life would be longer than the server, or the actor's plan, allows.
        """
        if not (math.isfinite(lifetime_s) and lifetime_s > 0):
            raise InvalidLimit("lifetime_s", lifetime_s, "must be a positive number of seconds")
        row = await self.require_running(actor, sandbox_id)
        lived_s = self.lives.clock() - (row.started_at or row.created_at).timestamp()
        most = min(self.limits.maximum.wall_s, actor.max_duration_s or math.inf)
        if lived_s + lifetime_s > most:
            raise InvalidLimit(
                "lifetime_s",
                lifetime_s,
                f"the sandbox may live for {most:g} s in all",
                maximum=max(0.0, most - lived_s),
            )
        async with self.asking(row):
            await self.lives.backend.extend(sandbox_id, lifetime_s)
            deadline_at = (await self.lives.backend.inspect(sandbox_id)).deadline_at
        amended = await self.lives.amend(sandbox_id, deadline_at=None if deadline_at is None else moment(deadline_at))
        if amended is None:
            raise _ended(row)
        return amended

    async def attach(self, actor: Actor, sandbox_id: str, *, reading: Reading = Reading()) -> Streams:
        """The streams of the main process, from their beginning; also when it has ended by itself, while they are kept.

        Raises:
            NotFound: as `get`.
            Conflict: the sandbox was stopped or killed, its output is no longer kept, or it has no main process.
        """
        row = await self.made(actor, sandbox_id)
        if not row.command:
            raise Conflict(f"sandbox {sandbox_id} has no main process; start one with exec")
        if row.state is SandboxState.ENDED and (row.is_deleted or row.ended_by not in _REPLAYED):
            raise _ended(row)
        async with self.asking(row):
            return await self.lives.backend.open(sandbox_id, MAIN, reading=reading)

    async def exec(
        self,
        actor: Actor,
        sandbox_id: str,
        spec: ExecSpec,
        *,
        reading: Reading = Reading(),
        gather: int = 0,
    ) -> Execution:
        """Start a further process in a sandbox that runs. When the caller is cancelled, it does not stay.

        Args:
            reading, gather: see `backends.sandboxing.Sandboxing.exec`.

        Raises:
            NotFound: as `get`.
            Invalid: it cannot be started so.
            Conflict: the sandbox does not run.
            Unavailable: it has no room for another process.
            NoAnswer, BackendLost: nobody knows whether it has been started; it is killed.
        """
        row = await self.require_running(actor, sandbox_id)
        live = self.live_exec(row, spec)
        process = f"{EXECUTION}{secrets.token_hex(8)}"
        lives = self.lives

        async def start() -> Execution:
            # With *gather* it takes as long as the process does; a connection that breaks says so.
            try:
                async with self.asking(row, within_s=math.inf if gather else None):
                    streams = await lives.backend.exec(sandbox_id, process, live, reading=reading, gather=gather)
            except NoAnswer:  # its caller will not come to know of it
                lives.tasks.background(
                    _forgotten(lives.backend.forget_process(sandbox_id, process)), name=f"drop {process}"
                )
                raise
            return Execution(
                sandbox_id=sandbox_id,
                process=process,
                streams=streams,
                backend=lives.backend,
                answer_s=lives.options.answer_s,
            )

        starting = lives.tasks.start(start(), name=f"{process} in {sandbox_id}")
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            forgotten = lives.backend.forget_process(sandbox_id, process)
            lives.tasks.background(_drop(starting, forgotten), name=f"drop {process}")
            raise

    def live_exec(self, row: Sandbox, spec: ExecSpec, *, keep: bool = False, log_bytes: int | None = None) -> LiveExec:
        """What the backend is told of a process in the sandbox of a record.

        Raises:
            Invalid: it cannot be started so.
        """
        command = checked_command(spec.argv)
        if not command:
            raise Invalid("command: there is none")
        user = checked_user(spec.user)
        env = {**row.env, **checked_environment(spec.env)}
        return LiveExec(
            argv=command,
            env=self.images.find(row.image, owner_of(row.account_id, row.key_id)).environment(
                env, user=user, has_terminal=spec.terminal is not None
            ),
            cwd=row.cwd if spec.cwd is None else checked_path(spec.cwd, what="cwd", base=row.cwd),
            user=user,
            terminal=spec.terminal,
            stdin=spec.stdin,
            keep=keep,
            log_bytes=log_bytes,
        )

    @contextlib.asynccontextmanager
    async def files(self, actor: Actor, sandbox_id: str, *, user: str | None = None) -> AsyncIterator[FileAccess]:
        """The files of a sandbox that runs, during the block.

        Args:
            user: with whose rights, `user`, `root` or `UID:GID`; `None` for the user of the main process.

        Raises:
            NotFound: as `get`.
            Conflict: it does not run.
        """
        row = await self.require_running(actor, sandbox_id, also_stopping=True)
        async with self.asking(row):
            files = await self.lives.backend.files(sandbox_id, user=row.user if user is None else checked_user(user))
        try:
            yield files
        finally:
            files.close()

    async def usage(self, actor: Actor, sandbox_id: str) -> UsageNow:
        """What a sandbox has used so far; of one that has ended, in all.

        Raises:
            NotFound: as `get`; or it was lost, and nobody knows.
        """
        row = await self.made(actor, sandbox_id)
        if row.state is not SandboxState.ENDED:
            async with self.asking(row):
                known = await self.lives.backend.inspect(sandbox_id)
            return UsageNow(usage=known.usage, memory_bytes=known.memory_bytes if known.is_running else 0)
        if row.usage is None:
            raise NotFound(f"nothing is known of what sandbox {sandbox_id} used: it never ran, or was lost")
        return UsageNow(usage=row.usage, memory_bytes=0)

    def find_port(self, sandbox_id: str, container: int, protocol: Protocol = Protocol.TCP) -> Port | None:
        """The port that a sandbox that runs here exposes under the number *container*; `None` for anything else."""
        row = self.lives.find(sandbox_id)
        if row is None or row.state is SandboxState.ENDED:
            return None
        return next(
            (port for port in row.network.ports if port.container == container and port.protocol is protocol), None
        )

    async def owned(self, actor: Actor, sandbox_id: str) -> Sandbox:
        """The record of a sandbox of *actor*'s, for services beside this one. Raises NotFound, Unavailable."""
        row = self.lives.find(sandbox_id)
        if row is None or row.state is SandboxState.ENDED:
            row = await self.lives.table.get(sandbox_id)
        # Else it runs here, and is known without asking: nobody else moves it.
        if row is None or row.key_id != actor.id:
            raise NotFound(f"sandbox {sandbox_id} not found")
        return row

    async def made(self, actor: Actor, sandbox_id: str) -> Sandbox:
        """Its record, once it is no longer being made."""
        row = await self.owned(actor, sandbox_id)
        if row.state is SandboxState.CREATING:
            await self.creations.finished(sandbox_id, within_s=self.lives.options.make_s)
            row = await self.owned(actor, sandbox_id)
            if row.state is SandboxState.CREATING:
                raise Unavailable(f"sandbox {sandbox_id} is still being made")
        return row

    async def require_running(self, actor: Actor, sandbox_id: str, *, also_stopping: bool = False) -> Sandbox:
        """The record of a sandbox of *actor*'s that runs. Raises NotFound, Conflict (it does not), Unavailable."""
        row = await self.made(actor, sandbox_id)
        if row.state is SandboxState.ENDED:
            raise _ended(row)
        if row.state is SandboxState.STOPPING and not also_stopping:
            raise Conflict(f"sandbox {sandbox_id} is being stopped")
        return row

    @contextlib.asynccontextmanager
    async def asking(self, row: Sandbox, *, within_s: float | None = None) -> AsyncIterator[None]:
        """Ask the backend something about a sandbox, within the time that it has to answer; see to what it can say.

        *within_s*: another time; infinity for what may take as long as it likes.
        """
        within_s = self.lives.options.answer_s if within_s is None else within_s
        try:
            async with asyncio.timeout(None if within_s == math.inf else within_s):
                yield
        except TimeoutError:
            raise NoAnswer(f"no answer about sandbox {row.id} within {within_s:g} s") from None
        except NotFound as error:
            if row.state is SandboxState.ENDED:
                raise Conflict(f"sandbox {row.id} has ended, and its output is no longer kept") from error
            self._check_here(row)
            raise Conflict(f"sandbox {row.id} has ended") from error

    def _check_here(self, row: Sandbox) -> None:
        """Raise Unavailable where a sandbox that has not ended is another server's, in the same database."""
        if row.state is not SandboxState.ENDED and row.id not in self.lives and row.id not in self.creations:
            raise Unavailable(f"sandbox {row.id} runs on another server of this database; ask that one")

    async def _until_ended(self, row: Sandbox, *, within_s: float) -> Sandbox:
        ended = await self.lives.ended(row.id, within_s=within_s)
        if ended is None:
            raise Unavailable(f"the end of sandbox {row.id} is not recorded yet; ask again")
        return ended


def _ended(row: Sandbox) -> Conflict:
    return Conflict(f"sandbox {row.id} has ended already ({row.ended_by or 'just now'})")


async def _drop(starting: "asyncio.Task[Execution]", forgotten: Awaitable[None]) -> None:
    """Kill a process whose caller went away while it was being started, or while its output was gathered."""
    await _forgotten(forgotten)
    await asyncio.wait([starting])
    if not starting.cancelled() and starting.exception() is None:
        await starting.result().kill()


async def _forgotten(forgotten: Awaitable[None]) -> None:
    with contextlib.suppress(StockadeError):  # gone with its sandbox; or it goes with it
        await forgotten
