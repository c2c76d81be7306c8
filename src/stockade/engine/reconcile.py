"""What is recorded and what is there: brought together at the start, and again and again after that.

| record | backend | what is done |
|---|---|---|
| running, stopping | runs | watched (again), its ports opened; a stop is carried on |
| running, stopping | has ended | its end is recorded |
| running, stopping | unknown | recorded as lost |
| running | runs without the main process that it should have | taken back: the server ended while starting it |
| creating, by nobody here | anything | taken back: it was never acknowledged |
| ended | remembered | forgotten when its output has been kept for long enough |
| none, or deleted, or ended | runs or remembered | removed: nothing leaks |
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime

import structlog

from stockade.backends.sandboxing import MAIN, LiveSandbox
from stockade.engine.builds import Builds
from stockade.engine.creations import Creations
from stockade.engine.lives import EXECUTION, Lives, moment
from stockade.errors import NotFound, StockadeError, Unavailable
from stockade.model import EndedBy, Outcome, Sandbox, SandboxState

__all__ = ["Reconciler"]

log = structlog.get_logger()

START_S = 60.0
"""Time for everything that has to be brought together before the first request."""
_PRECISION_S = 0.5
"""A deadline that differs by less is the same."""


class Reconciler:
    """Brings records and sandboxes together, and clears away what is over."""

    def __init__(
        self,
        *,
        lives: Lives,
        creations: Creations,
        builds: Builds,
        is_ours: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Take what it needs; *is_ours* says whether somebody else here looks after the sandbox of a name."""
        self._lives = lives
        self._is_others = is_ours
        self._creations = creations
        self._builds = builds

    async def start(self) -> None:
        """Find again what a server before left, then look after it in the background.

        Raises:
            Unavailable: the database or the backend does not answer, or the directory of images cannot be used.
        """
        self._builds.prepare()
        try:
            async with asyncio.timeout(START_S):
                await self.reconcile()
        except TimeoutError:
            raise Unavailable(f"records and sandboxes were not brought together within {START_S:g} s") from None
        self._lives.tasks.background(self._look_after(), name="clean up")

    async def reconcile(self) -> None:
        """Bring records and sandboxes together once.

        Raises:
            Unavailable: the database or the backend does not answer.
        """
        lives = self._lives
        async with asyncio.timeout(lives.options.answer_s):
            known = {one.name: one for one in await lives.backend.inventory()}
        rows = await lives.table.list_unended()
        for row in rows:
            if not self._is_ours(row.id):
                await self._settle(row, known.get(row.id))
        unended = {row.id for row in rows}
        for name, live in known.items():
            if name not in unended and not self._is_ours(name) and not lives.keeps_output(name):
                await self._settle_unrecorded(name, live)
        for row in await lives.table.list_unrecorded():
            if not self._is_ours(row.id):
                await lives.tell_ended(row)

    async def clean_up(self) -> None:
        """Drop output that has been kept for long enough, and layers that nobody uses.

        Raises:
            Unavailable: the backend does not answer.
        """
        lives = self._lives
        for name in lives.overdue():
            await self._remove(name)
            lives.forget_output(name)
        await self._builds.collect()

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(self._lives.options.sweep_s)
            try:
                await self.reconcile()
                await self.clean_up()
            except (StockadeError, TimeoutError, OSError) as error:
                log.warning("sandbox.clean_up_failed", reason=str(error) or repr(error))

    def _is_ours(self, name: str) -> bool:
        """Whether somebody in this process looks after it already."""
        return name in self._lives or name in self._creations or name in self._builds or self._is_others(name)

    async def _settle(self, row: Sandbox, live: LiveSandbox | None) -> None:
        """See to a record that has not ended and that nobody here looks after."""
        lives = self._lives
        if live is None or live.is_running:
            live = await self._inspect(row.id)  # the list may be older than the record
        if self._is_ours(row.id):
            return
        # The record says RUNNING while the main process is being started: see `Creations`.
        is_half_made = live is not None and live.is_running and bool(row.command) and MAIN not in live.processes
        if row.state is SandboxState.CREATING or is_half_made:
            await self._remove(row.id)
            await lives.record_failure(row.id, EndedBy.FAILURE, "the server ended while it was being made")
        elif live is None:
            await lives.record_failure(row.id, EndedBy.LOST, "the host or its warden ended", outcome=Outcome.LOST)
        elif not live.is_running and live.ended_by is not None:
            await lives.record_end(row.id, live)
        else:  # it runs, or is ending this very moment
            await self._adopt(row, live)

    async def _adopt(self, row: Sandbox, live: LiveSandbox) -> None:
        """Look after a sandbox that runs on."""
        lives = self._lives
        lives.watch(row)
        lives.ports.open(row.id, row.network)
        log.info("sandbox.found_again", sandbox_id=row.id, state=row.state.value)
        for process in live.processes:
            if process.startswith(EXECUTION):  # it was for a caller of the server before, and that one is gone
                with contextlib.suppress(StockadeError, TimeoutError):
                    async with asyncio.timeout(lives.options.answer_s):
                        await lives.backend.forget_process(row.id, process)
        if live.deadline_at is not None and not _same(row.deadline_at, live.deadline_at):
            await lives.amend(row.id, deadline_at=moment(live.deadline_at))
        if row.state is SandboxState.STOPPING:
            # Whoever moved it may have ended before the backend was told.
            with contextlib.suppress(StockadeError, TimeoutError):  # it has ended, or its deadline sees to it
                async with asyncio.timeout(lives.options.answer_s):
                    await lives.backend.stop(row.id, grace_s=lives.options.grace_s)

    async def _settle_unrecorded(self, name: str, live: LiveSandbox) -> None:
        """See to a sandbox that no record of ours counts among those that live."""
        row = await self._lives.table.get(name)
        if self._is_ours(name) or (row is not None and row.state is not SandboxState.ENDED):
            return  # it has been made since; it is not for this time
        if row is None or row.is_deleted or live.is_running:
            log.warning("sandbox.without_record", sandbox_id=name, is_running=live.is_running)
            await self._remove(name)
        else:
            self._lives.keep_output(name, since=live.ended_at or self._lives.clock())

    async def _inspect(self, name: str) -> LiveSandbox | None:
        try:
            async with asyncio.timeout(self._lives.options.answer_s):
                return await self._lives.backend.inspect(name)
        except NotFound:
            return None

    async def _remove(self, name: str) -> None:
        async with asyncio.timeout(self._lives.options.answer_s):
            await self._lives.backend.remove(name)


def _same(recorded: datetime | None, deadline_at: float) -> bool:
    return recorded is not None and abs(recorded.timestamp() - deadline_at) < _PRECISION_S
