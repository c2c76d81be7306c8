"""The one port of a sandbox that can be reached from outside: bind, unbind, ask."""

import re
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from stockade.dialects.executor.documented import BOOLEAN, STRING, answer, body
from stockade.dialects.executor.engine_needs import Bindings
from stockade.dialects.executor.operation import BadRequest, Caller, Fields, Operation
from stockade.dialects.executor.replies import json_reply
from stockade.engine.bindings import AlreadyBound

__all__ = ["PortOperations"]

_PORT = re.compile(r"0{0,3}[1-9][0-9]{0,4}")
_MOST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class PortOperations:
    """Which port inside is led to."""

    bindings: Bindings

    def operations(self) -> dict[str, Operation]:
        """By path."""
        return {
            "/bind_port": Operation(
                method="POST",
                work=self.bind,
                summary="Lead connections from outside to a port",
                description="Nothing needs to listen there yet. One port can be bound at a time.",
                responses={
                    **answer(success=BOOLEAN, message=STRING, port=STRING),
                    **answer(409, success=BOOLEAN, error=STRING, current_port=STRING),
                },
                extra=body({"port": {**STRING, "description": "1 to 65535, as a string."}}, required=("port",)),
            ),
            "/unbind_port": Operation(
                method="POST",
                work=self.unbind,
                summary="Lead connections nowhere",
                description="Those that are open go on. The body is ignored.",
                responses=answer(success=BOOLEAN, message=STRING),
                has_body=False,
            ),
            "/port_status": Operation(
                method="GET",
                work=self.status,
                summary="Which port is bound",
                has_body=False,
                responses=answer(success=BOOLEAN, port=STRING),
            ),
        }

    async def bind(self, caller: Caller, fields: Fields, _request: Request) -> Response:
        """Bind a port."""
        text = fields.text("port")
        if not text:
            raise BadRequest("Port is required")
        port = int(text) if _PORT.fullmatch(text) else 0
        if not 1 <= port <= _MOST_PORT:
            raise BadRequest("Invalid port")
        if not caller.has_bound_port:
            raise BadRequest("No port leads to this sandbox; it must be made with its network exposed")
        try:
            await self.bindings.bind(caller.actor, caller.sandbox_id, port)
        except AlreadyBound as error:
            conflict = {"success": False, "error": "Port already bound", "current_port": str(error.port)}
            return json_reply(conflict, 409)
        return json_reply({"success": True, "message": "Port binding configured", "port": str(port)})

    async def unbind(self, caller: Caller, _fields: Fields, _request: Request) -> Response:
        """Unbind whatever is bound."""
        await self.bindings.unbind(caller.actor, caller.sandbox_id)
        return json_reply({"success": True, "message": "Port binding removed"})

    async def status(self, caller: Caller, _fields: Fields, _request: Request) -> Response:
        """The port that is bound, if any."""
        port = await self.bindings.bound(caller.actor, caller.sandbox_id)
        return json_reply({"success": True} if port is None else {"success": True, "port": str(port)})
