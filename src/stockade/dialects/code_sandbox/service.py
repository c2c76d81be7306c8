"""What the routes share: jobs, the settings that measure requests, and what each reads from its query and headers."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry import propagate
from starlette.requests import Request

from stockade.dialects.code_sandbox.durations import SECOND_NS, BadDuration, parse_ns
from stockade.dialects.code_sandbox.failures import JobsMissing, Refused
from stockade.dialects.code_sandbox.gojson import is_blank, trimmed
from stockade.dialects.code_sandbox.translate import Defaults
from stockade.engine import Engine
from stockade.engine.jobs import Jobs
from stockade.errors import NoAnswer, UnknownLanguage
from stockade.model import LimitOverrides
from stockade.model.jobs import Job
from stockade.wire.clients import while_connected
from stockade.wire.rates import Concurrency

__all__ = ["CodeSandbox", "trace_of", "wait_s"]

GRACE_S = 2.0
"""What the store may take beyond the time that a client wants to wait."""


@dataclass(frozen=True, kw_only=True)
class CodeSandbox:
    """The dialect's services."""

    engine: Engine
    defaults: Defaults
    spellings: Mapping[str, str] | None
    """Languages of the contract's routes; `None`: all that the engine has."""
    streams: Concurrency
    """Events that are followed."""

    @property
    def jobs(self) -> Jobs:
        """Raises JobsMissing where this server keeps none."""
        jobs = self.engine.jobs
        if jobs is None:
            raise JobsMissing
        return jobs

    def default_wall_s(self, job: Job) -> float:
        """The time that a job has whose request named none: another dialect's."""
        try:
            language = self.engine.languages.find(job.language)
        except UnknownLanguage:  # this server has lost it since
            return self.engine.limits.defaults.wall_s
        return self.engine.limits.resolve(language.limits, LimitOverrides()).wall_s

    async def ended(self, request: Request, job: Job, *, timeout_s: float) -> Job:
        """*job* once it has ended, or as it is after *timeout_s*. Given up when the client leaves.

        Raises:
            NoAnswer: the store took too long.
        """
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                return await while_connected(request, self.jobs.ended(job, timeout_s=timeout_s))
        except TimeoutError:
            raise NoAnswer("the store took too long") from None


def wait_s(request: Request, longest_s: float) -> float:
    """The seconds that a client wants to wait (`?wait=10s`), *longest_s* at most; 0 without it.

    Raises:
        Refused: it is no duration, or a negative one.
    """
    text = request.query_params.get("wait", "")
    if is_blank(text):
        return 0.0
    try:
        wait_ns = parse_ns(trimmed(text))
    except BadDuration:
        wait_ns = -1
    if wait_ns < 0:
        raise Refused(400, "invalid wait value", field="wait")
    return min(wait_ns / SECOND_NS, longest_s)


def trace_of(request: Request) -> str:
    """The W3C `traceparent` under which the job goes on: of our own span where there is one, else the client's. One of
    another form is dropped further down.
    """
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent") or request.headers.get("traceparent", "").strip()
