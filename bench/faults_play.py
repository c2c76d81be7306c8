"""The clients of a rehearsal at work together, and the question whether everything works."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from bench.faults_clients import Boxes, Caller, Jobs, Keys, Runs, Sessions, Unanswered, again_and_again
from bench.faults_ledger import Ledger
from bench.faults_stage import KEY, UP_S, Stage
from bench.measure import BenchError

__all__ = ["RECOVERY_S", "Company"]

RECOVERY_S = 60.0
"""All must work again within."""
AGAIN_S = 0.2
KEY_EVERY_S = 1.5
HEALTH_EVERY_S = 0.3
MIB = 1 << 20
_HOG = "kept = []\nwhile True:\n    kept.append(bytearray(1 << 20))"
_FLOOD = """
written = 0
try:
    with open("flood", "wb", buffering=0) as file:
        while written < 400 << 20:
            written += file.write(bytes(1 << 20))
except OSError:
    pass
print(written >> 20)
"""
_FORKS = """
import os
count = 0
try:
    while count < 200:
        if os.fork() == 0:
            os.pause() if hasattr(os, "pause") else __import__("signal").pause()
        count += 1
except OSError:
    pass
print(count, flush=True)
os.kill(0, 9) if count >= 200 else os._exit(0)
"""
MOST_PROCESSES = 16


@dataclass(kw_only=True)
class Company:
    """All clients of one stage."""

    stage: Stage
    ledger: Ledger
    operator: Caller
    nobody: Caller
    """Without a key: programs, as a server on loopback lets anybody."""
    submitter: Caller
    """With a key that nothing but jobs is done with."""
    job_key: str
    jobs: list[Jobs]
    sessions: Sessions
    boxes: Boxes
    keys: Keys
    trouble: str = ""
    """Why not everything works."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _doors: asyncio.Event = field(default_factory=asyncio.Event)
    """Whether sandboxes that live may be made and used."""
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    @classmethod
    async def gathered(cls, stage: Stage, ledger: Ledger) -> "Company":
        """Clients, each with what it needs, once everything works.

        Raises:
            BenchError: it does not come to that.
        """
        operator = Caller(url=stage.url, key=KEY, ledger=ledger)
        body = {"name": "jobs"}
        made = (await operator.ask("key", "POST", "/v1/account/keys", expected=201, json=body)).json()
        submitter = Caller(url=stage.url, key=made["key"], ledger=ledger)
        company = cls(
            stage=stage,
            ledger=ledger,
            operator=operator,
            nobody=Caller(url=stage.url, key="", ledger=ledger),
            submitter=submitter,
            job_key=made["id"],
            jobs=[Jobs(caller=submitter), Jobs(caller=submitter)],
            sessions=Sessions(caller=operator, wardens=lambda: stage.units["server"].find("stockade-warden")),
            boxes=Boxes(caller=operator),
            keys=Keys(caller=operator),
        )
        company._doors.set()
        try:
            async with asyncio.timeout(UP_S):
                await company.all_works()
        except TimeoutError:
            raise BenchError(f"not everything works at the beginning: {company.trouble}") from None
        ledger.did.clear()
        ledger.refused.clear()
        return company

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Steady use during the block."""
        self._stop.clear()
        async with asyncio.TaskGroup() as group:
            for runs in (Runs(caller=self.nobody), Runs(caller=self.nobody)):
                group.create_task(again_and_again(runs.step, self._stop))
            for jobs in self.jobs:
                group.create_task(again_and_again(jobs.step, self._stop))
            group.create_task(again_and_again(self._live, self._stop))
            group.create_task(again_and_again(self._keep, self._stop))
            group.create_task(again_and_again(self.keys.step, self._stop, KEY_EVERY_S))
            group.create_task(again_and_again(self._is_healthy, self._stop, HEALTH_EVERY_S))
            self.ledger.calm()
            try:
                yield
            finally:
                self._stop.set()

    async def make_room(self) -> None:
        """End what lives, as its owners would who are told that nothing new can be had meanwhile."""
        self._doors.clear()
        while True:
            try:
                async with self._busy:
                    await self.sessions.drop()
                    if self.boxes.name:
                        path = f"/v1/default/boxes/{self.boxes.name}/stop"
                        await self.operator.ask("stop a box", "POST", path, expected=200, json={})
                return
            except Unanswered as error:
                self.trouble = str(error)
                await asyncio.sleep(AGAIN_S)

    def open_doors(self) -> None:
        """Let sandboxes be made again."""
        self._doors.set()

    async def all_works(self) -> None:
        """Return once a program, a job, a sandbox and a box have come to their ends, within their limits."""
        for attempt in (self._run_works, self._job_works, self._session_works, self._box_works, self._limits_hold):
            while True:
                try:
                    await attempt()
                    break
                except Unanswered as error:
                    self.trouble = f"{attempt.__name__}: {error}"
                    await asyncio.sleep(AGAIN_S)

    async def leave(self) -> None:
        """End what lives, and go."""
        try:
            await self.sessions.drop()
            await self.boxes.drop()
        except Unanswered as error:
            self.ledger.violated(f"what lives cannot be ended: {error}")
        for caller in (self.operator, self.nobody, self.submitter):
            await caller.close()

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _live(self) -> None:
        await self._doors.wait()
        async with self._busy:
            await self.sessions.step()

    async def _keep(self) -> None:
        await self._doors.wait()
        await self.boxes.step()

    async def _is_healthy(self) -> None:
        relay = self.stage.relays.get("postgresql")
        before = relay.count if relay is not None and not relay.is_passing else None
        await self.nobody.ask("health", "GET", "/health", expected=200)
        if relay is not None and not relay.is_passing and relay.count == before:
            self.ledger.violated("/health says that all is well while the database cannot be reached")

    # ── does it work? ───────────────────────────────────────────────────────────────────────────────────────────

    async def _run(self, code: str, **more: object) -> dict[str, object]:
        body = {"language": "python", "code": code, **more}
        answer = await self.nobody.ask("run", "POST", "/execute", expected=200, json=body)
        found: dict[str, object] = answer.json()
        return found

    async def _run_works(self) -> None:
        found = await self._run("print(6 * 7)")
        if found["stdout"] != "42\n":
            raise Unanswered(f"a run ends so: {found}")

    async def _job_works(self) -> None:
        jobs = self.jobs[0]
        job = await jobs.submit()
        while not await jobs.look(job):
            self.trouble = f"job {job} has not ended"
            await asyncio.sleep(AGAIN_S)

    async def _session_works(self) -> None:
        probe = Sessions(caller=self.operator, wardens=self.sessions.wardens)
        await probe.step()
        try:
            await probe.check()
        finally:
            await probe.drop()

    async def _box_works(self) -> None:
        probe = Boxes(caller=self.operator)
        await probe.step()
        try:
            if await probe.shell("echo works") != "works\n":
                self.ledger.violated("a box does not say what it was told to")
        finally:
            await probe.drop()

    async def _limits_hold(self) -> None:
        """Memory, disk and processes of a run."""
        began = time.monotonic()
        hog = await self._run(_HOG, memory_limit_mb=48)
        if hog["outcome"] != "memory":
            self._weak("memory", hog, began)
        flood = await self._run(_FLOOD, memory_limit_mb=128)
        if flood["outcome"] == "exited" and int(str(flood["stdout"]) or 0) >= 400:
            self._weak("disk", flood, began)
        forks = await self._run(_FORKS, resource_limits={"max_processes": MOST_PROCESSES})
        if not str(forks["stdout"]).strip().isdigit() or int(str(forks["stdout"])) > MOST_PROCESSES:
            self._weak("processes", forks, began)

    def _weak(self, limit: str, found: dict[str, object], began: float) -> None:
        """A program that should have met a limit ended in another way."""
        if found["outcome"] == "exited":
            self.ledger.violated(f"the limit of {limit} does not hold: {found}")
        else:
            self.ledger.failed("limit", f"{limit}: {found['outcome']}", began)
            raise Unanswered(f"{limit}: {found}")
