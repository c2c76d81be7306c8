"""Bound ports: which port inside a sandbox connections to its `Port.BOUND` lead to.

At most one is bound at a time. It is durable: committed before anybody is told, found again after a restart. Who
carries the connections (`engine.ports`) looks at the record in memory when one comes, so that a change counts from the
moment on that its caller is answered. Whether anything listens there is nobody's business here.
"""

from stockade.engine.sandboxes import Sandboxes
from stockade.errors import Conflict, Invalid, Unavailable
from stockade.model import Actor, Sandbox

__all__ = ["AlreadyBound", "Bindings"]


class AlreadyBound(Conflict):
    """A port is bound already; unbind it first."""

    code = "port.already_bound"

    def __init__(self, sandbox_id: str, port: int) -> None:
        self.port = port
        """The one that is bound."""
        super().__init__(f"port {port} of sandbox {sandbox_id} is bound already; unbind it first")


class Bindings:
    """Binds ports of sandboxes, and lets them go."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self._lives = sandboxes.lives

    async def bind(self, actor: Actor, sandbox_id: str, port: int) -> None:
        """Let connections to a sandbox that come from now on lead to *port* inside. Of two at once, one does it.

        Raises:
            AlreadyBound: a port is bound, be it the same.
            Invalid: *port* is none.
            NotFound: there is no such sandbox, or it is another key's.
            Conflict: it does not run.
            Unavailable: the database is away, and whether the port has been bound is not known; or the sandbox is
                another server's.
        """
        if not 1 <= port <= 65535:
            raise Invalid(f"port: {port} is no port; 1 to 65535 are")
        row = await self._running(actor, sandbox_id)
        if row.bound_port is not None:
            raise AlreadyBound(sandbox_id, row.bound_port)
        # Settled: a caller that goes away must not leave the record in memory behind the one in the database.
        if await self._lives.tasks.settle(self._lives.bind(sandbox_id, port), name=f"bind {sandbox_id}") is not None:
            return
        # Somebody else was quicker; or an answer of the database was lost, and this port has been bound since.
        found = await self._lives.look_up(sandbox_id)
        if found is not None and found.bound_port is not None:
            raise AlreadyBound(sandbox_id, found.bound_port)
        await self._running(actor, sandbox_id)
        raise Conflict(f"port {port} of sandbox {sandbox_id} was not bound: another one was, and let go; bind it again")

    async def unbind(self, actor: Actor, sandbox_id: str) -> None:
        """Let connections that come from now on lead nowhere. Those that are open stay. Idempotent.

        Raises:
            NotFound, Conflict, Unavailable: as `bind`.
        """
        await self._running(actor, sandbox_id)
        # Also where we know of no bound port: the answer to a `bind` may have been lost.
        await self._lives.tasks.settle(self._lives.amend(sandbox_id, bound_port=None), name=f"unbind {sandbox_id}")

    async def bound(self, actor: Actor, sandbox_id: str) -> int | None:
        """The port that is bound; `None` for none.

        Raises:
            NotFound, Conflict, Unavailable: as `bind`.
        """
        return (await self._running(actor, sandbox_id)).bound_port

    async def _running(self, actor: Actor, sandbox_id: str) -> Sandbox:
        """The record of a sandbox of *actor*'s that runs here: what is bound is carried by this server."""
        row = await self._sandboxes.require_running(actor, sandbox_id)
        if sandbox_id not in self._lives:
            # Its record says that it runs a moment before the task that makes it is done, and it is watched.
            await self._sandboxes.creations.finished(sandbox_id, within_s=self._lives.options.answer_s)
            row = await self._sandboxes.require_running(actor, sandbox_id)
            if sandbox_id not in self._lives:
                raise Unavailable(f"sandbox {sandbox_id} runs on another server of this database; ask that one")
        return row
