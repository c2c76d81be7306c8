"""The contract's routes: queue a program, and read what has become of it."""

from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from stockade.dialects.code_sandbox.documented import Described, answer, body, path_id, query
from stockade.dialects.code_sandbox.edge import Edge, Operation
from stockade.dialects.code_sandbox.failures import JOB_NOT_FOUND, Refused, loading, submitting
from stockade.dialects.code_sandbox.gojson import parse_strings
from stockade.dialects.code_sandbox.replies import json_reply
from stockade.dialects.code_sandbox.service import CodeSandbox, trace_of, wait_s
from stockade.dialects.code_sandbox.shown import accepted, document
from stockade.dialects.code_sandbox.translate import to_request, to_spec
from stockade.dialects.code_sandbox.wire import Accepted, ExecuteBody, RecordAnswer

__all__ = ["add_execution"]

_FIELDS = frozenset(("language", "code", "stdin", "timeout"))
_EXAMPLE = {
    "language": "python",
    "code": "print(sum(map(int, input().split())))",
    "stdin": "4 5 6\n",
    "timeout": "1500ms",
}


def add_execution(router: APIRouter, sandbox: CodeSandbox, edge: Edge) -> None:
    """Add the routes to *router*."""
    handlers = _Handlers(sandbox=sandbox, edge=edge)
    submit = Operation(
        method="POST",
        work=handlers.submit,
        words=submitting,
        takes_its_time=True,
        about=Described(
            name="execute",
            summary="Queue a program",
            description="It runs in a fresh sandbox as soon as a worker is free; `GET /v1/execute/{id}` tells of it.",
            responses=answer(202, Accepted, "It is queued."),
            extra=body(ExecuteBody, _EXAMPLE),
        ),
    )
    read = Operation(
        method="GET",
        work=handlers.read,
        words=loading,
        takes_its_time=True,
        about=Described(
            name="execution",
            summary="Read a job",
            description="Whatever has become of the program is a 200: `status` tells.",
            responses=answer(200, RecordAnswer, "The job."),
            extra={"parameters": [path_id(), query("wait", "Wait for its end, up to this Go duration.")]},
        ),
    )
    edge.add(router, "/v1/execute", [submit])
    edge.add(router, "/v1/execute/{id:path}", [read], shown="/v1/execute/{id}")


@dataclass(frozen=True, kw_only=True)
class _Handlers:
    sandbox: CodeSandbox
    edge: Edge

    async def submit(self, request: Request) -> Response:
        async with self.edge.deadline():
            actor = await self.edge.access.actor(request, lenient=True)
        fields = parse_strings(await self.edge.read(request), _FIELDS)
        spec = to_spec(fields, self.sandbox.defaults, known=self.sandbox.spellings)
        async with self.edge.deadline():
            job = await self.sandbox.jobs.submit(actor, to_request(spec, trace=trace_of(request)))
        return json_reply(accepted(job), 202)

    async def read(self, request: Request) -> Response:
        longest_s = self.edge.answer_s
        async with self.edge.deadline():
            actor = await self.edge.access.actor(request, lenient=True)
            job_id = request.path_params["id"]
            if not job_id.strip() or "/" in job_id:
                raise Refused(404, JOB_NOT_FOUND)
            job = await self.sandbox.jobs.get(actor, job_id)
        if (waited_s := wait_s(request, longest_s)) and not job.has_ended:
            job = await self.sandbox.ended(request, job, timeout_s=waited_s)
        return json_reply(document(job, default_wall_s=self.sandbox.default_wall_s(job)))
