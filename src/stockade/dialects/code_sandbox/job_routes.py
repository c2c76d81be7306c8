"""Our own routes: jobs with every option, batches, lists, waiting, cancelling, repeating, events."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stockade.dialects.code_sandbox.edge import Edge, Operation
from stockade.dialects.code_sandbox.events import framed, last_seen
from stockade.dialects.code_sandbox.failures import Refused, from_error
from stockade.dialects.code_sandbox.job_operations import ABOUT
from stockade.dialects.code_sandbox.replies import empty_reply, json_reply
from stockade.dialects.code_sandbox.service import CodeSandbox, trace_of, wait_s
from stockade.dialects.code_sandbox.shown import accepted, from_depth, from_job
from stockade.dialects.code_sandbox.translate import moment, to_job
from stockade.dialects.code_sandbox.wire import JobBody, checked, checked_batch
from stockade.engine.jobs import JobEvent, JobRequest
from stockade.errors import Invalid, Unavailable, UnknownLanguage, Unsupported
from stockade.model import Actor
from stockade.model.jobs import Job, JobFilter, JobState
from stockade.wire.bodies import parse_object
from stockade.wire.events import EventStream

__all__ = ["add_jobs", "is_stream"]

LOOK_AGAIN_S = 5.0
"""How often it is looked whether who follows a job is still let in."""
_LISTED = 50
_MOST_LISTED = 1000
_PREFIX, _EVENTS = "/v1/jobs/", "/events"


def is_stream(path: str) -> bool:
    """Whether *path* is that of a job's events, which take as long as the job."""
    return path.startswith(_PREFIX) and path.endswith(_EVENTS)


def add_jobs(router: APIRouter, sandbox: CodeSandbox, edge: Edge) -> None:
    """Add the routes to *router*."""
    handlers = _Handlers(sandbox=sandbox, edge=edge)

    def one(method: str, name: str, *, takes_its_time: bool = False) -> Operation:
        return Operation(method=method, work=getattr(handlers, name), about=ABOUT[name], takes_its_time=takes_its_time)

    edge.add(router, "/v1/jobs", [one("POST", "submit", takes_its_time=True), one("GET", "list")])
    edge.add(router, "/v1/jobs/batch", [one("POST", "submit_batch", takes_its_time=True)])
    edge.add(router, "/v1/jobs/queue", [one("GET", "depth")])
    edge.add(router, "/v1/jobs/webhook-secret", [one("GET", "webhook_secret")])
    edge.add(router, "/v1/jobs/{id}", [one("GET", "read", takes_its_time=True), one("DELETE", "forget")])
    edge.add(router, "/v1/jobs/{id}/cancel", [one("POST", "cancel")])
    edge.add(router, "/v1/jobs/{id}/retry", [one("POST", "retry")])
    edge.add(router, "/v1/jobs/{id}/events", [one("GET", "events", takes_its_time=True)])


@dataclass(frozen=True, kw_only=True)
class _Handlers:
    sandbox: CodeSandbox
    edge: Edge

    async def submit(self, request: Request) -> Response:
        async with self.edge.deadline():
            actor = await self.edge.access.actor(request)
        body = checked(JobBody, parse_object(await self.edge.read(request)))
        async with self.edge.deadline():
            job = await self.sandbox.jobs.submit(actor, self._wanted(body, request))
        return json_reply(self._shown(job), 202)

    async def submit_batch(self, request: Request) -> Response:
        async with self.edge.deadline():
            actor = await self.edge.access.actor(request)
        most = self.edge.settings.max_batch_bytes
        raw = await self.edge.read(request, max_bytes=most)
        # It may be so long that others would wait.
        members = await asyncio.to_thread(parse_object, raw)
        bodies = checked_batch(members, most=self.sandbox.jobs.config.most_of_batch)
        async with self.edge.deadline():
            jobs = await self.sandbox.jobs.submit_batch(actor, self._all_wanted(actor, bodies, request))
        return json_reply({"batchId": jobs[0].batch_id, "jobs": [accepted(job) for job in jobs]}, 202)

    async def list(self, request: Request) -> Response:
        actor = await self.edge.access.actor(request)
        query = request.query_params
        page = await self.sandbox.jobs.list(
            actor, self._filter(request), limit=_limit(query.get("limit")), cursor=query.get("cursor") or None
        )
        return json_reply({"jobs": [self._shown(job, whole=False) for job in page.jobs], "cursor": page.cursor})

    async def depth(self, request: Request) -> Response:
        await self.edge.access.actor(request)
        return json_reply(from_depth(await self.sandbox.jobs.depth()))

    async def webhook_secret(self, request: Request) -> Response:
        actor = await self.edge.access.actor(request)
        return json_reply({"secret": self.sandbox.jobs.secret_of(actor)})

    async def read(self, request: Request) -> Response:
        async with self.edge.deadline():
            actor = await self.edge.access.actor(request)
            job = await self.sandbox.jobs.get(actor, _id(request))
        if (waited_s := wait_s(request, self.edge.answer_s)) and not job.has_ended:
            job = await self.sandbox.ended(request, job, timeout_s=waited_s)
        return json_reply(self._shown(job))

    async def forget(self, request: Request) -> Response:
        actor = await self.edge.access.actor(request)
        await self.sandbox.jobs.forget(actor, _id(request))
        return empty_reply(204)

    async def cancel(self, request: Request) -> Response:
        actor = await self.edge.access.actor(request)
        return json_reply(self._shown(await self.sandbox.jobs.cancel(actor, _id(request))))

    async def retry(self, request: Request) -> Response:
        actor = await self.edge.access.actor(request)
        return json_reply(self._shown(await self.sandbox.jobs.retry(actor, _id(request))), 202)

    async def events(self, request: Request) -> Response:
        async with self.edge.deadline():
            actor = await self.edge.access.actor(request)
            job = await self.sandbox.jobs.get(actor, _id(request))  # else a 404 would have to be an event
        async with AsyncExitStack() as held:
            held.enter_context(self.sandbox.streams.hold(actor))
            events = self._while_let_in(request, self.sandbox.jobs.events(actor, job.id))
            frames = framed(events, seen=last_seen(request), shown=self._shown)
            return EventStream(request, frames, held.pop_all())

    async def _while_let_in(self, request: Request, events: AsyncIterator[JobEvent]) -> AsyncIterator[JobEvent]:
        """*events*, of which none is told to who is let in no more: a job may wait for months.

        Raises:
            Unauthorized: the key was revoked, the token's time is up, the account is gone.
        """
        looked_at = time.monotonic()
        async for event in events:
            if time.monotonic() - looked_at >= LOOK_AGAIN_S:
                with suppress(Unavailable):  # a database that is away ends nothing
                    await self.edge.access.actor(request)
                looked_at = time.monotonic()
            yield event

    def _shown(self, job: Job, *, whole: bool = True) -> dict[str, object]:
        return from_job(job, default_wall_s=self.sandbox.default_wall_s(job), whole=whole)

    def _wanted(self, body: JobBody, request: Request) -> JobRequest:
        return to_job(body, self.sandbox.defaults, trace=trace_of(request), now=datetime.now(UTC))

    def _all_wanted(self, actor: Actor, bodies: Sequence[JobBody], request: Request) -> Sequence[JobRequest]:
        """What a batch asks for; the first that is wrong is named."""
        found: list[JobRequest] = []
        for number, one in enumerate(bodies):
            try:
                found.append(self._wanted(one, request))
                self.sandbox.jobs.check(actor, found[-1])
            except (Invalid, Unsupported) as error:
                failure = from_error(error)
                field = ".".join(part for part in (f"jobs.{number}", failure.field) if part)
                raise Refused(failure.status, f"jobs.{number}: {failure.error}", field=field) from None
        return found

    def _filter(self, request: Request) -> JobFilter:
        query = request.query_params
        return JobFilter(
            key_id=query.get("key") or None,
            account_id=query.get("account") or None,
            states=_states(query.get("status", "")),
            language=self._language(query.get("language", "")),
            batch_id=query.get("batch") or None,
            is_dead=_boolean("dead", query.get("dead", "")),
            created_after=moment(text, "after") if (text := query.get("after")) else None,
            created_before=moment(text, "before") if (text := query.get("before")) else None,
        )

    def _language(self, name: str) -> str | None:
        if not name:
            return None
        try:
            return self.sandbox.engine.languages.find(name).name
        except UnknownLanguage as error:
            raise Refused(400, str(error), field="language") from None


def _id(request: Request) -> str:
    job_id: str = request.path_params["id"]
    return job_id


def _states(text: str) -> frozenset[JobState]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        return frozenset(JobState(name) for name in names)
    except ValueError:
        known = ", ".join(state.value for state in JobState)
        raise Refused(400, f"status: must be of {known}", field="status") from None


def _boolean(name: str, text: str) -> bool | None:
    if text not in ("", "true", "false"):
        raise Refused(400, f"{name}: must be true or false", field=name)
    return None if not text else text == "true"


def _limit(text: str | None) -> int:
    if text is None:
        return _LISTED
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or not 1 <= int(text) <= _MOST_LISTED:
        raise Refused(400, f"limit: must be from 1 to {_MOST_LISTED}", field="limit")
    return int(text)
