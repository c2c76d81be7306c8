"""Boxes that run: how they come to, how they pause, and how they end.

A box that runs is a sandbox on its disk. The record of the box says so before the sandbox is made (side by side with
it, in fact): a server that is killed in between leaves a box that says it runs, whose sandbox the next server looks
for, and sandboxes that no box knows, which it kills. A sandbox that ends by itself is noticed by a task that waits for
it. Who calls what is here holds the box's lock.
"""

import asyncio
import contextlib
import re
import secrets
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog

from stockade.backends.disks import Pausing
from stockade.backends.sandboxing import MAIN, LiveProcess, Sandboxing
from stockade.engine.box_errors import BoxStateConflict
from stockade.engine.box_needs import Admission, BoxOptions, BoxTiming, Diversions
from stockade.engine.box_records import AT_REST, LIVING, BoxRecords, owner_actor
from stockade.engine.box_requests import sandbox_limits
from stockade.engine.lives import BACK_OFF_S, moment
from stockade.engine.processes import PROCESS, Processes
from stockade.engine.sandboxes import Sandboxes
from stockade.engine.tasks import Tasks
from stockade.engine.volumes import Volumes
from stockade.errors import Conflict, Fault, LimitExceeded, NotFound, StockadeError, Unavailable
from stockade.model import (
    Actor,
    Box,
    BoxState,
    EndedBy,
    ExecSpec,
    Sandbox,
    SandboxRequest,
    SandboxState,
    TerminalSize,
    owner_of,
)

__all__ = ["BoxCounts", "BoxRuns", "sandbox_of"]

log = structlog.get_logger()

_WATCH_S = 3600.0
_MOST_TIMINGS = 4096
_MOST_COUNTED = 16_384
_SANDBOX = re.compile(r"box-[0-9a-hjkmnp-tv-z]{26}-[0-9a-f]{8}")
_MAIN_ID = Box.MAIN.removeprefix(PROCESS)
_ENDED = frozenset({BoxState.RUNNING, BoxState.PAUSED, BoxState.STOPPING})


@dataclass(frozen=True, kw_only=True)
class BoxCounts:
    """What became of the boxes of an account since this server began."""

    created: int = 0
    """Made, clones included."""
    started: int = 0
    """Starts that came to be; also of boxes that ran when this server began."""
    failed: int = 0
    """Starts that did not."""
    stopped: int = 0
    """Starts that have ended, however."""

    @property
    def running(self) -> int:
        """Those that run now, paused ones included."""
        return self.started - self.stopped


def sandbox_of(box: Box) -> str:
    """The id of the sandbox of a box that has been started."""
    if box.sandbox_id is None:
        raise Fault(f"box {box.id} is {box.state.value} and has no sandbox")
    return box.sandbox_id


class BoxRuns:
    """Starts and ends boxes."""

    def __init__(
        self,
        *,
        records: BoxRecords,
        sandboxes: Sandboxes,
        processes: Processes,
        pausing: Pausing,
        volumes: Volumes,
        diversions: Diversions | None,
        tasks: Tasks,
        options: BoxOptions,
        on_stopped: Callable[[Box], Awaitable[None]],
    ) -> None:
        """Take what it needs.

        Args:
            diversions: `None` where boxes cannot have secrets.
            on_stopped: told of each box that has stopped by itself, with its lock held.
        """
        self._records = records
        self._sandboxes = sandboxes
        self._processes = processes
        self._pausing = pausing
        self._volumes = volumes
        self._diversions = diversions
        self._tasks = tasks
        self._options = options
        self._on_stopped = on_stopped
        self._counted: dict[str, Counter[str]] = {}
        self._timings: dict[str, BoxTiming] = {}
        self._made_s: dict[str, tuple[float, float]] = {}
        """Seconds that image and disk of a box took that has not been started yet."""

    @property
    def _backend(self) -> Sandboxing:
        return self._sandboxes.lives.backend

    @property
    def _answer_s(self) -> float:
        return self._sandboxes.lives.options.answer_s

    def counts(self, actor: Actor | None) -> BoxCounts:
        """Of the actor's account, or of all."""
        counted: Counter[str] = Counter()
        for one in self._counted.values() if actor is None else (self._counted.get(actor.owner, Counter()),):
            counted += one
        return BoxCounts(**counted)

    def timing(self, box_id: str) -> BoxTiming | None:
        """Of the last start of a box by this server; `None` where there was none."""
        return self._timings.get(box_id)

    def note_made(self, box: Box, *, image_s: float = 0.0, disk_s: float = 0.0) -> None:
        """A box has been made, and so long its image and its disk took."""
        self._count(box, "created")
        self._made_s[box.id] = (image_s, disk_s)
        if len(self._made_s) > _MOST_TIMINGS:
            del self._made_s[next(iter(self._made_s))]

    def forget(self, box: Box) -> None:
        """A box is gone."""
        self._timings.pop(box.id, None)
        self._made_s.pop(box.id, None)

    def is_alive(self, box: Box) -> bool:
        """Whether the sandbox of a box lives."""
        row = None if box.sandbox_id is None else self._sandboxes.lives.find(box.sandbox_id)
        return row is not None and row.state is not SandboxState.ENDED

    async def start(self, actor: Actor, box: Box) -> Box:
        """Start a box at rest; its record once it runs, and its main process has been started.

        Raises:
            BoxStateConflict: it is not at rest.
            VolumeInUse, NotFound: a volume of it cannot be had.
            Invalid: it cannot run so; why is in its record, too.
            LimitExceeded: the actor's quota is used up.
            Unsupported, Unavailable: as `Sandboxes.create`.
        """
        if box.state not in AT_REST:
            raise BoxStateConflict(box.id, state=box.state, operation="start")
        began = time.perf_counter()
        sandbox_id = f"box-{box.id.lower()}-{secrets.token_hex(4)}"
        self._volumes.holds.take(box)
        try:
            with self._records.starting(box):
                sandbox_s = await self._make(actor, box, sandbox_id)
                main_began = time.perf_counter()
                await self._start_main(box, sandbox_id)
        except BaseException as error:
            await self._take_back(box, sandbox_id, error)
            raise
        now = time.perf_counter()
        image_s, disk_s = self._made_s.pop(box.id, (0.0, 0.0))
        self._keep_timing(
            box.id,
            BoxTiming(
                total_s=image_s + disk_s + now - began,
                image_s=image_s,
                disk_s=disk_s,
                sandbox_s=sandbox_s,
                main_s=now - main_began if _main_of(box) else 0.0,
            ),
        )
        started = await self._records.here(box.id)
        self._count(started, "started")
        self._records.touch(box.id)
        self._watch(started)
        log.info("box.started", box_id=box.id, sandbox_id=sandbox_id)
        return started

    async def _make(self, actor: Actor, box: Box, sandbox_id: str) -> float:
        """Make the sandbox, and record that the box runs; the seconds that took."""
        began = time.perf_counter()
        admission = self._admit(box, sandbox_id)
        request = SandboxRequest(
            id=sandbox_id,
            image=box.image_digest,
            command=(),
            env={**box.env, **(admission.env if admission is not None else {})},
            cwd=box.cwd,
            user=box.user,
            limits=sandbox_limits(box, self._sandboxes.limits),
            network=box.network,
            labels=box.labels,
            dialect=box.dialect,
            disk=box.disk,
            mounts=await self._volumes.mounts_of(box) if box.mounts else (),
            drop_capabilities=box.drop_capabilities,
            diversion=admission.diversion if admission is not None else None,
        )
        now = self._records.now
        acting = replace(actor, id=box.key_id, account_id=box.account_id)
        # Side by side: what a crash leaves of the two the next start of the server settles.
        made, moved = await asyncio.gather(
            self._sandboxes.create(acting, request),
            self._records.move(
                box.id,
                AT_REST,
                state=BoxState.RUNNING,
                sandbox_id=sandbox_id,
                starts=box.starts + 1,
                started_at=now,
                updated_at=now,
                last_used_at=now,
                exit_code=None,
                message="",
            ),
            return_exceptions=True,
        )
        for failure in (made, moved):
            if isinstance(failure, BaseException):
                raise failure
        if moved is None:
            raise NotFound(f"box {box.id} not found")
        if admission is not None and self._diversions is not None:
            async with self._sandboxes.files(owner_actor(box), sandbox_id, user="root") as files:
                await self._diversions.install(files, admission)
        return time.perf_counter() - began

    async def _start_main(self, box: Box, sandbox_id: str) -> None:
        command = _main_of(box)
        if command:
            terminal = TerminalSize() if box.terminal else None
            spec = ExecSpec(argv=command, user=box.user, terminal=terminal)
            await self._processes.start(owner_actor(box), sandbox_id, spec, id=_MAIN_ID, has_input=True)

    async def _take_back(self, box: Box, sandbox_id: str, error: BaseException) -> None:
        """Leave nothing of a start; the box is as before, or FAILED where another try would come to the same."""
        passes = isinstance(error, LimitExceeded | Unavailable | Conflict) or not isinstance(error, StockadeError)
        state, message = (box.state, box.message) if passes else (BoxState.FAILED, str(error))
        self._count(box, "failed")
        log.info("box.not_started", box_id=box.id, code=getattr(error, "code", type(error).__name__))

        async def undo() -> None:
            try:
                await self._kill(box, sandbox_id)
            finally:
                self._let_go(box, sandbox_id)
            now = self._records.now
            with contextlib.suppress(NotFound, Unavailable):  # the sandbox is gone: the next look at the box finds it
                current = await self._records.here(box.id)
                stopped_at = None if state is BoxState.CONFIGURED else now
                await self._records.move(
                    box.id, {current.state}, state=state, message=message, updated_at=now, stopped_at=stopped_at
                )

        await self._tasks.settle(undo(), name=f"take back {sandbox_id}")

    async def _kill(self, box: Box, sandbox_id: str) -> None:
        with contextlib.suppress(StockadeError, TimeoutError):  # there is none; or the next clean-up finds it
            async with asyncio.timeout(2 * self._answer_s):
                await self._sandboxes.kill(owner_actor(box), sandbox_id)

    async def pause(self, box: Box) -> Box:
        """Let no process of a running box go on; its record then. Idempotent.

        Raises:
            BoxStateConflict: it does not run.
            Unsupported: this host cannot.
        """
        if box.state is BoxState.PAUSED:
            return box
        if box.state is not BoxState.RUNNING:
            raise BoxStateConflict(box.id, state=box.state, operation="pause")
        async with self._sandboxes.asking(await self._row(box)):
            await self._pausing.pause(sandbox_of(box))
        return await self._moved(box, {BoxState.RUNNING}, state=BoxState.PAUSED, updated_at=self._records.now)

    async def resume(self, box: Box) -> Box:
        """Let a paused box go on; its record then. Idempotent.

        Raises:
            BoxStateConflict: it does not run.
        """
        if box.state is BoxState.RUNNING:
            return box
        if box.state is not BoxState.PAUSED:
            raise BoxStateConflict(box.id, state=box.state, operation="resume")
        sandbox_id = sandbox_of(box)
        async with self._sandboxes.asking(await self._row(box)):
            await self._pausing.resume(sandbox_id)
            deadline_at = (await self._backend.inspect(sandbox_id)).deadline_at
        self._records.touch(box.id)
        moving = self._moved(box, {BoxState.PAUSED}, state=BoxState.RUNNING, updated_at=self._records.now)
        if deadline_at is None:
            return await moving
        # Side by side, for neither needs the other. Its deadline stood still meanwhile.
        amending = self._sandboxes.lives.amend(sandbox_id, deadline_at=moment(deadline_at))
        moved, amended = await asyncio.gather(moving, amending, return_exceptions=True)
        if isinstance(moved, BaseException):
            raise moved
        if isinstance(amended, BaseException):
            raise amended
        return moved

    async def stop(self, box: Box, *, grace_s: float) -> Box:
        """End a box that runs: its main process is asked to (SIGTERM), and killed after *grace_s* with all others.

        Idempotent. Its record, once it is STOPPED.

        Raises:
            Unavailable: it could not be stopped in time; it goes on being tried.
        """
        if box.state in AT_REST:
            return box
        if box.state is not BoxState.STOPPING:
            box = await self._moved(box, LIVING, state=BoxState.STOPPING, updated_at=self._records.now)
        exit_code = await self._end_main(box, grace_s)
        with contextlib.suppress(Conflict, NotFound):  # it has ended meanwhile
            await self._sandboxes.stop(owner_actor(box), sandbox_of(box), grace_s=0.0)
        return await self._record_end(box, "", exit_code=exit_code)

    async def _end_main(self, box: Box, grace_s: float) -> int | None:
        """Ask the main process to end, and wait; its exit code where it has."""
        if not _main_of(box) or not self.is_alive(box):
            return box.exit_code
        sandbox_id = sandbox_of(box)
        if grace_s > 0:
            with contextlib.suppress(StockadeError, TimeoutError):  # it is killed with the others
                async with asyncio.timeout(self._answer_s):
                    await self._pausing.resume(sandbox_id)  # or it could not hear of it
                    await self._backend.signal_process(sandbox_id, Box.MAIN, signal.SIGTERM)
                async with asyncio.timeout(grace_s):
                    return _exit_code_of(await self._backend.process_ended(sandbox_id, Box.MAIN))
        return box.exit_code if box.exit_code is not None else 128 + signal.SIGKILL

    async def settle(self, box: Box) -> Box:
        """The record of a box as it is: of one that says that it runs, and whose sandbox has ended, that is noted."""
        if box.state not in _ENDED or self.is_alive(box):
            return box
        row = await self._sandboxes.lives.table.get(sandbox_of(box))
        if row is not None and row.state is not SandboxState.ENDED:
            return box  # it is being made, or its end is being recorded
        return await self._record_end(box, _why(row))

    async def adopt(self, box: Box) -> Box:
        """Look after a box that a server before this one started; or note that it has ended."""
        box = await self.settle(box)
        if box.state not in _ENDED:
            return box
        sandbox_id = sandbox_of(box)
        self._count(box, "started")
        with contextlib.suppress(StockadeError):  # it was so before; nobody is to be thrown out now
            self._volumes.holds.take(box)
        try:
            self._admit(box, sandbox_id)
        except StockadeError as error:
            log.warning("box.secrets_not_served", box_id=box.id, reason=str(error))
        self._watch(box)
        if box.state is BoxState.STOPPING:  # the sweeper carries it on
            return box
        with contextlib.suppress(NotFound, Conflict):  # it ends this very moment
            async with asyncio.timeout(self._answer_s):
                is_paused = (await self._backend.inspect(sandbox_id)).is_paused
            state = BoxState.PAUSED if is_paused else BoxState.RUNNING
            if state is not box.state:  # the server ended between the two
                box = await self._records.move(box.id, LIVING, state=state) or box
        return box

    async def kill_strays(self) -> None:
        """Kill sandboxes of boxes that no box knows: their start was never recorded."""
        for sandbox_id in self._sandboxes.lives.ids:
            row = self._sandboxes.lives.find(sandbox_id)
            if row is None or not _SANDBOX.fullmatch(sandbox_id):
                continue
            box_id = sandbox_id.split("-")[1].upper()
            with contextlib.suppress(NotFound):
                if (await self._records.here(box_id)).sandbox_id == sandbox_id:
                    continue
            log.warning("box.stray_sandbox", box_id=box_id, sandbox_id=sandbox_id)
            await self._sandboxes.kill(Actor(id=row.key_id, account_id=row.account_id), sandbox_id)

    async def is_busy(self, box: Box) -> bool:
        """Whether a process runs in a box beside its main one."""
        sandbox_id = sandbox_of(box)
        async with asyncio.timeout(self._answer_s):
            known = await self._backend.processes(sandbox_id)
            if any(one.end is None and one.name != Box.MAIN for one in known):
                return True
            names = (await self._backend.inspect(sandbox_id)).processes
        remembered = {one.name for one in known}
        return any(name not in remembered and name not in (Box.MAIN, MAIN) for name in names)

    async def _row(self, box: Box) -> Sandbox:
        return await self._sandboxes.require_running(owner_actor(box), sandbox_of(box))

    async def _moved(self, box: Box, from_states: "set[BoxState] | frozenset[BoxState]", **changes: object) -> Box:
        moved = await self._records.move(box.id, from_states, **changes)
        if moved is None:
            raise Unavailable(f"box {box.id} has just been changed by somebody else; ask again")
        return moved

    def _admit(self, box: Box, sandbox_id: str) -> Admission | None:
        if not box.secrets or self._diversions is None:
            return None
        return self._diversions.admit(sandbox_id, box.secrets)

    def _let_go(self, box: Box, sandbox_id: str) -> None:
        self._volumes.holds.release(box)
        if box.secrets and self._diversions is not None:
            self._diversions.forget(sandbox_id)

    async def _record_end(self, box: Box, message: str, *, exit_code: int | None = None) -> Box:
        now = self._records.now
        code = exit_code if exit_code is not None else box.exit_code
        ended = await self._moved(
            box, _ENDED, state=BoxState.STOPPED, stopped_at=now, updated_at=now, exit_code=code, message=message
        )
        self._let_go(ended, sandbox_of(ended))
        self._count(ended, "stopped")
        log.info("box.stopped", box_id=box.id, message=message)
        return ended

    def _watch(self, box: Box) -> None:
        sandbox_id = sandbox_of(box)
        self._tasks.background(self._until_ended(box.id, sandbox_id), name=f"watch box {box.id}")
        if _main_of(box) and box.exit_code is None:
            self._tasks.background(self._until_main_ended(box.id, sandbox_id), name=f"watch main of box {box.id}")

    async def _until_ended(self, box_id: str, sandbox_id: str) -> None:
        pause, longest = BACK_OFF_S
        while True:
            try:
                if await self._sandboxes.lives.ended(sandbox_id, within_s=_WATCH_S) is not None:
                    async with self._records.lock(box_id):
                        box = await self._records.here(box_id)
                        if box.sandbox_id == sandbox_id and box.state in _ENDED:
                            settled = await self.settle(box)
                            if settled.state is BoxState.STOPPED:
                                await self._on_stopped(settled)
                    return
                if sandbox_id in self._sandboxes.lives:
                    continue
            except NotFound:  # the box has been removed
                return
            except (StockadeError, TimeoutError) as error:
                log.warning("box.end_not_recorded", box_id=box_id, reason=str(error) or repr(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _until_main_ended(self, box_id: str, sandbox_id: str) -> None:
        pause, longest = BACK_OFF_S
        exit_code = None
        while True:
            try:
                if exit_code is None:
                    # No deadline: it takes as long as the process does, and a connection that breaks says so.
                    exit_code = _exit_code_of(await self._backend.process_ended(sandbox_id, Box.MAIN))
                box = await self._records.here(box_id)
                if box.sandbox_id == sandbox_id and box.state in LIVING and box.exit_code is None:
                    await self._records.move(box_id, LIVING, exit_code=exit_code)
                return
            except (NotFound, Conflict):  # it went with its sandbox
                return
            except (StockadeError, TimeoutError):
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)

    def _count(self, box: Box, what: str) -> None:
        self._counted.setdefault(owner_of(box.account_id, box.key_id), Counter())[what] += 1
        if len(self._counted) > _MOST_COUNTED:  # there is no end of those who have no account
            del self._counted[next(iter(self._counted))]

    def _keep_timing(self, box_id: str, timing: BoxTiming) -> None:
        self._timings.pop(box_id, None)
        self._timings[box_id] = timing
        if len(self._timings) > _MOST_TIMINGS:
            del self._timings[next(iter(self._timings))]


def _main_of(box: Box) -> tuple[str, ...]:
    return (*box.entrypoint, *box.command)


def _exit_code_of(process: LiveProcess) -> int:
    return 128 + signal.SIGKILL if process.end is None else process.end.exit_code


def _why(row: Sandbox | None) -> str:
    """Why a box has stopped that nobody stopped."""
    if row is None:
        return "the server ended while it was being started"
    if row.ended_by is EndedBy.DEADLINE:
        return f"it ran for as long as it may: {row.limits.wall_s:g} s"
    if row.ended_by is EndedBy.LIMIT:
        return f"a limit ended it: {row.outcome.value if row.outcome is not None else 'unknown'}"
    if row.ended_by in (EndedBy.LOST, EndedBy.FAILURE):
        return row.message or "the host or its warden ended"
    return "its sandbox was ended"
