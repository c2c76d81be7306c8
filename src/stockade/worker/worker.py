"""The worker: claims jobs, runs them, stores what came of them.

    store ──claim──▶ Held ──Runs.run──▶ Verdict ──finish | release──▶ store
                       ▲
              renew (heartbeat): lost? cancelled? watched?

A worker may lose touch with its store at any moment, and the store gives a job whose lease runs out to another one. So
a run is ended once the lease may have run out, and a result counts only with the fence of its claim: a job ends once,
whatever becomes of its workers.
"""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime

import structlog

from stockade.config_jobs import JobsConfig
from stockade.engine.languages import Languages
from stockade.engine.runs import Runs
from stockade.errors import StockadeError, UnknownLanguage
from stockade.model.jobs import Job, WorkerRecord
from stockade.settings import ConfigError
from stockade.store.jobs import JobStore
from stockade.worker.attempt import Attempt
from stockade.worker.held import CutShort, Held
from stockade.worker.observing import Observer
from stockade.worker.pauses import Pause, first_of, sleep_until

__all__ = ["Worker", "pools_of"]

log = structlog.get_logger()

IDLE_S = 1.0
"""Between two looks for work, where the store does not tell before: a delayed job starts so late at most."""
LANGUAGES_S = 5.0
"""Between two looks at which languages are installed."""
BUSY_S = 0.5
"""After a run for which there was no place: what would be claimed now would only be given back."""
UNSTORED = 4
"""Results for each place that may wait for the store: it is away, and memory is finite."""
LAST_WORDS_S = 3.0
"""Time that giving jobs back has at the end."""


class Worker:
    """Runs jobs of one store, so many at once. Made for one event loop."""

    def __init__(
        self,
        store: JobStore,
        runs: Runs,
        config: JobsConfig,
        *,
        places: int,
        languages: Sequence[str] = (),
        drain_s: float = 30.0,
        observer: Observer | None = None,
        barred: Callable[[Collection[str]], Awaitable[Collection[str]]] | None = None,
    ) -> None:
        """Nothing is claimed yet.

        Args:
            places: jobs at once.
            languages: names or aliases; empty for all that are installed.
            drain_s: seconds that running jobs have to end once the worker is to.
            barred: says for which accounts nobody may act any more: their jobs are cancelled, not run; `None` where
                nobody knows.

        Raises:
            UnknownLanguage: *languages* or `config.pools` names one that there is not.
            ConfigError: a pool is no number.
        """
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.places = places
        self._store = store
        self._runs = runs
        self._config = config
        self._drain_s = drain_s
        self._observer = observer or Observer()
        self._barred = barred
        self._wanted = tuple(dict.fromkeys(runs.languages.find(name).name for name in languages))
        self._pools = pools_of(config, runs.languages)
        self._held: dict[str, Held] = {}
        self._wake = asyncio.Event()
        """A place has come free."""
        self._beat_now = asyncio.Event()
        self._at_once = asyncio.Event()
        """Nobody waits for anything any more."""
        self._busy_until = 0.0
        self._is_draining = False
        self._started_at = datetime.now(UTC)
        self._languages: tuple[float, tuple[str, ...]] = (-LANGUAGES_S, ())

    @property
    def running(self) -> int:
        """Jobs that run now."""
        return sum(held.is_running for held in self._held.values())

    def nudge(self) -> None:
        """Ask the store at once, not at the next heartbeat, what it wants of running jobs."""
        self._beat_now.set()

    async def run(self, stop: asyncio.Event, *, at_once: asyncio.Event | None = None) -> None:
        """Work until *stop*; then claim nothing more, let what runs end, and give back what has not in time.

        Args:
            at_once: set to give everything back without waiting.

        A call that is cancelled ends its runs and gives nothing back: the store notices when their leases run out.
        """
        self._at_once = at_once or asyncio.Event()
        done = asyncio.Event()
        log.info("worker.started", worker_id=self.id, places=self.places, languages=self._wanted or "all")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(done), name="heartbeat")
            try:
                await self._claim_on(group, stop)
                await self._drain()
            finally:
                done.set()
                self._beat_now.set()
        log.info("worker.stopped", worker_id=self.id)

    async def _claim_on(self, group: asyncio.TaskGroup, stop: asyncio.Event) -> None:
        """Claim what there is a place for, until *stop*."""
        pause = Pause()
        while not stop.is_set():
            self._wake.clear()
            wait_s = self._busy_until - time.monotonic()
            if wait_s > 0:
                await sleep_until(stop, wait_s)
                continue
            most, languages, room = self._free(), self._can_run(), self._room()
            languages = tuple(name for name in languages if room.get(name, 1) > 0)
            if most <= 0 or not languages:
                await first_of(IDLE_S, stop.wait(), self._wake.wait())
                continue
            asked_at = time.monotonic()
            try:
                jobs = await self._store.claim(
                    self.id, most=most, lease_s=self._config.lease_s, languages=languages, room=room or None
                )
                if pause.over():
                    log.info("worker.store_is_back", worker_id=self.id)
                barred = await self._barred_of(jobs)
                for job in jobs:
                    self._take(group, job, asked_at, is_barred=job.account_id in barred)
                if len(jobs) < most:  # that was all there is
                    await self._wait_for_work(stop)
            except Exception as error:
                # Whatever is wrong with the store must not end the worker: it would have to be started by hand.
                _complain("worker.cannot_claim", error, worker_id=self.id)
                await sleep_until(stop, pause.next_s())

    async def _wait_for_work(self, stop: asyncio.Event) -> None:
        wakers = [stop.wait(), self._store.wait_for_work(IDLE_S)]
        if self._pools:  # a free place may be one for a language whose pool was full
            wakers.append(self._wake.wait())
        await first_of(IDLE_S, *wakers)

    async def _barred_of(self, jobs: Sequence[Job]) -> Collection[str]:
        """Accounts of *jobs* that are barred.

        Their jobs were cancelled when they became so. This is for one that somebody was let in with just before, and
        that is stored only now; so where it cannot be known, nobody else's has to wait for it.
        """
        account_ids = {job.account_id for job in jobs if job.account_id}
        if self._barred is None or not account_ids:
            return ()
        try:
            return await self._barred(account_ids)
        except StockadeError as error:
            _complain("worker.cannot_ask_for_accounts", error, worker_id=self.id)
            return ()

    def _take(self, group: asyncio.TaskGroup, job: Job, asked_at: float, *, is_barred: bool) -> None:
        held = Held(job, lease_ends=asked_at + self._config.lease_s)
        self._held[job.id] = held
        if job.cancel_requested or is_barred:
            held.end(CutShort.CANCELLED)
        attempt = Attempt(
            held=held,
            store=self._store,
            runs=self._runs,
            config=self._config,
            observer=self._observer,
            freed=self._freed,
            give_up=self._at_once,
        )
        group.create_task(self._see_through(attempt), name=f"job {job.id}")

    async def _see_through(self, attempt: Attempt) -> None:
        job = attempt.held.job
        # Of this task; the warden's log names the request, too.
        structlog.contextvars.bind_contextvars(request_id=job.id)
        if job.trace_id:
            structlog.contextvars.bind_contextvars(trace_id=job.trace_id)
        try:
            with self._observer.attempting(job):
                log.debug("job.claimed", job_id=job.id, attempt=job.attempts, fence=job.fence, worker_id=self.id)
                await attempt.run()
        except Exception as error:
            # A mistake of ours with one job is no reason to drop the others; its lease runs out.
            log.error("job.attempt_failed", job_id=job.id, exc_info=error)
        finally:
            if self._held.get(job.id) is attempt.held:
                del self._held[job.id]
            self._wake.set()

    def _freed(self, *, is_busy: bool) -> None:
        """A run has ended, because there was no place for it when *is_busy*."""
        if is_busy:
            self._busy_until = time.monotonic() + BUSY_S
        self._wake.set()

    def _free(self) -> int:
        """How many jobs may be claimed now."""
        return min(self.places - self.running, (1 + UNSTORED) * self.places - len(self._held))

    def _room(self) -> Mapping[str, int]:
        """What is left of each language's pool."""
        taken = [held.job.language for held in self._held.values() if held.is_running]
        return {name: max(0, most - taken.count(name)) for name, most in self._pools.items()}

    def _can_run(self) -> tuple[str, ...]:
        """The languages, by their own names, that this worker takes jobs of now.

        Others' jobs wait until a worker comes that has them; here they would only be refused.
        """
        looked_at, found = self._languages
        if time.monotonic() - looked_at >= LANGUAGES_S:
            names = self._wanted or tuple(language.name for language in self._runs.languages.all())
            found = tuple(name for name in names if self._runs.languages.is_available(name))
            self._languages = (time.monotonic(), found)
        return found

    async def _beat(self, done: asyncio.Event) -> None:
        """Say that we live, prolong leases, and hear what is wanted of our jobs: until *done*."""
        while not done.is_set():
            self._beat_now.clear()
            await self._renew()
            for held in list(self._held.values()):
                if time.monotonic() >= held.lease_ends:
                    held.end(CutShort.LAPSED)
            await sleep_until(self._beat_now, self._config.heartbeat_s)

    async def _renew(self) -> None:
        asked_at = time.monotonic()
        held = {one.job.id: one.job.fence for one in self._held.values()}
        try:
            # So often that a store which does not answer cannot keep us from seeing leases run out.
            async with asyncio.timeout(max(1.0, self._config.lease_s / 3)):
                renewal = await self._store.renew(self._record(), held, lease_s=self._config.lease_s)
        except Exception as error:
            _complain("worker.cannot_renew", error, worker_id=self.id, held=len(held))
            return
        for job_id, fence in held.items():
            one = self._held.get(job_id)
            if one is None or one.job.fence != fence:
                continue
            one.lease_ends = asked_at + self._config.lease_s
            if job_id in renewal.lost:
                one.end(CutShort.LOST)
            elif job_id in renewal.cancelled:
                one.end(CutShort.CANCELLED)
            if job_id in renewal.watched:
                one.is_watched.set()
            else:
                one.is_watched.clear()

    def _record(self) -> WorkerRecord:
        return WorkerRecord(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            languages=self._can_run(),
            places=self.places,
            running=self.running,
            started_at=self._started_at,
            seen_at=datetime.now(UTC),
            is_draining=self._is_draining,
        )

    async def _drain(self) -> None:
        """Let what runs end, `drain_s` long; give the rest back."""
        self._is_draining = True
        log.info("worker.draining", worker_id=self.id, running=self.running)
        self._beat_now.set()
        give_up = time.monotonic() + self._drain_s
        while self._held and not self._at_once.is_set() and (left_s := give_up - time.monotonic()) > 0:
            self._wake.clear()
            await first_of(left_s, self._wake.wait(), self._at_once.wait())
        for held in list(self._held.values()):
            held.end(CutShort.DRAINING)
        give_up = time.monotonic() + LAST_WORDS_S
        while self._held and (left_s := give_up - time.monotonic()) > 0:
            self._wake.clear()
            await sleep_until(self._wake, left_s)
        if self._held:  # the store is away
            log.warning("worker.left_jobs", worker_id=self.id, jobs=len(self._held))
        self._at_once.set()


def pools_of(config: JobsConfig, languages: Languages) -> Mapping[str, int]:
    """`jobs.pools` by the languages' own names.

    Raises:
        ConfigError: a language is unknown, is named twice, or its number is none.
    """
    pools: dict[str, int] = {}
    for name, text in config.pools.items():
        try:
            language = languages.find(name).name
        except UnknownLanguage as error:
            raise ConfigError(f"jobs.pools: {error}") from None
        if language in pools:
            raise ConfigError(f"jobs.pools: {language} is named twice")
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise ConfigError(f"jobs.pools: {name}: must be a whole number (got {text!r})")
        pools[language] = int(text)
    return pools


def _complain(event: str, error: Exception, **fields: object) -> None:
    if isinstance(error, StockadeError | TimeoutError):
        log.warning(event, reason=str(error) or "no answer in time", **fields)
    else:
        log.error(event, exc_info=error, **fields)
