"""What the dialect does with sessions: the engine's use cases, asked for and answered in the protocol's terms."""

import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.websockets import WebSocket

from stockade.backends.sandboxing import FileAccess, Streams
from stockade.dialects.execbox.engine_needs import Sandboxes
from stockade.dialects.execbox.executor import ExecutorApi, executor, with_executor
from stockade.dialects.execbox.queries import Query, to_exec, to_path
from stockade.dialects.execbox.settings import ExecboxSettings
from stockade.dialects.execbox.streams import Relay
from stockade.dialects.execbox.translate import (
    NAME,
    Measures,
    created,
    exposed,
    is_session,
    new_id,
    session,
    states_of,
    stats,
    status_of,
    to_request,
)
from stockade.dialects.execbox.wire import CreateBody, ExtendBody
from stockade.engine import LimitPolicy
from stockade.errors import Conflict, Invalid, NotFound
from stockade.model import Actor, Sandbox

__all__ = ["Sessions"]

T = TypeVar("T")

PAGE = 500
_MOST_OFFSET = 2**62


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """Sessions of a key."""

    sandboxes: Sandboxes
    limits: LimitPolicy
    settings: ExecboxSettings
    image_cwd: Callable[[str], str]
    """Working directory of an image; raises UnknownImage."""
    executor_api: ExecutorApi

    async def create(self, actor: Actor, body: CreateBody, *, executor_url: str) -> dict[str, Any]:
        """Start a session; it runs when this returns."""
        needs_base = any(not file.path.startswith("/") for file in body.files or ())
        measures = Measures(
            settings=self.settings,
            limits=self.limits,
            actor=actor,
            cwd=self.image_cwd(body.image) if needs_base else "/",
        )
        request, secret = to_request(body, measures, id=new_id()), None
        if body.executor is not None:
            request, secret = with_executor(request, body.executor, self.executor_api)
        sandbox = await self.sandboxes.create(actor, request)
        return created(sandbox, self.settings.url_host) | executor(sandbox, executor_url, secret=secret)

    async def read(self, actor: Actor, session_id: str, *, executor_url: str) -> dict[str, Any]:
        """The session as it is now."""
        return self._session(await self.find(actor, session_id), executor_url)

    def _session(self, sandbox: Sandbox, executor_url: str) -> dict[str, Any]:
        return session(sandbox, self.settings.url_host) | executor(sandbox, executor_url)

    async def list(self, actor: Actor, query: Query, *, executor_url: str) -> dict[str, Any]:
        """The key's sessions, newest first: all of them, or a page where the query asks for one."""
        status = query.text("status")
        states = states_of(status)
        limit = query.number("limit", least=1, most=PAGE)
        cursor = query.text("cursor")
        found: list[Sandbox] = []
        while True:
            page = await self.sandboxes.list(actor, states=states, limit=limit or PAGE, cursor=cursor)
            found += page.items
            cursor = page.cursor
            if limit or cursor is None:
                break
        answer: dict[str, Any] = {
            "sessions": [
                self._session(one, executor_url)
                for one in found
                if one.dialect == NAME and status in (None, status_of(one))
            ]
        }
        return answer | ({"cursor": cursor} if cursor else {})

    async def stop(self, actor: Actor, session_id: str) -> dict[str, Any]:
        """End it gracefully."""
        await self._asked(session_id, self.sandboxes.stop(actor, _checked(session_id)))
        return {"status": "stopped"}

    async def kill(self, actor: Actor, session_id: str) -> dict[str, Any]:
        """End it now, or drop what an ended one left."""
        await self._asked(session_id, self.sandboxes.kill(actor, _checked(session_id)))
        return {"status": "killed"}

    async def extend(self, actor: Actor, session_id: str, body: ExtendBody, *, executor_url: str) -> dict[str, Any]:
        """Set the life that is left."""
        lifetime_s = body.timeout_ms / 1000
        sandbox = await self._asked(session_id, self.sandboxes.extend(actor, _checked(session_id), lifetime_s))
        return self._session(sandbox, executor_url)

    async def url(self, actor: Actor, session_id: str, query: Query) -> dict[str, Any]:
        """Where clients reach one of its ports."""
        port = query.number("port", least=1, most=65535)
        if port is None:
            raise Invalid("port is required")
        return exposed(await self.find(actor, session_id), port, self.settings.url_host)

    async def stats(self, actor: Actor, session_id: str) -> dict[str, Any]:
        """What it has used so far."""
        sandbox = await self.find(actor, session_id)
        if sandbox.usage is not None:
            return stats(sandbox.usage, None)
        now = await self.sandboxes.usage(actor, session_id)
        return stats(now.usage, now.memory_bytes)

    async def find(self, actor: Actor, session_id: str) -> Sandbox:
        """The session's record.

        Raises:
            NotFound: there is none of this id, or it is somebody else's; which of these is not told.
        """
        sandbox = await self._asked(session_id, self.sandboxes.get(actor, _checked(session_id)))
        if sandbox.dialect != NAME:
            raise _no_session(session_id)
        return sandbox

    async def open_output(self, actor: Actor, session_id: str) -> Streams:
        """The main process's streams."""
        return await self._asked(session_id, self.sandboxes.attach(actor, _checked(session_id)))

    async def attach(self, actor: Actor, session_id: str, query: Query, socket: WebSocket) -> None:
        """Serve a connection to the main process."""
        query.choice("protocol", "binary")
        offset = query.number("offset", least=0, most=_MOST_OFFSET, default=0)
        stdout_at = query.number("stdoutOffset", least=0, most=_MOST_OFFSET, default=offset)
        stderr_at = query.number("stderrOffset", least=0, most=_MOST_OFFSET, default=0)
        streams = await self.open_output(actor, session_id)
        try:
            await socket.accept()
            relay = Relay(socket=socket, streams=streams, stdout_at=stdout_at or 0, stderr_at=stderr_at or 0)
            await relay.serve()
        finally:
            streams.close()

    async def exec(self, actor: Actor, session_id: str, query: Query, socket: WebSocket) -> None:
        """Serve a connection to a process of its own, which ends with it."""
        spec = to_exec(query)
        if spec.cwd is not None and not spec.cwd.startswith("/"):
            spec = replace(spec, cwd=posixpath.join((await self.find(actor, session_id)).cwd, spec.cwd))
        execution = await self._asked(session_id, self.sandboxes.exec(actor, _checked(session_id), spec))
        try:
            await socket.accept()
            relay = Relay(
                socket=socket,
                streams=execution.streams,
                has_terminal=spec.terminal is not None,
                program=spec.argv[0],
            )
            await relay.serve()
        finally:
            await execution.kill()  # nobody can ask for it again

    @asynccontextmanager
    async def files(self, actor: Actor, session_id: str, query: Query) -> AsyncIterator[tuple[FileAccess, str]]:
        """The session's files, and the query's path as an absolute one."""
        path = query.text("path")
        absolute = to_path(path)
        user = query.choice("user", "", "user", "root") or None
        if path and not path.startswith("/"):
            absolute = to_path(path, (await self.find(actor, session_id)).cwd)
        opened = self.sandboxes.files(actor, _checked(session_id), user=user)
        # Only what opening raises is about the session; what the block raises is about files.
        files = await self._asked(session_id, opened.__aenter__())
        try:
            yield files, absolute
        finally:
            await opened.__aexit__(None, None, None)

    async def _asked(self, session_id: str, answer: Awaitable[T]) -> T:
        """*answer*; where the engine knows no such sandbox, in the protocol's words."""
        try:
            return await answer
        except NotFound:
            raise _no_session(session_id) from None
        except Conflict as error:
            raise Conflict(str(error).replace(f"sandbox {session_id}", f"session {session_id}")) from None


def _checked(session_id: str) -> str:
    if not is_session(session_id):
        raise _no_session(session_id)
    return session_id


def _no_session(session_id: str) -> NotFound:
    return NotFound(f"session {session_id[:100]} not found")
