"""What the dialect needs of the engine, as protocols: its operations are tested without one."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from stockade.backends.sandboxing import FileAccess, LiveProcess, Reading, Streams
from stockade.model import Actor, ExecSpec, Sandbox

__all__ = ["Bindings", "Execution", "Grant", "Lines", "Processes", "Sandboxes", "Secrets"]


class Grant(Protocol):
    @property
    def actor(self) -> Actor: ...

    @property
    def sandbox(self) -> Sandbox: ...


class Secrets(Protocol):
    async def find(self, secret: str, /) -> Grant | None: ...


class Execution(Protocol):
    @property
    def streams(self) -> Streams: ...

    def discard(self) -> None: ...


class Sandboxes(Protocol):
    async def exec(
        self, actor: Actor, sandbox_id: str, spec: ExecSpec, /, *, reading: Reading, gather: int
    ) -> Execution: ...

    async def require_running(self, actor: Actor, sandbox_id: str, /) -> Sandbox: ...

    def files(
        self, actor: Actor, sandbox_id: str, /, *, user: str | None = None
    ) -> AbstractAsyncContextManager[FileAccess]: ...


class Lines(Protocol):
    @property
    def at_ns(self) -> int: ...

    @property
    def is_stderr(self) -> bool: ...

    @property
    def lines(self) -> list[bytes]: ...


class Processes(Protocol):
    async def start(self, actor: Actor, sandbox_id: str, spec: ExecSpec, /, *, id: str) -> LiveProcess: ...

    async def list(self, actor: Actor, sandbox_id: str, /) -> Sequence[LiveProcess]: ...

    async def kill(self, actor: Actor, sandbox_id: str, id: str, /, *, number: int) -> LiveProcess: ...

    def logs(self, actor: Actor, sandbox_id: str, id: str, /, *, most_lines: int) -> "AsyncGenerator[Lines, None]": ...


class Bindings(Protocol):
    async def bind(self, actor: Actor, sandbox_id: str, port: int, /) -> None: ...

    async def unbind(self, actor: Actor, sandbox_id: str, /) -> None: ...

    async def bound(self, actor: Actor, sandbox_id: str, /) -> int | None: ...
