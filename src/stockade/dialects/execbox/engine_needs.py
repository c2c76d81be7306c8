"""What the dialect needs of the engine, as protocols: its routes are tested without one."""

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from stockade.backends.sandboxing import FileAccess, Streams
from stockade.model import Actor, ExecSpec, Sandbox, SandboxRequest, SandboxState, Usage

__all__ = ["Execution", "Page", "Sandboxes", "UsageNow"]


class Page(Protocol):
    @property
    def items(self) -> Sequence[Sandbox]: ...

    @property
    def cursor(self) -> str | None: ...


class Execution(Protocol):
    @property
    def streams(self) -> Streams: ...

    async def kill(self) -> None: ...


class UsageNow(Protocol):
    @property
    def usage(self) -> Usage: ...

    @property
    def memory_bytes(self) -> int: ...


class Sandboxes(Protocol):
    async def create(self, actor: Actor, request: SandboxRequest) -> Sandbox: ...

    async def get(self, actor: Actor, sandbox_id: str, /) -> Sandbox: ...

    async def list(
        self,
        actor: Actor,
        *,
        states: Collection[SandboxState] | None = None,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Page: ...

    async def stop(self, actor: Actor, sandbox_id: str, /) -> Sandbox: ...

    async def kill(self, actor: Actor, sandbox_id: str, /) -> Sandbox: ...

    async def extend(self, actor: Actor, sandbox_id: str, lifetime_s: float, /) -> Sandbox: ...

    async def attach(self, actor: Actor, sandbox_id: str, /) -> Streams: ...

    async def exec(self, actor: Actor, sandbox_id: str, spec: ExecSpec, /) -> Execution: ...

    async def usage(self, actor: Actor, sandbox_id: str, /) -> UsageNow: ...

    def files(
        self, actor: Actor, sandbox_id: str, /, *, user: str | None = None
    ) -> AbstractAsyncContextManager[FileAccess]: ...
