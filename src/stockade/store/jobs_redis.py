"""Jobs in Redis: the queue, and all that is known of each. Servers and workers that share a Redis share the work.

Scripts move jobs (`jobs_redis_scripts`), a stream tells of it (`jobs_redis_events`). What Redis has acknowledged it
keeps when it is killed, if it writes an append-only file; what is lost with the machine's power, `appendfsync` decides.
"""

import base64
import binascii
import builtins
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, NoPermissionError, RedisError, ResponseError

from stockade.errors import Fault, Invalid, Unavailable
from stockade.model.jobs import (
    Job,
    JobFilter,
    JobPage,
    JobResult,
    OutputPiece,
    QueueDepth,
    Renewal,
    Webhook,
    WorkerRecord,
)
from stockade.store.job_rows import CANCELLED, LOST, webhook_to_json
from stockade.store.jobs import TooManyJobs
from stockade.store.jobs_redis_events import BLOCK_MS, WORK, Events
from stockade.store.jobs_redis_rows import (
    LISTED,
    Document,
    job_from_hash,
    microseconds,
    moment,
    pairs,
    result_arguments,
    sample,
    to_add,
    with_result,
    worker_from_json,
    worker_to_json,
)
from stockade.store.jobs_redis_scripts import SCRIPTS

__all__ = ["RedisJobs"]

log = structlog.get_logger()

PREFIX = "stockade:"
RETRY_AFTER_S = 0.05
FULL_RETRY_S = 5.0
SILENT_S = 86400.0
"""A worker that has said nothing for so long is forgotten."""
LISTED_AT_ONCE = 500
LATEST = 10**17
"""Later than any moment, in microseconds."""


class RedisJobs:
    """The driver of `JobStore` for Redis, 6.2 or later; a single one, not a cluster."""

    def __init__(self, url: str, *, timeout_s: float, document: Callable[[Job], Document]) -> None:
        """*document*: a job as the protocol that jobs in Redis come from has it; its members `id`, `request`, and, of
        an ended one, `result` and `error` are kept under `job:<id>`.

        Raises:
            Invalid: *url* is none.
        """
        self._document = document
        options: dict[str, Any] = {
            "socket_connect_timeout": timeout_s,
            "retry": Retry(ConstantBackoff(RETRY_AFTER_S), 1),
        }
        try:
            # Its types allow for answers as text, which none of ours are.
            self._redis: Any = Redis.from_url(url, socket_timeout=timeout_s, **options)
            listener: Any = Redis.from_url(url, socket_timeout=timeout_s + BLOCK_MS / 1000, **options)
        except ValueError as error:
            raise Invalid(f"jobs.redis_url: {error}") from None
        self._listener = listener
        self._events = Events(listener)
        self._scripts = {name: self._redis.register_script(text) for name, text in SCRIPTS.items()}
        self._soonest_s: float | None = None
        """Seconds from the last claim until the first delayed job may start."""
        self._cancelled = result_arguments(CANCELLED, document(sample(CANCELLED)))
        self._lost = result_arguments(LOST, document(sample(LOST)))

    async def open(self) -> None:
        await self.ping()
        await self._warn_if_volatile()
        with _translated():
            await self._events.start()

    async def close(self) -> None:
        await self._events.close()
        for one in (self._redis, self._listener):
            with contextlib.suppress(RedisError, OSError):
                await one.aclose()

    async def ping(self) -> None:
        with _translated():
            await self._redis.execute_command("PING")

    async def add(self, jobs: Sequence[Job], *, most_of_account: int | None = None, most: int | None = None) -> None:
        if wrong := next((job for job in jobs if job.state != "queued"), None):
            raise Invalid(f"job {wrong.id} is {wrong.state}: only queued ones can be added")
        arguments: list[Any] = ["" if one is None else one for one in (most_of_account, most)]
        for job in jobs:
            arguments += to_add(job, self._document(job))
        verdict, number = await self._run("add", *arguments)
        if verdict == b"full":
            raise TooManyJobs(f"the queue is full ({number} of {most} jobs wait or run)", retry_after_s=FULL_RETRY_S)
        if verdict == b"too many":
            raise TooManyJobs(
                f"too many jobs of yours wait or run: {number}, and more would exceed {most_of_account}",
                retry_after_s=FULL_RETRY_S,
            )

    async def get(self, job_id: str) -> Job | None:
        self._events.looks(job_id)
        with _translated():
            found = await self._redis.hgetall(_job(job_id))
        return job_from_hash({name.decode(): value for name, value in found.items()})

    async def list(self, which: JobFilter, *, limit: int, cursor: str | None = None) -> JobPage:
        newest = f"({_place(cursor)}" if cursor is not None else f"[{_created(which.created_before)}"
        oldest = f"[{_created(which.created_after)}" if which.created_after is not None else "-"
        found: builtins.list[tuple[str, Job]] = []
        at_once = limit + 1
        while len(found) <= limit:
            with _translated():
                places = await self._redis.zrevrangebylex(_index(which), newest, oldest, 0, at_once)
                if not places:
                    break
                async with self._redis.pipeline(transaction=False) as pipe:
                    for place in places:
                        pipe.hmget(_job(_id_of(place)), *LISTED)
                    rows = await pipe.execute()
            for place, values in zip(places, rows, strict=True):
                job = job_from_hash(dict(zip(LISTED, values, strict=True)))
                if job is not None and _is_of(job, which):
                    found.append((place.decode(), job))
            newest = f"({places[-1].decode()}"
            at_once = LISTED_AT_ONCE
        page = found[:limit]
        more = base64.urlsafe_b64encode(page[-1][0].encode()).decode() if len(found) > limit else None
        return JobPage(jobs=tuple(job for _, job in page), cursor=more)

    async def claim(
        self,
        worker: str,
        *,
        most: int,
        lease_s: float,
        languages: Sequence[str] | None = None,
        room: Mapping[str, int] | None = None,
    ) -> Sequence[Job]:
        if most <= 0 or (languages is not None and not languages):
            return []
        self._events.looks(WORK)
        wanted = "*" if languages is None else json.dumps(builtins.list(languages))
        claimed, soonest = await self._run(
            "claim", worker, most, round(lease_s * 1e6), wanted, json.dumps(dict(room or {}))
        )
        self._soonest_s = int(soonest) / 1e6 if soonest else None
        return self._jobs(claimed)

    async def wait_for_work(self, timeout_s: float) -> bool:
        soonest_s = self._soonest_s
        if soonest_s is not None and soonest_s < timeout_s:
            await self._events.wait(WORK, soonest_s)
            return True
        return await self._events.wait(WORK, timeout_s)

    async def wait_for_change(self, job_id: str, timeout_s: float) -> bool:
        return await self._events.wait(job_id, timeout_s)

    async def renew(self, worker: WorkerRecord, held: Mapping[str, int], *, lease_s: float) -> Renewal:
        pairs = [part for id, fence in held.items() for part in (_bytes(id), fence)]
        told = await self._run("renew", worker.id, worker_to_json(worker), round(lease_s * 1e6), *pairs)
        lost, cancelled, watched = (frozenset(_text(id) for id in ids) for ids in told)
        return Renewal(lost=lost, cancelled=cancelled, watched=watched)

    async def finish(
        self, job_id: str, fence: int, result: JobResult, *, keep_s: float | None, is_dead: bool = False
    ) -> Job | None:
        with _translated():
            values = await self._redis.hmget(_job(job_id), *LISTED)
        job = job_from_hash(dict(zip(LISTED, values, strict=True)))
        if job is None:
            return None
        own, told, error = result_arguments(result, self._document(with_result(job, result)))
        found = await self._run(
            "finish",
            _bytes(job_id),
            fence,
            result.state.value,
            own,
            _keep(keep_s),
            int(is_dead),
            result.stdout,
            result.stderr,
            told,
            error,
        )
        return job_from_hash(pairs(found)) if found else None

    async def release(self, job_id: str, fence: int, *, run_at: datetime, refund: bool) -> bool:
        arguments = (_bytes(job_id), fence, microseconds(run_at), int(refund), *self._cancelled)
        return bool(await self._run("release", *arguments))

    async def cancel(self, job_id: str, *, keep_s: float | None) -> Job | None:
        found = await self._run("cancel", _bytes(job_id), _keep(keep_s), *self._cancelled)
        return job_from_hash(pairs(found)) if found else None

    async def reap(self, *, most_attempts: int, keep_s: float | None) -> tuple[int, Sequence[Job]]:
        requeued, ended = await self._run("reap", most_attempts, _keep(keep_s), *self._cancelled, *self._lost)
        return int(requeued), self._jobs(ended)

    async def watch(self, job_id: str, *, for_s: float) -> None:
        await self._run("watch", _bytes(job_id), round(for_s * 1e6))

    async def note_output(self, job_id: str, pieces: Sequence[OutputPiece]) -> None:
        arguments = [part for one in pieces for part in (one.number, one.fence, int(one.is_stderr), one.data)]
        await self._run("note", _bytes(job_id), *arguments)

    async def output_after(self, job_id: str, number: int) -> Sequence[OutputPiece]:
        self._events.looks(job_id)
        found = []
        for name, members in await self._run("output", _bytes(job_id), number):
            fence, _, counted = name.decode().partition("-")
            values = pairs(members)
            found.append(
                OutputPiece(number=int(counted), fence=int(fence), is_stderr=values["s"] == b"1", data=values["d"])
            )
        return found

    async def due_webhooks(self, *, most: int, hold_s: float) -> Sequence[Job]:
        return self._jobs(await self._run("webhooks", most, round(hold_s * 1e6)))

    async def set_webhook(self, job_id: str, webhook: Webhook) -> None:
        at = "" if webhook.next_at is None else microseconds(webhook.next_at)
        await self._run("set_webhook", _bytes(job_id), json.dumps(webhook_to_json(webhook)), at)

    async def forget(self, job_ids: Sequence[str]) -> int:
        return int(await self._run("forget", *map(_bytes, dict.fromkeys(job_ids))))

    async def forget_expired(self, *, most: int) -> int:
        return int(await self._run("forget_expired", most, round(SILENT_S * 1e6)))

    async def unrecorded(self, *, most: int) -> Sequence[Job]:
        with _translated():
            ids = await self._redis.zrange(f"{PREFIX}unrecorded", 0, most - 1)
            async with self._redis.pipeline(transaction=False) as pipe:
                for id in ids:
                    pipe.hmget(_job(_text(id)), *LISTED)
                rows = await pipe.execute()
        found, gone = [], []
        for id, values in zip(ids, rows, strict=True):
            # Forgotten ones count as well: what is forgotten is the program.
            job = job_from_hash(dict(zip(LISTED, values, strict=True)) | {"forgotten": None})
            if job is not None:
                found.append(job)
            else:
                gone.append(id)
        if gone:
            with _translated():
                await self._redis.zrem(f"{PREFIX}unrecorded", *gone)
        return found

    async def mark_recorded(self, job_ids: Sequence[str]) -> None:
        await self._run("recorded", *map(_bytes, job_ids))

    async def depth(self) -> QueueDepth:
        counts, delayed, running, dead, oldest = await self._run("depth")
        queued = {
            name.removeprefix("ready:"): int(number)
            for name, number in pairs(counts).items()
            if name.startswith("ready:")
        }
        at = moment(str(int(float(oldest)))) if oldest else None
        return QueueDepth(queued=queued, delayed=delayed, running=running, dead=dead, oldest_queued_at=at)

    async def workers(self, *, seen_within_s: float) -> Sequence[WorkerRecord]:
        found = await self._run("workers", round(seen_within_s * 1e6))
        return sorted((worker_from_json(text, seen) for text, seen in found), key=lambda worker: worker.id)

    async def _run(self, script: str, *arguments: Any) -> Any:
        with _translated():
            return await self._scripts[script](args=arguments)

    @staticmethod
    def _jobs(records: Sequence[Sequence[bytes]]) -> builtins.list[Job]:
        found = (job_from_hash(pairs(one)) for one in records)
        return [job for job in found if job is not None]

    async def _warn_if_volatile(self) -> None:
        try:
            with _translated():
                found = await self._redis.config_get("appendonly")
        except (Fault, Invalid):
            return  # who may not ask cannot tell
        if found.get("appendonly", "yes") in ("no", b"no"):
            log.warning(
                "jobs.redis_not_durable",
                reason="this Redis keeps no append-only file: jobs that were accepted are lost when it ends",
                remedy="set appendonly yes, and appendfsync always, in redis.conf",
            )


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Raise what goes wrong with Redis as an error of ours. No values, no password."""
    try:
        yield
    except (AuthenticationError, AuthorizationError, NoPermissionError) as error:
        raise Invalid("jobs.redis_url: Redis refuses name, password, or what we ask of it") from error
    except ResponseError as error:
        text = str(error)
        if text.startswith(("LOADING", "BUSY", "OOM", "MISCONF", "READONLY", "MASTERDOWN", "NOREPLICAS", "TRYAGAIN")):
            raise Unavailable(f"Redis cannot do it now: {text.partition(' ')[0]}") from error
        if text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
            raise Invalid("jobs.redis_url: Redis refuses name, password, or what we ask of it") from error
        raise Fault(f"Redis refuses a command: {text[:200]}") from error
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable(f"Redis cannot be reached: {type(error).__name__}") from error


def _is_of(job: Job, which: JobFilter) -> bool:
    return (
        (which.account_id is None or job.account_id == which.account_id)
        and (which.key_id is None or job.key_id == which.key_id)
        and (not which.states or job.state in which.states)
        and (which.language is None or job.language == which.language)
        and (which.batch_id is None or job.batch_id == which.batch_id)
        and (which.is_dead is None or job.is_dead == which.is_dead)
        and (which.created_after is None or job.created_at >= which.created_after)
        and (which.created_before is None or job.created_at < which.created_before)
    )


def _index(which: JobFilter) -> bytes:
    """The smallest index that has all of them."""
    if which.batch_id is not None:
        return f"{PREFIX}batch:".encode() + _bytes(which.batch_id)
    if which.is_dead:
        return f"{PREFIX}dead".encode()
    if which.account_id is not None:
        return f"{PREFIX}account:".encode() + _bytes(which.account_id)
    return f"{PREFIX}all".encode()


def _created(at: datetime | None) -> str:
    return f"{LATEST if at is None else microseconds(at):017d}"


def _place(cursor: str) -> str:
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii")).decode("ascii")
        created, number, id = text.split(":")
        if len(created) == 17 and len(number) == 12 and created.isdigit() and number.isdigit() and id:
            return text
    except (ValueError, binascii.Error):
        pass
    raise Invalid("cursor: is none of a list of jobs")


def _id_of(place: bytes) -> str:
    return _text(place.split(b":", 2)[2])


def _keep(keep_s: float | None) -> Any:
    return "" if keep_s is None else round(keep_s * 1e6)


def _job(job_id: str) -> bytes:
    return f"{PREFIX}job:".encode() + _bytes(job_id)


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _text(value: bytes) -> str:
    return value.decode(errors="surrogatepass")
