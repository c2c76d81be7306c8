"""Making sandboxes: from a request to one that runs, or to nothing.

The record is committed before anything is made. A creation is a task of ours, not of the caller: when the caller goes
away, or a step fails, what has been made is taken back before the task ends. A server that is killed half-way leaves a
CREATING record, and perhaps a sandbox, which the next one clears away.
"""

import asyncio
import contextlib
from dataclasses import dataclass, replace

import structlog

from stockade.backends.sandboxing import MAIN, LiveExec, LiveSpec, Reading, Streams
from stockade.engine.backend_policy import BackendPolicy
from stockade.engine.builds import Builds
from stockade.engine.images import Image, Images
from stockade.engine.limits import LimitPolicy
from stockade.engine.lives import Lives, moment
from stockade.engine.sandbox_requests import new_sandbox
from stockade.errors import Conflict, StockadeError, Unavailable
from stockade.model import Actor, EndedBy, Sandbox, SandboxRequest, SandboxState

__all__ = ["Creations"]

log = structlog.get_logger()

_TOLD_S = 2.0
"""How long a failed creation waits for its record to say so. It goes on being tried after that."""


@dataclass(kw_only=True)
class _Creation:
    """One that is under way."""

    request: SandboxRequest
    image: Image
    sandbox: Sandbox
    """Its record, as far as it has come."""
    actor: Actor
    is_recorded: bool = False
    """Its record is committed."""
    reading: Reading | None = None
    """How its caller reads the output of its main process from the beginning on; `None` where they do not."""
    streams: Streams | None = None
    """Of the main process, for that caller."""
    given_up: EndedBy | None = None
    """Somebody stopped or killed it meanwhile."""
    task: asyncio.Task[Sandbox] | None = None

    def let_go(self) -> None:
        """Let go of the main process, which goes on."""
        if self.streams is not None:
            self.streams.close()
            self.streams = None


class Creations:
    """Makes sandboxes, and knows which are being made."""

    def __init__(
        self,
        *,
        lives: Lives,
        images: Images,
        builds: Builds,
        limits: LimitPolicy,
        backends: BackendPolicy = BackendPolicy(),
    ) -> None:
        """Take what it needs; *limits* has the server's maximum for sandboxes that live."""
        self._backends = backends
        self._lives = lives
        self._images = images
        self._builds = builds
        self._limits = limits
        self._under_way: dict[str, _Creation] = {}

    def __contains__(self, sandbox_id: str) -> bool:
        """Whether this sandbox is being made now."""
        return sandbox_id in self._under_way

    async def create(self, actor: Actor, request: SandboxRequest) -> Sandbox:
        """Make a sandbox for *actor*, and return its record once it runs; see `Sandboxes.create`."""
        sandbox, _ = await self._create(actor, request, None)
        return sandbox

    async def create_attached(
        self, actor: Actor, request: SandboxRequest, reading: Reading
    ) -> tuple[Sandbox, Streams | None]:
        """As `create`, with the streams of the main process; see `Sandboxes.create_attached`."""
        return await self._create(actor, request, reading)

    async def _create(
        self, actor: Actor, request: SandboxRequest, reading: Reading | None
    ) -> tuple[Sandbox, Streams | None]:
        request = replace(request, backend=self._backends.choose(actor, request.backend))
        image = self._images.find(request.image, actor.owner)
        sandbox = new_sandbox(actor, request, image, limits=self._limits, now=moment(self._lives.clock()))
        if sandbox.id in self._under_way or sandbox.id in self._lives:
            raise Conflict(f"there is a sandbox {sandbox.id} already")
        creation = _Creation(request=request, image=image, sandbox=sandbox, actor=actor, reading=reading)
        creation.task = self._lives.tasks.start(self._make(creation), name=f"create {sandbox.id}")
        self._under_way[sandbox.id] = creation
        try:
            return await asyncio.shield(creation.task), creation.streams
        except asyncio.CancelledError:
            if not creation.task.cancel() and not creation.task.cancelled() and creation.task.exception() is None:
                # It runs, and its caller will never come to know.
                creation.let_go()
                self._lives.tasks.background(self._lives.backend.kill(sandbox.id), name=f"kill {sandbox.id}")
            raise

    async def give_up(self, sandbox_id: str, by: EndedBy) -> None:
        """Take back a sandbox that is being made, and wait until that is done. Nothing happens when none is."""
        creation = self._under_way.get(sandbox_id)
        if creation is not None and creation.task is not None:
            creation.given_up = by
            creation.task.cancel()
            await asyncio.wait([creation.task])

    async def finished(self, sandbox_id: str, *, within_s: float) -> None:
        """Wait until a sandbox is no longer being made, for so long at most."""
        creation = self._under_way.get(sandbox_id)
        if creation is not None and creation.task is not None:
            await asyncio.wait([creation.task], timeout=within_s)

    async def _make(self, creation: _Creation) -> Sandbox:
        sandbox, settle = creation.sandbox, self._lives.tasks.settle
        try:
            # Steps are settled: one that is cancelled might still take effect, after we have cleaned up behind it.
            await settle(self._insert(creation), name=f"record {sandbox.id}")
            async with self._builds.layer(
                creation.image,
                creation.request.build,
                account_id=sandbox.account_id,
                base=sandbox.cwd,
                backend=sandbox.backend,
            ) as layer:
                spec = LiveSpec(
                    image=creation.image.name,
                    limits=sandbox.limits,
                    cwd=sandbox.cwd,
                    lifetime_s=sandbox.limits.wall_s,
                    network=sandbox.network,
                    layer=layer,
                    layers=creation.image.layers,
                    disk=creation.request.disk,
                    mounts=creation.request.mounts,
                    drop_capabilities=creation.request.drop_capabilities,
                    diversion=creation.request.diversion,
                    backend=sandbox.backend,
                    log_bytes=self._lives.options.log_bytes,
                    kept_bytes=self._lives.options.kept_bytes,
                    keep_s=self._lives.options.facts_s,
                )
                await settle(self._start(creation, spec), name=f"start {sandbox.id}")
            self._lives.watch(creation.sandbox)
            return creation.sandbox
        except asyncio.CancelledError as error:
            await self._take_back(creation, error)
            if creation.given_up is None:
                raise
            raise Conflict(f"sandbox {sandbox.id} was ended while it was being made") from None
        except BaseException as error:
            await self._take_back(creation, error)
            raise
        finally:
            del self._under_way[sandbox.id]

    async def _insert(self, creation: _Creation) -> None:
        actor = creation.actor
        # Where the answer to the commit is lost, there may be a record: the next clean-up finds it.
        await self._lives.table.insert_within_quota(
            creation.sandbox,
            daily=actor.daily_limit,
            concurrent=actor.concurrent_limit,
            monthly_cost_cents=actor.monthly_cost_limit_cents,
            is_quota_free=creation.request.is_quota_free,
        )
        creation.is_recorded = True

    async def _start(self, creation: _Creation, spec: LiveSpec) -> None:
        lives, sandbox = self._lives, creation.sandbox
        try:
            async with asyncio.timeout(lives.options.make_s):
                network = sandbox.network
                if network.ports:
                    network = await lives.ports.assign(sandbox.id, network)
                live = await lives.backend.create(sandbox.id, spec)
        except TimeoutError:
            raise Unavailable(f"sandbox {sandbox.id} was not made within {lives.options.make_s:g} s") from None
        # Side by side, for neither needs the other: who looks it up sees it run once its main process has its order.
        running, started = await asyncio.gather(
            lives.move(
                sandbox.id,
                SandboxState.RUNNING,
                network=network,
                started_at=moment(live.started_at),
                deadline_at=None if live.deadline_at is None else moment(live.deadline_at),
            ),
            self._start_main(creation),
            return_exceptions=True,
        )
        if isinstance(started, BaseException):
            raise started
        if isinstance(running, BaseException):
            raise running
        if running is None:
            raise Conflict(f"sandbox {sandbox.id} was ended while it was being made")
        creation.sandbox = running

    async def _start_main(self, creation: _Creation) -> None:
        sandbox, lives = creation.sandbox, self._lives
        if sandbox.command:
            try:
                async with asyncio.timeout(lives.options.make_s):
                    reading = creation.reading or Reading()
                    creation.streams = await lives.backend.exec(sandbox.id, MAIN, self._main(creation), reading=reading)
            except TimeoutError:
                raise Unavailable(f"sandbox {sandbox.id} did not start within {lives.options.make_s:g} s") from None
            if creation.reading is None:
                creation.let_go()

    def _main(self, creation: _Creation) -> LiveExec:
        request, sandbox = creation.request, creation.sandbox
        return LiveExec(
            argv=sandbox.command,
            env=creation.image.environment(sandbox.env, user=sandbox.user, has_terminal=request.terminal is not None),
            cwd=sandbox.cwd,
            user=sandbox.user,
            terminal=request.terminal,
        )

    async def _take_back(self, creation: _Creation, error: BaseException) -> None:
        """Leave nothing of a creation but a record that says why it failed."""
        creation.let_go()
        if not creation.is_recorded:
            return
        sandbox_id, lives = creation.sandbox.id, self._lives
        went_away = isinstance(error, asyncio.CancelledError)
        reason = "it was ended while it was being made" if went_away else str(error) or repr(error)
        # The code alone: a failed build's text holds what the tenant's commands printed.
        log.info("sandbox.not_made", sandbox_id=sandbox_id, code=getattr(error, "code", type(error).__name__))
        lives.ports.close(sandbox_id)
        with contextlib.suppress(StockadeError, TimeoutError):  # what is left then, the next clean-up removes
            async with asyncio.timeout(lives.options.answer_s):
                await lives.backend.remove(sandbox_id)
        record = lives.tasks.start(
            lives.record_failure(sandbox_id, creation.given_up or EndedBy.FAILURE, reason),
            name=f"record {sandbox_id}",
        )
        await asyncio.wait([record], timeout=_TOLD_S)
