"""Routes of jobs: submit, list, read, cancel, retry, forget, and follow."""

import codecs
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from stockade.engine import Languages
from stockade.engine.jobs import JobRequest, Jobs
from stockade.errors import StockadeError
from stockade.model import LimitOverrides, RunSpec
from stockade.model.jobs import FINAL_STATES, Job, JobFilter, JobState, OutputPiece
from stockade.web import translate
from stockade.web.edge import Caller, Edge
from stockade.web.examples import example_of
from stockade.web.failures import FieldInvalid, from_error
from stockade.web.wire import JobBody
from stockade.wire.events import EventStream, frame, ticking

__all__ = ["add_jobs", "add_languages", "to_filter", "to_number"]

DIALECT = "portal"
TICK_S = 15.0
MOST_LISTED = 200
_USUALLY_LISTED = 50
_UNENDED = frozenset(JobState) - FINAL_STATES
_NAMES = frozenset(one.value for one in JobState)


def to_filter(query: QueryParams, languages: Languages) -> JobFilter:
    """Which jobs the query asks for.

    Raises:
        Invalid: a parameter is wrong.
    """
    language = query.get("language") or None
    return JobFilter(
        states=_states(query.get("state") or ""),
        language=None if language is None else languages.find(language).name,
        key_id=query.get("key") or None,
        batch_id=query.get("batch") or None,
        is_dead={"true": True, "false": False}.get(query.get("dead") or ""),
        created_after=_moment(query, "after"),
        created_before=_moment(query, "before"),
    )


def _states(text: str) -> frozenset[JobState]:
    """States by name, several with commas between; `living` and `ended` stand for some."""
    states: set[JobState] = set()
    for name in filter(None, text.split(",")):
        if name == "living":
            states |= _UNENDED
        elif name == "ended":
            states |= FINAL_STATES
        elif name in _NAMES:
            states.add(JobState(name))
        else:
            raise FieldInvalid("state", f"state: there is none called {name[:40]!r}")
    return frozenset(states)


def _moment(query: QueryParams, name: str) -> datetime | None:
    text = query.get(name)
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        # A day by itself begins at 00:00 UTC.
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise FieldInvalid(name, f"{name}: must be a date, or a date and time like 2026-02-03T04:05:06Z") from None


def to_number(query: Mapping[str, str], name: str, *, least: int, most: int, default: int) -> int:
    """A whole number in the query.

    Raises:
        FieldInvalid: it is none, or out of bounds.
    """
    text = query.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
        raise FieldInvalid(name, f"{name}: must be a whole number from {least} to {most}")
    return int(text)


def to_request(body: JobBody) -> JobRequest:
    """The job that the front end asks for."""
    return JobRequest(
        spec=RunSpec(
            language=body.language,
            code=body.code,
            stdin=body.stdin.encode(),
            args=tuple(body.args),
            limits=LimitOverrides(**body.limits.model_dump()),
        ),
        dialect=DIALECT,
        priority=body.priority,
        run_at=datetime.now(UTC) + timedelta(seconds=body.delay_s) if body.delay_s else None,
        labels=body.labels,
    )


@dataclass(frozen=True, kw_only=True)
class _JobRoutes:
    jobs: Jobs
    languages: Languages
    edge: Edge

    async def names(self, caller: Caller) -> dict[str, str]:
        """Names of the account's keys, by id."""
        return {one.id: one.name for one in await self.edge.accounts.keys.list(caller.actor)}

    async def told(self, caller: Caller, job: Job) -> dict[str, Any]:
        return translate.job(job, await self.names(caller))

    async def listed(self, caller: Caller, query: QueryParams) -> dict[str, Any]:
        which = to_filter(query, self.languages)
        if not (caller.actor.is_admin and query.get("everybody") == "true"):
            which = replace(which, account_id=caller.actor.account_id)
        limit = to_number(query, "limit", least=1, most=MOST_LISTED, default=_USUALLY_LISTED)
        page = await self.jobs.list(caller.actor, which, limit=limit, cursor=query.get("cursor") or None)
        names = await self.names(caller)
        return {"jobs": [translate.job(one, names, whole=False) for one in page.jobs], "cursor": page.cursor}

    async def followed(self, caller: Caller, job_id: str) -> AsyncGenerator[bytes, None]:
        """What happens to a job, as events, until it has ended, or the log-in has."""
        names = await self.names(caller)
        decoders = _decoders()
        source = self.jobs.events(caller.actor, job_id)
        happening = ticking(source, TICK_S)
        looked_at = time.monotonic()
        try:
            async for one in happening:
                if time.monotonic() - looked_at >= TICK_S - 1:
                    looked_at = time.monotonic()
                    if not await self.edge.is_still_in(caller):
                        return
                match one:
                    case None:
                        pass  # the stream itself says that it is there
                    case OutputPiece():
                        stream = "stderr" if one.is_stderr else "stdout"
                        # A character may lie across two pieces.
                        if text := decoders[one.is_stderr].decode(one.data):
                            yield frame("output", {"stream": stream, "text": text})
                    case _:
                        if one.job.state is JobState.RUNNING:  # perhaps once more: what it printed before is void
                            decoders = _decoders()
                        yield frame("state", translate.job(one.job, names))
        except StockadeError as error:
            # The head has gone out: an event of its own tells, and the browser asks for the job once more.
            yield frame("failure", from_error(error).body())
        finally:
            await happening.aclose()


def _decoders() -> dict[bool, codecs.IncrementalDecoder]:
    make = codecs.getincrementaldecoder("utf-8")
    return {False: make(errors="replace"), True: make(errors="replace")}


def add_jobs(router: APIRouter, jobs: Jobs, languages: Languages, edge: Edge) -> None:
    """All routes of jobs."""
    routes = _JobRoutes(jobs=jobs, languages=languages, edge=edge)

    async def submit(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            body = await edge.read(request, JobBody)
            return await routes.told(caller, await jobs.submit(caller.actor, to_request(body)))

        return await edge.call(request, work, status=202)

    async def list_some(request: Request) -> Response:
        return await edge.call(request, lambda caller: routes.listed(caller, request.query_params))

    async def read(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            return await routes.told(caller, await jobs.get(caller.actor, _id(request)))

        return await edge.call(request, work)

    async def forget(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            await jobs.forget(caller.actor, _id(request))
            return None

        return await edge.call(request, work)

    async def cancel(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            return await routes.told(caller, await jobs.cancel(caller.actor, _id(request)))

        return await edge.call(request, work)

    async def retry(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            return await routes.told(caller, await jobs.retry(caller.actor, _id(request)))

        return await edge.call(request, work, status=202)

    async def follow(request: Request) -> Response:
        async def work(caller: Caller) -> object:
            await jobs.get(caller.actor, _id(request))  # refused before the head goes out
            async with AsyncExitStack() as held:
                held.enter_context(edge.hold(caller))
                return EventStream(request, routes.followed(caller, _id(request)), held.pop_all())

        return await edge.call(request, work)

    router.add_route("/api/jobs", list_some, methods=["GET"])
    router.add_route("/api/jobs", submit, methods=["POST"])
    router.add_route("/api/jobs/{job_id}", read, methods=["GET"])
    router.add_route("/api/jobs/{job_id}", forget, methods=["DELETE"])
    router.add_route("/api/jobs/{job_id}/cancel", cancel, methods=["POST"])
    router.add_route("/api/jobs/{job_id}/retry", retry, methods=["POST"])
    router.add_route("/api/jobs/{job_id}/events", follow, methods=["GET"])


def _id(request: Request) -> str:
    name: str = request.path_params["job_id"]
    return name


def add_languages(router: APIRouter, languages: Languages, edge: Edge) -> None:
    """What can be run here."""

    async def list_all(request: Request) -> Response:
        async def work(_caller: Caller) -> object:
            return {
                "languages": [
                    {
                        "name": one.name,
                        "title": one.display_name,
                        "aliases": list(one.aliases),
                        "extension": one.extensions[0] if one.extensions else "",
                        "installed": languages.is_available(one.name),
                        "packages": list(one.packages),
                        "example": example_of(one),
                    }
                    for one in languages.all()
                ]
            }

        return await edge.call(request, work)

    router.add_route("/api/languages", list_all, methods=["GET"])
