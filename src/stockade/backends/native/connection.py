"""One connection to the warden: many requests under way, answers in any order."""

import asyncio
import contextlib
import errno
import os
from collections import deque
from typing import Any, TypeAlias

import structlog

from stockade.backends.base import SandboxSpec
from stockade.backends.native.launch import Warden
from stockade.errors import (
    BackendLost,
    Conflict,
    Fault,
    Invalid,
    NotFound,
    StockadeError,
    Unavailable,
    Unsupported,
)
from stockade.model import Limits, ProcessSpec, Template, TemplateKind
from stockade.warden import protocol

__all__ = ["ANSWER_WITHIN_S", "Answer", "Connection", "close_all", "error_of", "set_once"]

ANSWER_WITHIN_S = 30.0
"""Time to build, kill and answer, beyond what the request itself is to take."""
_MOST_TEMPLATES = 1024
_LEAST_MEMORY = 16 << 20  # bytes: what a fork and its PID 1 take before the program does
_Key: TypeAlias = tuple[Template, str, tuple[str, ...], tuple[tuple[str, str], ...], str, Limits]
Answer: TypeAlias = tuple[dict[str, Any], list[int]]
"""A message and its descriptors."""

_KINDS: dict[str, type[StockadeError]] = {
    "conflict": Conflict,
    "invalid": Invalid,
    "not_found": NotFound,
    "unavailable": Unavailable,
    "unsupported": Unsupported,
}


class Connection:
    """Numbers requests and hands each answer, with its descriptors, to whoever waits for it."""

    def __init__(self, warden: Warden) -> None:
        self.warden = warden
        self.lost: str | None = None
        self._socket = warden.connection
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0
        self._templates: dict[_Key, int] = {}
        self._urgent: deque[dict[str, Any]] = deque()
        """What is sent as soon as there is room."""
        self._sending: asyncio.Task[None] | None = None
        self._writable: asyncio.Event = asyncio.Event()
        self._writable.set()
        self._loop.add_reader(self._socket, self._read)

    async def ask(self, message: dict[str, Any], fds: tuple[int, ...], within_s: float | None) -> Answer:
        """Send a request and wait for its answer; the answer's descriptors are the caller's to close.

        When cancelled, the warden is told, and the cancellation goes on once it has answered. With `None` for the
        time, it waits for as long as the warden lives.
        """
        self._number += 1
        number = self._number
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[number] = future
        try:
            name = structlog.contextvars.get_contextvars().get("request_id", "")
            await self._send({**message, "id": number, "request": name}, fds)
            try:
                async with asyncio.timeout(within_s):
                    # Shielded: a cancelled future could not take the answer that we still wait for.
                    return await asyncio.shield(future)
            except TimeoutError:
                raise BackendLost(f"the warden did not answer within {within_s:g} s") from None
            except asyncio.CancelledError:
                await self._cancel(number, future)
                raise
        finally:
            self._waiting.pop(number, None)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a request whose answer nobody waits for; dropped where the socket is full."""
        self._number += 1
        with contextlib.suppress(OSError):
            protocol.send(self._socket, {**message, "id": self._number})

    def insist(self, message: dict[str, Any]) -> None:
        """Send a request whose answer nobody waits for; where the socket is full, as soon as it is not."""
        if self._urgent:
            self._urgent.append(message)
            return
        self._number += 1
        try:
            protocol.send(self._socket, {**message, "id": self._number})
        except BlockingIOError:
            self._urgent.append(message)
            self._sending = self._loop.create_task(self._send_urgent())
        except OSError as error:
            self._lose(f"the warden is gone: {error.strerror}")

    async def _send_urgent(self) -> None:
        with contextlib.suppress(BackendLost):
            while self._urgent:
                self._number += 1
                await self._send({**self._urgent[0], "id": self._number}, ())
                self._urgent.popleft()

    async def template(self, sandbox: SandboxSpec, process: ProcessSpec, *, announce: bool = False) -> int | None:
        """The number by which the warden knows what *process* may be begun from; `None` for nothing."""
        template = process.template
        if template is None:
            return None
        limits = sandbox.limits
        env = tuple(process.env.items())
        key = (template, sandbox.image, process.argv, env, process.cwd, limits)
        number = self._templates.get(key)
        if number is None or announce:
            recipe = _recipe(template, sandbox, process)
            answer, _ = await self.ask({"op": "template", "announce": announce, **recipe}, (), ANSWER_WITHIN_S)
            if "error" in answer:
                error = error_of(answer["error"])
                if isinstance(error, Unavailable):
                    return None  # it knows too many already: the run starts from nothing
                raise error
            number = int(answer["ok"]["template"])
            if len(self._templates) < _MOST_TEMPLATES:
                self._templates[key] = number
        return number

    async def _cancel(self, number: int, future: "asyncio.Future[Answer]") -> None:
        with contextlib.suppress(BaseException):
            await self._send({"op": "cancel", "id": number}, ())
            async with asyncio.timeout(ANSWER_WITHIN_S):
                _, fds = await asyncio.shield(future)
                close_all(fds)

    async def _send(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        while True:
            if self.lost is not None:
                raise BackendLost(self.lost)
            try:
                protocol.send(self._socket, message, fds)
                return
            except BlockingIOError:
                await self._until_writable()
            except protocol.ProtocolError as error:
                raise Invalid(f"arguments and environment are too long: {error}") from error
            except UnicodeEncodeError as error:
                raise Invalid(f"arguments and environment must be text that UTF-8 can write: {error}") from error
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    # unix(7): more descriptors of this user's are on their way than a process may have open. Nothing of
                    # this message was sent, so what is under way needs not be lost with it.
                    raise Unavailable("too many descriptors are on their way to wardens") from error
                self._lose(f"the warden is gone: {error.strerror}")

    async def _until_writable(self) -> None:
        if self._writable.is_set():
            self._writable.clear()
            self._loop.add_writer(self._socket, self._now_writable)
        await self._writable.wait()

    def _now_writable(self) -> None:
        self._loop.remove_writer(self._socket)
        self._writable.set()

    def _read(self) -> None:
        while True:
            try:
                received = protocol.receive(self._socket)
            except BlockingIOError:
                return
            except (OSError, protocol.ProtocolError) as error:
                self._lose(f"the warden is gone: {error}")
                return
            if received is None:
                self._lose("the warden has ended")
                return
            message, fds = received
            future = self._waiting.get(message.get("re", -1))
            if future is None or future.done():
                close_all(fds)
            else:
                future.set_result((message, fds))

    def _lose(self, why: str) -> None:
        """Every waiting request learns that its sandbox is gone."""
        if self.lost is None:
            self.lost = why
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._writable.set()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(BackendLost(why))
                    future.exception()  # its waiter may be gone already: no complaint at collection

    async def close(self) -> None:
        self._lose("closed")
        if self._sending is not None:
            await asyncio.wait([self._sending])
        await self.warden.close()


def _recipe(template: Template, sandbox: SandboxSpec, process: ProcessSpec) -> dict[str, Any]:
    """What the warden is told of a template."""
    limits = sandbox.limits
    is_fork = template.kind is TemplateKind.FORK
    return {
        "kind": template.kind,
        "image": sandbox.image,
        "argv": process.argv,
        "env": dict(process.env),
        "cwd": process.cwd,
        "preload": template.preload,
        "boot": template.boot,
        "files": dict(template.files),
        "memory_bytes": _LEAST_MEMORY if is_fork else limits.memory_bytes,
        "processes": limits.processes,
        "disk_bytes": limits.disk_bytes,
        "disk_inodes": limits.disk_inodes,
        "open_files": limits.open_files,
        "stack_bytes": limits.stack_bytes,
    }


def set_once(future: "asyncio.Future[None]") -> None:
    """What a descriptor's readiness calls: more than once, perhaps."""
    if not future.done():
        future.set_result(None)


def close_all(fds: list[int]) -> None:
    """Close every descriptor of the list, and empty it."""
    while fds:
        os.close(fds.pop())


def error_of(error: dict[str, Any]) -> StockadeError:
    """The warden's refusal as one of our errors."""
    return _KINDS.get(error.get("kind", ""), Fault)(str(error.get("message")))
